"""The pictures of a plan: what the examples are, how rows are filled, what is trained when.

All is counted into a few bins before it is drawn, so the number of pieces hardly costs time.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import storage
from data_pipeline.planning import balance, plan_rows
from data_pipeline.showing import drawing, visible

if TYPE_CHECKING:  # slow to import, and only a drawing needs it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOLDER = "pictures"

_NUM_TIMES = 200  # into which the steps are gathered
_MAX_SOURCES = 8
_BALANCED = 1.05  # of the busiest shard to the mean
_LOST = ("split", "truncated", "dropped")


@dataclasses.dataclass(frozen=True)
class _Sources:
    """The sources that are shown, those with most tokens first, and the others together."""

    labels: tuple[str, ...]
    others: bool  # the last label is of those that have none of their own
    of: np.ndarray  # int64 [E]; the number of each example's label

    def sums(self, examples: Any, bins: np.ndarray, num_bins: int, weights: Any) -> np.ndarray:
        """The sums of `weights` by label and bin, float64 [S, num_bins]."""
        size = len(self.labels) * num_bins
        flat = np.bincount(self.of[examples] * num_bins + bins, weights, size)
        return flat.reshape(len(self.labels), num_bins)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """What is drawn of R rows and their P pieces."""

    table: plan_rows.RowTable
    num_pieces: np.ndarray  # int64 [R]
    slots: np.ndarray  # float64 [R]; those that are taken
    work: np.ndarray  # float64 [R]; of attention
    length: np.ndarray  # int64 [R]; all slots
    step: np.ndarray  # int64 [P]; in which a piece is trained

    @property
    def num_steps(self) -> int:
        return sum(stage.num_steps for stage in self.table.stages)


def figures(
    rows: plan_rows.RowTable,
    index: pa.Table,
    report: Mapping[str, Any],
    *,
    difficulty_order: Sequence[str] = ("easy", "medium", "hard"),
) -> dict[str, "Figure"]:
    """Draw a plan: a figure under each name, but for those that would have nothing to show.

    Args:
        rows: of the plan.
        index: of the tokens.
        report: the figures of report.json.
        difficulty_order: names of difficulties, the easiest first.
    """
    seen, sources = _seen(rows), _sources(index)
    measures = {
        "tokens": index["num_tokens"].to_numpy().astype(float),
        "turns": index["num_turns"].to_numpy().astype(float),
        "difficulty": _difficulty(index, difficulty_order),
    }
    with drawing.style():
        drawn = {
            "funnel": _funnel(report.get("funnel") or ()),
            "tokens_by_source": _tokens_by_source(index, sources, seen),
            "turns_by_source": _turns_by_source(index, sources),
            "loss_share": _loss_share(index, sources),
            "overlong": _overlong(report["overlong"]),
            "fill": _fill(seen),
            "segments_per_row": _segments_per_row(seen),
            "attention_fill": _attention_fill(seen),
            "curriculum": _curriculum(seen, sources, measures),
            "balance": _balance(seen, [stage["num_shards"] for stage in report["stages"]]),
        }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def write(figures: Mapping[str, "Figure"], folder: storage.Path) -> dict[str, bytes]:
    """Write each figure as FOLDER/pictures/NAME.png; returns the same bytes by name."""
    return drawing.write(figures, folder / FOLDER)


def _seen(rows: plan_rows.RowTable) -> _Rows:
    num_pieces = np.diff(rows.offsets).astype(np.int64)
    row_of = np.repeat(np.arange(len(num_pieces)), num_pieces)
    slots = rows.prompt.astype(np.float64) + rows.num_tokens
    steps = [
        stage.first_step + np.arange(stage.num_rows) // stage.global_batch_size
        for stage in rows.stages
    ]
    return _Rows(
        table=rows,
        num_pieces=num_pieces,
        slots=np.bincount(row_of, slots, len(num_pieces)),
        work=np.bincount(row_of, slots**2, len(num_pieces)),
        length=np.concatenate([np.full(stage.num_rows, stage.row_length) for stage in rows.stages]),
        step=np.concatenate(steps)[row_of],
    )


def _sources(index: pa.Table) -> _Sources:
    column = pc.fill_null(index["source"].combine_chunks(), "").dictionary_encode()
    codes = column.indices.to_numpy()
    order = np.argsort(-np.bincount(codes, index["num_tokens"].to_numpy()), kind="stable")
    names = column.dictionary.take(pa.array(order[:_MAX_SOURCES])).to_pylist()
    labels, rest = [drawing.name(name) or "(no source)" for name in names], len(order) - len(names)
    of = np.minimum(np.argsort(order), _MAX_SOURCES)[codes]
    return _Sources((*labels, f"{rest:,} others") if rest else tuple(labels), rest > 0, of)


def _difficulty(index: pa.Table, order: Sequence[str]) -> np.ndarray:
    """The rank of each example's difficulty, from 1; not a number where it is not known."""
    coded = index["difficulty"].combine_chunks().dictionary_encode()
    rank_of = {name: float(rank) for rank, name in enumerate(order, start=1)}
    ranks = [rank_of.get(name, np.nan) for name in coded.dictionary.to_pylist()]
    return np.array([*ranks, np.nan])[pc.fill_null(coded.indices, -1).to_numpy()]


def _stack(axes: "Axes", values: np.ndarray, edges: np.ndarray, sources: _Sources) -> None:
    """A histogram of one value an example, by source."""
    heights = sources.sums(slice(None), drawing.bins(values, edges), len(edges) - 1, None)
    drawing.stack(axes, heights, edges, sources.labels, others=sources.others)


def _funnel(steps: Sequence[tuple[str, int]]) -> "Figure | None":
    if not steps:
        return None
    figure, axes = drawing.figure(
        "From the corpus to the plan", x="rows left", left=2.5, height=0.9 + 0.26 * len(steps)
    )
    left = [num for _, num in steps]
    changes = [now - before for before, now in zip([left[0], *left], left, strict=False)]
    bars = axes.barh(range(len(steps)), left, color=drawing.MAIN, height=0.7)
    labels = [visible.line(label, max_characters=34) for label, _ in steps]
    axes.set_yticks(range(len(steps)), labels)
    told = [
        f" {num:,}" + (f"  ({by:+,})" if by else "") for num, by in zip(left, changes, strict=True)
    ]
    _lying(axes, bars, told)
    return figure


def _lying(axes: "Axes", bars: Any, told: Sequence[str]) -> None:
    """Bars from left to right, the first on top, each with what is told of it, so without ticks."""
    axes.bar_label(bars, told, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.set_xticks([])
    axes.grid(visible=False)


def _tokens_by_source(index: pa.Table, sources: _Sources, seen: _Rows) -> "Figure":
    figure, axes = drawing.figure("Length of the examples", x="tokens", y="examples", legend=True)
    tokens = index["num_tokens"].to_numpy()
    edges = np.geomspace(tokens.min(), tokens.max() + 1, drawing.NUM_BINS + 1)
    _stack(axes, tokens, edges, sources)
    drawing.log_scale(axes, edges[0], edges[-1])
    for length in sorted({stage.row_length for stage in seen.table.stages}):
        if length <= tokens.max():
            axes.axvline(length, color=drawing.INK, linestyle=":", linewidth=1)
            axes.annotate(
                f"row of {length:,} ", (length, 1), xycoords=("data", "axes fraction"),
                fontsize=7, rotation=90, va="top", ha="right",
            )  # fmt: skip
    return figure


def _turns_by_source(index: pa.Table, sources: _Sources) -> "Figure":
    figure, axes = drawing.figure("Turns of the examples", x="turns", y="examples", legend=True)
    turns = index["num_turns"].to_numpy()
    _stack(axes, turns, drawing.whole_edges(int(turns.max())), sources)
    drawing.whole_numbers(axes.xaxis)
    return figure


def _loss_share(index: pa.Table, sources: _Sources) -> "Figure":
    title = "Share of an example that is trained"
    figure, axes = drawing.figure(title, x="loss tokens / tokens", y="examples", legend=True)
    share = index["num_loss_tokens"].to_numpy() / index["num_tokens"].to_numpy()
    _stack(axes, share, np.linspace(0, 1, 51), sources)
    return figure


def _overlong(overlong: Mapping[str, int]) -> "Figure | None":
    """A bar for each way in which examples longer than a row are not trained whole."""
    if not overlong["examples"]:
        return None
    title = f"Examples longer than a row: {overlong['examples']:,}"
    figure, axes = drawing.figure(title, x="tokens")
    tokens = [overlong.get(name, 0) for name in _LOST]
    bars = axes.barh(range(len(_LOST)), tokens, color=drawing.COLORS[2:5], height=0.55)
    axes.set_yticks(range(len(_LOST)), _LOST)
    _lying(axes, bars, [f" {num:,}" for num in tokens])
    return figure


def _fill(seen: _Rows) -> "Figure":
    figure, axes = drawing.figure("Fill of the rows", x="slots taken / row length", y="rows")
    real = seen.num_pieces > 0
    drawing.histogram(axes, (seen.slots / seen.length)[real], np.linspace(0, 1, 51))
    axes.set(yscale="log", xlim=(0, 1))  # nearly all rows are in the last bin
    drawing.thousands(axes.yaxis)
    return figure


def _segments_per_row(seen: _Rows) -> "Figure":
    figure, axes = drawing.figure("Segments of the rows", x="segments", y="rows")
    sizes = seen.num_pieces[seen.num_pieces > 0]
    drawing.histogram(axes, sizes, drawing.whole_edges(int(sizes.max())))
    drawing.whole_numbers(axes.xaxis)
    return figure


def _attention_fill(seen: _Rows) -> "Figure":
    unit = "sum of squares of the segments / square of the row"
    figure, axes = drawing.figure("Attention work of the rows", x=unit, y="rows")
    real = seen.num_pieces > 0
    drawing.histogram(axes, (seen.work / seen.length**2.0)[real], np.linspace(0, 1, 51))
    axes.set_xlim(0, 1)
    return figure


def _curriculum(seen: _Rows, sources: _Sources, measures: Mapping[str, np.ndarray]) -> "Figure":
    """Over time the shares of the sources, and the means of what a curriculum may order by."""
    figure, (of_shares, of_means) = drawing.figure(
        "What is trained when", x="step", y="share of tokens", panels=2, legend=True, height=4.6
    )
    times = min(seen.num_steps, _NUM_TIMES)
    example, time = seen.table.example, seen.step * times // seen.num_steps
    edges = np.arange(times + 1) * seen.num_steps / times
    tokens = sources.sums(example, time, times, seen.table.num_tokens)
    shares = tokens / np.maximum(tokens.sum(0), 1)
    drawing.stack(of_shares, shares, edges, sources.labels, others=sources.others)
    for (name, values), color in zip(
        measures.items(), (drawing.MAIN, drawing.SECOND, drawing.COLORS[5]), strict=True
    ):
        known = ~np.isnan(values[example])
        if known.any():
            _mean_line(of_means, values[example][known], time[known], edges, name, color)
    of_shares.set_ylim(0, 1)
    of_means.set(ylabel="relative to the mean", xlim=(0, seen.num_steps), ylim=(0, None))
    of_means.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    drawing.whole_numbers(of_means.xaxis)
    _mark_stages(of_shares, seen, named=False)
    _mark_stages(of_means, seen, named=True)
    return figure


def _mean_line(
    axes: "Axes", values: np.ndarray, time: np.ndarray, edges: np.ndarray, name: str, color: str
) -> None:
    """The mean of the values of each time, relative to that of all; a gap where there are none."""
    sums = np.bincount(time, values, len(edges) - 1)
    nums = np.bincount(time, minlength=len(edges) - 1)
    means = np.divide(sums, nums, where=nums > 0, out=np.full(len(nums), np.nan))
    mean = values.mean()
    label = f"{name} (mean {mean:,.0f})" if mean >= 100 else f"{name} (mean {mean:.2f})"
    axes.stairs(means / mean, edges, baseline=None, color=color, label=label, linewidth=1.4)


def _mark_stages(axes: "Axes", seen: _Rows, *, named: bool) -> None:
    """A line where a stage begins, and its name beside; nothing where there is only one."""
    stages = [stage for stage in seen.table.stages if stage.num_steps]
    for stage in stages if len(stages) > 1 else ():
        if stage.first_step:
            axes.axvline(stage.first_step, color=drawing.INK, linewidth=1)
        if named:
            axes.annotate(
                f" {drawing.name(stage.name)}", (stage.first_step, 1),
                xycoords=("data", "axes fraction"), fontsize=7, va="top", rotation=90,
            )  # fmt: skip


def _balance(seen: _Rows, num_shards: Sequence[int]) -> "Figure | None":
    """Of each step the work of the busiest shard, as planned and beside it dealt at random."""
    if max(num_shards) < 2:
        return None
    told = " or ".join(f"{num:,}" for num in sorted(set(num_shards)))
    title = f"Balance of attention over {told} shards"
    figure, axes = drawing.figure(title, x="step", y="busiest shard / mean", legend=True)
    times = min(seen.num_steps, _NUM_TIMES)
    starts = -(-np.arange(times) * seen.num_steps // times)  # the first step of each time
    edges = np.append(starts, seen.num_steps)
    planned, dealt = _imbalances(seen, num_shards)
    lines = (("dealt at random", dealt, drawing.SECOND), ("as planned", planned, drawing.MAIN))
    for name, each, color in lines:
        label = f"{name}\nmean {each.mean():.3f}, max {each.max():.3f}"
        highest = np.maximum.reduceat(each, starts)
        axes.stairs(highest, edges, baseline=None, color=color, label=label, linewidth=1.4)
    axes.axhline(_BALANCED, color=drawing.INK, linestyle=":", linewidth=1, label=f"{_BALANCED}")
    axes.set(xlim=(0, seen.num_steps), ylim=(1, None))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    drawing.whole_numbers(axes.xaxis)
    _mark_stages(axes, seen, named=False)
    return figure


def _imbalances(seen: _Rows, num_shards: Sequence[int]) -> list[np.ndarray]:
    """Busiest over mean shard of each step: of the rows as planned, and dealt at random."""
    found = []
    for stage, num in zip(seen.table.stages, num_shards, strict=True):
        size = stage.global_batch_size
        work = seen.work[stage.first_row : stage.first_row + stage.num_rows]
        rng = np.random.default_rng(0)  # deals as the report does
        dealt = rng.permuted(work.reshape(-1, size), axis=1).reshape(-1)
        found.append([balance.imbalance(x, batch_size=size, num_shards=num) for x in (work, dealt)])
    return [np.concatenate(each) for each in zip(*found, strict=True)]
