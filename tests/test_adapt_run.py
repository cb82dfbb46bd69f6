"""Runs of adapt: kinds of files, damage, kills, a second start, settings."""

import gzip
import json
import random
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_adapt import DOCKERFILE, run

from data_pipeline.taskgen import adapt, adapt_record, dataset_rows

ROWS = [{"problem": f"Problem number {i}: what is {i} squared?"} for i in range(1000)]


def test_parquet_and_jsonl_give_the_same_tasks(tmp_path):
    text = "".join(json.dumps(row) + "\n\n" for row in ROWS[:300]).encode()
    (tmp_path / "a.jsonl").write_bytes(text)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text))
    pq.write_table(pa.Table.from_pylist(ROWS[:300]), tmp_path / "c.parquet", row_group_size=70)
    for name in ("a.jsonl", "b.jsonl.gz", "c.parquet"):
        rows = list(dataset_rows.read([tmp_path / name]))
        assert [row.values for row in rows] == ROWS[:300]
        assert all(0 < row.share <= 1 for row in rows[1:])
        for at in (0, 1, 69, 70, 71, 150, 299):  # going on behind any row
            rest = list(dataset_rows.read([tmp_path / name], start=rows[at].resume))
            assert rest == rows[at + 1 :]


def test_damaged_files_cost_what_is_damaged(tmp_path):
    good = json.dumps(ROWS[0]).encode() + b"\n"
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(good * 5000)[:-30])
    (tmp_path / "no.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "bad.jsonl").write_bytes(good + b"\xff\xfe\n" + good)
    names = ("bad.jsonl", "cut.jsonl.gz", "no.parquet", "bad.jsonl")
    paths = [tmp_path / name for name in names]
    rows = list(dataset_rows.read(paths))
    faults = [row.fault for row in rows if row.fault]
    assert [fault.startswith(str(path)) for fault, path in zip(faults, paths, strict=True)] == [
        True
    ] * 4
    assert "line 2: not valid JSON" in faults[0] and rows[-1].values == ROWS[0]
    for i, row in enumerate(rows):
        if row.fault:
            assert [r.fault for r in dataset_rows.read(paths, start=row.resume)] == [
                r.fault for r in rows[i + 1 :]
            ]


# Runs that are stopped, and runs again.
def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*") if path.is_file() and path.name != ".digests.json"
    }  # fmt: skip


COMMAND = [
    sys.executable, "-c",
    "import sys; sys.argv[0] = 'adapt'\nfrom data_pipeline import cli\n"
    "from data_pipeline.taskgen import adapt\nadapt._COMMIT_S = 0.05\n"
    "adapt.define_flags()\ncli.run(adapt.main)",
]  # fmt: skip


def test_a_killed_run_goes_on_and_leaves_the_same_bytes(tmp_path):
    rng = random.Random(1)
    rows = [dict(row, prompt=f"{row['problem']} {rng.random()}") for row in ROWS[:500]]
    for i in range(0, 500, 7):
        rows[i] = rows[i - 1]  # duplicates on both sides of every stop
    data, dockerfile = tmp_path / "data.jsonl", tmp_path / "Dockerfile"
    data.write_text("{\n" + "".join(json.dumps(row) + "\n" for row in rows))
    dockerfile.write_text(DOCKERFILE)
    told = [f"--dockerfile={dockerfile}", "--near_duplicates=0.95"]
    outs = [tmp_path / "whole", tmp_path / "killed"]
    done = subprocess.run(
        [*COMMAND, "math", str(data), f"--output={outs[0]}", *told],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kills = 0
    for _ in range(20):
        process = subprocess.Popen(
            [*COMMAND, "math", str(data), f"--output={outs[1]}", *told], stderr=subprocess.PIPE
        )
        before = num_tasks(outs[1])
        while process.poll() is None and num_tasks(outs[1]) < before + 150:
            time.sleep(0.01)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert process.returncode == 0, process.stderr.read()
    assert kills >= 2
    assert tree(outs[0]) == tree(outs[1])
    assert not list(outs[1].glob("*.sqlite*"))


def num_tasks(out):
    folder = out / adapt.TASKS_FOLDER
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


def test_a_finished_run_is_done_and_another_is_refused(tmp_path, capfd):
    run(tmp_path, "math", ROWS[:3])
    before = tree(tmp_path / "out" / "tasks")
    run(tmp_path, "math", ROWS[:3])
    assert "is done already" in capfd.readouterr().err
    assert tree(tmp_path / "out" / "tasks") == before
    with pytest.raises(ValueError, match=r"made with other settings: kind='math', now 'code'"):
        adapt.adapt(
            "code", [str(tmp_path / "data.jsonl")], output_dir=tmp_path / "out",
            options=adapt_record.AdaptOptions(dockerfile=str(tmp_path / "Dockerfile")),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_response_tokens": 5}, "--min_response_tokens=5 needs --tokenizer"),
        ({"min_response_chars": -1}, "--min_response_chars=-1 must not be negative"),
        ({"near_duplicates": 2.0}, r"--near_duplicates=2\.0 must be in \[0, 1\]"),
        ({"ngram": 0}, "--ngram=0 must be positive"),
        ({"prompt_column": "nope"},
         r"no task is left \(1 no prompt, such as .*line 1: the record has prompt\)"),
    ],
)  # fmt: skip
def test_wrong_settings_are_told(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "math", [{"prompt": "What is 1 + 1?"}], **options)
    assert not (tmp_path / "out").exists()


def test_the_command_names_a_kind_first(tmp_path):
    done = subprocess.run(
        [*COMMAND, "physics", "x.jsonl", f"--output={tmp_path / 'out'}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "error: name the kind first: math, code, swe\n"
