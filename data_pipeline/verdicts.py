"""Which rows of a corpus stay and why the others go: what curate's first pass finds out.

A row leaves here as a few numbers, not as text, so that a corpus of any size is judged as a whole.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from data_pipeline import corpus, records

TrajectoryFilter = Literal["none", "complete", "success"]

# The reasons, in the order in which they are looked for.
BAD_ROW = "bad row"
NO_ASSISTANT = "no assistant turn"
FORGED = "special token inside a message"
INCOMPLETE = "not complete"
UNSUCCESSFUL = "not successful"
DUPLICATE = "duplicate"
PREFIX = "prefix of a longer episode of its trial"
REASONS = (BAD_ROW, NO_ASSISTANT, FORGED, INCOMPLETE, UNSUCCESSFUL, DUPLICATE, PREFIX)

_DECLARED_COMPLETE = re.compile(
    r'"task_complete"\s*:\s*true|<task_complete>\s*true\s*</task_complete>'
)
_NOTHING = np.empty(0, np.uint64)
_TRIAL_COLUMNS = ("trial_name", "run_id", "task", "model")


@dataclasses.dataclass
class Verdicts:
    """One entry a row of the corpus, in its order."""

    reasons: list[str]  # empty: the row stays
    faults: list[str]  # what to tell of rows of BAD_ROW and NO_ASSISTANT, locations first
    tasks: list[str]  # the task, or where that is not known a digest of the first user message
    sources: list[str]
    domains: list[str]
    num_rewards: int = 0  # rows that have one


def judge(
    rows: Iterable[corpus.Row], *, forged: re.Pattern[str], trajectory_filter: TrajectoryFilter
) -> Verdicts:
    """Judge each row alone, then all of them together for duplicates and prefixes."""
    verdicts = Verdicts([], [], [], [], [])
    chains: list[np.ndarray] = []  # of each row that no reason was found for
    for row in rows:
        reason = _reason(row, forged, trajectory_filter)
        conversation = row.conversation
        verdicts.reasons.append(reason)
        if reason in (BAD_ROW, NO_ASSISTANT):
            verdicts.faults.append(row.fault or f"{row.location}: {NO_ASSISTANT}")
        verdicts.tasks.append(_task_of(conversation))
        verdicts.sources.append(_column(conversation, "source"))
        verdicts.domains.append(_column(conversation, "domain"))
        verdicts.num_rewards += conversation is not None and conversation.get("reward") is not None
        chains.append(_NOTHING if reason or conversation is None else _chain(conversation))
    _mark_repeats(verdicts.reasons, chains)
    return verdicts


def is_complete(conversation: records.Conversation) -> bool:
    """Whether the episode came to its end: its column says so, or its agent declares it."""
    if conversation.get("complete") is not None:
        return conversation.get("complete")
    return any(
        message.role == "assistant" and _DECLARED_COMPLETE.search(message.content)
        for message in conversation.messages
    )


def _reason(row: corpus.Row, forged: re.Pattern[str], trajectory_filter: TrajectoryFilter) -> str:
    conversation = row.conversation
    if conversation is None:
        return BAD_ROW
    if all(message.role != "assistant" for message in conversation.messages):
        return NO_ASSISTANT
    if any(forged.search(message.content) for message in conversation.messages):
        return FORGED
    if trajectory_filter == "complete" and not is_complete(conversation):
        return INCOMPLETE
    if trajectory_filter == "success" and not (conversation.get("reward") or 0) >= 1:
        return UNSUCCESSFUL
    return ""


def _column(conversation: records.Conversation | None, name: str) -> str:
    return (conversation.get(name) or "") if conversation else ""


def _task_of(conversation: records.Conversation | None) -> str:
    if conversation is None:
        return ""
    if task := conversation.get("task"):
        return task
    first = next((m.content for m in conversation.messages if m.role == "user"), "")
    return "first message " + hashlib.blake2b(first.encode(), digest_size=16).hexdigest()


def _chain(conversation: records.Conversation) -> np.ndarray:
    """Hashes, uint64 [N + 1]: of the whole conversation; then, each together with the trial, of the
    first turn, of the first two, ..., of all N."""
    digests = conversation.digests()
    trial = repr([conversation.get(name) for name in _TRIAL_COLUMNS]).encode()
    in_trial = (hashlib.blake2b(trial + d, digest_size=8).digest() for d in digests)
    return np.frombuffer(digests[-1] + b"".join(in_trial), np.uint64)


def _mark_repeats(reasons: list[str], chains: Sequence[np.ndarray]) -> None:
    """Mark duplicates (the first of equal rows stays) and prefixes (the longest stays)."""
    seen: set[int] = set()
    # All that some row of a trial holds and goes on from.
    prefixes = np.concatenate([_NOTHING, *(chain[1:-1] for chain in chains)])
    last = np.array([chain[-1] if len(chain) else 0 for chain in chains], np.uint64)
    is_prefix = np.isin(last, prefixes)
    for i, chain in enumerate(chains):
        if len(chain) == 0:  # it goes for another reason
            continue
        whole = int(chain[0])
        if whole in seen:
            reasons[i] = DUPLICATE
        elif is_prefix[i]:
            reasons[i] = PREFIX
        seen.add(whole)
