"""report.json of adapt: what each filter took, with examples; counted as the records go by."""

import collections
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from rich import markup
from rich import table as rich_table

from data_pipeline.showing import visible
from data_pipeline.taskgen import adapters

FILE = "report.json"
BAD_ROW, SHORT_RESPONSE, CONTAMINATED, DUPLICATE, NEAR_DUPLICATE = (
    "bad row", "short response", "contaminated", "duplicate", "near-duplicate",
)  # fmt: skip
# In the order in which a record is judged.
REASONS = (
    BAD_ROW, adapters.NO_PROMPT, SHORT_RESPONSE, CONTAMINATED, adapters.NO_CODE_FILE,
    adapters.BAD_NAME, adapters.INVALID, DUPLICATE, NEAR_DUPLICATE,
)  # fmt: skip
_NUM_EXAMPLES, _SHOWN_CHARS = 5, 300


@dataclasses.dataclass
class Tally:
    """Sums that do not grow with the number of records."""

    removed: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, list[dict[str, str]]] = dataclasses.field(default_factory=dict)
    columns: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    num_kept: int = 0
    num_with_tests: int = 0
    num_files: int = 0

    def remove(self, *, location: str, reason: str, detail: str) -> None:
        """Count a record that went."""
        self.removed[reason] += 1
        found = self.examples.setdefault(reason, [])
        if len(found) < _NUM_EXAMPLES:
            found.append({"location": location, "detail": detail[:_SHOWN_CHARS]})

    def keep(self, *, column: str, has_tests: bool, num_files: int) -> None:
        """Count a task."""
        self.num_kept += 1
        self.columns[column] += 1
        self.num_with_tests += has_tests
        self.num_files += num_files

    @property
    def num_rows(self) -> int:
        """Records that were judged."""
        return self.num_kept + self.removed.total()

    def to_json(self) -> str:
        """As it is kept between runs."""
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str) -> "Tally":
        """What to_json gave."""
        found = json.loads(text)
        for name in ("removed", "columns"):
            found[name] = collections.Counter(found.get(name, {}))
        return cls(**found)

    def report(self) -> dict[str, Any]:
        """Every record is counted once in it."""
        left, steps = self.num_rows, []
        for name in REASONS:
            left -= self.removed[name]
            examples = self.examples.get(name, [])
            removed = self.removed[name]
            steps.append({"name": name, "removed": removed, "left": left, "examples": examples})
        return {
            "rows": self.num_rows,
            "steps": steps,
            "kept": self.num_kept,
            "with_tests": self.num_with_tests,
            "environment_files": self.num_files,
            "prompt_columns": dict(self.columns),
        }


def counts(report: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of a report, for the manifest."""
    removed = {step["name"]: step["removed"] for step in report["steps"]}
    return removed | {name: report[name] for name in ("rows", "kept", "with_tests")}


def table(report: Mapping[str, Any]) -> rich_table.Table:
    """The funnel, for the console; filters that took nothing are left out."""
    shown = rich_table.Table("taskgen adapt", "records", "left", "for example")
    shown.add_row("read", f"{report['rows']:,}", f"{report['rows']:,}")
    for step in report["steps"]:
        if step["removed"]:
            example = markup.escape(visible.line(step["examples"][0]["detail"], max_characters=100))
            shown.add_row(step["name"], f"-{step['removed']:,}", f"{step['left']:,}", example)
    columns = ", ".join(f"{visible.line(name)}" for name in report["prompt_columns"])
    shown.add_row("kept", f"{report['kept']:,}", f"{report['kept']:,}", f"prompts: {columns}")
    if report["with_tests"]:
        shown.add_row("  with tests", f"{report['with_tests']:,}", "")
    return shown
