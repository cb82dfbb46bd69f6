"""Checks of a task's result: functions of the world after the session, giving 0 to 1."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_pipeline.recorder import isolation

Check = Callable[[isolation.World], float]


def read(world: isolation.World, name: str) -> str | None:
    """The text of a file below /app; None when it is missing or not text."""
    try:
        return (world.folder / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def text(name: str, expected: str) -> Check:
    """The file holds exactly this text; white space at its two ends does not count."""

    def check(world: isolation.World) -> float:
        found = read(world, name)
        return float(found is not None and found.strip() == expected.strip())

    return check


def lines(name: str, expected: Sequence[str]) -> Check:
    """The file holds these lines in this order."""
    return text(name, "\n".join(expected))


def number(name: str, expected: float, *, tolerance: float = 1e-6) -> Check:
    """The file holds one number, within an absolute tolerance."""

    def check(world: isolation.World) -> float:
        try:
            found = float((read(world, name) or "").strip())
        except ValueError:
            return 0.0
        return float(math.isfinite(found) and abs(found - expected) <= tolerance)

    return check


def json_value(name: str, expected: Any) -> Check:
    """The file holds JSON equal to `expected`; for an object, the share of keys that are right."""

    def check(world: isolation.World) -> float:
        try:
            found = json.loads(read(world, name) or "")
        except json.JSONDecodeError:
            return 0.0
        if isinstance(expected, dict) and isinstance(found, dict):
            keys = expected.keys() | found.keys()
            same = [k in found and k in expected and found[k] == expected[k] for k in keys]
            return sum(same) / len(same)
        return float(found == expected)

    return check


def command(line: str) -> Check:
    """The shell line, run in the same sandbox, succeeds."""
    return lambda world: float(world.run(line)[0] == 0)


def files(expected: Mapping[str, str | bytes | None]) -> Check:
    """The share of files that hold exactly this content (None: must not exist)."""

    def same(world: isolation.World, name: str, content: str | bytes | None) -> bool:
        path = world.folder / name
        if content is None:
            return not path.exists()
        data = content.encode() if isinstance(content, str) else content
        return path.is_file() and path.read_bytes() == data

    return lambda world: sum(same(world, k, v) for k, v in expected.items()) / len(expected)


def every(*parts: Check) -> Check:
    """The mean of several checks, but at most 0.5 when any of them gives 0."""

    def check(world: isolation.World) -> float:
        rewards = [part(world) for part in parts]
        mean = sum(rewards) / len(rewards)
        return mean if min(rewards) > 0 else min(mean, 0.5)

    return check


def sha256(data: str | bytes) -> str:
    """The hex digest `sha256sum` prints."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()
