"""Laws of a plan, counted again from its rows and the tokens themselves."""

import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from conversations import random_rows, write_jsonl
from matplotlib import figure

from data_pipeline import loader, manifest, plan, plan_rows, tokenize

NUM = 60


@pytest.fixture(scope="module")
def tokens_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    rows = random_rows(seed=9, num=NUM)
    rows[7]["conversations"][1]["content"] = "a turn that no row holds " * 200
    return tokenize.tokenize(
        [str(write_jsonl(folder / "a.jsonl", rows))],
        tokenizer_dir="embedded",
        output_dir=folder / "tokens",
        options=tokenize.TokenizeOptions(shard_examples=16),
    )


@pytest.fixture
def make(tokens_dir, tmp_path):
    def make(name="plan", **options):
        options = {"row_length": 256, "global_batch_size": 4, "window_rows": 8} | options
        folder = plan.make_plan(
            tokens_dir, output_dir=tmp_path / name, options=plan.PlanOptions(**options)
        )
        return loader.Plan.open(folder), json.loads((folder / "report.json").read_text())

    return make


def index_of(tokens_dir):
    return pq.read_table(tokens_dir / "index.parquet")


def covered(opened):
    """How often each token of each example is in a row."""
    counts = [np.zeros(n, int) for n in opened_lengths(opened)]
    for row in range(opened.num_rows):
        for segment in opened.segments(row):
            first = segment.first_token
            counts[segment.example][first : first + segment.num_tokens] += 1
    return counts


def opened_lengths(opened):
    tokens = opened.folder / manifest.read(opened.folder, stage="plan")["counts"]["tokens_dir"]
    return index_of(tokens)["num_tokens"].to_pylist()


@pytest.mark.parametrize("curriculum", ["mixed", "in_order", "short_to_long"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_every_token_once_an_epoch(make, curriculum, epochs):
    opened, report = make(curriculum=curriculum, epochs=epochs)
    counts = np.concatenate(covered(opened))
    lost = report["tokens_lost"]["total"]
    assert set(counts) <= {0, epochs}  # 0: parts without loss tokens
    assert epochs * (counts == 0).sum() == lost == report["tokens_lost"]["split"]
    assert report["tokens_trained"] == counts.sum()
    assert report["tokens_total"] == epochs * len(counts)


@pytest.mark.parametrize("overlong", ["split", "truncate", "drop"])
@pytest.mark.parametrize("remainder", ["pad", "drop"])
@pytest.mark.parametrize("row_length", [200, 600, 100_000])
def test_the_report_counts_what_the_rows_hold(make, overlong, remainder, row_length):
    opened, report = make(
        overlong=overlong, remainder=remainder, row_length=row_length, global_batch_size=2
    )
    if row_length == 100_000:
        assert report["tokens_lost"]["total"] == report["tokens_lost"]["remainder"]
    rows = [opened.read_row(row) for row in range(opened.num_rows)]
    real = [row for row in rows if row["segment_ids"].any()]
    slots = np.concatenate([row["segment_ids"] for row in rows])
    assert report["rows"] == len(real) and report["padding_rows"] == len(rows) - len(real)
    assert report["steps"] == opened.num_steps == len(rows) / 2
    assert report["segments"] == sum(int(row["segment_ids"].max()) for row in rows)
    assert report["tokens_trained"] == (slots > 0).sum()
    assert report["loss_tokens"] == sum(int(row["loss_mask"].sum()) for row in rows)
    assert report["fill"] == pytest.approx((slots > 0).sum() / (len(real) * row_length))
    work = sum(int((np.bincount(row["segment_ids"])[1:] ** 2).sum()) for row in rows)
    assert report["attention_work"] == work
    for kind in ("tokens", "loss_tokens"):
        trained = report["tokens_trained" if kind == "tokens" else "loss_tokens"]
        assert report[f"{kind}_total"] == trained + report[f"{kind}_lost"]["total"]
        assert {k for k, v in report[f"{kind}_lost"].items() if v} <= {
            {"split": "split", "truncate": "truncated", "drop": "dropped"}[overlong],
            "remainder",
            "total",
        }


def test_split_loses_only_loss_tokens_that_nothing_precedes(make, tokens_dir):
    _, report = make(epochs=1)
    assert report["turns_cut"] >= 1 and report["examples_overlong"] > report["turns_cut"]
    assert 0 < report["loss_tokens_lost"]["split"] <= 20  # hard cuts of one turn of 1,000 tokens
    _, whole = make("long", epochs=1, row_length=100_000)
    assert whole["loss_tokens_lost"]["total"] == 0
    assert whole["loss_tokens"] == sum(index_of(tokens_dir)["num_loss_tokens"].to_pylist())


def test_truncate_keeps_the_head_and_drop_nothing(make):
    lengths = None
    opened, _ = make("t", overlong="truncate", epochs=1)
    lengths = opened_lengths(opened)
    for count, length in zip(covered(opened), lengths, strict=True):
        np.testing.assert_array_equal(count, np.arange(length) < 256)
    opened, _ = make("d", overlong="drop", epochs=1)
    for count, length in zip(covered(opened), lengths, strict=True):
        assert set(count) == {int(length <= 256)}


def test_parts_start_at_turns_and_never_overfill(make, tokens_dir):
    opened, _ = make(epochs=1)
    starts = index_of(tokens_dir)["turn_starts"].to_pylist()
    off_turn = Counter()
    for row in range(opened.num_rows):
        segments = opened.segments(row)
        assert sum(s.num_tokens for s in segments) <= 256
        for segment in segments:
            off_turn[segment.example] += segment.first_token not in starts[segment.example]
    longest = [np.diff([*s, n]).max() for s, n in zip(starts, opened_lengths(opened), strict=True)]
    assert all(longest[example] > 256 for example, num in off_turn.items() if num)


def firsts(opened):
    """Examples in the order in which their rows come, each once."""
    segments = (s for row in range(opened.num_rows) for s in opened.segments(row))
    return list(dict.fromkeys(s.example for s in segments))


def test_the_curriculum_orders_the_windows(make):
    opened, _ = make("m", epochs=1, window_rows=1, row_length=4096)
    mixed = firsts(opened)
    assert mixed != sorted(mixed)
    opened, _ = make("i", epochs=1, window_rows=1, row_length=4096, curriculum="in_order")
    assert firsts(opened) == list(range(NUM))
    opened, _ = make("s", epochs=1, window_rows=1, row_length=4096, curriculum="short_to_long")
    lengths = [opened_lengths(opened)[example] for example in firsts(opened)]
    assert lengths == sorted(lengths)


def test_two_stages_are_whole_batches_of_their_sources(make):
    opened, report = make(curriculum="two_stage", first_sources=("b",), epochs=2)
    first, second = report["stages"]
    assert first["first_step"] == 0 and second["first_step"] == first["steps"]
    assert report["steps"] == first["steps"] + second["steps"] == opened.num_steps
    for row in range(opened.num_rows):
        expected = {"b"} if row < first["steps"] * 4 else {"a"}
        assert {segment.source for segment in opened.segments(row)} <= expected
    with pytest.raises(ValueError, match=r"--first_sources=z must name some, not all"):
        make("bad", curriculum="two_stage", first_sources=("z",))


def test_the_hash_names_the_rows(make, tokens_dir, tmp_path):
    one, _ = make("one")
    two, report = make("two")
    assert one.plan_hash == two.plan_hash == report["plan_hash"]
    assert (one.folder / "rows.arrow").read_bytes() == (two.folder / "rows.arrow").read_bytes()
    others = [make("b", global_batch_size=2), make("s", seed=1), make("l", row_length=255)]
    assert len({one.plan_hash, *(opened.plan_hash for opened, _ in others)}) == 4


def test_damaged_rows_are_refused(make):
    opened, _ = make()
    path = opened.folder / plan_rows.FILE
    content = path.read_bytes()
    for damaged in (content[:-400], content[:900] + b"\1" + content[901:], b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"rows\.arrow"):
            loader.Plan.open(opened.folder)


def test_the_picture_and_manifest_are_there(make):
    opened, report = make()
    assert (opened.folder / "report.png").read_bytes()[:4] == b"\x89PNG"
    found = manifest.read(opened.folder, stage="plan")
    assert found["counts"]["stages"] == report["stages"]
    assert sorted(p.name for p in opened.folder.iterdir()) == [
        "manifest.json", "report.json", "report.png", "rows.arrow",
    ]  # fmt: skip


def test_every_name_of_a_source_is_drawn(tmp_path, monkeypatch):
    drawn, savefig = [], figure.Figure.savefig

    def look_and_save(picture, *args, **kwargs):
        drawn.extend(text.get_text() for text in picture.axes[2].get_legend().get_texts())
        return savefig(picture, *args, **kwargs)

    monkeypatch.setattr(figure.Figure, "savefig", look_and_save)
    rows = random_rows(seed=1, num=6, sources=("a$b", "$\\x$", "_hidden"))
    tokens = tokenize.tokenize(
        [str(write_jsonl(tmp_path / "a.jsonl", rows))],
        tokenizer_dir="embedded",
        output_dir=tmp_path / "tokens",
        options=tokenize.TokenizeOptions(),
    )
    plan.make_plan(tokens, output_dir=tmp_path / "plan", options=plan.PlanOptions())
    assert sorted(drawn) == sorted((r"a\$b", r"\$\x\$", " _hidden"))


def test_bad_inputs_are_named(make, tmp_path):
    with pytest.raises(ValueError, match=r"nothing.*is not there \(no manifest.json\); run it"):
        plan.make_plan(tmp_path / "nothing", output_dir=tmp_path / "p", options=plan.PlanOptions())
    with pytest.raises(ValueError, match="the plan has no step"):
        make("none", remainder="drop", global_batch_size=4096)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="the plan has no step"):
        make("none", overlong="drop", row_length=3)
    for setting in ("epochs", "global_batch_size", "window_rows"):
        with pytest.raises(ValueError, match=f"--{setting}=0 must be positive"):
            plan.PlanOptions(**{setting: 0})
    with pytest.raises(ValueError, match="--row_length=1 must be at least 2"):
        plan.PlanOptions(row_length=1)
