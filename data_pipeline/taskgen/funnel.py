"""How many orders came through each step, and what a kept task cost."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from rich import table as rich_table

from data_pipeline.taskgen import attempts, teacher

FILE = "funnel.json"


@dataclasses.dataclass(frozen=True)
class Shown:
    """Which steps there were, and what was paid.

    Attributes:
        is_checked: tasks ran in a sandbox.
        is_decontaminated: there was a benchmark.
        spent: failed requests and repeated ones included; None where others spent there too.
    """

    is_checked: bool
    is_decontaminated: bool
    spent: teacher.Spend | None = None

    @property
    def left_out(self) -> tuple[str, ...]:
        """Endings of steps that were not taken."""
        checked = () if self.is_checked else ("passes_untouched", "unsolvable")
        return checked if self.is_decontaminated else (*checked, "contaminated")


def rows(totals: attempts.Totals, shown: Shown) -> Iterator[tuple[str, int, int]]:
    """Step, how many were lost there, how many are left."""
    left = totals.endings.total()
    yield "asked", 0, left
    for ending, step in attempts.STEPS.items():
        if ending not in shown.left_out:
            lost = totals.endings[ending]
            left -= lost
            yield step, lost, left
    yield "kept", 0, left


def report(totals: attempts.Totals, shown: Shown) -> dict[str, Any]:
    """As it is kept in funnel.json."""
    kept = totals.endings["kept"]
    spent = shown.spent or teacher.Spend(totals.input_tokens, totals.output_tokens, totals.dollars)
    return {
        "steps": [
            {"step": step, "lost": lost, "left": left} for step, lost, left in rows(totals, shown)
        ],
        "kept_untried": totals.num_untried,
        "replies": totals.num_replies,
        "input_tokens": spent.input_tokens,
        "output_tokens": spent.output_tokens,
        "dollars": round(spent.dollars, 6),
        "dollars_per_kept_task": round(spent.dollars / kept, 6) if kept else None,
        "tokens_per_kept_task": spent.tokens // kept if kept else None,
    }


def table(name: str, totals: attempts.Totals, shown: Shown) -> rich_table.Table:
    """As it is shown."""
    drawn = rich_table.Table("taskgen " + name, "lost", "left")
    for column in drawn.columns[1:]:
        column.justify = "right"
    for step, lost, left in rows(totals, shown):
        drawn.add_row(step, f"{lost:,}" if lost else "", f"{left:,}")
    told = report(totals, shown)
    if totals.num_untried:
        drawn.add_row("  not tried: this machine lacks packages", "", f"{totals.num_untried:,}")
    drawn.add_section()
    drawn.add_row("tokens", "", f"{told['input_tokens'] + told['output_tokens']:,}")
    if told["tokens_per_kept_task"] is not None:
        drawn.add_row("tokens a kept task", "", f"{told['tokens_per_kept_task']:,}")
    if told["dollars"]:
        drawn.add_row("dollars", "", f"{told['dollars']:,.2f}")
    if told["dollars"] and told["dollars_per_kept_task"] is not None:
        drawn.add_row("dollars a kept task", "", f"{told['dollars_per_kept_task']:,.4f}")
    return drawn
