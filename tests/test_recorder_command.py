"""The recorder's two commands as commands: what they write, and what a user's mistake ends as."""

import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sandboxes

from data_pipeline import embedded

RECORDER, TOKENIZER = "data_pipeline.recorder", "data_pipeline.recorder.train_tokenizer"


def command(module, *arguments, **environment):
    run = [sys.executable, "-m", module, *arguments]
    env = os.environ | environment
    return subprocess.run(run, capture_output=True, text=True, check=False, env=env)


def record(*arguments, **environment):
    return command(RECORDER, f"--sandbox={sandboxes.SANDBOX}", *arguments, **environment)


def assert_refused(done, error):
    """The command ended with one line that begins with `error`."""
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"error: {error}") and done.stderr.count("\n") == 1, done.stderr


@sandboxes.needs_bwrap  # without it the folder's name is random
def test_two_recordings_of_every_family_are_the_same_bytes(tmp_path):
    sessions = f"--sessions={len(sandboxes.FAMILIES)}"
    for hash_seed, workers in (("1", 1), ("2", 3)):
        out = f"--output={tmp_path / hash_seed}"
        done = record(out, sessions, f"--num_workers={workers}", PYTHONHASHSEED=hash_seed)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_the_recorder_records_and_prints_the_table(tmp_path):
    out = tmp_path / "new" / "s.parquet"
    done = record(f"--output={out}", "--sessions=3", "--families=fill_gaps")
    assert done.returncode == 0, done.stderr
    assert pq.read_metadata(out).num_rows == 3
    assert "reward" in done.stdout and "1 families" in done.stdout


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        (RECORDER, ("families", "num_workers", "output", "sandbox", "seed", "sessions")),
        (TOKENIZER, ("corpus", "output", "vocab_size")),
    ],
)
def test_help_shows_every_flag(module, flags):
    done = command(module, "--help")
    assert f"python -m {module}" in done.stdout
    for flag in flags:
        assert f"--{flag}:" in done.stdout or f"--[no]{flag}:" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--output={}/s.parquet", "--families=nope"], "--families=nope has unknown names: nope"),
        (["--output={}/s.parquet", "stray"], "unexpected stray"),
        ([], "--output is not set"),
        (["--output={}"], "--output={} is a folder"),
        (["--output={}/file/s.parquet"], "--output={}/file/s.parquet: Not a directory"),
        (["--output=/proc/none/s.parquet"], "--output=/proc/none/s.parquet: No such file"),
    ],
)
def test_the_recorder_refuses_before_it_records(tmp_path, arguments, error):
    (tmp_path / "file").touch()
    done = record("--sessions=2", *(argument.format(tmp_path) for argument in arguments))
    assert_refused(done, error.format(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--output={}/t"], "--corpus is not set"),
        (["--corpus=embedded"], "--output is not set"),
        (["--corpus=embedded", "--output={}/t", "--vocab_size=281"], "--vocab_size=281 must be"),
        (["--corpus=embedded", "--output={}/bad.parquet"], "--output={}/bad.parquet is a file"),
        (["--corpus={}/none.parquet", "--output={}/t"], "{}/none.parquet: no such file"),
        (["--corpus={}/bad.parquet", "--output={}/t"], "{}/bad.parquet: not a readable Parquet"),
        (["--corpus={}/empty.parquet", "--output={}/t"], "--corpus={}/empty.parquet is empty"),
    ],
)
def test_the_tokenizers_training_refuses(tmp_path, arguments, error):
    (tmp_path / "bad.parquet").write_text("PAR1 no more")
    schema = pq.read_schema(embedded.sessions_path())
    pq.write_table(pa.Table.from_pylist([], schema), tmp_path / "empty.parquet")
    done = command(TOKENIZER, *(argument.format(tmp_path) for argument in arguments))
    assert_refused(done, error.format(tmp_path))
    assert not (tmp_path / "t").exists()
