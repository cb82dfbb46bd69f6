"""Decontamination: does an instruction share a run of n words with a benchmark's?

Exact: the run itself is looked up, so there are no false hits, and the run is what is reported. It
is fast since a run can only be where n words in a row all occur in the benchmarks.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from data_pipeline import records
from data_pipeline.curation import plain_text

Normalisation = Literal["words", "exact"]

_WORD = re.compile(r"[^\W_]+")
_TASK, _SCREEN = "Task Description:\n", "\n\nCurrent terminal state:"


def instruction_of(messages: Sequence[records.Message]) -> str:
    """What the session was asked: the task inside a Terminus prompt, or the first user turn."""
    prompt = next((message.content for message in messages if message.role == "user"), "")
    _, mark, task = prompt.partition(_TASK)
    return task.rpartition(_SCREEN)[0] or task if mark else prompt


def split_words(text: str, normalisation: Normalisation) -> list[str]:
    """The words that are compared.

    `words`: letters and digits alone, without case and accents and in one form of Unicode, so that
    case, space, punctuation and what is not seen make no difference. `exact`: what stands between
    spaces, as it stands.
    """
    if normalisation == "exact":
        return text.split()
    return _WORD.findall(plain_text.folded(text))


class Decontaminator:
    """Finds benchmark instructions in others."""

    def __init__(
        self, tasks: Sequence[tuple[str, str]], *, ngram: int, normalisation: Normalisation
    ):
        """Take in the benchmark.

        Args:
            tasks: name and instruction of each.
            ngram: words that must agree in a row.
            normalisation: what a word is.
        """
        self._ngram = ngram
        self._normalisation: Normalisation = normalisation
        self._task_of_run: dict[str, str] = {}
        self._task_of_whole: dict[str, str] = {}  # instructions too short to hold a run
        for name, instruction in tasks:
            words = split_words(instruction, normalisation)
            if 0 < len(words) < ngram:
                self._task_of_whole.setdefault(" ".join(words), name)
            for i in range(len(words) - ngram + 1):
                self._task_of_run.setdefault(" ".join(words[i : i + ngram]), name)
        self._vocabulary = {word for run in self._task_of_run for word in run.split(" ")}

    def find(self, instruction: str) -> str:
        """Which run of which task the instruction shares; empty where it shares none."""
        words = split_words(instruction, self._normalisation)
        if len(words) < self._ngram:
            whole = " ".join(words)
            name = self._task_of_whole.get(whole)
            return f"the whole of {name}: {whole}" if name else ""
        for start, end in self._candidates(words):
            for i in range(start, end - self._ngram + 1):
                run = " ".join(words[i : i + self._ngram])
                if name := self._task_of_run.get(run):
                    return f"{self._ngram} words of {name}: {run}"
        return ""

    def _candidates(self, words: list[str]) -> Iterator[tuple[int, int]]:
        """The stretches of n words or more that all occur in the benchmark."""
        start = 0
        for i, word in enumerate(words):
            if word not in self._vocabulary:
                if i - start >= self._ngram:
                    yield start, i
                start = i + 1
        if len(words) - start >= self._ngram:
            yield start, len(words)
