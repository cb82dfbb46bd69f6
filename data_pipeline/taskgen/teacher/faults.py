"""What can go wrong with a request, and what that means: try again, give up, or stop everything."""

import dataclasses
import json
import re
from typing import Any, Literal

from data_pipeline.taskgen.teacher import budget

Kind = Literal[
    "rate_limited",  # 429, and 503 with its overloads
    "server_error",  # 5xx, or an error told inside a stream
    "connection",  # refused, reset, or closed before an answer
    "cut_stream",  # ended before the reply did
    "malformed",  # 200, and a body that is no reply
    "timeout",  # the total or the idle limit
    "bad_request",  # any other 4xx, and redirects
    "context_too_long",
    "not_found",  # 404: a wrong address, or a model that is not served
    "unauthorized",  # 401, 403
    "quota",  # 402, or a 429 that no waiting ends
    "cancelled",  # by whoever asked
]

RETRIED: tuple[Kind, ...] = (
    "rate_limited", "server_error", "connection", "cut_stream", "malformed", "timeout",
)  # fmt: skip
_OF_EVERY_QUESTION: tuple[Kind, ...] = ("not_found", "unauthorized", "quota")

_LONGEST_MESSAGE = 300  # characters of a server's own words in an error
_RETRIED_4XX = (408, 409, 425)
# As vLLM, SGLang, llama.cpp and hosted endpoints say it.
_CONTEXT_TOO_LONG = re.compile(
    r"context_length_exceeded|context.{0,20}(length|window|size|limit)|max_model_len"
    r"|(prompt|input|request).{0,60}(too long|too large|exceeds?\b.{0,40}(tokens|length))",
    re.IGNORECASE | re.DOTALL,
)


class TeacherError(Exception):
    """The teacher gave no reply to a question.

    Attributes:
        kind: what went wrong with the last attempt.
        is_final: this question will never get a reply: it is malformed or too long. False where
            another time may be better.
        affects_all: no other question would fare better: the key, the address or the account.
    """

    def __init__(self, kind: Kind, text: str):
        super().__init__(text)
        self.kind: Kind = kind
        self.is_final = kind in ("bad_request", "context_too_long")
        self.affects_all = kind in _OF_EVERY_QUESTION


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """What went wrong with one request.

    Attributes:
        text: for the reader of an error; without the key.
        retry_after_s: what the server asked for; 0 where it did not.
        spend: what the endpoint will bill for it, estimated.
    """

    kind: Kind
    text: str
    retry_after_s: float = 0.0
    spend: budget.Spend = dataclasses.field(default_factory=lambda: budget.Spend())

    @property
    def is_retried(self) -> bool:
        """Whether the same request may fare better."""
        return self.kind in RETRIED


def kind_of(status: int, message: str) -> Kind:
    """What a status that is not 200 means, with what the server says to it."""
    if status == 402 or (status == 429 and "insufficient_quota" in message):
        return "quota"
    if status == 429:
        return "rate_limited"
    if status >= 500 or status in _RETRIED_4XX:
        return "server_error"
    if status in (401, 403):
        return "unauthorized"
    if status == 404:
        return "not_found"
    if status == 413 or _CONTEXT_TOO_LONG.search(message):
        return "context_too_long"
    return "bad_request"


def message_of(body: str) -> str:
    """A server's own words in the body of an error, on one line."""
    try:
        found = _message_in(json.loads(body))
    except (ValueError, RecursionError):
        found = body
    return " ".join(found.split())


def shortened(message: str) -> str:
    """Enough of it for an error."""
    return message[:_LONGEST_MESSAGE]


def _message_in(value: Any) -> str:
    """OpenAI and vLLM say {"error": {...}}, older SGLang {"message": ...}, FastAPI {"detail": ...}.

    The code goes along: `insufficient_quota` stands there only.
    """
    if not isinstance(value, dict):
        return str(value)
    inner = value.get("error") or value.get("detail") or value
    if not isinstance(inner, dict):
        return str(inner)
    parts = [str(inner[name]) for name in ("message", "type", "code") if inner.get(name)]
    return ", ".join(parts) or json.dumps(inner)


def error_in_stream(error: Any) -> tuple[Kind, str]:
    """Kind and words of an error that came as a piece of a stream, after its 200."""
    message = message_of(json.dumps({"error": error}))
    code = error.get("code") if isinstance(error, dict) else None
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    return kind_of(status, message), message
