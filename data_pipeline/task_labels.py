"""What a task says of itself that a corpus keeps: its source, domain and difficulty."""

import dataclasses
import pathlib
import tomllib
from collections.abc import Mapping
from typing import Any

TASK_FILE = "task.toml"
TASKS_FILE = "tasks.json"  # that rollout leaves beside its trials: labels, by the tasks' names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """The labels of a task; empty where it has none.

    Attributes:
        source: what the task was made of.
        verified: whether its tests look at more than that an answer is there; where they do not,
            what they give is no reward.
    """

    source: str = ""
    domain: str = ""
    difficulty: str = ""
    verified: bool = True

    def to_json(self) -> dict[str, Any]:
        """The object that `from_json` reads."""
        return dataclasses.asdict(self)


def from_json(metadata: Mapping[str, Any]) -> Labels:
    """The labels in the table [metadata] of a task.toml; Terminal-Bench says `category`."""

    def text(*names: str) -> str:
        said = (metadata.get(name) for name in names)
        return next((value for value in said if isinstance(value, str) and value), "")

    return Labels(
        source=text("source"),
        domain=text("domain", "category"),
        difficulty=text("difficulty"),
        verified=metadata.get("verified", True) is not False,
    )


def read(task_dir: pathlib.Path) -> Labels | None:
    """The labels of the task in a folder; None where there is no task, or no readable one."""
    try:
        document = tomllib.loads((task_dir / TASK_FILE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    metadata = document.get("metadata", {})
    return from_json(metadata) if isinstance(metadata, dict) else None
