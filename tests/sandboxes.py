"""Where tests run their shells, and the marks of those that need more."""

import pytest

from data_pipeline.recorder import family, isolation
from data_pipeline.sandbox import sandbox


def usable(kind):
    try:
        isolation.check_sandbox(kind)
    except ValueError:
        return False
    return True


def is_sandbox_here():
    """Whether generated tasks can be run: the sandbox wants more than the recorder's."""
    try:
        sandbox.check()
    except sandbox.SandboxError:
        return False
    return True


needs_sandbox = pytest.mark.skipif(not is_sandbox_here(), reason="bubblewrap does not work here")

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
