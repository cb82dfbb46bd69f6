"""Which rows go because of other rows: duplicates, prefixes of longer episodes, near-duplicates.

A row is a few numbers here, not text, so that a corpus of any size is judged as a whole.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from data_pipeline import records
from data_pipeline.curation import near_duplicates, row_filters

DUPLICATE = "duplicate"
PREFIX = "prefix of a longer episode of its trial"
NEAR_DUPLICATE = "near-duplicate"
REASONS = (*row_filters.REASONS, DUPLICATE, PREFIX, NEAR_DUPLICATE)

_TRIAL_COLUMNS = ("trial_name", "run_id", "task", "model")


@dataclasses.dataclass
class Verdicts:
    """One entry a row of the corpus, in its order."""

    reasons: list[str]  # of REASONS; empty: the row stays
    details: list[str]


def chain_of(conversation: records.Conversation) -> np.ndarray:
    """Hashes, uint64 [N + 1]: of the whole conversation; then, each together with the trial, of the
    first turn, of the first two, ..., of all N."""
    digests = conversation.digests()
    trial = repr([conversation.get(name) for name in _TRIAL_COLUMNS]).encode()
    in_trial = (hashlib.blake2b(trial + d, digest_size=8).digest() for d in digests)
    return np.frombuffer(digests[-1] + b"".join(in_trial), np.uint64)


def decide(judged: pa.Table, *, threshold: float) -> Verdicts:
    """Compare the rows that no filter took.

    Args:
        judged: of every row what `curate_shard.judge` left.
        threshold: of near-duplicates; 0 does not look for them.
    """
    verdicts = Verdicts(judged["reason"].to_pylist(), judged["detail"].to_pylist())
    locations = judged["location"]
    _mark_repeats(verdicts, judged["chain"], locations)
    if threshold:
        sketches = judged["sketch"]
        stay = (row for row, reason in enumerate(verdicts.reasons) if not reason)
        repeats = near_duplicates.find_repeats(
            {row: sketches[row].as_py() for row in stay}, threshold=threshold
        )
        for row, (other, similarity) in repeats.items():
            verdicts.reasons[row] = NEAR_DUPLICATE
            verdicts.details[row] = f"about {similarity:.0%} like {locations[other]}"
    return verdicts


def _mark_repeats(verdicts: Verdicts, column: pa.ChunkedArray, locations: pa.ChunkedArray) -> None:
    """Mark duplicates (the first of equal rows stays) and prefixes (the longest stays)."""
    chains = column.combine_chunks()
    values, ends = chains.values.to_numpy(), chains.offsets.to_numpy()
    rows = np.flatnonzero(np.diff(ends))  # those that did not go for another reason
    if len(rows) == 0:
        return
    wholes, lasts = values[ends[rows]], values[ends[rows + 1] - 1]
    longer, owners = _prefixes(values, ends)
    at = np.searchsorted(longer, lasts)
    is_prefix = np.append(longer, np.uint64(0))[at] == lasts
    is_prefix &= at < len(longer)
    seen: dict[int, int] = {}
    for row, whole, prefix, place in zip(
        rows.tolist(), wholes.tolist(), is_prefix.tolist(), at.tolist(), strict=True
    ):
        first = seen.setdefault(whole, row)
        if first != row:
            verdicts.reasons[row] = DUPLICATE
            verdicts.details[row] = f"the turns of {locations[first]}"
        elif prefix:
            verdicts.reasons[row] = PREFIX
            verdicts.details[row] = f"{locations[int(owners[place])]} goes on from it"


def _prefixes(values: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All that some row of a trial holds and goes on from, sorted, and the rows."""
    owners = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
    inner = np.ones(len(values), bool)
    filled = np.diff(ends) > 0
    inner[ends[:-1][filled]] = inner[ends[1:][filled] - 1] = False
    values, owners = values[inner], owners[inner]
    order = np.argsort(values, kind="stable")
    return values[order], owners[order]


def group_tasks(tasks: Sequence[str | None], instructions: Sequence[int | None]) -> list[str]:
    """The task of each row, under one name where tasks of different names have one instruction.

    Held out apart, such tasks would put one prompt on both sides. The name is the first of theirs
    in the order of the alphabet, so it does not depend on the order of the rows.
    """
    above: dict[str | int, str | int] = {}

    def top(one: str | int) -> str | int:
        while (up := above.setdefault(one, one)) != one:
            above[one] = above[up]  # half the way, so that the next search is short
            one = up
        return one

    rows = list(zip((task or "" for task in tasks), instructions, strict=True))
    for task, instruction in rows:
        if instruction is not None:
            above[top(instruction)] = top(task)
    names: dict[str | int, str] = {}
    for task in sorted({task for task, _ in rows}):
        names.setdefault(top(task), task)
    return [names[top(task)] for task, _ in rows]
