"""The cases of seqio_cases.py, in a process of their own: TensorFlow and torch abort in one."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_tokens_through_the_real_seqio():
    if importlib.util.find_spec("seqio") is None:
        pytest.skip("needs the extra `seqio`")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-q", "tests/seqio_cases.py"],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
