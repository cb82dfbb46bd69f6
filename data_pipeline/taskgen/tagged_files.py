"""The <files> section: the input files of a task, byte for byte.

    <file path="data/a.csv">
    x,y
    </file>
    <file path="logo.png" encoding="base64">
    iVBORw0K...
    </file>

A file's content is what stands between its tags, less one newline directly behind the opening tag;
here it is "x,y\\n". `</file>` ends a line. Nothing is unescaped; what the tags cannot hold (NUL and
other control characters, a line that ends with `</file>`) is given as base64.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping

from data_pipeline.taskgen import tagged_wrapping
from data_pipeline.taskgen import task as task_module

_BEGINNING = re.compile(r"""\s*<file((?:\s+[A-Za-z_]+\s*=\s*(?:"[^"\n]*"|'[^'\n]*'))*)\s*(/?)>""")
_ENDING = re.compile(r"</file>(?=[ \t\r]*(?:$|<file\s))", re.MULTILINE)
_NEXT = re.compile(r"<file\s+path\s*=")
_ATTRIBUTE = re.compile(r"""([A-Za-z_]+)\s*=\s*(?:"([^"\n]*)"|'([^'\n]*)')""")
_REST_IS_BLANK = re.compile(r"\s*\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")
_MAX_DEPTH = 16
# Git would run what a configuration inside the task's own folder tells it to.
_RESERVED_PARTS = frozenset((".git", ".hg", ".svn"))
# Files of the harness; one of these in the environment is a leak or a mix-up.
_RESERVED_NAMES = frozenset(
    ("test_outputs.py", "solve.sh", "test.sh", "task.toml", "instruction.md", "reward.txt")
)
_PROSE_SUFFIXES = (".md", ".markdown", ".mdx", ".rst", ".txt", ".log")


def parse(section: str, *, max_files: int, max_bytes: int) -> dict[str, bytes]:
    """Relative path -> content.

    Args:
        section: the text between <files> and </files>.
        max_files: how many there may be.
        max_bytes: how large one may be.

    Raises:
        ValueError: telling every fault.
    """
    found: dict[str, bytes] = {}
    faults: list[str] = []
    for path, body, encoding in _entries(section, faults):
        if len(found) == max_files:
            faults.append(f"<files> holds more than {max_files} files")
            break
        if fault := path_fault(path):
            faults.append(f"<file path={path[:100]!r}>: the path {fault}")
        elif path in found:
            faults.append(f"<file path={path!r}> is there twice")
        elif len(body) > 2 * max_bytes:
            faults.append(f"<file path={path!r}> is larger than {max_bytes:,} bytes")
        else:
            found[path] = _content(path, body, encoding, faults)
            if len(found[path]) > max_bytes:
                faults.append(f"<file path={path!r}> is larger than {max_bytes:,} bytes")
    faults += _clashes(found)
    if faults:
        raise ValueError("; ".join(faults))
    return found


def path_fault(path: str) -> str:
    """Why a teacher may not give a file this path below /app; empty where it may."""
    parts = path.split("/")
    if fault := task_module.path_fault(path):
        return f"{fault}; paths are relative to {task_module.APP}, as in data/input.csv"
    if not path.isprintable() or any(part != part.strip() for part in parts):
        return "has an invisible character, or a space at the end of a part"
    if len(parts) > _MAX_DEPTH:
        return f"has more than {_MAX_DEPTH} parts"
    if any(part.lower() in _RESERVED_PARTS for part in parts):
        return "lies in a repository's own folder; ship a script or a git bundle that makes it"
    if parts[-1].lower() in _RESERVED_NAMES:
        return "has a name that is reserved for the files which the agent does not see"
    return ""


def _entries(section: str, faults: list[str]) -> Iterator[tuple[str, str, str]]:
    """Path, text and encoding of each file, until one cannot be read."""
    place = 0
    while not _REST_IS_BLANK.match(section, place):
        match = _BEGINNING.match(section, place)
        if match is None:
            shown = section[place : place + 200].strip()[:60]
            faults.append(f'<files>: expected <file path="...">, found {shown!r}')
            return
        attributes = {name: a or b for name, a, b in _ATTRIBUTE.findall(match[1])}
        path, encoding = attributes.pop("path", ""), attributes.pop("encoding", "text")
        if attributes or encoding not in ("text", "base64"):
            faults.append(
                f"<file path={path[:100]!r}>: its attributes are path and, for binary files, "
                'encoding="base64"'
            )
        place = match.end()
        if match[2]:
            yield path, "", encoding
            continue
        ending = _ENDING.search(section, place)
        if ending is None or _NEXT.search(section, place, ending.start()):
            faults.append(f"<file path={path[:100]!r}> is not closed: </file> must end a line")
            return
        yield path, section[place : ending.start()], encoding
        place = ending.end()


def _content(path: str, body: str, encoding: str, faults: list[str]) -> bytes:
    """The bytes of a file."""
    text = re.sub(r"\A\r?\n", "", tagged_wrapping.without_cdata(body))
    if encoding == "base64":
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            faults.append(f"<file path={path!r}> is not base64: {error}")
            return b""
    if match := _CONTROL.search(text):
        faults.append(
            f"<file path={path!r}> holds the control character {match[0]!r}; give such a file as "
            'encoding="base64"'
        )
    if not path.lower().endswith(_PROSE_SUFFIXES):
        inner = tagged_wrapping.without_fence(text.rstrip(), is_prose=False)
        text = text if inner == text.rstrip() else f"{inner}\n"
    return text.encode()


def _clashes(files: Mapping[str, bytes]) -> Iterator[str]:
    """Paths that name a file where another path has a folder."""
    for path in files:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            if (parent := "/".join(parts[:depth])) in files:
                yield f"<file path={parent!r}> is a file and the folder of {path!r}"
