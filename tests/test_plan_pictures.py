"""What is drawn, counted again row by row and example by example."""

import io

import matplotlib
import matplotlib.image
import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.planning import plan_rows
from data_pipeline.showing import plan_pictures

NAMES = [
    "code$x$",
    "_swe",
    "\x1b[31mred",
    "日本",
    "<b>",
    "a" * 60,
    "\u202eb",
    "math",
    "x",
    "y",
    None,
]
BATCH, SHARDS = 4, 2


@pytest.fixture(scope="module")
def index():
    rng = np.random.default_rng(0)
    num = 300
    tokens = rng.integers(20, 900, num)
    return pa.table(
        {
            "source": pa.array([NAMES[i] for i in rng.permutation(num) % 11], pa.string()),
            "num_tokens": pa.array(tokens, pa.int32()),
            "num_loss_tokens": pa.array(
                (tokens * rng.uniform(0.1, 0.9, num)).astype(int), pa.int32()
            ),
            "num_turns": pa.array(rng.integers(2, 90, num), pa.int32()),
            "difficulty": pa.array([["easy", "hard", None, "odd"][i % 4] for i in range(num)]),
        }
    )


@pytest.fixture(scope="module")
def rows(index):
    """Two stages of rows of 1,000 and 2,000 slots; some rows are empty."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(0, 4, 13 * BATCH)
    sizes[0] = 2
    num, total = index["num_tokens"].to_numpy(), sizes.sum()
    example = rng.integers(0, len(index), total)
    stages = (
        plan_rows.PlanStage("first", 0, 5 * BATCH, 0, 5, 1000, BATCH),
        plan_rows.PlanStage("$2", 5 * BATCH, 8 * BATCH, 5, 8, 2000, BATCH),
    )
    tokens = np.minimum(num[example], 250)
    columns = (example, rng.integers(0, 60, total), np.zeros(total), tokens)
    return plan_rows.RowTable(
        stages,
        np.append(0, np.cumsum(sizes)).astype(np.int32),
        *(c.astype(np.int32) for c in columns),
    )


@pytest.fixture(scope="module")
def report():
    return {
        "funnel": [["corpus", 900], ["no $duplicates$", 300]],
        "overlong": {"examples": 7, "split": 7000, "truncated": 0, "dropped": 0},
        "stages": [{"num_shards": SHARDS}, {"num_shards": SHARDS}],
    }


@pytest.fixture(scope="module")
def drawn(rows, index, report):
    return plan_pictures.figures(rows, index, report)


def heights(axes):
    """What each bar stack or line shows, in the order drawn."""
    found = [patch.get_data() for patch in axes.patches]
    return [each.values - (0 if each.baseline is None else each.baseline) for each in found]


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def by_source(index):
    """Names by tokens, the most first."""
    total = {}
    for name, num in zip(index["source"].to_pylist(), index["num_tokens"].to_pylist(), strict=True):
        total[name] = total.get(name, 0) + num
    return sorted(total, key=lambda name: -total[name])


def slots_of_rows(rows):
    for first, last in zip(rows.offsets, rows.offsets[1:], strict=False):
        yield [int(rows.prompt[i] + rows.num_tokens[i]) for i in range(first, last)]


def test_the_names(drawn):
    assert set(drawn) == {
        "funnel", "tokens_by_source", "turns_by_source", "loss_share", "overlong", "fill",
        "segments_per_row", "attention_fill", "curriculum", "balance",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["tokens_by_source", "turns_by_source", "loss_share"])
def test_every_example_is_drawn_in_the_colour_of_its_source(drawn, index, name):
    column = index["source"].to_pylist()
    names = by_source(index)
    counts = [column.count(each) for each in names[:8]]
    expected = [*counts, len(column) - sum(counts)]
    assert [each.sum() for each in heights(drawn[name].axes[0])] == expected


def test_names_stand_as_they_are(drawn, index):
    shown = labels(drawn["tokens_by_source"].axes[0])[::-1]
    expected = {
        "_swe": " _swe",
        "\x1b[31mred": "␛[31mred",
        "\u202eb": "\\u202eb",
        "a" * 60: "a" * 13 + "…" + "a" * 12,
        None: "(no source)",
    }
    assert shown == [expected.get(each, each) for each in by_source(index)[:8]] + ["3 others"]
    assert drawn["funnel"].axes[0].get_yticklabels()[1].get_text() == "no $duplicates$"
    texts = drawn["tokens_by_source"].axes[0].get_legend().get_texts()
    assert not any(text.get_parse_math() for text in texts)


def test_what_becomes_of_overlong_examples(drawn):
    axes = drawn["overlong"].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "split",
        "truncated",
        "dropped",
    ]
    assert [bar.get_width() for bar in axes.patches] == [7000, 0, 0]
    assert axes.get_title(loc="left").endswith(": 7")


def test_rows_are_counted_as_they_are(drawn, rows):
    real = [slots for slots in slots_of_rows(rows) if slots]
    assert [sum(heights(drawn[name].axes[0])[0]) for name in ("fill", "attention_fill")] == [
        len(real), len(real),
    ]  # fmt: skip
    segments = heights(drawn["segments_per_row"].axes[0])[0]
    assert segments.tolist() == [sum(len(s) == n for s in real) for n in range(1, 4)]
    fill = np.zeros(50)
    for row, slots in enumerate(slots_of_rows(rows)):
        if slots:
            fill[int(50 * sum(slots) / (1000 if row < 5 * BATCH else 2000) + 1e-9)] += 1
    np.testing.assert_array_equal(heights(drawn["fill"].axes[0])[0], fill)


def test_the_curriculum_is_what_the_steps_hold(drawn, rows, index):
    shares = np.array(heights(drawn["curriculum"].axes[0]))
    lines = [patch.get_data().values for patch in drawn["curriculum"].axes[1].patches]
    names, sources = by_source(index), index["source"].to_pylist()
    turns, levels = index["num_turns"].to_pylist(), index["difficulty"].to_pylist()
    rank = {"easy": 1, "hard": 3}
    all_turns = [turns[e] for e in rows.example]
    all_ranks = [rank[levels[e]] for e in rows.example if levels[e] in rank]
    for step in range(13):
        span = range(rows.offsets[step * BATCH], rows.offsets[(step + 1) * BATCH])
        total = sum(int(rows.num_tokens[i]) for i in span)
        for number, name in enumerate(names[:8]):
            own = sum(int(rows.num_tokens[i]) for i in span if sources[rows.example[i]] == name)
            assert shares[number, step] == pytest.approx(own / total)
        assert shares[:, step].sum() == pytest.approx(1)
        own = [turns[rows.example[i]] for i in span]
        assert lines[1][step] * np.mean(all_turns) == pytest.approx(np.mean(own))
        own = [rank[levels[rows.example[i]]] for i in span if levels[rows.example[i]] in rank]
        assert lines[2][step] * np.mean(all_ranks) == pytest.approx(np.mean(own))


def test_balance_is_the_busiest_shard_over_the_mean(drawn, rows):
    work = [sum(slot**2 for slot in slots) for slots in slots_of_rows(rows)]
    dealt, planned = [patch.get_data().values for patch in drawn["balance"].axes[0].patches]
    for step in range(13):
        batch = work[step * BATCH : (step + 1) * BATCH]
        shards = [sum(batch[:2]), sum(batch[2:])]
        assert planned[step] == pytest.approx(max(shards) / (sum(batch) / 2))
        pairs = [batch[0] + batch[k] for k in (1, 2, 3)]
        ways = [max(one, sum(batch) - one) / (sum(batch) / 2) for one in pairs]
        assert any(dealt[step] == pytest.approx(way) for way in ways)


def test_many_steps_are_gathered_into_few(index, report):
    sizes = np.ones(1000 * BATCH, int)
    example = np.arange(len(sizes)) % len(index)
    zeros, num = np.zeros(len(sizes), np.int32), index["num_tokens"].to_numpy()[example]
    stage = plan_rows.PlanStage("all", 0, len(sizes), 0, 1000, 1000, BATCH)
    table = plan_rows.RowTable((stage,), np.append(0, np.cumsum(sizes)), example, zeros, zeros, num)
    drawn = plan_pictures.figures(table, index, report | {"stages": report["stages"][:1]})
    work = (num.astype(float) ** 2).reshape(1000, 2, -1).sum(2)
    worst = (work.max(1) / work.mean(1)).reshape(200, 5).max(1)
    _, planned = heights(drawn["balance"].axes[0])
    np.testing.assert_allclose(planned, worst)
    assert len(heights(drawn["curriculum"].axes[0])[0]) == 200


def test_what_has_nothing_to_show_is_left_out(rows, index, report):
    nothing = {"funnel": [], "overlong": {"examples": 0}, "stages": [{"num_shards": 1}] * 2}
    drawn = plan_pictures.figures(rows, index, report | nothing)
    assert not {"funnel", "overlong", "balance"} & set(drawn)


def test_pictures_are_the_same_bytes_whatever_the_users_settings(
    drawn, rows, index, report, tmp_path
):
    (tmp_path / "other").mkdir()
    pictures = plan_pictures.write(drawn, tmp_path)
    with matplotlib.rc_context({"font.size": 20, "axes.grid": False, "figure.dpi": 50}):
        again = plan_pictures.figures(rows, index, report)
        assert plan_pictures.write(again, tmp_path / "other") == pictures
    files = {path.name: path.read_bytes() for path in (tmp_path / "pictures").iterdir()}
    assert files == {f"{name}.png": png for name, png in pictures.items()}
    for png in pictures.values():
        pixels = matplotlib.image.imread(io.BytesIO(png))
        assert 300 < pixels.shape[1] < 1200 and pixels.std() > 0.02
