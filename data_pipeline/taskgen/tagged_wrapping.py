"""What models wrap round a text though they were asked not to: CDATA marks and code fences."""

import re

CDATA_BEGINS = re.compile(r"\s*<!\[CDATA\[")
_CDATA = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.DOTALL)
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([\w+.#-]*)[ \t]*")
_PROSE = ("markdown", "md", "text", "txt")


def without_cdata(text: str) -> str:
    """The text of one or several CDATA sections; any other text as it is."""
    inner = text.strip()
    if not CDATA_BEGINS.match(inner):
        return text
    pieces, place = [], 0
    while match := _CDATA.match(inner, place):
        pieces.append(match[1])
        place = match.end()
    if place == len(inner):
        return "".join(pieces)
    # The text itself holds the mark that ends such a section, and was not split there.
    return inner[len("<![CDATA[") : -len("]]>")] if inner.endswith("]]>") else text


def without_fence(text: str, *, is_prose: bool) -> str:
    """The lines inside a code fence that holds the whole text; any other text as it is.

    Args:
        text: without blank lines round it.
        is_prose: the text is Markdown, which may itself begin and end with a fence: it is taken
            for wrapped only if the fence says so, or no other is inside.
    """
    lines = text.split("\n")
    first, last = _FENCE.fullmatch(lines[0].rstrip("\r")), lines[-1].strip()
    if first is None or len(lines) < 2 or set(last) != {first[1][0]} or len(last) < len(first[1]):
        return text
    inner = lines[1:-1]
    if is_prose:
        num_fences = sum(1 for line in inner if line.lstrip().startswith(first[1]))
        is_wrapped = first[2].lower() in _PROSE and num_fences % 2 == 0
        if not is_wrapped and (first[2] or num_fences):
            return text
    return "\n".join(inner)
