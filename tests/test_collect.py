import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
from harbor_side import exported, needs_harbor, write_trial

from data_pipeline import atif, collect, collect_shard, corpus, curate, manifest, trials
from data_pipeline.curation import row_filters

ASK = {"source": "user", "message": "do it"}


def say(message="ok", **more):
    return {"source": "agent", "message": message} | more


def declare(done):
    return say(json.dumps({"analysis": "", "plan": "", "commands": [], "task_complete": done}))


def trajectory(*steps, **more):
    return {"agent": {"name": "terminus-2", "model_name": "openai/some"}, "steps": steps} | more


GOOD = {"trajectory.json": trajectory(ASK, say())}


def run(trials_dir, tmp_path, name="corpus", **options):
    report = collect.collect(
        trials_dir,
        output_dir=tmp_path / name,
        options=collect.CollectOptions(**options),
        overwrite=True,
    )
    return report, rows_in(tmp_path / name)


def rows_in(folder):
    return [
        row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


def write_task(folder, **metadata):
    folder.mkdir(parents=True)
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in metadata.items())
    (folder / "task.toml").write_text(f"[metadata]\n{lines}\n")
    return folder


def test_row_equals_harbors_export_of_a_recorded_job(shared_data, tmp_path):
    expected = json.loads((shared_data / "harbor" / "job_exported_row.json").read_text())
    report, [row] = run(shared_data / "harbor" / "job", tmp_path)
    assert {name: row[name] for name in expected} == expected
    assert (row["reward"], row["complete"], row["enable_thinking"]) == (1.0, True, True)
    assert (row["input_tokens"], row["output_tokens"], row["cost_usd"]) == (406, 200, None)
    assert report["found"] == report["trials"] == report["rows"] == 1
    assert report["collapsed"] == 3 and report["replies"] == 4


@needs_harbor
def test_rows_equal_harbors_exporter(shared_data, tmp_path):
    """A job of what its exporter tells apart: rewards, exceptions, parts and subagents."""
    job, files = tmp_path / "job", GOOD
    shutil.copytree(shared_data / "harbor" / "job" / "hello__SY5mEKo", job / "hello__SY5mEKo")
    write_trial(job / "zero", files, reward=0)
    write_trial(job / "part", files, reward=0.25)
    write_trial(job / "untested", files, reward=None)
    write_trial(job / "slow", files, exception="AgentTimeoutError")
    write_trial(job / "refused", files, exception="InternalServerError", reward=None)
    parts = {
        "trajectory.json": trajectory(
            ASK, say(), continued_trajectory_ref="trajectory.cont-1.json"
        ),
        "trajectory.cont-1.json": trajectory(ASK, say("b"), say("c")),
        "trajectory.summarization-1-summary.json": trajectory(ASK, say("sum")),
    }
    write_trial(job / "parts", parts)
    columns = (
        "conversations", "agent", "model", "model_provider", "date", "task", "episode", "run_id",
        "trial_name", "result", "trace_source",
    )  # fmt: skip
    _, rows = run(job, tmp_path, interrupted="keep")
    theirs = {
        (name, row["trace_source"], row["episode"]): [row[column] for column in columns]
        for name, made in exported(job).items()
        for row in made
    }
    assert len(rows) == 9
    for row in rows:
        place = row["trial_name"], row["trace_source"], row["episode"]
        assert [row[column] for column in columns] == theirs[place]
    assert {row["result"] for row in rows} >= {"0.0", "0.25", "1.0", None, "AgentTimeoutError"}


def test_curate_takes_what_was_collected(shared_data, tmp_path):
    run(shared_data / "harbor" / "job", tmp_path)
    curated = curate.curate(
        [str(tmp_path / "corpus")],
        output_dir=tmp_path / "curated",
        options=curate.CurateOptions(trajectory_filter="success", strict=True),
    )
    [path] = corpus.find_files([str(tmp_path / "curated")])
    [row] = corpus.read_rows(path)
    conversation = row.conversation
    assert curated.removed is None and conversation is not None
    assert conversation.get("num_errors") == 0 and conversation.get("reward") == 1
    extra = conversation.extra
    assert (extra["input_tokens"], extra["trace_source"]) == (406, atif.MAIN)


def test_labels_of_tasks(tmp_path):
    """By --tasks, by what rollout left, and by where the trial says that its task was."""
    told = write_task(
        tmp_path / "tasks" / "one", source="seed", domain="security", difficulty="easy"
    )
    near = write_task(tmp_path / "far" / "near", category="games", verified=False)
    job = tmp_path / "out"
    write_trial(job / "trials" / "one", GOOD, task="one")
    write_trial(job / "trials" / "two", GOOD, task="two")
    write_trial(job / "trials" / "lost", GOOD, task="lost")
    place = {"agent": {"name": "terminus-2"}, "task": {"path": str(near)}}
    write_trial(job / "trials" / "near", GOOD, config=place)
    (job / "tasks.json").write_text(json.dumps({"two": {"source": "skill", "verified": False}}))
    report, rows = run(job, tmp_path, tasks=(str(told.parent),))
    names = ("source", "domain", "difficulty", "reward")
    assert {row["trial_name"]: tuple(row[name] for name in names) for row in rows} == {
        "one": ("seed", "security", "easy", 1.0),
        "two": ("skill", None, None, None),
        "near": (collect_shard.SOURCE, "games", None, None),
        "lost": (collect_shard.SOURCE, None, None, 1.0),
    }
    assert report["rewards"] == {"1": 2, "none: the task is not verified": 2}
    assert report["faults"] == {collect_shard.NO_LABELS: 1}
    # The folder of the trials alone finds the labels that lie beside it.
    _, again = run(job / "trials", tmp_path, "again")
    assert {row["trial_name"]: row["reward"] for row in again}["two"] is None


COMPLETE = [  # replies; whether Terminus 2 ends the trial after them
    ([declare(False)], False),
    ([declare(True)], False),
    ([declare(True), declare(True)], True),
    ([declare(True), declare(False), declare(True)], False),
    ([declare(True), declare(True), declare(False)], False),
    ([declare(True), say("no json"), declare(True)], True),
    ([declare(True), say("no json")], False),
    ([say("x", tool_calls=[{"function_name": "mark_task_complete", "arguments": {}}])] * 2, True),
    ([say("x", tool_calls=[{"function_name": "bash_command", "arguments": {}}])] * 2, False),
]


def test_complete_is_what_was_confirmed(tmp_path):
    for i, (replies, _) in enumerate(COMPLETE):
        files = {"trajectory.json": trajectory(ASK, *replies)}
        write_trial(tmp_path / "job" / f"t{i}", files)
    done = {"trajectory.json": trajectory(ASK, declare(True), declare(True))}
    write_trial(tmp_path / "job" / "t-late", done, exception="AgentTimeoutError")
    _, rows = run(tmp_path / "job", tmp_path)
    found = {row["trial_name"]: row["complete"] for row in rows}
    assert found == {f"t{i}": whole for i, (_, whole) in enumerate(COMPLETE)} | {"t-late": False}


def write_broken(job):
    """Trials of every fault that real jobs leave; returns how many, by reason."""
    write_trial(job / "no-file", {})
    write_trial(job / "no-env", {}, exception="EnvironmentStartTimeoutError", reward=None)
    write_trial(job / "no-build", {}, exception="SandboxBuildFailedError", reward=None)
    write_trial(job / "cut", {"trajectory.json": '{"steps": [{"sou'})
    write_trial(job / "silent", {"trajectory.json": trajectory(ASK)}, exception="AgentTimeoutError")
    write_trial(job / "server", GOOD, exception="InternalServerError", reward=None)
    write_trial(job / "odd", GOOD, exception="NobodyKnowsError")
    write_trial(job / "stopped", GOOD, exception="CancelledError", reward=None)
    write_trial(
        job / "half", {"trajectory.json": '{"steps": [{"source": "agent", "message": "\\ud800"}]}'}
    )
    (write_trial(job / "runs", GOOD) / "result.json").unlink()
    (write_trial(job / "torn", GOOD) / "result.json").write_text('{"trial_na')
    (write_trial(job / "list", GOOD) / "result.json").write_text("[]")
    return {
        atif.NO_FILE: 1,
        f"{trials.Failure.INFRASTRUCTURE}: EnvironmentStartTimeoutError": 1,
        f"{trials.Failure.INFRASTRUCTURE}: SandboxBuildFailedError": 1,
        f"{trials.Failure.INFRASTRUCTURE}: InternalServerError": 1,
        f"{trials.Failure.INFRASTRUCTURE}: NobodyKnowsError": 1,
        f"{trials.Failure.STOPPED}: CancelledError": 1,
        atif.DAMAGED: 1,
        f"{atif.NO_REPLY}: AgentTimeoutError": 1,
        collect_shard.BAD_TEXT: 1,
        collect_shard.RUNNING: 1,
        collect_shard.DAMAGED_RESULT: 2,
    }


def test_broken_trials_are_counted_by_reason(tmp_path):
    job = tmp_path / "job"
    expected = write_broken(job)
    with pytest.raises(ValueError, match="no trial left a conversation"):
        run(job, tmp_path)
    assert not (tmp_path / "corpus").exists()
    for name in ("good", "late", "unjudged"):
        exception = {"late": "AgentTimeoutError", "unjudged": "VerifierTimeoutError"}.get(name, "")
        write_trial(job / name, GOOD, exception=exception, reward=0.5)
    report, rows = run(job, tmp_path)
    assert report["dropped"] == expected
    assert report["found"] == sum(expected.values()) + 3 and report["trials"] == 3
    rewards = {row["trial_name"]: row["reward"] for row in rows}
    assert rewards == {"good": 0.5, "late": 0.5, "unjudged": None}
    _, kept = run(job, tmp_path, interrupted="keep")
    cut = {"server", "odd", "stopped"}
    assert {row["trial_name"] for row in kept} == set(rewards) | cut
    assert {row["reward"] for row in kept if row["trial_name"] in cut} == {None}


def test_hostile_trials(tmp_path):
    """What an agent may have written below its trial's folder, and numbers that no column holds."""
    job = tmp_path / "job"
    outside = write_trial(tmp_path / "outside", {"trajectory.json": trajectory(ASK, say("secret"))})
    inside = write_trial(job / "t", GOOD)
    write_trial(
        inside / "artifacts" / "forged", {"trajectory.json": trajectory(ASK, say("forged"))}
    )
    (inside / "agent" / "agent").symlink_to(outside / "agent", target_is_directory=True)
    (job / "link").symlink_to(outside, target_is_directory=True)
    big = {"prompt_tokens": 10**30, "completion_tokens": -(10**30), "cost_usd": 1e999}
    files = {"trajectory.json": trajectory(ASK, say(metrics=big))}
    odd = {"agent_result": {"n_input_tokens": 10**30, "cost_usd": float("nan")}}
    write_trial(job / "numbers", files, reward=float("inf"), started_at="\ud800", **odd)
    write_trial(job / "..name", {"trajectory.json": trajectory(ASK, say("hidden"))})
    report, rows = run(job, tmp_path)
    assert {row["trial_name"] for row in rows} == {"t", "numbers"}
    assert {turn["content"] for row in rows for turn in row["conversations"]} == {"do it", "ok"}
    [row] = [row for row in rows if row["trial_name"] == "numbers"]
    assert [row[n] for n in ("reward", "input_tokens", "output_tokens", "cost_usd")] == [None] * 4
    json.dumps(report, allow_nan=False)


def test_copied_turns_are_not_trained_twice(tmp_path):
    copied = {"is_copied_context": True}
    files = {
        "trajectory.json": trajectory(
            ASK, say("a"), continued_trajectory_ref="trajectory.cont-1.json"
        ),
        "trajectory.cont-1.json": trajectory(ASK | copied, say("q") | copied, ASK, say("b")),
        "trajectory.summarization-1-questions.json": trajectory(ASK, say("q")),
    }
    write_trial(tmp_path / "job" / "t", files)
    report, rows = run(tmp_path / "job", tmp_path)
    trained = [
        turn["content"]
        for row in rows
        for i, turn in enumerate(row["conversations"])
        if turn["role"] == "assistant" and i not in (row["untrained_turns"] or ())
    ]
    assert sorted(trained) == ["a", "b", "q"] and report["replies"] == 3
    _, alone = run(tmp_path / "job", tmp_path, "alone", subagents=False)
    assert {row["trace_source"] for row in alone} == {atif.MAIN}
    curated = curate.curate(
        [str(tmp_path / "corpus")], output_dir=tmp_path / "curated", options=curate.CurateOptions()
    )
    kept = {
        row["episode"]: row["untrained_turns"] for row in pq.read_table(curated.train).to_pylist()
    }
    assert kept["episode-1"] == [1] and row_filters.UNTRAINED not in str(curated.removed)


def many(job, num):
    """Trials that share their files."""
    first = write_trial(job / "t-00000", {"trajectory.json": trajectory(ASK, say("x" * 200_000))})
    result = json.loads((first / "result.json").read_text())
    for i in range(1, num):
        folder = job / f"t-{i:05d}"
        (folder / "agent").mkdir(parents=True)
        os.link(first / "agent" / "trajectory.json", folder / "agent" / "trajectory.json")
        (folder / "result.json").write_text(json.dumps(result | {"trial_name": folder.name}))


def command(job, output, *flags):
    return [sys.executable, "-m", "data_pipeline.collect", str(job), f"--output={output}", *flags]


def test_goes_on_after_a_kill(tmp_path):
    many(tmp_path / "job", 120)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run(command(tmp_path / "job", whole, "--shard_trials=4"), check=True)
    process = subprocess.Popen(command(tmp_path / "job", cut, "--shard_trials=4"))
    while process.poll() is None and len(list(cut.glob("parts/*.json"))) < 2:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = {path.name: path.stat().st_mtime_ns for path in cut.glob("*.parquet")}
    assert 2 <= len(done) < 30 and not (cut / manifest.FILE).exists()
    subprocess.run(command(tmp_path / "job", cut, "--shard_trials=4"), check=True)
    kept = [name for name, stamp in done.items() if (cut / name).stat().st_mtime_ns == stamp]
    assert len(kept) >= 2  # what was whole was not made again
    names = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in cut.iterdir()) == names
    for name in names:
        assert (whole / name).read_bytes() == (cut / name).read_bytes()


def test_a_job_that_went_on_is_collected_anew(tmp_path):
    write_trial(tmp_path / "job" / "a", GOOD)
    output, options = tmp_path / "corpus", collect.CollectOptions()
    first = collect.collect(tmp_path / "job", output_dir=output, options=options)
    assert collect.collect(tmp_path / "job", output_dir=output, options=options) == first
    write_trial(tmp_path / "job" / "b", GOOD)
    with pytest.raises(ValueError, match="--overwrite"):
        collect.collect(tmp_path / "job", output_dir=output, options=options)


MEMORY = """
import pathlib, resource, sys
from data_pipeline import collect
collect.collect(pathlib.Path(sys.argv[1]), output_dir=pathlib.Path(sys.argv[2]),
                options=collect.CollectOptions(shard_trials=200))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_trials(tmp_path):
    peaks = []
    for num in (400, 1600):  # of 0.2 MB each; two full shards, and eight
        many(tmp_path / f"job-{num}", num)
        args = [str(tmp_path / f"job-{num}"), str(tmp_path / f"out-{num}")]
        variables = {"PATH": os.environ["PATH"], "ARROW_DEFAULT_MEMORY_POOL": "system"}
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, *args],
            capture_output=True,
            text=True,
            check=True,
            env=variables,
            cwd=pathlib.Path(collect.__file__).parents[1],
        )
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] - peaks[0] < 60, peaks  # MiB, of 240 more that went through


def test_settings_and_folders(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        run(tmp_path / "nowhere", tmp_path)
    with pytest.raises(ValueError, match="holds no trial"):
        run(tmp_path, tmp_path)
    with pytest.raises(ValueError, match="shard_trials=0"):
        collect.CollectOptions(shard_trials=0)
    write_trial(tmp_path / "job" / "a", GOOD)
    with pytest.raises(ValueError, match="--tasks=/nowhere"):
        run(tmp_path / "job", tmp_path, tasks=("/nowhere",))
