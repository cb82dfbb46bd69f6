"""A packed row in the terminal: a bar of its segments to scale, a table of them, their text.

██████░░▓▓▓▓████████···      two segments beside one that repeats its prompt; then padding
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from rich import console as rich_console
from rich import table as rich_table
from rich import text as rich_text

from data_pipeline import manifest, shards, storage
from data_pipeline.planning import plan_rows
from data_pipeline.showing import masked_text, visible

if TYPE_CHECKING:  # brings Grain, which is slow to import, and only a plan needs it
    from data_pipeline import loader

_COLORS = ("cyan", "magenta", "yellow", "blue", "green", "red")
_BODY, _PROMPT, _PADDING = "█▓", "░", "·"  # neighbours differ, where there are no colours too
_MAX_WIDTH = 120
_HEAD, _TAIL = 160, 80  # tokens of a segment that are shown


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a plan and what is known about its segments."""

    name: str
    tokens_dir: storage.Path
    stage: plan_rows.PlanStage
    step: int
    arrays: "loader.Batch"
    segments: "list[loader.Segment]"
    facts: list[dict[str, Any]]  # id and task of the example of each segment

    def slots(self, number: int) -> slice:
        """The slots of segment `number`, which counts from 1."""
        first, *_ = at = np.flatnonzero(self.arrays["segment_ids"] == number)
        return slice(int(first), int(at[-1]) + 1)


def open_row(folder: storage.Path, number: int, *, tokens_dir: str = "") -> Row:
    """Read a row of a plan.

    Raises:
        ValueError: there is no such row, or the plan or its tokens cannot be read.
    """
    from data_pipeline import loader

    plan = loader.Plan.open(folder, tokens_dir=tokens_dir)
    require_inside("row", number, plan.num_rows, str(folder))
    where = manifest.read(folder, stage="plan")["counts"]["tokens_dir"]
    tokens = storage.as_path(tokens_dir) if tokens_dir else storage.join(folder, where)
    segments = plan.segments(number)
    index = shards.read_index(tokens, columns=["id", "task"])
    [stage] = (each for each in plan.stages if 0 <= number - each.first_row < each.num_rows)
    return Row(
        name=f"{folder} row {number:,} of {plan.num_rows:,}",
        tokens_dir=tokens,
        stage=stage,
        step=stage.first_step + (number - stage.first_row) // stage.global_batch_size,
        arrays=plan.read_row(number),
        segments=segments,
        facts=index.take(
            pa.array([segment.example for segment in segments], pa.int64())
        ).to_pylist(),
    )


def show(row: Row, decoder: Any, *, full: bool, console: rich_console.Console) -> None:
    """Show a row; its text too, where there is a tokenizer to decode with."""
    ids = row.arrays["segment_ids"]
    sizes = np.bincount(ids)[1:]
    work = (sizes.astype(float) ** 2).sum() / len(ids) ** 2
    told = (
        f"stage {row.stage.name}", f"step {row.step:,}", f"segments {len(row.segments):,}",
        f"{sizes.sum():,} of {len(ids):,} slots ({sizes.sum() / len(ids):.2%})",
        f"attention {work:.2%} of a single segment's",
    )  # fmt: skip
    print_line(console, row.name, "bold")
    print_line(console, " · ".join(told), "dim")
    if not row.segments:
        print_line(console, "an empty row: it only fills the batch", "yellow")
        return
    console.print(_bar(row, min(console.width, _MAX_WIDTH)), soft_wrap=True)
    console.print(_table(row, console.width))
    for number in range(1, len(row.segments) + 1) if decoder else ():
        example, facts = row.segments[number - 1].example, row.facts[number - 1]
        name = f"── segment {number} · example {example:,} · id {facts['id']} ──"
        print_line(console, name, f"bold {_color(number)}")
        masked_text.show(console, _texts(row, number, decoder, full=full))


def require_inside(setting: str, number: int, total: int, name: str) -> None:
    """ValueError unless `number` is one of the `total` things in `name`."""
    if not 0 <= number < total:
        held = f"{total:,} {setting}s, 0 to {total - 1:,}" if total else f"no {setting}"
        raise ValueError(f"--{setting}={number} is outside of {name}, which holds {held}")


def print_line(console: rich_console.Console, line: str, style: str) -> None:
    """Print one line as it is, whatever it holds."""
    console.print(rich_text.Text(visible.line(line), style=style), soft_wrap=True)


def _color(number: int) -> str:
    return _COLORS[(number - 1) % len(_COLORS)]


def _bar(row: Row, width: int) -> rich_text.Text:
    """A cell for each of `width` parts of the row, by the slot in its middle."""
    bar = rich_text.Text()
    ids, positions = row.arrays["segment_ids"], row.arrays["positions"]
    middles = ((np.arange(width) + 0.5) * len(ids) / width).astype(int)
    for number, position in zip(ids[middles].tolist(), positions[middles].tolist(), strict=True):
        if number == 0:
            bar.append(_PADDING, style="dim")
        elif position < row.segments[number - 1].prompt:
            bar.append(_PROMPT, style=_color(number))
        else:
            bar.append(_BODY[number % 2 == 0], style=_color(number))
    return bar


def _table(row: Row, width: int) -> rich_table.Table:
    """The segments; in a narrow terminal names are cut, never numbers."""
    table = rich_table.Table(box=None, pad_edge=False)
    for name in ("", "example"):
        table.add_column(name, no_wrap=True)
    for name in ("source", "task"):
        table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=max(8, width // 2 - 30))
    for name in ("first", "tokens", "carried", "targets", "slots"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, (segment, facts) in enumerate(zip(row.segments, row.facts, strict=True), 1):
        slots = row.slots(number)
        counts = (segment.first_token, segment.num_tokens, segment.prompt,
                  int(row.arrays["loss_mask"][slots].sum()))  # fmt: skip
        names = (segment.source, facts["task"] or "")
        table.add_row(
            rich_text.Text(str(number), style=f"bold {_color(number)}"),
            f"{segment.example:,}",
            *(rich_text.Text(visible.line(name)) for name in names),
            *(f"{count:,}" for count in counts),
            f"{slots.start:,}-{slots.stop - 1:,}",
        )
    return table


def _texts(row: Row, number: int, decoder: Any, *, full: bool) -> list[masked_text.Styled]:
    """The text of a segment; of a long one, unless `full`, only head and tail."""
    slots, prompt = row.slots(number), row.segments[number - 1].prompt
    tokens = row.arrays["tokens"][slots]
    kinds = np.where(row.arrays["loss_mask"][slots], masked_text.TARGET, masked_text.CONTEXT)
    kinds[:prompt] = masked_text.CARRIED
    left_out = len(tokens) - _HEAD - _TAIL
    if full or left_out <= 0:
        return masked_text.styled(decoder, tokens, kinds)
    return [
        *masked_text.styled(decoder, tokens[:_HEAD], kinds[:_HEAD]),
        (f"\n... {left_out:,} tokens ...\n", masked_text.FAINT),
        *masked_text.styled(decoder, tokens[-_TAIL:], kinds[-_TAIL:]),
    ]
