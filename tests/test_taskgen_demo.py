"""The command a newcomer runs: tasks, trials in real shells through Harbor, a corpus."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from data_pipeline import harbor
from data_pipeline.sandbox import sandbox

ROOT = pathlib.Path(__file__).resolve().parents[1]


def missing():
    """Why the demo cannot go all the way here; empty where it can."""
    try:
        sandbox.check()
        harbor.find_program("")
    except (sandbox.SandboxError, ValueError) as error:
        return str(error)
    return "" if shutil.which("tmux") else "tmux is not installed"


def demo(folder, **environment):
    return subprocess.run(
        [sys.executable, "-m", "data_pipeline.taskgen", "demo", f"--output={folder}"],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | environment,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=missing())
def test_the_demo_goes_from_skills_to_a_corpus(tmp_path):
    done = demo(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    endings = [
        json.loads(line)["ending"]
        for line in (tmp_path / "skills" / "attempts.jsonl").read_text().splitlines()
    ]
    assert sorted(endings) == ["kept", "kept", "kept", "passes_untouched"]
    assert "fails untouched" in done.stderr and "rows curated" in done.stderr
    files = list((tmp_path / "curated" / "train").rglob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    # The listing weighs 2 of 4 in its task, and is all that the agent there does.
    assert {row["domain"]: row["reward"] for row in rows} == {
        "data_processing": 1.0, "debugging": 1.0, "file_operations": 0.5,
    }  # fmt: skip
    for row in rows:
        replies = [turn["content"] for turn in row["conversations"] if turn["role"] == "assistant"]
        assert all(reply.startswith("<think>") for reply in replies) and row["complete"]
    again = demo(tmp_path)
    assert again.returncode == 0 and again.stderr.count("is done already") == 4


def test_without_harbor_the_demo_ends_after_the_tasks_and_says_so(tmp_path):
    folder = os.pathsep.join(
        part for part in os.environ["PATH"].split(os.pathsep)
        if not (pathlib.Path(part) / "harbor").exists()
    )  # fmt: skip
    done = demo(tmp_path / "out", PATH=folder, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "uv tool install harbor" in done.stderr
    assert len(list((tmp_path / "out" / "skills" / "tasks").iterdir())) in (3, 4)
    assert not (tmp_path / "out" / "rollout").exists()
