"""Boxes of the local sandbox for its tests, and a look at what they leave running."""

import pathlib
import time

import pytest

from data_pipeline.sandbox import root_view, sandbox

# Where its programs are the sandbox must work: a test of it is not skipped because it does not.
needs_programs = pytest.mark.skipif(
    bool(root_view.missing_programs()),
    reason=f"no sandbox without {', '.join(root_view.missing_programs())}",
)


def make_box(**settings) -> sandbox.Sandbox:
    defaults = {"cpus": 1, "memory_mb": 256, "storage_mb": 64, "lifetime_s": 120}
    return sandbox.Sandbox(**(defaults | settings))


def has_process(mark: str) -> bool:
    """Whether any process of the machine has `mark` in its command line."""
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                return True
        except OSError:
            continue  # it ended meanwhile
    return False


def wait_until(condition, *, within_s: float = 10.0) -> bool:
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        if condition():
            return True
        time.sleep(0.05)
    return condition()
