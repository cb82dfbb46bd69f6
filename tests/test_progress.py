"""What a run tells a person: a bar on a terminal, lines elsewhere, the time that is left."""

import types

import pytest

from jaxterm import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets; only progress.py looks at it."""
    clock = types.SimpleNamespace(now_s=1000.0)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: clock.now_s))
    return clock


@pytest.fixture
def terminal(monkeypatch):
    """rich takes any file for a wide terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("TERM", "xterm")


def values(loss: float) -> dict[str, float]:
    return {"loss": loss, "tokens_per_s": 12_345.6, "loss_tokens_per_s": 2_345.6,
            "learning_rate": 2e-5}  # fmt: skip


def report_slow_steps(clock, *, show: bool = True) -> None:
    """Resumed at 10 of 100; half an hour until the first report, then 60 s a step."""
    with progress.Progress(num_steps=100, first_step=10, show=show) as shown:
        clock.now_s += 1800
        shown.step(11, values(3.0))
        shown.say("step 11: held-out loss 2.5000")
        for step in (12, 13):
            clock.now_s += 60
            shown.step(step, values(2.0 + step / 100))


def test_lines_where_there_is_no_terminal(clock, capsys, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    report_slow_steps(clock)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "step 11/100  loss 3.0000  tokens/s 12,346  loss tokens/s 2,346  learning rate 2.00e-05  "
        "left -",
        "step 11: held-out loss 2.5000",
        # 88 steps of a minute, 87 steps of a minute: what came before the first report is past.
        "step 12/100  loss 2.1200  tokens/s 12,346  loss tokens/s 2,346  learning rate 2.00e-05  "
        "left 1:28:00",
        "step 13/100  loss 2.1300  tokens/s 12,346  loss tokens/s 2,346  learning rate 2.00e-05  "
        "left 1:27:00",
    ]


def test_lines_keep_their_pause_and_the_last_step_has_one(clock, capsys, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with progress.Progress(num_steps=25, first_step=0, show=True, line_every_s=10.0) as shown:
        for step in range(1, 26):
            shown.step(step, values(1.0))
            clock.now_s += 1.0
    shown_steps = [line.split("/")[0] for line in capsys.readouterr().err.splitlines()]
    assert shown_steps == ["step 1", "step 11", "step 21", "step 25"]


def test_bar_on_a_terminal_knows_the_time_left_of_slow_steps(clock, terminal, capsys):
    report_slow_steps(clock)
    text = capsys.readouterr().err
    assert "step 11: held-out loss 2.5000" in text
    last = text[text.rindex("training") :]
    for part in ("13/100", "loss 2.1300", "12,346 tokens/s", "2,346 loss tokens/s", "1:27:00"):
        assert part in last, last


@pytest.mark.parametrize("is_terminal", [False, True])
def test_other_processes_say_nothing(clock, is_terminal, capsys, request):
    if is_terminal:
        request.getfixturevalue("terminal")
    report_slow_steps(clock, show=False)
    assert capsys.readouterr() == ("", "")
