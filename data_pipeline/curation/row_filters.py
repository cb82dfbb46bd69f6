"""The filters that look at one row alone, in their order: each a name and a small function.

A filter returns what it found, in words that go into the report, or nothing.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Literal

from data_pipeline import chat, cli, corpus, records
from data_pipeline.curation import decontamination, edits, identity, trajectory

TrajectoryFilter = Literal["none", "complete", "success"]
KeepOrRemove = Literal["keep", "remove"]
KeepOrDrop = Literal["keep", "drop"]

UNREADABLE = "unreadable"
BAD_ROW = "bad row"
NO_ASSISTANT = "no assistant turn"
EMPTY = "empty turn"
OVERSIZED = "oversized message"
FORGED = "special token inside a message"
PARSE_FAILURE = "parse failure"
NULL_TAIL = "null tail"
UNTRAINED = "no reply to train"
IDENTITY = "identity leak"
CJK = "CJK characters in a reply"
INVALID = "invalid last reply"
INCOMPLETE = "not complete"
UNSUCCESSFUL = "not successful"
CONTAMINATED = "overlap with a benchmark"
# Faults of the data, which --strict does not allow; the other reasons are matters of taste.
FAULTS = (UNREADABLE, BAD_ROW, NO_ASSISTANT, EMPTY, OVERSIZED, FORGED)

_CJK = re.compile(
    "[\u1100-\u11ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3100-\u318f\u31a0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uff9f\uffa0-\uffdc"
    "\U00020000-\U0003ffff]"
)
_SHOWN_CHARS = 40  # on each side of what a filter found


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """What the filters and edits of single rows are told."""

    trajectory_filter: TrajectoryFilter = dataclasses.field(
        default="none",
        metadata=cli.flag(
            "keep all episodes, those that came to their end, or those with reward 1; to compare "
            "them at one volume give data_pipeline.plan the same --max_tokens"
        ),
    )
    parse_failures: edits.ParseFailures = dataclasses.field(
        default="keep",
        metadata=cli.flag(
            "replies that the parser refused: keep them, mask them from the loss, splice them out "
            "with the error message, or drop the row"
        ),
    )
    null_tails: edits.NullTails = dataclasses.field(
        default="cut",
        metadata=cli.flag(
            "last replies that are the JSON literal null: keep them, cut them off with the turn "
            "that they answer, or drop the row"
        ),
    )
    identity_leaks: KeepOrRemove = dataclasses.field(
        default="remove",
        metadata=cli.flag("rows with a reply that says whose model wrote it"),
    )
    cjk_replies: KeepOrRemove = dataclasses.field(
        default="remove",
        metadata=cli.flag("rows with Han, Kana or Hangul in a reply, thinking included"),
    )
    invalid_replies: KeepOrDrop = dataclasses.field(
        default="keep",
        metadata=cli.flag(
            "Terminus 2 rows whose last reply is not valid in its format; of earlier ones "
            "--parse_failures decides"
        ),
    )
    max_message_bytes: int = dataclasses.field(
        default=1_000_000,
        metadata=cli.flag("longest message of a row, in UTF-8; 0 for any length"),
    )
    ngram: int = dataclasses.field(
        default=14, metadata=cli.flag("words in a row that may not agree with a benchmark's")
    )
    normalisation: decontamination.Normalisation = dataclasses.field(
        default="words",
        metadata=cli.flag(
            "what a word is for --ngram: letters and digits without case, or exact text"
        ),
    )

    def __post_init__(self):
        for name, choices in (
            ("trajectory_filter", TrajectoryFilter),
            ("parse_failures", edits.ParseFailures),
            ("null_tails", edits.NullTails),
            ("identity_leaks", KeepOrRemove),
            ("cjk_replies", KeepOrRemove),
            ("invalid_replies", KeepOrDrop),
            ("normalisation", decontamination.Normalisation),
        ):
            cli.require_choice(name, getattr(self, name), choices)
        limit, ngram = self.max_message_bytes, self.ngram
        cli.require(limit >= 0, f"--max_message_bytes={limit} must not be negative")
        cli.require(ngram > 0, f"--ngram={ngram} must be positive")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides about a single row."""

    options: FilterOptions
    special_tokens: tuple[str, ...]  # may not stand inside a message
    benchmark: tuple[tuple[str, str], ...] = ()  # name and instruction of each task


@dataclasses.dataclass(frozen=True)
class Judged:
    """A row that was looked at alone."""

    reason: str  # of REASONS; empty: it stays
    detail: str  # what was found
    conversation: records.Conversation | None  # as it is to be trained; None of a bad row
    edits: tuple[str, ...] = ()


def judge(row: corpus.Row, settings: Settings) -> Judged:
    """Edit a row, and find the first reason for which it goes."""
    if row.conversation is None:
        return Judged(UNREADABLE if row.is_damage else BAD_ROW, row.fault, None)
    edited, done = edit(row.conversation, settings.options)
    reason, detail = "", ""
    for of_edited, filters in _STEPS:
        conversation = edited if of_edited else row.conversation
        reason, detail = _first_found(conversation, settings, filters)
        if reason:
            break
    return Judged(reason, detail, edited, tuple(done))


Filter = Callable[[records.Conversation, Settings], str]


def edit(
    conversation: records.Conversation, options: FilterOptions
) -> tuple[records.Conversation, list[str]]:
    """The conversation as it is to be trained, and what was done to it."""
    return edits.edit(
        conversation, parse_failures=options.parse_failures, null_tails=options.null_tails
    )


def short_tasks(settings: Settings) -> list[str]:
    """The benchmark's tasks whose instructions are shorter than --ngram words."""
    options = settings.options
    return [
        name
        for name, instruction in settings.benchmark
        if len(decontamination.split_words(instruction, options.normalisation)) < options.ngram
    ]


def _first_found(
    conversation: records.Conversation, settings: Settings, filters: dict[str, Filter]
) -> tuple[str, str]:
    for reason, find in filters.items():
        if detail := find(conversation, settings):
            return reason, detail
    return "", ""


def _no_assistant(conversation: records.Conversation, settings: Settings) -> str:
    return "" if conversation.replies else "nothing to learn from"


def _parse_failure(conversation: records.Conversation, settings: Settings) -> str:
    failed = edits.failed_turns(conversation.messages)
    return f"turn {failed[0]}" if failed and settings.options.parse_failures == "drop" else ""


def _null_tail(conversation: records.Conversation, settings: Settings) -> str:
    is_one = settings.options.null_tails == "drop" and edits.has_null_tail(conversation.messages)
    return f"turn {conversation.replies[-1]}" if is_one else ""


def _untrained(conversation: records.Conversation, settings: Settings) -> str:
    untrained = conversation.get("untrained_turns") or ()
    if set(conversation.replies) - set(untrained):
        return ""
    return "; ".join(conversation.get("edits") or ()) or "all are in `untrained_turns`"


def _empty(conversation: records.Conversation, settings: Settings) -> str:
    """A reply or the first question without text; an empty observation is one."""
    must_speak = conversation.replies
    first = [i for i, m in enumerate(conversation.messages) if m.role == "user"][:1]
    for turn in sorted([*first, *must_speak]):
        message = conversation.messages[turn]
        if not message.content.strip():
            return f"turn {turn} ({message.role})"
    return ""


def _oversized(conversation: records.Conversation, settings: Settings) -> str:
    limit = settings.options.max_message_bytes
    for turn, message in enumerate(conversation.messages):
        if limit and 4 * len(message.content) > limit:  # else no need to look closer
            num_bytes = len(message.content.encode())
            if num_bytes > limit:
                return f"turn {turn} has {num_bytes:,} bytes"
    return ""


def _forged(conversation: records.Conversation, settings: Settings) -> str:
    pattern = _special_pattern(settings.special_tokens)
    for turn, message in enumerate(conversation.messages):
        if found := pattern.search(message.content):
            return f"turn {turn} holds {found.group()}"
    return ""


def _identity(conversation: records.Conversation, settings: Settings) -> str:
    if settings.options.identity_leaks == "keep":
        return ""
    for turn in conversation.replies:
        if found := identity.find_leak(conversation.messages[turn].content):
            return f"turn {turn}: {found}"
    return ""


def _cjk(conversation: records.Conversation, settings: Settings) -> str:
    if settings.options.cjk_replies == "keep":
        return ""
    for turn in conversation.replies:
        text = conversation.messages[turn].content
        if not text.isascii() and (found := _CJK.search(text)):
            begin, end = max(found.start() - _SHOWN_CHARS, 0), found.end() + _SHOWN_CHARS
            return f"turn {turn}: {text[begin:end]}"
    return ""


def _invalid(conversation: records.Conversation, settings: Settings) -> str:
    if settings.options.invalid_replies == "keep":
        return ""
    return trajectory.measure(conversation).last_error


def _incomplete(conversation: records.Conversation, settings: Settings) -> str:
    wanted = settings.options.trajectory_filter == "complete"
    return "never declared" if wanted and not trajectory.measure(conversation).complete else ""


def _unsuccessful(conversation: records.Conversation, settings: Settings) -> str:
    reward = conversation.get("reward")
    if settings.options.trajectory_filter != "success" or (reward or 0) >= 1:
        return ""
    return f"reward {reward}"


def _contaminated(conversation: records.Conversation, settings: Settings) -> str:
    if not settings.benchmark:
        return ""
    options = settings.options
    found_in = _decontaminator(settings.benchmark, options.ngram, options.normalisation)
    return found_in.find(decontamination.instruction_of(conversation.messages))


@functools.lru_cache(maxsize=1)
def _special_pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    return chat.special_token_pattern(tokens)


@functools.lru_cache(maxsize=1)
def _decontaminator(
    benchmark: tuple[tuple[str, str], ...], ngram: int, normalisation: decontamination.Normalisation
) -> decontamination.Decontaminator:
    return decontamination.Decontaminator(benchmark, ngram=ngram, normalisation=normalisation)


# In their order, faults first, so that no policy hides one; True: they look at the edited row.
_STEPS: tuple[tuple[bool, dict[str, Filter]], ...] = (
    (False, {NO_ASSISTANT: _no_assistant}),
    (True, {EMPTY: _empty, OVERSIZED: _oversized, FORGED: _forged}),
    (False, {PARSE_FAILURE: _parse_failure, NULL_TAIL: _null_tail}),
    (
        True,
        {
            UNTRAINED: _untrained,
            IDENTITY: _identity,
            CJK: _cjk,
            INVALID: _invalid,
            INCOMPLETE: _incomplete,
            UNSUCCESSFUL: _unsuccessful,
            CONTAMINATED: _contaminated,
        },
    ),
)

REASONS = (UNREADABLE, BAD_ROW, *(name for _, filters in _STEPS for name in filters))
