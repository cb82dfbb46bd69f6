"""Where work runs on this machine: how many processes, and what happens when one dies."""

import os
import signal

import pytest

from data_pipeline import executor


def die(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize(
    ("cores", "threads", "told", "processes"),
    [(2, 4, 0, 0), (4, 4, 0, 0), (16, 4, 0, 4), (18, 4, 0, 5), (16, 1, 0, 16), (16, 4, 3, 3)],
)
def test_processes_keep_the_cores_busy(monkeypatch, cores, threads, told, processes):
    monkeypatch.setattr(executor, "num_cores", lambda: cores)
    workers = executor.WorkerOptions(num_workers=told)
    assert executor._num_processes(100, workers, executor.PROCESS_BYTES, threads) == processes
    assert executor._num_processes(2, workers, executor.PROCESS_BYTES, threads) <= 2
    assert executor._num_processes(100, workers, 1, threads) == told


@pytest.mark.slow
def test_a_killed_process_is_told_as_such():
    two = executor.WorkerOptions(num_workers=2)
    with pytest.raises(OSError, match=r"one of 2 worker processes was killed.* goes on where"):
        list(executor.results(die, [1, 2, 3, 4], two, input_bytes=0))
