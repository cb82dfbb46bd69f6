import json
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from conversations import dialogue, random_rows, write_jsonl

from data_pipeline import curate, embedded, loader, plan, prepare, tokenize

OPTIONS = prepare.PrepareOptions(
    curation=curate.CurateOptions(heldout_fraction=0.1),
    tokenization=tokenize.TokenizeOptions(),
    planning=plan.PlanOptions(row_length=2048, global_batch_size=8),
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    output = tmp_path_factory.mktemp("prepare") / "out"
    return prepare.prepare(
        ["embedded"], tokenizer_dir="embedded", output_dir=output, options=OPTIONS
    )


def test_the_embedded_corpus_becomes_plans(prepared):
    train, held = loader.Plan.open(prepared.train_plan), loader.Plan.open(prepared.heldout_plan)
    assert train.num_steps > 10 and train.global_batch_size == 8
    assert held.num_steps > 1 and held.global_batch_size == 1
    tasks = [
        set(pq.read_table(path)["task"].to_pylist())
        for path in (prepared.train_corpus, prepared.heldout_corpus)
    ]
    assert all(tasks) and not tasks[0] & tasks[1]
    domains = {s.domain for row in range(held.num_rows) for s in held.segments(row)}
    assert len(domains) > 1


def test_held_out_tokens_come_once(prepared):
    report = json.loads((prepared.heldout_plan / "report.json").read_text())
    index = pq.read_table(prepared.heldout_tokens / "index.parquet")
    assert report["loss_tokens"] == sum(index["num_loss_tokens"].to_pylist())
    assert report["tokens_total"] == sum(index["num_tokens"].to_pylist())


def test_a_second_call_does_nothing(prepared):
    output = prepared.train_plan.parent
    before = {p: p.stat().st_mtime_ns for p in output.rglob("*") if p.is_file()}
    again = prepare.prepare(
        ["embedded"], tokenizer_dir="embedded", output_dir=output, options=OPTIONS
    )
    assert again == prepared
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*") if p.is_file()} == before


def test_other_options_are_refused_by_name(prepared):
    with pytest.raises(ValueError, match=r"plan.*row_length=2048, now 32768"):
        prepare.prepare(
            ["embedded"],
            tokenizer_dir="embedded",
            output_dir=prepared.train_plan.parent,
            options=prepare.PrepareOptions(curation=OPTIONS.curation),
        )


def test_two_runs_leave_the_same_bytes(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", random_rows(seed=11, num=12))
    made = []
    for name in ("one", "two"):
        prepare.prepare(
            [str(file)], tokenizer_dir="embedded", output_dir=tmp_path / name, options=OPTIONS
        )
        files = (p for p in (tmp_path / name).rglob("*") if p.is_file())
        made.append(
            {
                str(p.relative_to(tmp_path / name)): p.read_bytes()
                for p in files
                if p.name != ".digests.json"  # times of the inputs, kept to hash them once
            }
        )
    assert made[0] == made[1] and len(made[0]) > 12


def test_overwrite_follows_new_options(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", random_rows(seed=12, num=12))
    arguments = {"tokenizer_dir": "embedded", "output_dir": tmp_path / "out"}
    prepare.prepare([str(file)], options=OPTIONS, **arguments)
    other = prepare.PrepareOptions(planning=plan.PlanOptions(row_length=512, global_batch_size=2))
    paths = prepare.prepare([str(file)], options=other, overwrite=True, **arguments)
    assert loader.Plan.open(paths.train_plan).row_length == 512
    assert paths.heldout_plan is None and paths.heldout_corpus is None
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["corpus", "plan", "tokens"]
    assert pq.read_table(paths.train_tokens / "index.parquet").num_rows == 12


@pytest.mark.parametrize("missing", ["corpus", "plan", "heldout/plan"])
def test_what_is_not_finished_is_not_prepared(prepared, tmp_path, missing):
    shutil.copytree(prepared.train_plan.parent, tmp_path / "out")
    assert prepare.prepared_paths(tmp_path / "out").heldout_plan is not None
    folder = tmp_path / "out" / missing
    (folder / "manifest.json").rename(folder / "unfinished.json")
    with pytest.raises(ValueError, match=rf"{missing}: the output of .* is unfinished"):
        prepare.prepared_paths(tmp_path / "out")


def test_a_tokenizer_without_template_is_found_first(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedded.tokenizer_dir() / name, tmp_path / "tokenizer" / name)
    with pytest.raises(ValueError, match="has no chat template"):
        prepare.prepare(
            ["embedded"], tokenizer_dir=tmp_path / "tokenizer", output_dir=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "data_pipeline.prepare", *map(str, arguments)],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("rows", "flags", "fault"),
    [
        ([dialogue("a", "b"), dialogue("a")], ["--strict"], "a.jsonl line 2: no assistant turn"),
        ([dialogue("a", "b"), "{"], ["--strict"], "a.jsonl line 2: not valid JSON"),
        ([], [], "the corpus is empty"),
        ([dialogue("a", "b")], ["--row_length=0"], "--row_length=0 must be at least 2"),
        ([dialogue("a", "b")], ["--tokenizer=/none"], "--tokenizer=/none must be a Hugging Face"),
    ],
)
def test_a_user_error_is_one_line_and_leaves_nothing(tmp_path, rows, flags, fault):
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    done = run(file, "--tokenizer=embedded", f"--output={tmp_path / 'out'}", *flags)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert fault in line
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_help_shows_examples_and_every_setting():
    done = run("--help")
    assert "python -m data_pipeline.prepare sessions.jsonl" in done.stdout
    for flag in ("think", "row_length", "heldout_fraction", "strict", "tokenizer", "output"):
        assert f"--{flag}" in done.stdout or f"--[no]{flag}" in done.stdout


def test_an_unknown_flag_is_refused():
    done = run("embedded", "--no_such_flag=1")
    assert done.returncode != 0 and "Unknown command line flag" in done.stderr
