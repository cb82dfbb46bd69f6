"""What a session came to, in numbers: turns, commands, errors, and whether it was finished."""

import dataclasses
import re
from typing import Any

from data_pipeline import records
from data_pipeline.curation import edits, terminus

_DECLARED_COMPLETE = re.compile(
    r'"task_complete"\s*:\s*true|<task_complete>\s*true\s*</task_complete>'
)


@dataclasses.dataclass(frozen=True)
class Measures:
    """Of one conversation; what only Terminus 2's format tells is None for other agents."""

    num_turns: int = 0
    num_replies: int = 0
    num_chars: int = 0
    complete: bool | None = None
    num_commands: int | None = None
    num_errors: int | None = None  # replies that Terminus 2 could not or cannot read
    num_warnings: int | None = None
    last_error: str = ""  # of the last reply; it is no column

    def columns(self) -> dict[str, Any]:
        """The columns that a curated corpus has of them."""
        return {name: getattr(self, name) for name in ("complete", "num_commands", "num_errors")}


def measure(conversation: records.Conversation) -> Measures:
    """Read all replies.

    A session is Terminus 2's where its agent's name says so, or some reply is a valid one.
    """
    messages = conversation.messages
    replies = {turn: terminus.parse(messages[turn].content) for turn in conversation.replies}
    plain = Measures(
        num_turns=len(messages),
        num_replies=len(replies),
        num_chars=sum(len(message.content) for message in messages),
        complete=_is_complete(conversation, replies),
    )
    named = (conversation.get("agent") or "").startswith("terminus")
    if not named and all(reply.error for reply in replies.values()):
        return plain
    refused = {turn for turn, reply in replies.items() if reply.error}
    return dataclasses.replace(
        plain,
        num_commands=sum(len(reply.commands) for reply in replies.values()),
        num_errors=len(refused.union(edits.failed_turns(messages))),
        num_warnings=sum(len(reply.warnings) for reply in replies.values() if not reply.error),
        last_error=replies[max(replies)].error if replies else "",
    )


def _is_complete(conversation: records.Conversation, replies: dict[int, terminus.Reply]) -> bool:
    """Whether the episode came to its end: its column says so, or its agent declares it."""
    if conversation.get("complete") is not None:
        return conversation.get("complete")
    if any(reply.is_complete for reply in replies.values()):
        return True
    unread = (conversation.messages[turn] for turn, reply in replies.items() if reply.error)
    return any(_DECLARED_COMPLETE.search(terminus.behind_thinking(m.content)) for m in unread)
