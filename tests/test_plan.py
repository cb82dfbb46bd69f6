"""Laws of a plan, counted again from its rows and the tokens themselves."""

import itertools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from conversations import random_rows, write_jsonl

from data_pipeline import loader, manifest, plan, tokenize
from data_pipeline.planning import plan_rows

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
        defaults = {"row_length": 256, "global_batch_size": 4, "window_rows": 8, "pictures": False}
        options = defaults | options
        folder = plan.make_plan(
            tokens_dir, output_dir=tmp_path / name, options=plan.PlanOptions(**options)
        )
        return loader.Plan.open(folder), json.loads((folder / "report.json").read_text())

    return make


def index_of(tokens_dir):
    return pq.read_table(tokens_dir / "index.parquet")


def covered(opened):
    """How often each token of each example is in a row, the repeated ones left out."""
    counts = [np.zeros(n, int) for n in opened_lengths(opened)]
    starts = index_of(tokens_of(opened))["turn_starts"].to_pylist()
    for row in range(opened.num_rows):
        for segment in opened.segments(row):
            first = segment.first_token
            counts[segment.example][first : first + segment.num_tokens] += 1
            if first and first not in starts[segment.example]:
                counts[segment.example][first] -= 1  # what predicts the next token, inside a turn
    return counts


def tokens_of(opened):
    return opened.folder / manifest.read(opened.folder, stage="plan")["counts"]["tokens_dir"]


def opened_lengths(opened):
    return index_of(tokens_of(opened))["num_tokens"].to_pylist()


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
    repeated = report["tokens_carried"]
    assert report["tokens_trained"] + repeated == (slots > 0).sum()
    assert report["tokens_trained"] == sum(int(count.sum()) for count in covered(opened))
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


def test_split_loses_no_loss_token(make, tokens_dir):
    num_loss_tokens = sum(index_of(tokens_dir)["num_loss_tokens"].to_pylist())
    for row_length in (20, 256, 100_000):
        opened, report = make(f"{row_length}", epochs=1, row_length=row_length)
        overlong = report["overlong"]
        assert (overlong["turns_cut"] > 0) == (overlong["examples"] > 0) == (row_length < 1000)
        rows = [opened.read_row(row)["loss_mask"] for row in range(opened.num_rows)]
        assert np.sum(rows) == report["loss_tokens"] == num_loss_tokens
        assert not any(report["loss_tokens_lost"].values())


def test_a_part_sees_its_prompt_and_trains_it_once(make, tokens_dir):
    index = index_of(tokens_dir).to_pylist()
    opened, report = make(epochs=1)
    carried = 0
    for row in range(opened.num_rows):
        for segment in opened.segments(row):
            entry = index[segment.example]
            # All before the turn that holds the first loss token.
            prompt = max(t for t in entry["turn_starts"] if t <= entry["loss_starts"][0])
            is_later = segment.first_token > 0
            assert segment.prompt == (prompt if is_later and prompt < 128 else 0)
            carried += segment.prompt + (
                is_later and segment.first_token not in entry["turn_starts"]
            )
    assert carried == report["tokens_carried"] > 0
    bare, report = make("bare", epochs=1, carry_prompt=False)
    assert not bare.rows.prompt.any()
    assert report["tokens_carried"] == report["overlong"]["turns_cut"]


def test_truncate_keeps_the_head_and_drop_nothing(make):
    lengths = None
    opened, _ = make("t", overlong="truncate", epochs=1)
    lengths = opened_lengths(opened)
    for count, length in zip(covered(opened), lengths, strict=True):
        np.testing.assert_array_equal(count, np.arange(length) < 256)
    opened, _ = make("d", overlong="drop", epochs=1)
    for count, length in zip(covered(opened), lengths, strict=True):
        assert set(count) == {int(length <= 256)}


def test_no_row_overfills(make):
    opened, _ = make()
    slots = opened.rows.prompt + opened.rows.num_tokens
    assert max(slots[a:b].sum() for a, b in itertools.pairwise(opened.rows.offsets)) <= 256


def firsts(opened):
    """Examples in the order in which their rows come, each once."""
    segments = (s for row in range(opened.num_rows) for s in opened.segments(row))
    return list(dict.fromkeys(s.example for s in segments))


def test_the_curriculum_orders_the_windows(make):
    settings = {"epochs": 1, "window_rows": 1, "row_length": 4096, "global_batch_size": 1}
    opened, _ = make("m", **settings)
    mixed = firsts(opened)
    assert mixed != sorted(mixed)
    opened, _ = make("i", **settings, curriculum="in_order")
    assert firsts(opened) == list(range(NUM))
    opened, _ = make("s", **settings, curriculum="short_to_long")
    lengths = [opened_lengths(opened)[example] for example in firsts(opened)]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("window_rows", [2, 8])
def test_nothing_moves_further_than_its_window_and_a_batch(make, window_rows):
    opened, _ = make("w", curriculum="in_order", epochs=1, window_rows=window_rows)
    table = opened.rows
    row_of = np.repeat(np.arange(opened.num_rows), np.diff(table.offsets))
    order = np.lexsort((table.first, table.example))  # as the curriculum has them
    slots = (table.prompt + table.num_tokens)[order]
    window, windows, used = 0, [], 0
    for size in slots:
        if used + size > 256 * window_rows and used:
            window, used = window + 1, 0
        used += size
        windows.append(window)
    steps = row_of[order] // 4
    last = np.full(window + 1, -1)
    np.maximum.at(last, windows, steps)
    for step, own in zip(steps, windows, strict=True):
        assert own == 0 or step >= last[own - 1]
    assert window >= 3


def test_padding_is_spread_over_the_batches(make):
    opened, report = make(global_batch_size=16, row_length=512, epochs=1)
    sizes = np.diff(opened.rows.offsets).reshape(-1, 16)
    empty = (sizes == 0).sum(1)
    assert empty.sum() == report["padding_rows"] > 1 and empty.max() - empty.min() <= 1


def test_the_report_tells_the_imbalance(make):
    opened, report = make(row_length=512, global_batch_size=8, num_shards=6)
    assert report["stages"][0]["num_shards"] == 2
    worst = 0.0
    for step in range(opened.num_steps):
        ids = opened.read_batch(step)["segment_ids"]
        work = [sum(np.bincount(row)[1:] ** 2) for row in ids]
        shards = np.reshape(work, (2, 4)).sum(1)
        worst = max(worst, shards.max() / shards.mean())
    assert report["imbalance_max"] == pytest.approx(worst)
    assert worst < report["imbalance_random_max"]


def stages_file(tmp_path, text):
    (tmp_path / "stages.toml").write_text(text)
    return {"curriculum": "staged", "stages": str(tmp_path / "stages.toml")}


def test_what_no_stage_draws_is_told(make, tokens_dir, tmp_path):
    _, report = make(epochs=2)
    assert report["never_drawn"] == {"examples": 0, "tokens": 0, "loss_tokens": 0, "sources": []}
    _, report = make("b", **stages_file(tmp_path, "[[stage]]\nsources = ['b']\nepochs = 3\n"))
    left = [row for row in index_of(tokens_dir).to_pylist() if row["source"] != "b"]
    assert report["never_drawn"] == {
        "examples": len(left),
        "tokens": sum(row["num_tokens"] for row in left),
        "loss_tokens": sum(row["num_loss_tokens"] for row in left),
        "sources": ["a"],
    }
    [stage] = report["stages"]
    assert stage["sources"]["b"]["epochs"] == 3
    assert sum(s["tokens"] for s in stage["sources"].values()) == report["tokens_total"]


@pytest.mark.parametrize("curriculum", ["in_order", "short_to_long", "easy_to_hard"])
def test_an_order_is_seen_in_the_steps_of_a_small_corpus(make, tokens_dir, curriculum):
    """A window that held the whole corpus would pack the order away."""
    opened, _ = make(
        curriculum=curriculum, epochs=1, window_rows=4096, row_length=1024, difficulty_by="turns"
    )
    index = index_of(tokens_dir)
    keys = {
        "in_order": np.arange(NUM),
        "short_to_long": index["num_tokens"].to_numpy(),
        "easy_to_hard": index["num_turns"].to_numpy(),
    }[curriculum]
    table = opened.rows
    steps = np.repeat(np.arange(opened.num_rows) // 4, np.diff(table.offsets))
    ranks = [np.argsort(np.argsort(x, kind="stable")) for x in (keys[table.example], steps)]
    assert np.corrcoef(ranks)[0, 1] > 0.9


def test_the_hash_follows_the_batches_alone(make, tmp_path):
    one, _ = make("one", epochs=1)
    same = [
        make("pictures", epochs=1, pictures=True)[0],
        make("by", epochs=1.0, difficulty_by="turns")[0],
        make("file", **stages_file(tmp_path, "[[stage]]\nname = 'mixed'\nrow_length = 256\n"))[0],
    ]
    assert {opened.plan_hash for opened in same} == {one.plan_hash}


def test_names_of_stages_are_shown_as_they_are(make, tmp_path, capfd):
    name = r"a[bold]b[/red]\u001b]0;c"
    make("n", **stages_file(tmp_path, f'[[stage]]\nname = "{name}"\n'))
    shown = capfd.readouterr().err
    assert "a[bold]b" in shown and "\x1b]0" not in shown


def test_equal_volume(make, tokens_dir):
    whole = sum(index_of(tokens_dir)["num_tokens"].to_pylist())
    longest = max(index_of(tokens_dir)["num_tokens"].to_pylist())
    _, report = make(max_tokens=whole // 2, epochs=2)
    assert abs(report["tokens_total"] - whole) <= 2 * longest


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


def test_what_a_plan_leaves(make):
    opened, report = make(pictures=True)
    assert len(list((opened.folder / "pictures").glob("*.png"))) >= 8
    found = manifest.read(opened.folder, stage="plan")
    assert [stage["num_steps"] for stage in found["counts"]["stages"]] == [report["steps"]]
    assert sorted(p.name for p in opened.folder.iterdir()) == [
        "manifest.json", "pictures", "report.html", "report.json", "rows.arrow",
    ]  # fmt: skip


def test_bad_inputs_are_named(make, tmp_path):
    with pytest.raises(ValueError, match=r"nothing.*is not there \(no manifest.json\); run it"):
        plan.make_plan(tmp_path / "nothing", output_dir=tmp_path / "p", options=plan.PlanOptions())
    with pytest.raises(ValueError, match=r"stage .* has no step"):
        make("none", remainder="drop", global_batch_size=4096)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match=r"stage .* has no step"):
        make("none", overlong="drop", row_length=3)
    for setting in ("epochs", "global_batch_size", "window_rows"):
        with pytest.raises(ValueError, match=f"--{setting}=0 must be positive"):
            plan.PlanOptions(**{setting: 0})
    with pytest.raises(ValueError, match="--row_length=1 must be at least 2"):
        plan.PlanOptions(row_length=1)
