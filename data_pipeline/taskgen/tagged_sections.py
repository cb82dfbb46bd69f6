"""Cuts a reply into its tagged sections, and takes away what models wrap round their texts.

A section begins with its tag at the start of a line and ends with the first closing tag at the end
of one. What lies between is not looked into, and what lies outside is talk. Nothing is unescaped.
"""

import re
from collections.abc import Sequence

from data_pipeline.taskgen import tagged_wrapping

_BEGINNING = r"(?:^|(?<=>))[ \t]*<({names})(?:[ \t][^<>\n]*?)?(/?)>"
_ENDING = r"</{name}>(?=[ \t\r]*(?:$|</?(?:{names})\b))"
_THOUGHT_ENDS = re.compile(r"</think(?:ing)?>")
_THOUGHT_BEGINS = re.compile(r"\s*<think(?:ing)?>")
_CDATA_ENDS = r"\]\]>\s*"


def split(reply: str, names: Sequence[str]) -> dict[str, str]:
    """The sections by their tags, as they stand.

    Raises:
        ValueError: a tag is opened twice or never closed; the reply ends within its thoughts.
    """
    beginning = re.compile(_BEGINNING.format(names="|".join(names)), re.MULTILINE)
    text = _without_thoughts(reply, re.compile(rf"^[ \t]*<{names[0]}>", re.MULTILINE))
    found: dict[str, str] = {}
    faults = []
    place = 0
    while match := beginning.search(text, place):
        name, is_empty = match[1], bool(match[2])
        place = match.end()
        if name in found:
            faults.append(f"<{name}> is there twice; give every tag once")
        if is_empty:
            found[name] = ""
            continue
        ending = _ending(text, place, name, names)
        if ending is None:
            faults.append(f"<{name}> is not closed: </{name}> must end a line")
            break
        found.setdefault(name, text[place : ending.start()])
        place = ending.end()
    if faults:
        raise ValueError("; ".join(faults))
    return found


def _ending(text: str, place: int, name: str, names: Sequence[str]) -> re.Match[str] | None:
    """Where the section that begins at `place` ends; a CDATA section hides what is in it."""
    closing = _ENDING.format(name=name, names="|".join(names))
    if tagged_wrapping.CDATA_BEGINS.match(text, place):
        hidden = re.compile(_CDATA_ENDS + f"(?={closing})", re.MULTILINE).search(text, place)
        if hidden is not None:
            place = hidden.end()
    return re.compile(closing, re.MULTILINE).search(text, place)


def _without_thoughts(reply: str, first_tag: re.Pattern[str]) -> str:
    """The reply behind its thoughts, whose opening tag some servers swallow.

    Raises:
        ValueError: nothing is behind them.
    """
    ends = _THOUGHT_ENDS.search(reply)
    if _THOUGHT_BEGINS.match(reply):
        if ends is None:
            raise ValueError("the reply ends before </think>; think less and write the task")
        return reply[ends.end() :]
    if ends is not None and first_tag.search(reply, ends.end()):
        return reply[ends.end() :]
    return reply
