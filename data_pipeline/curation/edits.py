"""What curate changes in a conversation before it is judged: failed turns and `null` tails.

A failed turn is a reply that Terminus 2 could not read: the user turn behind it says so. A `null`
tail is a last reply that is the JSON literal null: the model was asked, and no answer was kept.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from data_pipeline import records
from data_pipeline.curation import terminus

ParseFailures = Literal["keep", "mask", "splice", "drop"]
NullTails = Literal["keep", "cut", "drop"]

_ERROR_MESSAGE = "Previous response had parsing errors"
_NULL = re.compile(r"\s*(?:```(?:json)?\s*+null\s*+```|null)\s*")


def failed_turns(messages: Sequence[records.Message]) -> list[int]:
    """The numbers of the replies that were answered by an error message of the parser."""
    return [
        i
        for i, (reply, answer) in enumerate(itertools.pairwise(messages))
        if reply.role == "assistant"
        and answer.role == "user"
        and answer.content.lstrip().startswith(_ERROR_MESSAGE)
    ]


def has_null_tail(messages: Sequence[records.Message]) -> bool:
    """Whether the last reply is null."""
    replies = [message for message in messages if message.role == "assistant"]
    return bool(replies) and _is_null(replies[-1])


def edit(
    conversation: records.Conversation, *, parse_failures: ParseFailures, null_tails: NullTails
) -> tuple[records.Conversation, list[str]]:
    """The conversation as it is to be trained, and what was done to it.

    A spliced conversation reads as if the failure had not been: the reply and the error message are
    gone. Neither edit leaves behind a last user turn whose reply it took.
    """
    done: list[str] = []
    untrained: set[int] = set(conversation.get("untrained_turns") or ())
    left = list(range(len(conversation.messages)))  # the numbers of the turns that stay
    failed = failed_turns(conversation.messages)
    if parse_failures == "mask" and (new := [turn for turn in failed if turn not in untrained]):
        untrained.update(new)
        done.append(f"masked {_named(new)}")
    elif parse_failures == "splice" and failed:
        gone = {turn for i in failed for turn in (i, i + 1)}
        left = [turn for turn in left if turn not in gone]
        if len(conversation.messages) - 1 in gone:
            left = _without_question(conversation, left)
        done.append(f"spliced {_named(sorted(gone))}")
    if null_tails == "cut":
        whole = left
        while has_null_tail([conversation.messages[turn] for turn in left]):
            left = _without_tail(conversation, left)
        if len(left) < len(whole):
            done.append(f"cut {_named(whole[len(left) :])}")
    if not done:
        return conversation, []
    return _of_turns(conversation, left, untrained, done), done


def _is_null(reply: records.Message) -> bool:
    return bool(_NULL.fullmatch(terminus.behind_thinking(reply.content)))


def _without_tail(conversation: records.Conversation, turns: list[int]) -> list[int]:
    """The turns before the last reply, and before the user turn that it answers."""
    turns = turns[:]
    while conversation.messages[turns.pop()].role != "assistant":
        pass
    return _without_question(conversation, turns)


def _without_question(conversation: records.Conversation, turns: list[int]) -> list[int]:
    asks = bool(turns) and conversation.messages[turns[-1]].role == "user"
    return turns[:-1] if asks else turns


def _of_turns(
    conversation: records.Conversation, turns: list[int], untrained: set[int], done: list[str]
) -> records.Conversation:
    metadata = dict(conversation.metadata)
    metadata["edits"] = [*(conversation.get("edits") or ()), *done]
    metadata.pop("untrained_turns", None)
    if now := [i for i, turn in enumerate(turns) if turn in untrained]:
        metadata["untrained_turns"] = now
    messages = tuple(conversation.messages[turn] for turn in turns)
    return dataclasses.replace(conversation, messages=messages, metadata=metadata)


def _named(turns: Iterable[int]) -> str:
    return f"turns {', '.join(map(str, turns))}"
