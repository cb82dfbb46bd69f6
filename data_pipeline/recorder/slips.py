"""Typing mistakes: a read-only command line with one fault that the shell will complain about."""

import random
import re
from typing import NamedTuple

_PROGRAMS = "ls cat head tail wc grep sort cut uniq file find stat du sha256sum tar diff nl"
_READ_ONLY = frozenset(_PROGRAMS.split())
_BAD_FLAG = {
    "ls": "--list",
    "cat": "--lines",
    "head": "--first",
    "tail": "--last",
    "wc": "--count",
    "grep": "--ignorecase",
    "sort": "--numeric-order",
    "cut": "--column",
    "uniq": "--counts",
    "sha256sum": "--hash",
    "du": "--sum",
    "stat": "--size",
    "find": "-names",
}
_FILE = re.compile(r"(?<=[ /])[a-z_]{4,}\.[a-z]{2,4}\b")


class Slip(NamedTuple):
    """A mistyped line, the kind of fault ("word", "path", "flag") and the program meant."""

    line: str
    kind: str
    program: str


def draw(line: str, rng: random.Random) -> Slip | None:
    """Mistype `line`; None when it may change something or offers nothing to mistype."""
    program = line.split(" ", 1)[0]
    if program not in _READ_ONLY or re.search(r"[>|;&\n]", line):
        return None
    kinds = [
        "word",
        *(["path"] if _FILE.search(line) else []),
        *(["flag"] * (program in _BAD_FLAG)),
    ]
    kind = rng.choice(kinds)
    if kind == "word" and len(program) < 3:
        kind = "flag"
    rest = line[len(program) :]
    if kind == "word":
        return Slip(_swap(program, rng) + rest, kind, program)
    if kind == "flag" and program in _BAD_FLAG:
        return Slip(f"{program} {_BAD_FLAG[program]}{rest}", kind, program)
    if kind == "path":
        name = rng.choice(_FILE.findall(line))
        return Slip(program + rest.replace(name, _swap(name, rng, until="."), 1), kind, program)
    return None


def _swap(word: str, rng: random.Random, *, until: str = "") -> str:
    """Swap two neighbouring letters that differ, or double the last one."""
    length = word.index(until) if until else len(word)
    places = [i for i in range(length - 1) if word[i] != word[i + 1]]
    if not places or word == "cat":  # `act` and `tac` are words of their own
        return word[:length] + word[length - 1] + word[length:]
    i = rng.choice(places)
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
