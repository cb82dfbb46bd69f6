"""Where the recorder's tests run their shells, and the marks of those that need more."""

import pytest

from data_pipeline.recorder import family, isolation


def usable(sandbox):
    try:
        isolation.check_sandbox(sandbox)
    except ValueError:
        return False
    return True


# Where bubblewrap is missing the tests run without isolation.
SANDBOX = "bwrap" if usable("bwrap") else "none"
FAMILIES = family.load_all()
_TOOLS = sorted({tool for one in FAMILIES.values() for tool in one.tools})
_MISSING = set(isolation.missing_tools(_TOOLS, sandbox=SANDBOX))

needs_bwrap = pytest.mark.skipif(SANDBOX == "none", reason="bubblewrap does not work here")


def needs_tools(one):
    """The mark of a test that plays the family."""
    missing = ", ".join(sorted(_MISSING & set(one.tools)))
    return pytest.mark.skipif(bool(missing), reason=f"needs {missing}")
