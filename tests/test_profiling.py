"""The flag --profile: what it takes, what it refuses, and what becomes of steps already done."""

import re

import pytest
from test_command import run_train

from jaxterm import profiling


def test_both_ends_are_profiled():
    assert profiling.parse("10:12") == profiling.Steps(first=10, last=12)
    assert profiling.parse("7:7") == profiling.Steps(first=7, last=7)
    assert profiling.parse(None) is None


@pytest.mark.parametrize("value", ["3:1", "0:2", "5", "a:b", "", "1:2:3", "-1:2", "1:", "٣:٤"])
def test_junk_is_refused_by_name(value):
    with pytest.raises(ValueError, match=rf"^--profile={re.escape(value)}: .*1 <= FIRST <= LAST"):
        profiling.parse(value)


def test_the_command_refuses_junk_in_one_line(tmp_path):
    result = run_train("--config=configs/tiny.py", f"--workdir={tmp_path / 'run'}", "--profile=3:1")
    assert result.returncode == 1
    assert re.fullmatch(r"error: --profile=3:1: must be FIRST:LAST.*\n", result.stderr)
    assert not (tmp_path / "run").exists()


def test_steps_that_the_run_does_not_have_are_refused():
    profiling.Steps(10, 12).check(12)
    with pytest.raises(ValueError, match=r"^--profile=10:12: the run has 11 steps"):
        profiling.Steps(10, 12).check(11)


def test_steps_that_were_done_before_are_not_traced_and_that_is_said(tmp_path):
    said = []
    steps = profiling.Steps(2, 3)
    with profiling.Profiler(steps, tmp_path, first_step=3, say=said.append) as profiler:
        profiler.before(4, ())
        profiler.after(4, ())
    assert said == ["--profile=2:3: an earlier start did these steps; nothing is traced"]
    assert not list(tmp_path.iterdir())
