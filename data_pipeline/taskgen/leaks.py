"""Does the agent see what only the tests and the solution should know?

Words are letters and digits, without case. A task leaks where

- its instruction shares RUN_WORDS words in a row with the solution, or with one text or list of
  constants of the tests (their messages and docstrings excepted). A format or a sentence that has
  to be said is shorter; an expected output that is quoted whole is not;
- a file of its environment holds the whole solution, or holds the whole of an expected text of at
  least RUN_WORDS words that makes up most of the file. Common runs alone say nothing here: a
  solution mends the code that lies there, and an output repeats its input.
"""

import collections
from collections.abc import Iterator, Mapping

from data_pipeline.curation import decontamination
from data_pipeline.taskgen import tests_code

RUN_WORDS = 16
_MOST = 0.8  # of a file's words
_SHOWN_CHARS = 100


def find(
    *,
    instruction: str,
    files: Mapping[str, bytes],
    code: tests_code.TestsCode | None,
    solution: str,
) -> Iterator[str]:
    """Every leak in words that a writer of tasks can act on."""
    secrets = collections.defaultdict(list)  # where -> texts
    if code is not None:
        secrets["the tests"] = [*code.texts, *code.lists]
    if solution:
        secrets["the solution"] = [solution]
    for owner, texts in secrets.items():
        if run := _shared_run(texts, instruction):
            yield (
                f"the instruction gives away {RUN_WORDS} words in a row of {owner} "
                f"({run!r}); describe what is wanted without it"
            )
        for path, content in files.items():
            if any(_gives_away(content, text, is_solution=text is solution) for text in texts):
                yield f"the file {path!r} holds what {owner} should alone know; leave it out"


def _shared_run(texts: list[str], instruction: str) -> str:
    # A text has no more words than it has letters and digits: most are too short to say anything.
    named = [("", text) for text in texts if len(text) >= RUN_WORDS]
    if not named:
        return ""
    finder = decontamination.Decontaminator(named, ngram=RUN_WORDS, normalisation="words")
    found = finder.find(instruction)
    return found.partition(": ")[2][:_SHOWN_CHARS] if " words of " in found else ""


def _gives_away(content: bytes, text: str, *, is_solution: bool) -> bool:
    words = decontamination.split_words(text, "words") if len(text) >= RUN_WORDS else []
    if len(words) < RUN_WORDS:
        return False
    there = decontamination.split_words(content.decode("utf-8", "replace"), "words")
    is_whole = f" {' '.join(words)} " in f" {' '.join(there)} "
    return is_whole and (is_solution or len(words) >= _MOST * len(there))
