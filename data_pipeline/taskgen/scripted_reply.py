"""A reply of the scripted teacher, in the forms that the chat-completions protocol has for it."""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

from data_pipeline.taskgen import teacher_script

PIECE_WORDS = 8  # of a stream

type _Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ScriptedReply:
    """One reply to one request.

    Attributes:
        request: the body of the request, whose words are counted.
        finish_reason: as the protocol has it.
    """

    script: teacher_script.Script
    request: _Json
    text: str
    reasoning: str
    finish_reason: str

    @property
    def num_words(self) -> int:
        """Of text and reasoning."""
        return len(words_of(self.reasoning)) + len(words_of(self.text))

    def body(self) -> _Json:
        """Not streamed."""
        message = {"role": "assistant", "content": self.text}
        if self.reasoning:
            message[self.script.reasoning_field] = self.reasoning
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason}
        return self._named("chat.completion", choices=[choice]) | self._usage()

    def pieces(self) -> Iterator[tuple[_Json, int]]:
        """Pieces of a stream, and the words in each."""
        for field, text in ((self.script.reasoning_field, self.reasoning), ("content", self.text)):
            words = words_of(text)
            for first in range(0, len(words), PIECE_WORDS):
                some = words[first : first + PIECE_WORDS]
                yield self.piece({field: "".join(some)}), len(some)

    def last_pieces(self) -> Iterator[_Json]:
        """The end of the reply, and its tokens where they were asked for."""
        yield self.piece({}, self.finish_reason)
        if (self.request.get("stream_options") or {}).get("include_usage") and self._usage():
            yield self._named("chat.completion.chunk", choices=[]) | self._usage()

    def piece(self, delta: _Json, finish_reason: str | None = None) -> _Json:
        """One piece of a stream."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return self._named("chat.completion.chunk", choices=[choice])

    def _named(self, kind: str, *, choices: list[_Json]) -> _Json:
        return {
            "id": "chatcmpl-scripted",
            "object": kind,
            "created": 0,
            "model": self.script.model,
            "choices": choices,
        }

    def _usage(self) -> _Json:
        if not self.script.counts_tokens:
            return {}
        counts = words_of_question(self.request), self.num_words
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        return {"usage": dict(zip(names, (*counts, sum(counts)), strict=True))}


def words_of(text: str) -> list[str]:
    """The text's words, each with the space that follows; together they are the text."""
    return re.findall(r"\s*\S+\s*", text)


def words_of_question(body: _Json) -> int:
    """Words of a request's messages."""
    return sum(len(words_of(json.dumps(message.get("content")))) for message in body["messages"])
