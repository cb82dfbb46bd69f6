"""Harbor's process, which can be stopped: its signals, exit codes and output."""

import os
import signal
import sys
import threading
import time

import pytest

from data_pipeline import harbor


def run_python(script, tmp_path, *, tick=lambda: None):
    return harbor.run(
        [sys.executable, "-c", script],
        environment=dict(os.environ),
        log_file=tmp_path / "log",
        keep_open=[],
        tick=tick,
    )


PATIENT = """
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: (print("asked", flush=True), {end}))
print("ready", flush=True)
time.sleep(600)
"""


def when_ready(log, action):
    """A `tick` that acts once the process has begun."""
    done = []

    def tick():
        if not done and log.exists() and "ready" in log.read_text():
            done.append(True)
            action()

    return tick


def test_exit_codes_and_output_are_kept(tmp_path):
    assert run_python("print('said'); raise SystemExit(3)", tmp_path) == 3
    assert (tmp_path / "log").read_text() == "said\n"


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM))
def test_a_signal_ends_the_process_as_an_interrupt(tmp_path, number):
    before = signal.getsignal(number)
    tick = when_ready(tmp_path / "log", lambda: os.kill(os.getpid(), number))
    with pytest.raises(harbor.StoppedError) as caught:
        run_python(PATIENT.format(end="sys.exit(0)"), tmp_path, tick=tick)
    assert caught.value.number == number
    assert (tmp_path / "log").read_text() == "ready\nasked\n"
    assert signal.getsignal(number) is before


def test_a_second_signal_kills(tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT)).start()

    begun = time.monotonic()
    with pytest.raises(harbor.StoppedError):
        run_python(PATIENT.format(end="None"), tmp_path, tick=when_ready(tmp_path / "log", twice))
    assert time.monotonic() - begun < 60


def test_what_goes_wrong_meanwhile_ends_the_process(tmp_path):
    def fail():
        raise ValueError("the server is gone")

    with pytest.raises(ValueError, match="the server is gone"):
        run_python(
            PATIENT.format(end="sys.exit(0)"), tmp_path, tick=when_ready(tmp_path / "log", fail)
        )
    assert (tmp_path / "log").read_text() == "ready\nasked\n"
