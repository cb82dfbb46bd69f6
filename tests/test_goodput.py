"""Where a run's time goes: sleeps are found where they were made, and all adds up to the clock."""

import dataclasses
import json
import os
import re
import signal
import threading
import time

import conversations
import jax
import packed_rows
import pytest

from jaxterm import batches, command, config, goodput, metrics, profiling, summary
from jaxterm import train as train_command

PAUSE_S = 0.1  # of the reader, before each batch
NAMES = [f"{phase}_seconds" for phase in goodput.PHASES]


def settings(corpus) -> config.TrainConfig:
    """A run of eight steps of a very small model, saved at the third, sixth and last."""
    return config.TrainConfig(
        model=dataclasses.replace(packed_rows.TINY, vocab_size=2560),
        max_steps=8,
        start=config.StartConfig(random=True),
        compute=config.ComputeConfig(compute_dtype="float32", attention_block=64),
        mesh=config.MeshConfig(data=-1, fsdp=1),
        data=config.DataConfig(
            corpus=(str(corpus),), row_length=128, global_batch_size=8, heldout_fraction=0.25
        ),
        log=config.LogConfig(checkpoint_every_steps=3, eval_every_steps=0),
        export=config.ExportConfig(enabled=False),
    )


def train_slowly(monkeypatch, run, workdir, *, before_step, profile=None) -> tuple[int, float]:
    """A start whose reader sleeps before each batch and calls `before_step(step)`.

    Returns its exit code and its seconds.
    """
    read = batches.iterate

    def iterate(*arguments, first_step, **options):
        rows = read(*arguments, first_step=first_step, **options)
        for step, batch in enumerate(rows, first_step + 1):
            time.sleep(PAUSE_S)
            before_step(step)
            yield batch

    begun_s = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(batches, "iterate", iterate)
        code = train_command.main(run, workdir, profile=profile)
    return code, time.monotonic() - begun_s


def fail_at(step: int):
    def before_step(now: int) -> None:
        if now == step:
            raise OSError(f"the disk is gone at step {step}")

    return before_step


def stop_at(step: int):
    def before_step(now: int) -> None:
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return before_step


@pytest.fixture(scope="module")
def three_starts(tmp_path_factory):
    """A run that failed in step 6, was stopped in step 5, and then ended.

    The workdir, the records that the first start left, the seconds of the other two.
    """
    folder = tmp_path_factory.mktemp("goodput")
    workdir = folder / "run"
    rows = conversations.random_rows(0, 80, sources=("a", "b"))
    run = settings(conversations.write_jsonl(folder / "corpus.jsonl", rows))
    with pytest.MonkeyPatch.context() as patch:
        with pytest.raises(OSError, match="the disk is gone"):
            train_slowly(patch, run, workdir, before_step=fail_at(6), profile=profiling.Steps(2, 3))
        left = metrics.read_records(workdir)
        code, second_s = train_slowly(
            patch, run, workdir, before_step=stop_at(5), profile=profiling.Steps(5, 8)
        )
        assert code == command.STOPPED
        code, third_s = train_slowly(patch, run, workdir, before_step=lambda step: None)
        assert code == 0
    return workdir, left, (second_s, third_s)


def last_of_starts(workdir) -> dict[int, dict]:
    return {record["start"]: record for record in metrics.read_records(workdir, goodput.KIND)}


def test_a_ledger_adds_up_to_its_starts_clock(three_starts):
    workdir, _, (second_s, third_s) = three_starts
    ledgers = last_of_starts(workdir)
    assert ledgers.keys() == {1, 2, 3}
    assert [ledgers[start]["step"] for start in (1, 2, 3)] == [3, 5, 8]
    for record in metrics.read_records(workdir, goodput.KIND):
        assert sum(record[name] for name in NAMES) == pytest.approx(record["wall_seconds"])
        assert all(record[name] >= 0 for name in NAMES)
    assert ledgers[2]["wall_seconds"] < second_s
    assert ledgers[3]["wall_seconds"] < third_s
    assert all(ledgers[3][name] > 0 for name in NAMES)


def test_the_time_in_a_slow_reader_is_told(three_starts):
    """Eight steps, eight pauses; those with no step before them to hide behind are stalls."""
    workdir, _, _ = three_starts
    steps = metrics.read_records(workdir, "train")
    assert [record["step"] for record in steps] == list(range(1, 9))
    waits = {record["step"]: record["input_wait_seconds"] for record in steps}
    # A report follows the dispatch of the next step, if the run is not saved before.
    assert waits[1] >= 2 * PAUSE_S
    assert sum(waits.values()) >= 8 * PAUSE_S
    ledgers = last_of_starts(workdir)
    assert ledgers[1]["input_stall_seconds"] >= PAUSE_S
    assert ledgers[3]["input_stall_seconds"] >= 2 * PAUSE_S  # behind the start and a save
    waited = sum(waits[step] for step in (6, 7, 8))
    assert ledgers[3]["input_stall_seconds"] <= waited + 1e-6


def test_a_report_tells_steps_and_saves(three_starts):
    workdir, _, _ = three_starts
    for record in metrics.read_records(workdir, "train"):
        p50, p90, longest = (record[f"step_seconds_{name}"] for name in ("p50", "p90", "max"))
        assert 0 < p50 <= p90 <= longest
        # Of the saves within a start that are still in the file only one has a step after it.
        assert (record["checkpoint_stall_seconds"] > 0) == (record["step"] == 7)


def test_what_a_start_did_after_its_last_checkpoint_is_lost(three_starts):
    """The failed start was saved at 3 and reported 4: all between is lost, and known."""
    workdir, left, _ = three_starts
    saved = [record for record in left if record["kind"] == goodput.KIND][-1]
    reported = [record for record in left if record["kind"] == "train"][-1]
    assert (saved["step"], reported["step"]) == (3, 4)
    lost = reported["wall_seconds"] - saved["wall_seconds"]
    assert lost >= PAUSE_S
    assert [record["lost_seconds"] for record in last_of_starts(workdir).values()] == [0, lost, 0]


def test_the_summary_adds_the_starts_up(three_starts, capsys):
    workdir, _, _ = three_starts
    ledgers = last_of_starts(workdir).values()
    values = json.loads((workdir / summary.FILE_NAME).read_text())
    total = values["goodput"]
    assert total["starts"] == 3
    for name in (*NAMES, "lost_seconds"):
        assert total[name] == pytest.approx(sum(ledger[name] for ledger in ledgers))
    summary.show(values, workdir)
    shown = capsys.readouterr().out
    assert goodput.line(total) in shown
    assert "in 3 starts: steps" in shown


def test_both_profiles_have_their_steps_and_scopes(three_starts):
    """The first has all it was asked for, the second the one step before the stop."""
    workdir, _, _ = three_starts
    traces = sorted((workdir / profiling.FOLDER).glob("plugins/profile/*/*.xplane.pb"))
    assert [steps_in(trace) for trace in traces] == [{2, 3}, {5}]
    for trace in traces:
        # Operations are called jit(train_step)/optimizer/mul, jit(train_step)/jvp(loss)/log, ...
        names = set(re.findall(rb"jit\(train_step\)/([ -~]{1,200})", trace.read_bytes()))
        parts = {part for name in names for part in re.split(rb"[/()]", name)}
        assert {b"embed", b"attention", b"mlp", b"loss", b"optimizer"} <= parts


def steps_in(trace) -> set[int]:
    """The numbers of the steps that were dispatched while it ran."""
    planes = jax.profiler.ProfileData.from_file(str(trace)).planes
    events = (event for plane in planes for line in plane.lines for event in line.events)
    return {dict(event.stats)["step_num"] for event in events if event.name == "train"}


class Device:
    """Steps that end when told to: jax waits for whatever has a block_until_ready."""

    def __init__(self):
        self.go = threading.Event()

    def run(self, ledger: goodput.Ledger):
        with ledger.dispatch((1,)):
            pass
        return ledger.watch({"loss": self})

    def block_until_ready(self):
        assert self.go.wait(timeout=300)


def test_a_wait_behind_a_running_step_is_no_stall():
    device = Device()
    with goodput.Ledger() as ledger:
        ledger.started()
        step = device.run(ledger)
        with ledger.phase(goodput.INPUT):
            time.sleep(PAUSE_S)
        device.go.set()
        assert step.result() >= PAUSE_S
        seconds = ledger.seconds()
    assert seconds["input_stall_seconds"] == 0
    assert seconds["steps_seconds"] >= PAUSE_S
    assert ledger.take_waits()["input_wait_seconds"] >= PAUSE_S
    assert ledger.take_waits()["input_wait_seconds"] == 0


def test_no_step_is_charged_for_the_time_between_steps():
    device = Device()
    device.go.set()
    with goodput.Ledger() as ledger:
        ledger.started()
        steps = [device.run(ledger).result()]
        for phase in (goodput.INPUT, goodput.EVALUATION, goodput.CHECKPOINT):
            with ledger.phase(phase):
                time.sleep(PAUSE_S)
            steps.append(device.run(ledger).result())
        seconds = ledger.seconds()
    assert sum(seconds[name] for name in NAMES) == pytest.approx(seconds["wall_seconds"])
    for phase in (goodput.INPUT, goodput.EVALUATION, goodput.CHECKPOINT):
        assert seconds[f"{phase}_seconds"] >= PAUSE_S
    assert sum(steps) - 1e-6 <= seconds["steps_seconds"] <= seconds["wall_seconds"] - 3 * PAUSE_S


def test_the_sum_of_all_starts_and_its_line():
    def record(start: int, lost: float, **seconds: float) -> dict:
        every = dict.fromkeys(NAMES, 0.0) | seconds
        return {"start": start, "lost_seconds": lost, "wall_seconds": sum(every.values()), **every}

    records = [
        record(1, 0.0, startup_seconds=10.0),
        record(1, 0.0, startup_seconds=10.0, steps_seconds=50.0, input_stall_seconds=0.01),
        record(2, 5.0, startup_seconds=10.0, steps_seconds=25.0),
    ]
    total = goodput.total(records)
    assert total["wall_seconds"] == pytest.approx(100.01)
    assert goodput.line(total) == (
        "time 0:01:40 in 2 starts: steps 75.0%, startup 20.0%, lost 5.0%"
    )
    assert goodput.total([]) is None


def test_lost_time_is_counted_for_each_start_that_is_gone_back_behind():
    """Two checkpoints are removed: of the second start all is lost, of the first what came last."""
    ledger, report = {"kind": goodput.KIND}, {"kind": "train"}
    records = [
        ledger | {"step": 0, "start": 1, "wall_seconds": 10.0},
        report | {"step": 5, "wall_seconds": 20.0},
        ledger | {"step": 5, "start": 1, "wall_seconds": 21.0},
        report | {"step": 10, "wall_seconds": 30.0},
        ledger | {"step": 10, "start": 1, "wall_seconds": 31.0},
        {"step": 10, "kind": "heldout", "all": 2.0},
        ledger | {"step": 10, "start": 2, "wall_seconds": 7.0},
        report | {"step": 11, "wall_seconds": 9.0},
    ]
    assert goodput.next_start(records, 10) == (3, 2.0)
    assert goodput.next_start(records, 5) == (2, (31.0 - 21.0) + 9.0)
    assert goodput.next_start(records, 11) == (3, 0.0)
    assert goodput.next_start([], 0) == (1, 0.0)
