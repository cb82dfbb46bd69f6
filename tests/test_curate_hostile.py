"""Curate against damaged files, many processes, and kills."""

import gzip
import json
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conversations import dialogue, random_rows, write_jsonl

from data_pipeline import corpus, curate, executor, manifest, records, tokenize
from data_pipeline.curation import row_filters

ERROR = "Previous response had parsing errors:\nERROR: No valid JSON"


def run(files, output, *, workers=None, **options):
    return curate.curate(
        [str(file) for file in files],
        output_dir=output,
        options=curate.CurateOptions(**options),
        workers=workers,
    )


def rows_in(folder):
    return pq.read_table(folder).to_pylist() if folder else []


def contents(folder):
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".digests.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def as_parquet(path, rows, *, row_group_size):
    read = [records.conversation_from_row(row, location="x").to_row() for row in rows]
    table = pa.Table.from_pylist(read, records.CORPUS_SCHEMA)
    pq.write_table(table, path, row_group_size=row_group_size, compression="none")
    return path


@pytest.fixture
def rows():
    return random_rows(seed=7, num=60)


def damaged_parquet(path, rows):
    """Of six groups the third is zeroed where its text should be."""
    as_parquet(path, rows, row_group_size=10)
    column = pq.ParquetFile(path).metadata.row_group(2).column(1)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 400] = bytes(400)
    path.write_bytes(data)


def cut_gzip(path, rows):
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    path.write_bytes(whole[: len(whole) // 2])


def no_footer(path, rows):
    as_parquet(path, rows, row_group_size=10)
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("shard_rows", [7, 25, 2048])
@pytest.mark.parametrize(
    ("name", "damage", "fault"),
    [
        ("b.parquet", damaged_parquet, "damaged after row 20"),
        ("b.jsonl.gz", cut_gzip, "cannot be read, nor what follows it"),
        ("b.parquet", no_footer, "not a readable Parquet file"),
        ("b.parquet", lambda path, rows: path.write_bytes(b""), "not a readable Parquet file"),
        ("b.parquet", lambda path, rows: pq.write_table(pa.table({"text": ["a"]}), path),
         "no column `conversations`"),
    ],
)  # fmt: skip
def test_a_damaged_file_costs_what_cannot_be_read(tmp_path, rows, name, damage, fault, shard_rows):
    before = write_jsonl(tmp_path / "a.jsonl", [dialogue("first", "a")])
    after = write_jsonl(tmp_path / "c.jsonl", [dialogue("last", "c")])
    damage(tmp_path / name, rows)
    files = [before, tmp_path / name, after]
    with pytest.raises(ValueError, match=fault) as caught:
        run(files, tmp_path / "out", strict=True, shard_rows=shard_rows)
    assert name in str(caught.value) and not (tmp_path / "out").exists()
    curated = run(files, tmp_path / "out", shard_rows=shard_rows)
    found = [row["conversations"] for row in rows_in(curated.train)]
    whole = [row["conversations"] for row in rows]
    assert found[0][0]["content"] == "first" and found[-1][0]["content"] == "last"
    readable = found[1:-1]
    if damage is damaged_parquet:
        assert readable == whole[:20] + whole[30:]
    else:
        assert readable == whole[: len(readable)]
        assert (len(readable) > 5) == (damage is cut_gzip)
    removed = rows_in(curated.removed)
    assert removed and all(row["reason"] == row_filters.UNREADABLE for row in removed)
    assert fault in removed[0]["detail"] and name in removed[0]["location"]
    # What stays can be read without tolerance.
    assert len(found) == sum(1 for file in corpus.find_files([str(tmp_path / "out")])
                             for row in corpus.read_rows(file) if row.conversation)  # fmt: skip


def test_a_value_that_is_none_of_python_costs_its_row_alone(tmp_path, rows):
    read = [records.conversation_from_row(row, location="x").to_row() for row in rows]
    table = pa.Table.from_pylist(read, records.CORPUS_SCHEMA)
    texts = pa.array([b"\xff" if i == 20 else b"t%d" % i for i in range(60)], pa.binary())
    not_utf8 = pa.Array.from_buffers(pa.string(), 60, texts.buffers())
    times = pa.array([1 << 60 if i == 40 else 0 for i in range(60)], pa.timestamp("ms"))
    table = table.set_column(table.column_names.index("trial_name"), "trial_name", not_utf8)
    pq.write_table(table.append_column("when", times), tmp_path / "b.parquet")
    curated = run([tmp_path / "b.parquet"], tmp_path / "out", shard_rows=25)
    whole = [row["conversations"] for i, row in enumerate(rows) if i not in (20, 40)]
    assert [row["conversations"] for row in rows_in(curated.train)] == whole
    removed = [(row["reason"], row["location"].split()[-1]) for row in rows_in(curated.removed)]
    assert removed == [(row_filters.UNREADABLE, "20"), (row_filters.UNREADABLE, "40")]
    with pytest.raises(ValueError, match=r"b\.parquet row 20: cannot be read .*row 40: cannot"):
        run([tmp_path / "b.parquet"], tmp_path / "strict", strict=True)


HOSTILE = [
    "{", "null", "[1]", '"text"', "{}", '{"conversations": null}', "\x00", "[" * 100_000,
    {"conversations": [{"role": "human", "content": "q"}]},
    {"conversations": [{"role": "user", "content": None}]},
    dialogue("\ud800", "r"),
    dialogue("q", "r" * 2_000_000), dialogue("q", ""), dialogue(" \n", "r"), dialogue("q"),
    dialogue("q", "<|endoftext|>"), dialogue("<|im_start|>system", "r"),
    dialogue("q", "r", reward="high"), dialogue("q", num_commands=1 << 40),
    dialogue("q", "r", edits=["\ud800"]), {"conversations": [{"role": "user", "\ud800": 1}]},
    dialogue("q", "r", untrained_turns=[0]),
]  # fmt: skip


def test_hostile_rows_are_removed_and_found_again(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", [*HOSTILE, dialogue("q", "a good one")])
    with file.open("ab") as more:
        more.write(b'{"conversations": "\xff"}\n')
    curated = run([file], tmp_path / "out", shard_rows=4)
    assert [row["conversations"][1]["content"] for row in rows_in(curated.train)] == ["a good one"]
    removed = rows_in(curated.removed)
    assert len(removed) == len(HOSTILE) + 1
    assert {row["reason"] for row in removed} <= set(row_filters.FAULTS)
    for row, source in zip(removed, HOSTILE, strict=False):
        if isinstance(source, str):
            assert row["raw"] == source
        elif row["raw"]:
            assert json.loads(row["raw"]) == source
        else:
            assert row["conversations"] == source["conversations"]
    assert removed[-1]["raw"] == r'{"conversations": "\xff"}'


def test_curation_can_be_told_by_tokenize(tmp_path, rows):
    file = write_jsonl(tmp_path / "a.jsonl", [*rows, dialogue("q"), rows[0]])
    run([file], tmp_path / "corpus", shard_rows=10)
    tokens = tokenize.tokenize(
        [str(tmp_path / "corpus")], tokenizer_dir="embedded", output_dir=tmp_path / "tokens",
        options=tokenize.TokenizeOptions(),
    )  # fmt: skip
    assert manifest.read(tokens, stage="tokenize")["counts"]["funnel"] == [
        ["read", 62], ["no assistant turn", 61], ["duplicate", 60], ["train", 60],
    ]  # fmt: skip
    index = pq.read_table(tokens / "index.parquet")
    assert index["complete"].null_count == 0 and len(index) == 60


OPTIONS = {"heldout_fraction": 0.2, "near_duplicates": 0.8, "parse_failures": "mask"}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A corpus in two files, with something for every step."""
    folder = tmp_path_factory.mktemp("large")
    rows = random_rows(seed=3, num=120)
    for row in rows[::3]:
        row["conversations"] += dialogue("q", "bad", ERROR, "good")["conversations"]
    rows += [dialogue(f"q{i}", " ".join(f"w{i // 2}{j}" for j in range(50))) for i in range(20)]
    files = [write_jsonl(folder / "a.jsonl", [*rows, *rows[:9], "{"])]
    return [*files, as_parquet(folder / "b.parquet", random_rows(5, 60), row_group_size=9)]


@pytest.fixture(scope="module")
def undisturbed(large, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    run(large, output, shard_rows=20, **OPTIONS)
    return contents(output)


def test_processes_leave_the_same_bytes(large, undisturbed, tmp_path):
    two = executor.WorkerOptions(num_workers=2)
    run(large, tmp_path / "out", shard_rows=20, workers=two, **OPTIONS)
    assert contents(tmp_path / "out") == undisturbed
    assert len([name for name in undisturbed if name.startswith("train/")]) > 8


# Runs curate, and kills it when a file is about to be made or put in its place.
_KILLED_AT = """
import os, runpy, signal, sys
at, *arguments = sys.argv[1:]
def look(event, args):
    if event in ("open", "os.rename") and any(str(arg).endswith(at) for arg in args[:2]):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(look)
sys.argv = ["curate", *arguments]
runpy.run_module("data_pipeline.curate", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "at",
    ["judged-00003.parquet", "part-00004.parquet", "written-00006", "report.json", "manifest.json"],
)
def test_killed_in_the_middle_and_gone_on_is_the_same_bytes(large, undisturbed, tmp_path, at):
    output = tmp_path / "out"
    flags = [f"--{name}={value}" for name, value in OPTIONS.items()]
    arguments = [*map(str, large), f"--output={output}", "--shard_rows=20", *flags]
    killed = subprocess.run([sys.executable, "-c", _KILLED_AT, at, *arguments])
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match="is unfinished"):
        manifest.read(output, stage="curate")
    made = {p: p.stat().st_mtime_ns for p in output.glob("train/part-0000[0-3].parquet")}
    run(large, output, shard_rows=20, **OPTIONS)
    assert contents(output) == undisturbed
    assert len(made) == (0 if "judged" in at else 4)
    if at != "manifest.json":  # then what tells that they are made is gone
        assert all(p.stat().st_mtime_ns == time for p, time in made.items())  # not made again


def test_a_killed_command_takes_its_processes_with_it(large, undisturbed, tmp_path):
    """Else they would write beside those of the same command, given again at once."""
    output = tmp_path / "out"
    flags = [f"--{name}={value}" for name, value in OPTIONS.items()]
    arguments = [*map(str, large), f"--output={output}", "--shard_rows=20", *flags]
    command = [sys.executable, "-m", "data_pipeline.curate", *arguments, "--num_workers=2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)  # they hold its other end too
    while not list(output.glob("parts/judged*")) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.communicate(timeout=30)
    run(large, output, shard_rows=20, **OPTIONS)
    assert contents(output) == undisturbed
