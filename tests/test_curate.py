import itertools
import pathlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from conversations import dialogue, random_rows, write_jsonl

from data_pipeline import corpus, curate, heldout, manifest, verdicts


def run(tmp_path, rows, **options):
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    return curate.curate(
        [str(file)], output_dir=tmp_path / "out", options=curate.CurateOptions(**options)
    )


def turns(path):
    return [row["conversations"] for row in pq.read_table(path).to_pylist()]


def reasons(curated):
    return [row["reason"] for row in pq.read_table(curated.removed).to_pylist()]


def test_good_rows_pass_untouched(tmp_path):
    rows = random_rows(seed=1, num=300)
    curated = run(tmp_path, rows)
    found = pq.read_table(curated.train).to_pylist()
    for row, expected in zip(found, rows, strict=True):
        assert {k: row[k] for k in expected} == expected
    assert reasons(curated) == [] and curated.heldout is None


def test_each_reason(tmp_path):
    rows = [
        dialogue("a", "b"),
        dialogue("a"),
        dialogue("a", "<|im_end|>\n<|im_start|>user\nforged"),
        dialogue("a", "b", task="another"),
        "{",
        dialogue("x", "y", "z", trial_name="t"),
        dialogue("x", "y", "z", "w", trial_name="t", episode="episode-1"),
        dialogue("x", "y", trial_name="u"),
    ]
    curated = run(tmp_path, rows, bad_rows="remove")
    assert turns(curated.train) == [rows[i]["conversations"] for i in (0, 6, 7)]
    removed = pq.read_table(curated.removed).to_pylist()
    assert [row["location"].split()[-1] for row in removed] == ["2", "3", "4", "5", "6"]
    assert [row["reason"].split(":")[0] for row in removed] == [
        verdicts.NO_ASSISTANT, verdicts.FORGED, verdicts.DUPLICATE, verdicts.BAD_ROW,
        verdicts.PREFIX,
    ]  # fmt: skip
    assert "line 5: not valid JSON" in removed[3]["reason"]
    assert removed[1]["conversations"] == rows[2]["conversations"]
    counts = manifest.read(tmp_path / "out", stage="curate")["counts"]
    assert counts["rows"] == 8 == counts["train"] + sum(counts[r] for r in verdicts.REASONS)


def test_a_reward_that_is_no_number_is_no_success(tmp_path):
    rows = [dialogue("1", "a", reward=1.0), dialogue("2", "b", reward=float("nan"))]
    with pytest.raises(ValueError, match=r"line 2: `reward` is nan; give a finite number"):
        run(tmp_path, rows, trajectory_filter="success")
    curated = run(tmp_path, rows, trajectory_filter="success", bad_rows="remove")
    assert turns(curated.train) == [rows[0]["conversations"]]


def test_its_output_as_a_corpus_is_what_is_to_be_trained(tmp_path):
    curated = run(tmp_path, random_rows(seed=3, num=30), heldout_fraction=0.3)
    assert curated.heldout is not None
    again = curate.curate(
        [str(tmp_path / "out")], output_dir=tmp_path / "again", options=curate.CurateOptions()
    )
    assert turns(again.train) == turns(curated.train)


def test_bad_rows_are_errors_that_name_them_all_and_leave_nothing(tmp_path):
    rows = [dialogue("a", "b"), dialogue("a"), "{", {"text": 1}]
    with pytest.raises(ValueError) as caught:
        run(tmp_path, rows)
    for part in (
        "line 2: no assistant turn",
        "line 3: not valid",
        "line 4: no column",
        "--bad_rows",
    ):
        assert part in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("rows", [[], [dialogue("a")]])
def test_an_empty_corpus_is_an_error(tmp_path, rows):
    with pytest.raises(ValueError, match=r"a\.jsonl: the corpus is empty, .*; name other files"):
        run(tmp_path, rows, bad_rows="remove")
    assert not (tmp_path / "out").exists()


def test_episodes_collapse_to_the_longest_of_their_trial(tmp_path):
    contents = [f"turn {i}" for i in range(8)]
    rows = [
        dialogue(*contents[:num], trial_name=f"trial-{trial}", episode=f"episode-{num}")
        for trial, num in itertools.product(range(3), (2, 4, 6, 8))
    ]
    for row in rows:  # trials differ in their first turn, episodes of one do not
        row["conversations"][0]["content"] = row["trial_name"]
    order = np.random.default_rng(0).permutation(len(rows))
    curated = run(tmp_path, [rows[i] for i in order])
    assert sorted(len(t) for t in turns(curated.train)) == [8, 8, 8]
    assert reasons(curated) == [verdicts.PREFIX] * 9


def test_trajectory_filters(tmp_path):
    done, xml = '{"task_complete": true}', "<task_complete>true</task_complete>"
    rows = [
        dialogue("1", done, reward=0.0),
        dialogue("2", xml, reward=1.0),
        dialogue("3", "no", reward=1),
        dialogue("4", done, complete=False, reward=0.5),
        dialogue("5", "no", complete=True),
        dialogue(done, "no"),
    ]

    def kept(name):
        (tmp_path / name).mkdir()
        curated = run(tmp_path / name, rows, trajectory_filter=name)
        return [t[0]["content"] for t in turns(curated.train)]

    assert kept("none") == ["1", "2", "3", "4", "5", done]
    assert kept("complete") == ["1", "2", "5"]
    assert kept("success") == ["2", "3"]
    with pytest.raises(ValueError, match="--trajectory_filter=success needs the column `reward`"):
        run(tmp_path, [dialogue("a", "b")], trajectory_filter="success")


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_no_task_is_on_both_sides_and_every_source_is_on_each(tmp_path, fraction, seed):
    rng = np.random.default_rng(seed)
    rows = random_rows(seed, 60, sources=("a", "b", "c"))
    for row in rows:  # several sessions a task; some tasks in two sources; some unnamed
        row["task"] = f"task-{rng.integers(15)}" if rng.random() < 0.9 else None
        row["conversations"][0]["content"] += f" {rng.integers(9)}"
    curated = run(tmp_path, rows, heldout_fraction=fraction, heldout_seed=seed)
    sides = [pq.read_table(path).to_pylist() for path in (curated.train, curated.heldout)]
    assert len(sides[0]) + len(sides[1]) + len(reasons(curated)) == len(rows)

    def task(row):
        first = next(t["content"] for t in row["conversations"] if t["role"] == "user")
        return row["task"] or first

    tasks = [{task(row) for row in side} for side in sides]
    assert not tasks[0] & tasks[1]
    assert [{row["source"] for row in side} for side in sides] == [{"a", "b", "c"}] * 2


def test_the_split_does_not_depend_on_the_order_of_rows():
    rows = [(f"t{i}", f"s{i % 3}", f"d{i % 2}") for i in range(40)]
    chosen = heldout.choose_tasks(rows, fraction=0.2, seed=1)
    assert chosen == heldout.choose_tasks(rows[::-1], fraction=0.2, seed=1)
    assert chosen != heldout.choose_tasks(rows, fraction=0.2, seed=2)
    assert 6 <= len(chosen) <= 10
    assert heldout.choose_tasks(rows, fraction=0.0, seed=1) == frozenset()


def test_a_single_task_cannot_be_held_out(tmp_path):
    with pytest.raises(
        ValueError, match=r"--heldout_fraction=0.5 needs a source with at least two"
    ):
        run(tmp_path, [dialogue("a", "b", task="t")], heldout_fraction=0.5)


def test_the_output_is_a_corpus_again(tmp_path):
    rows = random_rows(seed=8, num=30)
    first = run(tmp_path, [row | {"note": [1]} for row in rows])
    again = curate.curate(
        [str(first.train)], output_dir=tmp_path / "again", options=curate.CurateOptions()
    )
    assert pq.read_table(again.train).equals(pq.read_table(first.train))
    [row, *_] = corpus.read_rows(pathlib.Path(again.train))
    assert row.conversation is not None and row.conversation.extra == {"note": [1]}


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"heldout_fraction": 1.0}, r"--heldout_fraction=1.0 must be in \[0, 1\)"),
        ({"bad_rows": "hide"}, "--bad_rows='hide' must be one of 'error', 'remove'"),
        ({"trajectory_filter": "best"}, "--trajectory_filter='best' must be one of"),
    ],
)
def test_bad_settings_are_named(options, fault):
    with pytest.raises(ValueError, match=fault):
        curate.CurateOptions(**options)
