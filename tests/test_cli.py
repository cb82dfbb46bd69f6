"""The stages as commands: exit codes, one line for an error, and SIGKILL midway."""

import os
import resource
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from conversations import dialogue, random_rows, write_jsonl

from data_pipeline import loader, manifest, tokenize

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("XLA")}


def command(stage, *arguments, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", f"data_pipeline.{stage}", *map(str, arguments)],
        capture_output=True, text=True, env=ENVIRONMENT, **kwargs,
    )  # fmt: skip


def error_of(done):
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    rows = random_rows(seed=20, num=30)
    return write_jsonl(tmp_path_factory.mktemp("cli") / "a.jsonl", rows)


@pytest.fixture(scope="module")
def tokens_dir(file):
    return tokenize.tokenize(
        [str(file)],
        tokenizer_dir="embedded",
        output_dir=file.parent / "tokens",
        options=tokenize.TokenizeOptions(),
    )


@pytest.mark.parametrize("stage", ["curate", "tokenize", "plan", "prepare"])
def test_help_shows_an_example_and_the_flags(stage):
    done = command(stage, "--help")
    assert f"python -m data_pipeline.{stage} " in done.stdout
    for flag in ("output", "overwrite", "debug"):
        assert f"--{flag}" in done.stdout or f"--[no]{flag}" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("stage", "arguments", "fault"),
    [
        ("curate", ["--heldout_fraction=2", "--output=OUT", "FILE"], "--heldout_fraction=2.0 must"),
        ("curate", ["FILE"], "--output is not set"),
        ("curate", ["--output=OUT", "FILE", "FILE"], "is in the corpus twice"),
        ("plan", ["--output=OUT", "FILE", "FILE"], "the output of tokenize, not ["),
        ("plan", ["--output=OUT", "TOKENS", "--remainder=drop", "--global_batch_size=999"],
         "has no step"),
        ("plan", ["--output=OUT", "TOKENS", "--curriculum=two_stage", "--first_sources=a,z"],
         "--first_sources=a,z must name some"),
        # What the machine refuses, not the program.
        ("curate", ["--output=FILE/out", "FILE"], "FILE/out: Not a directory"),
        ("plan", ["--output=/proc/x", "TOKENS"], "/proc/x: No such file or directory"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_and_exit_code_1(tmp_path, file, tokens_dir, stage, arguments, fault):
    places = {"FILE": str(file), "TOKENS": str(tokens_dir), "OUT": str(tmp_path / "out")}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
        fault = fault.replace(name, place)
    assert fault in error_of(command(stage, *arguments))
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" in command(stage, *arguments, "--debug").stderr


@pytest.mark.parametrize("stage", ["curate", "tokenize"])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path, stage):
    arguments = [stage, "embedded", f"--output={tmp_path / 'out'}", "--tokenizer=embedded"]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    fault = error_of(command(*arguments, preexec_fn=limit))
    assert "File too large" in fault
    assert command(*arguments).returncode == 0
    assert manifest.read(tmp_path / "out", stage=stage)["counts"]


def test_lists_and_overwrite_reach_plan(tmp_path, tokens_dir):
    flags = [tokens_dir, f"--output={tmp_path / 'plan'}", "--row_length=400", "--epochs=1"]
    assert command("plan", *flags, "--global_batch_size=2").returncode == 0
    two = [*flags, "--curriculum=two_stage", "--first_sources=b", "--global_batch_size=1"]
    assert "add --overwrite" in error_of(command("plan", *two))
    assert command("plan", *two, "--overwrite").returncode == 0
    opened = loader.Plan.open(tmp_path / "plan")
    assert opened.segments(0)[0].source == "b" and opened.global_batch_size == 1


def test_a_bad_corpus_does_not_cost_the_good_one(tmp_path, file):
    output = tmp_path / "corpus"
    assert command("curate", file, f"--output={output}").returncode == 0
    bad = write_jsonl(tmp_path / "bad.jsonl", [dialogue("a", "b"), "{"])
    fault = error_of(command("curate", bad, f"--output={output}", "--overwrite", "--strict"))
    assert "bad.jsonl line 2: not valid JSON" in fault
    assert pq.read_table(output / "train").num_rows == 30
    assert manifest.read(output, stage="curate")["counts"]["rows"] == 30
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.jsonl", "corpus"]


# Runs a module, and kills itself when a file is about to be put in its place.
_KILLED_AT = """
import os, runpy, signal, sys
at, module, *arguments = sys.argv[1:]
def look(event, args):
    if event == "os.rename" and str(args[1]).endswith(at):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(look)
sys.argv = [module, *arguments]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("stage", "at"),
    [
        ("curate", "judged-00000.parquet"),
        ("curate", "heldout/part-00000.parquet"),
        ("curate", "statistics.parquet"),
        ("curate", "manifest.json"),
        ("plan", "rows.arrow"),
        ("plan", "report.json"),
        ("plan", "pictures/fill.png"),
        ("plan", "report.html"),
    ],
)
def test_a_killed_stage_goes_on_and_leaves_the_same_bytes(tmp_path, file, tokens_dir, stage, at):
    own = {
        "curate": [file, "--heldout_fraction=0.2"],
        "plan": [tokens_dir, "--row_length=500", "--global_batch_size=2"],
    }[stage]
    arguments = [f"data_pipeline.{stage}", *own, f"--output={tmp_path / 'killed'}"]
    killed = subprocess.run([sys.executable, "-c", _KILLED_AT, at, *map(str, arguments)])
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match="is unfinished"):
        manifest.read(tmp_path / "killed", stage=stage)
    assert command(stage, *own, f"--output={tmp_path / 'killed'}").returncode == 0
    assert command(stage, *own, f"--output={tmp_path / 'whole'}").returncode == 0
    found = [
        {
            str(p.relative_to(tmp_path / name)): p.read_bytes()
            for p in (tmp_path / name).rglob("*")
            if p.is_file() and p.name != ".digests.json"
        }
        for name in ("killed", "whole")
    ]
    assert found[0] == found[1]
