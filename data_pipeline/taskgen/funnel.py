"""How many orders came through each step, and what a kept task cost."""

from collections.abc import Iterator
from typing import Any

from rich import table as rich_table

from data_pipeline.taskgen import attempts

FILE = "funnel.json"


def rows(totals: attempts.Totals, *, is_checked: bool) -> Iterator[tuple[str, int, int]]:
    """Step, how many were lost there, how many are left.

    Args:
        totals: of all attempts.
        is_checked: whether tasks ran in a sandbox; those steps are left out otherwise.
    """
    left = totals.endings.total()
    yield "asked", 0, left
    for ending, step in attempts.STEPS.items():
        if not is_checked and ending in ("passes_untouched", "unsolvable"):
            continue
        lost = totals.endings[ending]
        left -= lost
        yield step, lost, left
    yield "kept", 0, left


def report(totals: attempts.Totals, *, is_checked: bool) -> dict[str, Any]:
    """As it is kept in funnel.json."""
    kept = totals.endings["kept"]
    return {
        "steps": [
            {"step": step, "lost": lost, "left": left}
            for step, lost, left in rows(totals, is_checked=is_checked)
        ],
        "replies": totals.num_replies,
        "input_tokens": totals.input_tokens,
        "output_tokens": totals.output_tokens,
        "dollars": round(totals.dollars, 6),
        "dollars_per_kept_task": round(totals.dollars / kept, 6) if kept else None,
        "tokens_per_kept_task": (
            (totals.input_tokens + totals.output_tokens) // kept if kept else None
        ),
    }


def table(name: str, totals: attempts.Totals, *, is_checked: bool) -> rich_table.Table:
    """As it is shown."""
    shown = rich_table.Table("taskgen " + name, "lost", "left")
    for column in shown.columns[1:]:
        column.justify = "right"
    for step, lost, left in rows(totals, is_checked=is_checked):
        shown.add_row(step, f"{lost:,}" if lost else "", f"{left:,}")
    shown.add_section()
    told = report(totals, is_checked=is_checked)
    tokens = totals.input_tokens + totals.output_tokens
    shown.add_row("tokens, all replies", "", f"{tokens:,}")
    if told["tokens_per_kept_task"] is not None:
        shown.add_row("tokens a kept task", "", f"{told['tokens_per_kept_task']:,}")
    if totals.dollars:
        shown.add_row("dollars", "", f"{totals.dollars:,.2f}")
    if totals.dollars and told["dollars_per_kept_task"] is not None:
        shown.add_row("dollars a kept task", "", f"{told['dollars_per_kept_task']:,.4f}")
    return shown
