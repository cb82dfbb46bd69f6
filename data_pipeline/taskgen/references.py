"""Which files below /app a task speaks of, and whether they can be there.

A path that the tests look at must be known to the agent: the environment has it, or instruction or
Dockerfile name it or a folder above it. A path that the instruction has the agent read (`Read
/app/a.csv`: the nearest verb before the path says so, and none has it made) must be in the
environment, unless the Dockerfile makes it or tests that write files speak of it.
"""

import posixpath
import re
from collections.abc import Iterable, Iterator

from data_pipeline.taskgen import tests_code

# What stands behind a path makes it a pattern: /app/*.csv, /app/part_{i}.txt, /app/<name>.
_PATH = re.compile(r"(?<![\w/.])/app((?:/[\w.@+-]+)+)/?([<>{}*$\[?%]?)")
_SENTENCE_END = re.compile(r"(?<=[.!?;:])\s+|\n")
_VERB = re.compile(
    r"\b(?:(?P<reads>read|reads|reading|load|loads|loading|parse|parses|parsing|given|provided)|"
    r"(?:writ(?:e|es|ing|ten)|creat(?:e|es|ed|ing)|sav(?:e|es|ed|ing)|outputs?|produc(?:e|es|ed|ing)|"
    r"generat(?:e|es|ed|ing)|stor(?:e|es|ed|ing)|plac(?:e|es|ed|ing)|put|export|emit|build|make|"
    r"implement|named|called|compile|results?|append|into|to|complete|add|fill))\b",
    re.IGNORECASE,
)


def unaccounted(
    *, instruction: str, dockerfile: str, code: tests_code.TestsCode, files: Iterable[str]
) -> Iterator[str]:
    """Every path that cannot be there, in words that a writer of tasks can act on."""
    there = {path for file in files for path in (file, *_parents(file))}
    for path in sorted({path for text in code.texts for path, _ in _paths(text)} - there):
        if not _says(instruction, path) and not _says(dockerfile, path):
            yield (
                f"the tests look at /app/{path}, which neither the environment has nor the "
                "instruction asks for; name it in the instruction, or add it to the files"
            )
    for path in sorted(_inputs(instruction) - there):
        made_by_tests = code.writes and any(_says(text, path) for text in code.texts)
        if not made_by_tests and not _says(dockerfile, path):
            yield (
                f"the instruction has the agent read /app/{path}, which is not in the "
                "environment; add it to the files"
            )


def _paths(text: str) -> Iterator[tuple[str, int]]:
    """Paths below /app and where they stand."""
    for match in _PATH.finditer(text):
        path = match[1].strip("/").rstrip(".")
        if path and not match[2]:
            yield path, match.start()


def _inputs(instruction: str) -> set[str]:
    read, made = set(), set()
    for sentence in _SENTENCE_END.split(instruction):
        for path, start in _paths(sentence):
            verbs = list(_VERB.finditer(sentence, 0, start))
            (read if verbs and verbs[-1]["reads"] else made).add(path)
    return read - made


def _says(text: str, path: str) -> bool:
    """Whether a text names a path by its last part, or a folder above it."""
    names = [posixpath.basename(path)]
    names += [form for parent in _parents(path) for form in (f"{parent}/", f"/app/{parent}")]
    return any(re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-]|[/.]\w)", text) for name in names)


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]
