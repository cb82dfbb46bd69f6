"""Real trials: Harbor and Terminus 2 in the local sandbox, with a scripted teacher."""

import dataclasses
import fcntl
import json
import operator
import os
import pathlib
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
from harbor_side import exported, exported_data_set, needs_harbor, validate
from sandboxes import needs_bwrap

from data_pipeline import collect, manifest, rollout, rollout_options, trials
from data_pipeline.taskgen import scripted_teacher, teacher_script

pytestmark = [pytest.mark.slow, needs_harbor, needs_bwrap]

KEY = "sk-a-key-that-no-file-may-hold"
REPOSITORY = pathlib.Path(rollout.__file__).parents[1]


def options(**more):
    return rollout_options.RolloutOptions(model="scripted", **more)


FILE_IS_RIGHT = (
    "grep -qx bonjour /app/greeting.txt && echo 1 || echo 0) > /logs/verifier/reward.txt"
)
SHELL_TEST = f"#!/bin/bash\nmkdir -p /logs/verifier\n({FILE_IS_RIGHT}\n"
PYTEST_TEST = """#!/bin/bash
mkdir -p /logs/verifier
python3 -m pytest -q -p no:cacheprovider /tests/test_outputs.py
echo $((1 - ($? != 0))) > /logs/verifier/reward.txt
"""
OUTPUTS = "def test_it():\n    assert open('/app/greeting.txt').read() == 'bonjour\\n'\n"


def write_task(folder, *, timeout_s=300.0, dockerfile="", test=SHELL_TEST, **metadata):
    for name in ("environment", "tests"):
        (folder / name).mkdir(parents=True)
    (folder / "instruction.md").write_text(f"This is task {folder.name}: greet in greeting.txt.\n")
    (folder / "environment" / "Dockerfile").write_text(
        f"FROM debian:12\nWORKDIR /app\n{dockerfile}"
    )
    (folder / "tests" / "test.sh").write_text(test)
    (folder / "tests" / "test_outputs.py").write_text(OUTPUTS)
    labels = "".join(f"{name} = {json.dumps(value)}\n" for name, value in metadata.items())
    (folder / "task.toml").write_text(
        f'version = "1.0"\n[metadata]\n{labels}[verifier]\ntimeout_sec = 120.0\n'
        f"[agent]\ntimeout_sec = {timeout_s}\n"
        "[environment]\nbuild_timeout_sec = 120.0\ncpus = 1\nmemory_mb = 1024\nstorage_mb = 1024\n"
        'network_mode = "no-network"\n'
    )
    return folder


def act(*keys, done=False, seconds=0.5):
    commands = [{"keystrokes": f"{key}\n", "duration": seconds} for key in keys]
    reply = {"analysis": "I see.", "plan": "I go on.", "commands": commands}
    return json.dumps(reply | {"task_complete": done}, indent=1)


GREET, GREET_WRONG = "echo bonjour > greeting.txt", "echo hello > greeting.txt"
DONE = act(done=True)
REPLIES = {  # of each task, by turn; the last one again when they run out
    "right": (act("ls -la"), act(GREET), DONE),
    "wrong": (act(GREET_WRONG), DONE),
    "garbled": ("I shall greet.", act(GREET), '{"analysis": "cut', DONE),
    "long": (act(GREET), act("seq 1 4000"), act("seq 4000 8000")),
    "late": (act("sleep 2", seconds=3),),
    "broken": (DONE,),
    "refused": (act(GREET), DONE),
}
HANDOFF = "Here are the answers the other agent provided"


def rule(match, *texts, **more):
    return teacher_script.Rule(match=match, texts=texts, reasoning="Let me think.", **more)


def script(*, refuses=True):
    """What the teacher says; `refuses`: it breaks down at one of the tasks."""
    down = (teacher_script.Fault(kind="status", status=500, times=0),) if refuses else ()
    rules = [
        rule("hand off your work to another", "The file is written."),
        rule("picking up work from a previous", "What is left?"),
        rule("The next agent has a few questions", "Nothing is."),
        rule(HANDOFF, DONE, where="any"),
    ]
    for name, texts in REPLIES.items():
        faults = down if name == "refused" else ()
        rules.append(rule(f"This is task {name}:", *texts, where="first", faults=faults))
    return teacher_script.Script(rules=tuple(rules), api_key=KEY)


@dataclasses.dataclass(frozen=True)
class Rolled:
    """A rollout whose first run left two trials without a result of the agent."""

    folder: pathlib.Path
    error: str  # of the first run
    first: dict  # task -> the bytes of its result, after the first run
    report: dict  # of the second run

    def trials(self):
        found = [trials.read(folder) for folder in trials.find(self.folder)]
        return {one.task: one for one in found if one}


@pytest.fixture(scope="module")
def rolled(tmp_path_factory):
    """All kinds of trials; then the same again, with a server that is well, at another address."""
    base = tmp_path_factory.mktemp("rollout")
    tasks, output = base / "tasks", base / "out"
    for name in REPLIES:
        write_task(
            tasks / name, timeout_s=20.0 if name == "late" else 600.0,
            dockerfile="RUN false\n" if name == "broken" else "",
            test=PYTEST_TEST if name == "right" else SHELL_TEST,
            domain="file_operations", difficulty="easy", source="seed",
        )  # fmt: skip
    told = {
        "api_key_env": "TEACHER_KEY", "concurrency": 3, "agent_timeout_multiplier": 1.0,
        "max_retries": 0, "context_tokens": 14_000,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEACHER_KEY", KEY)
        with scripted_teacher.serving(script()) as url, pytest.raises(ValueError) as caught:
            strict = options(base_url=url, max_failed_share=0.0, **told)
            rollout.rollout(tasks, output_dir=output, options=strict)
        first = {
            one.task: (one.folder / trials.RESULT_FILE).read_bytes()
            for one in map(trials.read, trials.find(output / "trials"))
            if one
        }
        with scripted_teacher.serving(script(refuses=False)) as url:
            lax = options(base_url=url, max_failed_share=0.2, **told | {"concurrency": 2})
            report = rollout.rollout(tasks, output_dir=output, options=lax)
            assert rollout.rollout(tasks, output_dir=output, options=lax) == report  # done already
    return Rolled(output, str(caught.value), first, dict(report))


def test_trials_end_with_the_reward_of_their_tests(rolled):
    found = rolled.trials()
    assert {name: one.reward for name, one in found.items()} == {
        "right": 1.0, "wrong": 0.0, "garbled": 1.0, "long": 1.0, "late": 0.0, "refused": 1.0,
        "broken": None,
    }  # fmt: skip
    assert found["late"].exception == "AgentTimeoutError"
    assert found["late"].failure == trials.Failure.AGENT
    assert found["broken"].failure == trials.Failure.INFRASTRUCTURE
    assert rolled.report["out_of_time"] == 1
    assert rolled.report["failures"]["infrastructure"] == 1


def test_only_what_failed_by_no_doing_of_the_agent_is_done_again(rolled):
    assert "2 of 7 trials have no result of the agent (2 infrastructure)" in rolled.error
    lines = (rolled.folder / rollout.FAILURES_FILE).read_text().splitlines()
    again = {one["task"]: one["failure"] for one in map(json.loads, lines)}
    assert again == {"refused": "infrastructure", "broken": "infrastructure"}
    now = {
        name: (one.folder / trials.RESULT_FILE).read_bytes()
        for name, one in rolled.trials().items()
    }
    same = {name for name, result in now.items() if rolled.first[name] == result}
    assert same == set(REPLIES) - {"refused", "broken"}
    read = manifest.read(rolled.folder, stage="rollout")
    assert read["counts"]["ended"] == 7 and "waiting_share" not in read["counts"]


def test_trajectories_are_valid_atif(rolled):
    files = sorted(rolled.folder.glob("trials/*/agent/trajectory*.json"))
    names = {path.name for path in files}
    assert {"trajectory.json", "trajectory.cont-1.json"} < names  # `long` was summarised
    validate(files)


def test_raw_replies_are_kept(rolled, tmp_path):
    rows = collected(rolled, tmp_path)
    for row in rows:
        if row["task"] in ("right", "wrong", "garbled", "refused"):
            replies = [t["content"] for t in row["conversations"] if t["role"] == "assistant"]
            said = [REPLIES[row["task"]][min(i, len(REPLIES[row["task"]]) - 1)] for i in range(9)]
            expected = [f"<think>Let me think.</think>\n{text}" for text in said]
            assert replies == expected[: len(replies)] and len(replies) >= 3
    prompts = [row["conversations"][0]["content"] for row in rows]
    assert all(f"This is task {row['task']}:" in p for row, p in zip(rows, prompts, strict=True))


def test_collected_rows_equal_harbors_export(rolled, tmp_path):
    rows = collected(rolled, tmp_path)
    theirs = {
        (name, row["trace_source"], row["episode"]): row
        for name, made in exported(rolled.folder / "trials").items()
        for row in made
    }
    assert {row["task"] for row in rows} == set(REPLIES) - {"broken"}
    assert {row["trace_source"] for row in rows} > {"main"}
    for row in rows:
        expected = theirs[row["trial_name"], row["trace_source"], row["episode"]]
        assert {name: row[name] for name in expected} == expected
        assert (row["domain"], row["source"]) == ("file_operations", "seed")
        assert row["enable_thinking"] is True
        assert row["complete"] == (row["task"] != "late")


def test_collected_rows_equal_the_data_set_that_harbor_exports(rolled, tmp_path):
    """What stands behind `harbor traces export`; it needs the package `datasets` beside Harbor."""
    theirs = {
        (row["trial_name"], row["trace_source"], row["episode"]): row
        for row in exported_data_set(rolled.folder / "trials")
    }
    rows = collected(rolled, tmp_path)
    assert len(rows) > len(REPLIES)
    for row in rows:
        expected = theirs[row["trial_name"], row["trace_source"], row["episode"]]
        assert {name: row[name] for name in expected} == expected


def test_no_file_holds_the_key_or_the_address(rolled):
    files = [path for path in rolled.folder.rglob("*") if path.is_file()]
    assert len(files) > 50
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
    assert "127.0.0.1" not in (rolled.folder / rollout.JOB_FILE).read_text()


def test_tokens_are_of_the_whole_trial(rolled, tmp_path):
    """Those of the rows of a trial add up to what Harbor counted for it."""
    sums = {}
    for row in collected(rolled, tmp_path):
        total = sums.setdefault(row["task"], [0, 0])
        total[0] += row["input_tokens"]
        total[1] += row["output_tokens"]
    for name, one in rolled.trials().items():
        if name == "late":  # its last reply came, and was not written down when its time was over
            assert all(map(operator.le, sums[name], (one.input_tokens, one.output_tokens)))
        elif name in sums:
            assert sums[name] == [one.input_tokens, one.output_tokens], name


def collected(rolled, tmp_path):
    collect.collect(rolled.folder, output_dir=tmp_path / "corpus", options=collect.CollectOptions())
    return pq.read_table(next((tmp_path / "corpus").glob("*.parquet"))).to_pylist()


def test_a_refused_key_is_a_fault_of_the_settings_and_written_nowhere(tmp_path, monkeypatch):
    """The teacher repeats the key that it refuses, as hosted servers do."""
    monkeypatch.setenv("TEACHER_KEY", wrong := "sk-a-wrong-key")
    write_task(tmp_path / "tasks" / "right")
    with scripted_teacher.serving(script()) as url, pytest.raises(ValueError, match="1 settings"):
        rollout.rollout(
            tmp_path / "tasks",
            output_dir=tmp_path / "out",
            options=options(base_url=url, api_key_env="TEACHER_KEY"),
        )
    [folder] = trials.find(tmp_path / "out")
    one = trials.read(folder)
    assert one is not None and one.exception == "AuthenticationError"
    assert "[redacted]" in one.message
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or wrong.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM))
def test_a_stopped_rollout_goes_on(tmp_path, number):
    tasks, output = tmp_path / "tasks", tmp_path / "out"
    for name in ("right", "wrong", "garbled"):
        write_task(tasks / name)
    with scripted_teacher.serving(script()) as url:
        command = [
            sys.executable, "-m", "data_pipeline.rollout", str(tasks), f"--output={output}",
            "--model=scripted", f"--base_url={url}", "--concurrency=1",
        ]  # fmt: skip
        variables = dict(os.environ) | {"OPENAI_API_KEY": KEY}
        process = subprocess.Popen(command, cwd=REPOSITORY, env=variables, stderr=subprocess.PIPE)
        while process.poll() is None and not list(output.glob("trials/*/result.json")):
            time.sleep(0.1)
        done = {path: path.read_bytes() for path in output.glob("trials/*/result.json")}
        process.send_signal(number)
        said = process.communicate(timeout=400)[1].decode()
        assert process.returncode == 128 + number and "the same command goes on" in said
        assert done and not (output / manifest.FILE).exists()
        with (output / ".lock").open("w") as file:  # nothing of it runs any more
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        again = subprocess.run(command[:-1], cwd=REPOSITORY, env=variables, check=False)
    assert again.returncode == 0
    found = [one for one in map(trials.read, trials.find(output)) if one]
    assert sorted((one.task, one.reward) for one in found) == [
        ("garbled", 1.0),
        ("right", 1.0),
        ("wrong", 0.0),
    ]
    assert all(path.read_bytes() == result for path, result in done.items())
