"""A question: what is asked, the key under which its reply is kept, and the request it becomes."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

_BYTES_A_TOKEN = 4  # of English text and code, by common tokenizers
_TOKENS_A_MESSAGE = 4  # role and delimiters of a chat template

Message = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Dialect:
    """What a server makes of fields on which servers differ; learnt from what it refuses.

    Attributes:
        asks_stream_usage: send stream_options, without which most count no tokens in a stream.
        max_tokens_field: hosted reasoning models take `max_completion_tokens` only.
    """

    asks_stream_usage: bool = True
    max_tokens_field: str = "max_tokens"

    def after_refusal(self, text: str) -> "Dialect":
        """The dialect to try next; the same one where the refusal was about something else."""
        if self.asks_stream_usage and ("stream_options" in text or "include_usage" in text):
            return dataclasses.replace(self, asks_stream_usage=False)
        if self.max_tokens_field == "max_tokens" and "max_completion_tokens" in text:
            return dataclasses.replace(self, max_tokens_field="max_completion_tokens")
        return self


@dataclasses.dataclass(frozen=True)
class Question:
    """One question to one model.

    Attributes:
        options: sampling options, in the names of the chat-completions protocol.
        salt: asks the same thing once more, for another reply.
    """

    model: str
    messages: tuple[Message, ...]
    options: Mapping[str, Any]
    salt: str

    @functools.cached_property
    def key(self) -> str:
        """SHA-256 of all that decides the reply."""
        parts = {
            "model": self.model,
            "messages": [dict(message) for message in self.messages],
            "options": dict(self.options),
            "salt": self.salt,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def estimated_input_tokens(self) -> int:
        """Tokens of the prompt, by its length."""
        return sum(
            _TOKENS_A_MESSAGE + estimate_tokens(len(message["content"].encode("utf-8", "replace")))
            for message in self.messages
        )

    def body(self, *, stream: bool, dialect: Dialect) -> bytes:
        """The request's body."""
        options = dict(self.options)
        options[dialect.max_tokens_field] = options.pop("max_tokens")
        body = {"model": self.model, "messages": [dict(m) for m in self.messages], **options}
        if stream:
            body["stream"] = True
            if dialect.asks_stream_usage:
                body["stream_options"] = {"include_usage": True}
        return json.dumps(body).encode()


def check_messages(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages of a question, each a role and a text.

    Raises:
        ValueError: one is something else.
    """
    if not messages:
        raise ValueError("a question to the teacher has no messages; give at least one")
    for number, message in enumerate(messages):
        if not all(isinstance(message.get(name), str) for name in ("role", "content")):
            raise ValueError(
                f"message {number} of a question to the teacher needs `role` and `content`, both "
                f"texts; it has {sorted(message)}"
            )
    return tuple(messages)


def estimate_tokens(num_bytes: int) -> int:
    """Tokens of a text by its length, for servers that do not count; off by a third or so."""
    return math.ceil(num_bytes / _BYTES_A_TOKEN)
