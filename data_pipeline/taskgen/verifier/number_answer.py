"""Is the number in /app/solution.txt the expected one? A copy, with EXPECTED, is a task's tests."""

import fractions
import pathlib
import re

EXPECTED = ""  # the adapter puts the answer here

_DECIMAL = r"[+-]?(?:\d{1,50}(?:\.\d{0,50})?|\.\d{1,50})"
_NUMBER = re.compile(rf"({_DECIMAL})(?:\s*/\s*({_DECIMAL}))?")
_NAME = re.compile(r"\A[A-Za-z]\w{0,8}\s*=")
_FRAC = re.compile(r"([+-]?)\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_WRAPPED = re.compile(r"\\(?:boxed|text|mathrm|mathbf)\{(.*)\}", re.DOTALL)
_MAX_CHARS = 1000
_TOLERANCE = fractions.Fraction(1, 10**6)  # relative, where one of the two has decimals


def number(text):
    """The number that a text is: `1,200`, `-0.5`, `3/4`, `$\\frac{3}{4}$`, `x = 7`, or None."""
    text = text.strip()
    if len(text) > _MAX_CHARS:
        return None
    text = text.strip("$ \n\t").removeprefix("\\(").removesuffix("\\)").strip()
    if wrapped := _WRAPPED.fullmatch(text):
        return number(wrapped[1])
    text = _NAME.sub("", text).removesuffix(".").strip()
    text = _FRAC.sub(r"\1\2/\3", text)
    text = re.sub(r"(?<=\d)(?:,|\\,|\{,\})(?=\d{3}(?!\d))", "", text).replace("\u2212", "-")
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    over = fractions.Fraction(found[2]) if found[2] else fractions.Fraction(1)
    return fractions.Fraction(found[1]) / over if over else None


def is_same(text, expected):
    """Whether two texts are one number."""
    mine, wanted = number(text), number(expected)
    if mine is None or wanted is None:
        return False
    if "." not in text + expected:
        return mine == wanted
    return abs(mine - wanted) <= _TOLERANCE * max(abs(wanted), fractions.Fraction(1, 10**6))


def test_answer():
    """The answer is there, and right."""
    text = pathlib.Path("/app/solution.txt").read_text(encoding="utf-8")
    assert is_same(text, EXPECTED), "the answer is not the expected number"
