"""What collect tells: of how many trials came how many rows, and why the others left none."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich import table as rich_table

from data_pipeline import collect_shard

FILE = "report.json"
_NUMBERS = (
    "trials", "rows", "collapsed", "replies", "refused", "thinking_trials", "complete",
    "input_tokens", "output_tokens", "cost_usd",
)  # fmt: skip


def make(counts: Mapping[str, Any]) -> dict[str, Any]:
    """The report of what the shards counted."""

    def of(kind: str) -> dict[str, Any]:
        found = {name.partition(" ")[2]: num for name, num in counts.items() if _kind(name) == kind}
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    numbers = of(collect_shard.NUMBER)
    dropped = of(collect_shard.DROPPED)
    return {
        "found": numbers.get("trials", 0) + sum(dropped.values()),
        "dropped": dropped,
        "ended": of(collect_shard.ENDED),
        "rewards": of(collect_shard.REWARD),
        "faults": of(collect_shard.FAULT),
        **{name: numbers.get(name, 0) for name in _NUMBERS},
    }


def _kind(name: str) -> str:
    return name.partition(" ")[0]


def totals(report: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of the report that are not of one reason."""
    return {name: value for name, value in report.items() if not isinstance(value, dict)}


def table(report: Mapping[str, Any]) -> rich_table.Table:
    """The funnel."""
    shown = rich_table.Table(title="collect", title_justify="left")
    shown.add_column("")
    shown.add_column("trials", justify="right")
    shown.add_row("found", f"{report['found']:,}")
    for reason, num in report["dropped"].items():
        shown.add_row(f"- {reason}", f"{num:,}")
    shown.add_row("collected", f"{report['trials']:,}", style="bold", end_section=True)
    for exception, num in report["ended"].items():
        shown.add_row(f"ended {exception}", f"{num:,}")
    shown.add_row("complete", f"{report['complete']:,}")
    for reward, num in report["rewards"].items():
        shown.add_row(f"reward {reward}", f"{num:,}")
    for fault, num in report["faults"].items():
        shown.add_row(fault, f"{num:,}")
    shown.add_section()
    shown.add_row("rows", f"{report['rows']:,}", style="bold")
    shown.add_row("episodes that were prefixes of them", f"{report['collapsed']:,}")
    shown.add_row("replies", f"{report['replies']:,}")
    shown.add_row("replies that could not be read", f"{report['refused']:,}")
    shown.add_row("tokens read / written", _pair(report["input_tokens"], report["output_tokens"]))
    if report["cost_usd"]:
        shown.add_row("dollars", f"{report['cost_usd']:,.2f}")
    return shown


def _pair(first: int, second: int) -> str:
    return f"{first:,} / {second:,}"


def warnings(report: Mapping[str, Any]) -> Iterator[str]:
    """What may be amiss, and the way out."""
    if not report["thinking_trials"]:
        yield (
            "no reply holds reasoning. If the model thinks, its server takes that out of the reply "
            "and Harbor did not find where to: serve it without a reasoning parser, so that "
            "<think> stays in the reply"
        )
    if num := report["faults"].get(collect_shard.NO_LABELS):
        yield (
            f"of {num:,} trials the task.toml was not found, so their domain and difficulty are "
            "unknown, and their reward stands even where it says nothing; name --tasks=FOLDER"
        )
