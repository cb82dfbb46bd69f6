"""Replies of teachers that are random, damaged or hostile."""

import base64
import random
import re
import string
import time

import pytest
from tagged_replies import SECTIONS, reply

from data_pipeline.taskgen import tagged, tagged_files

# Each would take minutes or the whole stack in a reader that looks back or recurses.
HOSTILE = {
    "many files": reply(files='<file path="a"></file>' * 100_000),
    "blank files": reply(files=" " * 3_000_000),
    "unclosed files": reply(files="<file " * 500_000),
    "attributes": reply(files="<file " + 'a="b" ' * 300_000 + "x>"),
    "blank attribute": reply(files="<file" + " " * 1_000_000 + "x"),
    "openings": "<prompt>\n" * 400_000,
    "half openings": "<prompt " * 500_000,
    "closings": "<prompt>" + "</prompt> " * 400_000,
    "closing and blanks": "<prompt>" + ("</prompt>" + " " * 1000) * 3000 + "x",
    "thoughts": "<think>" * 500_000,
    "ends of thoughts": "</think>\n" * 400_000 + reply(),
    "cdata": reply(info="<![CDATA[]]>" * 1300 + "x"),
    "open cdata": reply(info="<![CDATA[" * 1700),
    "fences": reply(prompt="```\n" * 8000),
    "brackets": (">" + " " * 100) * 30_000,
    "keys": reply(info="{" + '"a":1,' * 2700 + '"a":1}'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_replies_are_answered_soon(name):
    began = time.process_time()
    try:
        tagged.parse(HOSTILE[name])
    except ValueError as error:
        assert len(str(error)) < 4000
    assert time.process_time() - began < 10


def random_text(rng, alphabet, longest=60):
    return "".join(rng.choices(alphabet, k=rng.randint(0, longest)))


FILE_ALPHABET = [*string.printable[:95], "\n", "\n", "\n", "\t", "é", "東", "\u2028", "😀"]


@pytest.mark.parametrize("seed", range(40))
def test_any_files_come_back_as_they_went_in(seed):
    """Written by the rules that the prompt states, whatever they hold."""
    rng = random.Random(seed)
    tags = [*FILE_ALPHABET, "<file path=", "</file>", "</files>", "<tests>", "```", "]]>", "\x00"]
    files, section = {}, ""
    for number in range(rng.randint(0, 8)):
        path = f"{rng.choice(['', 'a/', 'a/b c/'])}{number}{rng.choice(['', '.md', '.py'])}"
        text = random_text(rng, rng.choice([FILE_ALPHABET, tags]))
        is_text = not re.search(r"</files?>|\x00|\A\s*<!\[CDATA|\A\s*[`~]{3}|<file", text)
        if is_text and rng.random() < 0.7:
            newline = "\n" if text.startswith("\n") or rng.random() < 0.5 else ""
            section += f'<file path="{path}">{newline}{text}</file>\n'
        else:
            encoded = base64.b64encode(text.encode()).decode()
            section += f'<file path="{path}" encoding="base64">\n{encoded}\n</file>\n'
        files[path] = text.encode()
    assert tagged.parse(reply(files=section)).files == files


PIECES = [
    *(f"<{name}>" for name in SECTIONS),
    *(f"</{name}>" for name in SECTIONS),
    *('<file path="a">', '<file path="../b" encoding="base64">', "</file>", "<file", "/>"),
    *("<think>", "</think>", "<![CDATA[", "]]>", "```", "```python\n", "\n", "\n\n", " ", "\r\n"),
    *("{", "}", '"test_sum": 1', "def test_sum(): pass\n", "x==1", "\x00", "\ud800", "é", "💥"),
]


@pytest.mark.parametrize("seed", range(60))
def test_damaged_replies_are_read_or_refused(seed):
    """No other exception, and what is read keeps every promise of Draft."""
    rng = random.Random(seed)
    for _ in range(60):
        text = list(reply())
        for _ in range(rng.randint(1, 6)):
            first = rng.randrange(len(text) + 1)
            last = min(first + rng.choice((0, 0, 1, 5, 40)), len(text))
            text[first:last] = rng.choices(PIECES, k=rng.randint(0, 3))
        check_promises("".join(text))
    for _ in range(60):
        check_promises("".join(rng.choices(PIECES, k=rng.randint(0, 60))))


def check_promises(text):
    try:
        draft = tagged.parse(text)
    except ValueError as error:
        assert str(error).strip()
        return
    compile(draft.tests, "tests", "exec", dont_inherit=True)
    assert draft.instruction.strip() and "def test" in draft.tests
    assert all(weight > 0 for weight in draft.weights.values())
    assert all(name.rpartition("::")[2] in draft.tests for name in draft.weights)
    for path, content in draft.files.items():
        assert isinstance(content, bytes) and tagged_files.path_fault(path) == ""
        assert ".." not in path.split("/") and not path.startswith("/") and path.isprintable()
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!-]+", line) for line in draft.test_requirements)
