"""report.json of curate: what each filter took, with examples; as a table, and read back."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import markup
from rich import table as rich_table

from data_pipeline import corpus, manifest, storage
from data_pipeline.curation import row_filters, verdicts
from data_pipeline.showing import visible

FILE = "report.json"
_NUM_EXAMPLES = 5
_SHOWN_CHARS = 300


def make(
    verdict: verdicts.Verdicts,
    *,
    locations: Sequence[str],
    edits: Sequence[Sequence[str]],
    is_heldout: Sequence[bool],
    num_heldout_tasks: int,
    settings: row_filters.Settings,
) -> dict[str, Any]:
    """The report; every row of the input is counted once in it.

    Args:
        verdict: of every row, as all that follows.
        locations: where each was read.
        edits: what was done to each.
        is_heldout: whether it is held out, if it stays.
        num_heldout_tasks: tasks that are held out.
        settings: of the filters.
    """
    left = len(verdict.reasons)
    filters = []
    for name in verdicts.REASONS:
        rows = [row for row, reason in enumerate(verdict.reasons) if reason == name]
        left -= len(rows)
        found = [_example(locations[row], verdict.details[row]) for row in rows[:_NUM_EXAMPLES]]
        filters.append({"name": name, "removed": len(rows), "left": left, "examples": found})
    stay = [row for row, reason in enumerate(verdict.reasons) if not reason]
    num_heldout = sum(is_heldout[row] for row in stay)
    return {
        "rows": len(verdict.reasons),
        "filters": filters,
        "edits": _edits(stay, locations, edits),
        "train": len(stay) - num_heldout,
        "heldout": num_heldout,
        "heldout_tasks": num_heldout_tasks,
        "benchmark_tasks": len(settings.benchmark),
        "benchmark_tasks_compared_whole": row_filters.short_tasks(settings),
    }


def counts(report: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of a report, for the manifest."""
    removed = {each["name"]: each["removed"] for each in report["filters"]}
    edited = {each["name"]: each["rows"] for each in report["edits"]}
    names = ("rows", "train", "heldout", "heldout_tasks")
    return {name: report[name] for name in names} | removed | edited


def table(report: Mapping[str, Any]) -> rich_table.Table:
    """The funnel, for the console; filters that took nothing are left out."""
    shown = rich_table.Table("curate", "rows", "left", "for example")
    shown.add_row("read", f"{report['rows']:,}", f"{report['rows']:,}")
    for each in report["filters"]:
        if each["removed"]:
            example = markup.escape(visible.line(each["examples"][0]["detail"])[:100])
            shown.add_row(each["name"], f"-{each['removed']:,}", f"{each['left']:,}", example)
    for each in report["edits"]:
        shown.add_row(each["name"], f"{each['rows']:,}", "", each["examples"][0]["detail"])
    shown.add_row(f"held out ({report['heldout_tasks']:,} tasks)", f"{report['heldout']:,}", "")
    shown.add_row("train", f"{report['train']:,}", f"{report['train']:,}")
    return shown


def faults(report: Mapping[str, Any]) -> str:
    """How many rows could not be used, and the first; empty where all could."""
    faulty = [f for f in report["filters"] if f["name"] in row_filters.FAULTS and f["removed"]]
    if not faulty:
        return ""
    example = faulty[0]["examples"][0]
    first = fault(example["location"], faulty[0]["name"], example["detail"])
    return f"{sum(each['removed'] for each in faulty):,} rows could not be used, such as {first}"


def fault(location: str, reason: str, detail: str) -> str:
    """One fault in words; those of bad rows name their place themselves."""
    return detail if detail.startswith(location) else f"{location}: {reason} ({detail})"


def funnel_of(files: Sequence[storage.Path]) -> list[list[Any]]:
    """[label, rows left] of each step that led to `files`, if one curation left them all.

    Steps that took nothing are left out.
    """
    folders = {file.resolve().parent for file in files}
    if len(folders) != 1:
        return []
    [folder] = folders
    if folder.name not in (corpus.TRAIN_FOLDER, "heldout"):
        return []
    if not (folder.parent / FILE).is_file() or manifest.stage_of(folder.parent) != "curate":
        return []
    report = manifest.read_json(folder.parent / FILE)
    steps = [[each["name"], each["left"]] for each in report["filters"] if each["removed"]]
    return [["read", report["rows"]], *steps, [folder.name, report[folder.name]]]


def _example(location: str, detail: str) -> dict[str, str]:
    return {"location": location, "detail": detail[:_SHOWN_CHARS]}


def _edits(
    stay: Sequence[int], locations: Sequence[str], edits: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    found: dict[str, list[dict[str, str]]] = {}
    for row in stay:
        for edit in edits[row] or ():
            found.setdefault(edit.split()[0], []).append(_example(locations[row], edit))
    return [
        {"name": name, "rows": len(rows), "examples": rows[:_NUM_EXAMPLES]}
        for name, rows in sorted(found.items())
    ]
