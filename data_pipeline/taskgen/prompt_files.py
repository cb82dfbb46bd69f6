r"""The code files that a prompt of a code-repair dataset contains.

    [start of src/a.py] ... [end of src/a.py]      SWE-bench, with or without numbered lines
    <file path="src/a.py"> ... </file>             also name=, and <file_path>, <file_content>
    ```python\n### src/a.py\n...```                 Agentless; also # src/a.py, // src/a.py
    ```python src/a.py\n...```                      also ```python:src/a.py, title="src/a.py"
    `src/a.py`:\n```\n...```                        also **src/a.py**, ### src/a.py, File: src/a.py

Fenced blocks count only where a path heads them, and not where they are edits or diffs, which show
the form of an answer.
"""

import re
from collections.abc import Iterator

_PATH = r"[\w.@+~-]+(?:/[\w.@+~ -]*[\w.@+~-])*\.\w{1,10}|(?:[\w.@+~-]+/)+[\w.@+~-]+"
_MARKED = re.compile(r"^\[start of (?P<path>[^\]\n]{1,500})\][ \t]*\n", re.MULTILINE)
_TAGGED = re.compile(
    r"<(?P<tag>file|document|source)\s+(?:file_?)?(?:path|name)\s*=\s*[\"']?"
    r"(?P<path>[^\"'>\n]{1,500})[\"']?\s*>\n?"
)
_TWO_TAGS = re.compile(
    r"<file_path>\s*(?P<path>[^<\n]{1,500}?)\s*</file_path>\s*<(?P<tag>file_content)>\n?"
)
_FENCED = re.compile(
    r"^(?P<fence>```+|~~~+)(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=fence)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
_INFO_PATH = re.compile(
    rf"(?:[\w+#-]*[ :])?\s*(?:(?:title|file|filename|path)=)?[\"']?(?P<path>{_PATH})[\"']?\s*"
)
_LINE_PATH = re.compile(
    rf"\s*(?:#{{1,6}}|//|--|;|<!--|/\*)?\s*(?:file(?:name| ?path)?\s*:\s*)?[`*\"']*"
    rf"(?P<path>{_PATH})[`*\"']*\s*:?\s*(?:-->|\*/)?\s*",
    re.IGNORECASE,
)
_NO_FILE = re.compile(
    r"^(?:<{5,7} ?SEARCH|>{5,7} ?REPLACE|diff --git |@@ .* @@|--- a/)", re.MULTILINE
)
_NUMBERED = re.compile(r"[ \t]*(\d+)(?:[:|] ?|[\t ]|$)(.*)")
_MAX_MISSING = 200  # openings without a closing, after which a prompt is not looked through
_MAX_LINE_CHARS = 500  # of a line that may hold a path
_HEADER = re.compile(rf"^###? +(?P<path>{_PATH})[ \t]*\n", re.MULTILINE)


def find(prompt: str) -> dict[str, str]:
    """Path as it stands in the prompt -> content, in their order; of equal paths the first.

    The paths come from a dataset: check them before they name a file.
    """
    found: dict[str, str] = {}
    for reader in (_marked, _tagged, _fenced):
        for path, text in reader(prompt):
            found.setdefault(_clean(path), _without_numbers(text))
        if found:  # what stands inside of files is not looked at
            break
    return {path: text for path, text in found.items() if text.strip()}


def _marked(prompt: str) -> Iterator[tuple[str, str]]:
    for match, text in _between(prompt, _MARKED, "[end of {path}]"):
        yield match["path"], text


def _tagged(prompt: str) -> Iterator[tuple[str, str]]:
    for opening in (_TAGGED, _TWO_TAGS):
        for match, text in _between(prompt, opening, "</{tag}>"):
            yield match["path"], text


def _between(
    prompt: str, opening: re.Pattern[str], closing: str
) -> Iterator[tuple[re.Match[str], str]]:
    """Each opening with the text up to its closing, of which some may be absent."""
    missing: set[str] = set()
    at = 0
    while len(missing) < _MAX_MISSING and (match := opening.search(prompt, at)):
        at, close = match.end(), closing.format(**match.groupdict())
        end = -1 if close in missing else prompt.find(close, at)
        if end < 0:
            missing.add(close)
            continue
        yield match, prompt[at:end]
        at = end + len(close)


def _fenced(prompt: str) -> Iterator[tuple[str, str]]:
    for match in _FENCED.finditer(prompt):
        info, text = match["info"].strip(), match["text"]
        if _NO_FILE.search(text) or info in ("diff", "patch"):
            continue
        first, _, rest = text.partition("\n")
        before = prompt[: match.start()].rstrip().rpartition("\n")[2]
        if path := _path_in(_LINE_PATH, first):
            yield from _headed(path, rest)
        elif path := _path_in(_INFO_PATH, info) or _path_in(_LINE_PATH, before):
            yield path, text


def _path_in(form: re.Pattern[str], line: str) -> str:
    found = form.fullmatch(line) if len(line) <= _MAX_LINE_CHARS else None
    return found["path"] if found else ""


def _headed(path: str, text: str) -> Iterator[tuple[str, str]]:
    """The files of a block whose first line was a path; Agentless heads each with `### path`."""
    starts = list(_HEADER.finditer(text))
    ends = [*(match.start() for match in starts), len(text)]
    yield path, text[: ends[0]]
    for match, end in zip(starts, ends[1:], strict=True):
        yield match["path"], text[match.end() : end]


def _clean(path: str) -> str:
    return path.strip().removeprefix("./")


def _without_numbers(text: str) -> str:
    """The text without the numbers of its lines, where each line has one and they count up."""
    lines = text.removesuffix("\n").split("\n")
    numbered = [_NUMBERED.fullmatch(line) for line in lines]
    if len(lines) < 2 or not all(numbered):
        return text
    first = int(numbered[0][1]) if numbered[0] else 0
    if any(match and int(match[1]) != first + i for i, match in enumerate(numbered)):
        return text
    return "".join(f"{match[2]}\n" for match in numbered if match)
