"""What became of each order, a line each, in the order they were settled: attempts.jsonl.

A line is written once the task's folder lies where it belongs, so a task without a line is made
again, from replies that the teacher's cache still has.
"""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Literal

FILE = "attempts.jsonl"

Ending = Literal[
    "refused", "unparsed", "invalid", "passes_untouched", "unsolvable", "contaminated", "repeated",
    "kept",
]  # fmt: skip

# In the order in which an order can fail, and what the ones left have passed.
STEPS: dict[str, str] = {
    "refused": "answered",
    "unparsed": "parsed",
    "invalid": "valid",
    "passes_untouched": "fails untouched",
    "unsolvable": "solvable",
    "contaminated": "decontaminated",
    "repeated": "novel",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """How an order ended.

    Attributes:
        index: the order's number.
        name: the task's.
        ending: "kept", or where it failed.
        reason: why it failed; of a kept one why it could not be tried here.
        num_replies: questions that were answered for it, repairs included.
        dollars: what they cost, by the prices that were given; replies from the cache too.
    """

    index: int
    name: str
    ending: Ending
    reason: str = ""
    num_replies: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0


@dataclasses.dataclass
class Totals:
    """Sums over a log; its size does not grow with the number of lines."""

    endings: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    num_untried: int = 0  # kept ones that could not be tried here
    num_replies: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0

    def add(self, attempt: Attempt) -> None:
        """Count one more."""
        self.endings[attempt.ending] += 1
        self.num_untried += attempt.ending == "kept" and bool(attempt.reason)
        self.num_replies += attempt.num_replies
        self.input_tokens += attempt.input_tokens
        self.output_tokens += attempt.output_tokens
        self.dollars += attempt.dollars


class Log:
    """The file, and what is already in it."""

    def __init__(self, folder: pathlib.Path, num_orders: int):
        """Open it for more lines; half a line, left by a kill, is cut off."""
        self._path = folder / FILE
        self._settled = bytearray(num_orders)
        self.totals = Totals()
        whole = 0
        for attempt, end in self._lines():
            self._note(attempt)
            whole = end
        self._file = self._path.open("ab")
        self._file.truncate(whole)

    def is_settled(self, index: int) -> bool:
        """Whether the order has its line."""
        return bool(self._settled[index])

    @property
    def num_settled(self) -> int:
        """Orders that have their line."""
        return self.totals.endings.total()

    def append(self, attempt: Attempt) -> None:
        """Add a line, on the disk when this returns to the operating system."""
        self._file.write((json.dumps(dataclasses.asdict(attempt)) + "\n").encode())
        self._file.flush()
        self._note(attempt)

    def close(self) -> None:
        """Everything is on the disk afterwards."""
        os.fsync(self._file.fileno())
        self._file.close()

    def _note(self, attempt: Attempt) -> None:
        self._settled[attempt.index] = 1
        self.totals.add(attempt)

    def _lines(self) -> Iterator[tuple[Attempt, int]]:
        """Each whole line, and where it ends in the file."""
        if not self._path.exists():
            return
        end = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                yield self._read(line, number), end

    def _read(self, line: bytes, number: int) -> Attempt:
        try:
            attempt = Attempt(**json.loads(line))
            is_known = 0 <= attempt.index < len(self._settled)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self._path} line {number}: damaged ({error}); remove it") from error
        if not is_known:
            raise ValueError(f"{self._path} line {number}: no order has this index; remove it")
        return attempt
