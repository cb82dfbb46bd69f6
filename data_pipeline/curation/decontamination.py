"""Decontamination: does an instruction share a run of n words with a benchmark's?

Exact: the run itself is compared, letter by letter, so there are no false hits, and the run is what
is reported. Between a word's letters anything may stand that is no letter or digit: a run is found
where "don't" became "dont", "1,000" became "1000" or "file" became "**fi**le". It begins and ends
where a word does.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Literal

from data_pipeline import records
from data_pipeline.curation import plain_text

Normalisation = Literal["words", "exact"]

_WORD = re.compile(r"[^\W_]+")
_MAX_KEY_CHARS = 24  # of a run, by which it is looked up
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
        # Runs of words that are compared letter by letter have nothing between their words.
        self._between = " " if normalisation == "exact" else ""
        self._task_of_whole: dict[str, str] = {}  # instructions too short to hold a run
        task_of_run: dict[tuple[str, ...], str] = {}
        for name, instruction in tasks:
            words = split_words(instruction, normalisation)
            if 0 < len(words) < ngram:
                self._task_of_whole.setdefault(self._between.join(words), name)
            for i in range(len(words) - ngram + 1):
                task_of_run.setdefault(tuple(words[i : i + ngram]), name)
        self._runs_at = self._by_key(task_of_run)

    def _by_key(
        self, task_of_run: dict[tuple[str, ...], str]
    ) -> dict[str, list[tuple[str, str, str]]]:
        """Of each beginning of a run, in letters: the runs' letters, words and tasks."""
        joined = {run: self._between.join(run) for run in task_of_run}
        self._key_chars = min([_MAX_KEY_CHARS, *map(len, joined.values())])
        runs_at: dict[str, list[tuple[str, str, str]]] = {}
        for run, letters in joined.items():
            entry = (letters, " ".join(run), task_of_run[run])
            runs_at.setdefault(letters[: self._key_chars], []).append(entry)
        return runs_at

    def find(self, instruction: str) -> str:
        """Which run of which task the instruction shares; empty where it shares none."""
        if not self._runs_at and not self._task_of_whole:
            return ""
        words = split_words(instruction, self._normalisation)
        text = self._between.join(words)
        if name := self._task_of_whole.get(text):
            return f"the whole of {name}: {' '.join(words)}"
        step = len(self._between)
        ends = list(itertools.accumulate((len(word) + step for word in words), initial=0))
        starts, word_ends = ends[:-1], {end - step for end in ends[1:]}
        for start in starts:
            for letters, run, name in self._runs_at.get(text[start : start + self._key_chars], ()):
                if start + len(letters) in word_ends and text.startswith(letters, start):
                    return f"{self._ngram} words of {name}: {run}"
        return ""
