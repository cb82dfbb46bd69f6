"""A reply, and how it is put together from one JSON body or from the pieces of a stream."""

import dataclasses
import json
from typing import Any

from data_pipeline.taskgen.teacher import question as question_module

_LONGEST_REASON = 64  # characters
_MOST_TOKENS = 1 << 40  # a larger count is no count


@dataclasses.dataclass(frozen=True)
class Reply:
    """What the teacher said.

    Attributes:
        reasoning: what it thought before, where the endpoint tells; empty otherwise.
        finish_reason: "stop"; "length" where it was cut at max_tokens, or here because the
            endpoint did not end it; "unknown" where the endpoint does not say.
        cached: no request was sent for it.
        dollars: what it cost when it was sent for.
        estimated: the endpoint counted no tokens; the counts are by the length of the text.
    """

    text: str
    reasoning: str
    finish_reason: str
    input_tokens: int
    output_tokens: int
    cached: bool
    dollars: float
    estimated: bool = False


class MalformedError(ValueError):
    """A body that is not what the protocol says."""


class ErrorInStream(Exception):
    """The endpoint told an error after its 200; `error` is what it said."""

    def __init__(self, error: Any):
        super().__init__("an error inside a stream")
        self.error = error


class Assembly:
    """A reply as far as it has come.

    Attributes:
        finish_reason: empty until the endpoint says that the reply has ended.
        num_bytes: of text and reasoning so far, and of what could not be read.
    """

    def __init__(self):
        self.finish_reason = ""
        self.num_bytes = 0
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._usage: tuple[int, int] | None = None

    @property
    def text(self) -> str:
        """The reply's text so far."""
        return _storable("".join(self._text))

    @property
    def reasoning(self) -> str:
        """The reasoning so far."""
        return _storable("".join(self._reasoning))

    def add_body(self, body: str) -> None:
        """A whole reply, not streamed.

        Raises:
            MalformedError: it is none.
        """
        value = self._object(body)
        if value.get("error") and not value.get("choices"):
            raise ErrorInStream(value["error"])
        if not value.get("choices"):
            raise MalformedError(f"a reply without choices: {_shown(body)}")
        self._add(value, "message")
        self.finish_reason = self.finish_reason or "unknown"

    def add_piece(self, data: str) -> None:
        """One piece of a stream.

        Raises:
            MalformedError: it is none.
            ErrorInStream: it tells an error.
        """
        value = self._object(data)
        if value.get("error"):
            raise ErrorInStream(value["error"])
        self._add(value, "delta")

    def tokens(self, question: question_module.Question) -> tuple[int, int, bool]:
        """Tokens in, tokens out, and whether that is an estimate."""
        if self._usage is not None:
            return (*self._usage, False)
        written = question_module.estimate_tokens(self.num_bytes)
        # Most servers send a piece a token.
        pieces = len(self._text) + len(self._reasoning)
        return question.estimated_input_tokens, max(written, pieces), True

    def _object(self, text: str) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            self.num_bytes += len(text)
            raise MalformedError(f"not JSON ({type(error).__name__}): {_shown(text)}") from None
        if not isinstance(value, dict):
            raise MalformedError(f"not an object: {_shown(text)}")
        return value

    def _add(self, value: dict[str, Any], part: str) -> None:
        self._usage = _usage(value.get("usage")) or self._usage
        choices = value.get("choices") or []
        if not isinstance(choices, list):
            raise MalformedError(f"choices that are no list: {_shown(str(choices))}")
        for choice in choices[:1]:  # `n` is never sent
            if not isinstance(choice, dict):
                raise MalformedError(f"a choice that is no object: {_shown(str(choice))}")
            said = choice.get(part) or {}
            if not isinstance(said, dict):
                raise MalformedError(f"a {part} that is no object: {_shown(str(said))}")
            self._keep(self._text, said.get("content"))
            # vLLM says `reasoning` since 0.25; before, and most others, `reasoning_content`.
            reasoning = said.get("reasoning_content") or said.get("reasoning")
            self._keep(self._reasoning, reasoning if isinstance(reasoning, str) else None)
            if isinstance(choice.get("finish_reason"), str):
                self.finish_reason = _storable(choice["finish_reason"])[:_LONGEST_REASON]

    def _keep(self, parts: list[str], text: Any) -> None:
        if text is None or text == "":
            return
        if not isinstance(text, str):
            raise MalformedError(f"a content that is no text: {_shown(str(text))}")
        parts.append(text)
        self.num_bytes += len(text.encode("utf-8", "surrogatepass"))


def _usage(value: Any) -> tuple[int, int] | None:
    """Tokens in and out; None where the server does not count, or not in numbers."""
    if not isinstance(value, dict):
        return None
    counts = value.get("prompt_tokens"), value.get("completion_tokens")
    if all(type(count) is int and 0 <= count < _MOST_TOKENS for count in counts):
        return counts  # pyright: ignore[reportReturnType]
    return None


def _storable(text: str) -> str:
    """Halves of a UTF-16 pair, which JSON can hold and UTF-8 cannot, joined or replaced."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _shown(text: str) -> str:
    """The beginning of a text, on one line."""
    return repr(text[:80])
