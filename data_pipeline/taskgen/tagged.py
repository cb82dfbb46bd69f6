"""Reads a teacher's reply: the tagged sections that make a task (arXiv 2602.21193, 4.2.2).

    <prompt>             what the agent is asked; Markdown
    <tests>              pytest functions
    <weights>            JSON: test -> weight
    <info>               JSON: free metadata
    <files>              <file path="...">...</file>, see tagged_files
    <test_requirements>  name==version, one a line
    <solution>           a bash script; only where one was asked for

Round the sections there may be prose and thoughts, and in them code fences and CDATA marks; all
else is taken as it stands. Nothing of a reply is executed, and its names are not yet paths.
"""

import dataclasses
import json
import math
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from data_pipeline.taskgen import tagged_files, tagged_sections, tagged_wrapping, tests_code

TAGS = ("prompt", "tests", "weights", "info", "files", "test_requirements", "solution")
_REQUIRED = ("prompt", "tests", "weights", "info", "files", "test_requirements")
_REQUIREMENT = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,80}[A-Za-z0-9])?==[0-9][A-Za-z0-9.+!_-]*")
_INFO_KEY = re.compile(r"[a-z][a-z0-9_]{0,39}")
# Terminal escapes, and marks that make a text read otherwise than it is.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_MAX_WEIGHT = 1000.0
_MAX_TOLD = 3000  # characters of faults that are sent back


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizeLimits:
    """How large a reply and its parts may be; bytes in UTF-8 where nothing else is said."""

    reply: int = 4 << 20
    prompt: int = 32 << 10
    tests: int = 128 << 10
    solution: int = 64 << 10
    weights: int = 16 << 10
    info: int = 16 << 10
    test_requirements: int = 2 << 10
    file: int = 1 << 20
    all_files: int = 2 << 20
    num_files: int = 64
    num_requirements: int = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draft:
    """A task as the teacher wrote it.

    Attributes:
        instruction: what the agent is asked.
        tests: a Python file; it parses and defines a test.
        weights: test function, or Class::function -> weight; each names a test.
        info: free metadata.
        files: path relative to /app -> content.
        test_requirements: name==version of packages that the tests need beside the environment's.
        solution: a bash script; empty where none was asked for.
    """

    instruction: str
    tests: str
    weights: dict[str, float]
    info: dict[str, str]
    files: dict[str, bytes]
    test_requirements: tuple[str, ...]
    solution: str = ""


def parse(text: str, *, takes_solution: bool = False, limits: SizeLimits | None = None) -> Draft:
    """Read a reply.

    Args:
        text: the whole reply.
        takes_solution: whether a <solution> was asked for; it is then needed, else ignored.
        limits: how large the parts may be.

    Raises:
        ValueError: telling every fault in words that can be sent back to the teacher.
    """
    limits = limits or SizeLimits()
    _check_reply(text, limits)
    sections = tagged_sections.split(text, TAGS)
    wanted = (*_REQUIRED, "solution") if takes_solution else _REQUIRED
    if absent := [f"<{name}>" for name in wanted if name not in sections]:
        raise ValueError(f"{', '.join(absent)} absent: each begins a line of its own")
    reader = _Reader(sections, limits)
    instruction = reader.take("prompt", _text)
    tests = reader.take("tests", _text)
    solution = reader.take("solution", _script) if takes_solution else ""
    functions = reader.read("tests", lambda: _functions(tests or "")) or ()
    weights = reader.take("weights", lambda body: _weights(body, functions))
    info = reader.take("info", _info)
    requirements = reader.take(
        "test_requirements", lambda body: _requirements(body, limits.num_requirements)
    )
    files = reader.read("files", lambda: _files(sections["files"], limits))
    if reader.faults:
        told = "; ".join(reader.faults)
        raise ValueError(told if len(told) <= _MAX_TOLD else f"{told[:_MAX_TOLD]} ...")
    return Draft(
        instruction=instruction or "",
        tests=tests or "",
        weights=weights or {},
        info=info or {},
        files=files or {},
        test_requirements=requirements or (),
        solution=solution or "",
    )


def _check_reply(text: str, limits: SizeLimits) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("the reply holds half of a surrogate pair, which no file can") from None
    if size > limits.reply:
        raise ValueError(f"the reply is larger than {limits.reply:,} bytes; write a smaller task")


class _Reader:
    """Reads sections and gathers what is wrong with them."""

    def __init__(self, sections: Mapping[str, str], limits: SizeLimits):
        self._sections = sections
        self._limits = limits
        self.faults: list[str] = []

    def take[T](self, name: str, read: Callable[[str], T]) -> T | None:
        """What `read` makes of a section without its wrapping; None and a fault where it cannot."""
        body = self._sections[name]
        limit = getattr(self._limits, name)
        if len(body.encode()) > limit:
            self.faults.append(f"<{name}> is larger than {limit:,} bytes")
            return None
        return self.read(name, lambda: read(_unwrapped(body, is_prose=name == "prompt")))

    def read[T](self, name: str, read: Callable[[], T]) -> T | None:
        """What `read` makes; None and a fault where it cannot."""
        if any(fault.startswith(f"<{name}>") for fault in self.faults):
            return None
        try:
            return read()
        except ValueError as error:
            told = str(error)
            self.faults.append(told if told.startswith("<") else f"<{name}> {told}")
            return None


def _unwrapped(body: str, *, is_prose: bool) -> str:
    """A section's text without blank lines round it, fence and CDATA marks."""
    text = tagged_wrapping.without_cdata(body.replace("\r\n", "\n"))
    text = tagged_wrapping.without_fence(_dedented(text).strip(), is_prose=is_prose)
    return text.strip("\n")


def _dedented(text: str) -> str:
    """Without the indentation that all lines have, as where tags were set like nested XML."""
    return textwrap.dedent(text) if text.lstrip("\r\n")[:1] in (" ", "\t") else text


def _text(body: str) -> str:
    if not body.strip():
        raise ValueError("is empty")
    if match := _UNSEEN.search(body):
        raise ValueError(
            f"holds the unprintable character {match[0]!r}; write it as an escape sequence"
        )
    return f"{body.rstrip()}\n"


def _script(body: str) -> str:
    return _text(body if body.startswith("#!") else f"#!/bin/bash\n{body}" if body.strip() else "")


def _functions(tests: str) -> tuple[str, ...]:
    try:
        functions = tests_code.parse(tests).functions
    except ValueError as error:
        raise ValueError(f"is not Python: {error}") from error
    if not functions:
        raise ValueError("defines no function test_...() that pytest would collect")
    return functions


def _weights(body: str, functions: tuple[str, ...]) -> dict[str, float]:
    """Weights by test; their names cannot be judged where the tests do not parse."""
    table = _json_object(body)
    known = {form for name in functions for form in (name, name.rpartition("::")[2])}
    faults = [f"has {name[:80]!r}, which no test is called" for name in table if name not in known]
    faults = faults if functions else []
    for name, weight in table.items():
        if not _is_weight(weight):
            faults.append(
                f"gives {name[:80]!r} the weight {json.dumps(weight)[:40]}; "
                f"a weight is a number above 0 and at most {_MAX_WEIGHT:g}"
            )
    if faults:
        raise ValueError("; <weights> ".join(faults))
    return {name: float(weight) for name, weight in table.items()}


def _is_weight(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value <= _MAX_WEIGHT and math.isfinite(value)


def _info(body: str) -> dict[str, str]:
    table = _json_object(body)
    for key in table:
        if not _INFO_KEY.fullmatch(key):
            raise ValueError(f"has the key {key[:80]!r}, which must match {_INFO_KEY.pattern}")
    return {key: v if isinstance(v, str) else json.dumps(v) for key, v in table.items()}


def _requirements(body: str, most: int) -> tuple[str, ...]:
    lines = [line.strip() for line in body.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#") and line != "none"]
    for line in lines:
        if len(line) > 120 or not _REQUIREMENT.fullmatch(line):
            raise ValueError(f"has the line {line[:120]!r}; each is name==version, nothing more")
    if len(lines) > most:
        raise ValueError(f"has {len(lines)} lines; at most {most} are allowed")
    return tuple(lines)


def _files(section: str, limits: SizeLimits) -> dict[str, bytes]:
    files = tagged_files.parse(section, max_files=limits.num_files, max_bytes=limits.file)
    if sum(map(len, files.values())) > limits.all_files:
        raise ValueError(f"is larger than {limits.all_files:,} bytes in all")
    return files


def _json_object(body: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"has the key {repeated[0][:80]!r} twice")
        return dict(pairs)

    try:
        table = json.loads(body, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error}") from error
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(table, dict):
        raise ValueError("must be a JSON object")
    return table
