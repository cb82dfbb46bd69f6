"""Reads a Dockerfile into instructions, and takes package installs out of its RUN lines."""

import dataclasses
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

_HEREDOC = re.compile(r"<<(-?)([\"']?)(\w+)\2")
_VARIABLE = re.compile(r"\\\$|\$(?:(\w+)|\{(\w+)(?::([-+])([^}]*))?\})")
_FLAG = re.compile(r"--([a-z-]+)(?:=(\S*))?\s+")
_WITH_HEREDOC = ("RUN", "COPY", "ADD")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
# First words of commands that fetch packages: nothing to fetch from without a network.
_INSTALLERS = re.compile(
    r"(sudo )?(apt(-get|-key|itude)?|add-apt-repository|apk|yum|dnf|microdnf|zypper|pacman|"
    r"pip3?|pipx|python3? -m (pip|ensurepip)|uv (pip|tool|sync|add|python)|poetry|"
    r"npm (i|ci|install|add)|yarn|pnpm|conda|mamba|micromamba|gem install|bundle|"
    r"cargo (install|fetch)|go (install|get|mod download)|rustup|corepack)(\s|$)"
)
_MENTIONS_INSTALLER = re.compile(
    r"\b(apt(-get)?|apk|yum|dnf|pip3?|npm|yarn|conda|gem|cargo|uv) (.* )?(add|install|update)\b"
)
_COMPOUND = re.compile(r"(if|for|while|until|case|function|select|\{|!|\(|\[\[)(\s|$)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction.

    Attributes:
        name: in capitals.
        value: what follows the flags, continued lines joined.
        flags: --name=value.
        heredocs: name -> text of the here-documents that follow.
        line: line number of its first line.
    """

    name: str
    value: str
    flags: Mapping[str, str]
    heredocs: Mapping[str, str]
    line: int

    def words(self) -> list[str]:
        """The value as words: a JSON array or shell-like quoting.

        Raises:
            ValueError: quotes that do not close.
        """
        if self.value.startswith("["):
            return json_words(self.value) or shlex.split(self.value)
        return shlex.split(self.value)


def json_words(text: str) -> list[str] | None:
    """The words of an exec form, ["a", "b"]; None for anything else."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    is_words = isinstance(found, list) and all(isinstance(word, str) for word in found)
    return found if is_words else None


def parse(text: str) -> list[Instruction]:
    """The instructions in order.

    Raises:
        ValueError: a here-document that does not end, another escape character.
    """
    if re.match(r"(#.*\n)*#\s*escape\s*=\s*`", text, re.IGNORECASE):
        raise ValueError("Dockerfile: the escape character ` is not supported; use \\")
    return list(_instructions(text.splitlines()))


def _instructions(lines: Sequence[str]) -> Iterator[Instruction]:
    place = 0
    while place < len(lines):
        first = place + 1
        joined, place = _joined(lines, place)
        if not joined:
            continue
        name, _, value = joined.partition(" ")
        name, flags, value = name.upper(), {}, value.lstrip()
        while match := _FLAG.match(value):
            flags[match[1]] = match[2] or ""
            value = value[match.end() :]
        heredocs = {}
        if name in _WITH_HEREDOC:
            for match in _HEREDOC.finditer(value):
                heredocs[match[3]], place = _heredoc(lines, place, match[3], strip=bool(match[1]))
        yield Instruction(name=name, value=value, flags=flags, heredocs=heredocs, line=first)


def _joined(lines: Sequence[str], place: int) -> tuple[str, int]:
    """One instruction's lines joined, and the place after them; "" for a comment or blank line."""
    parts: list[str] = []
    while place < len(lines):
        line = lines[place].strip()
        place += 1
        if line.startswith("#") or (not line and parts):
            if not parts:
                return "", place
            continue
        if not line.endswith("\\"):
            parts.append(line)
            break
        parts.append(line[:-1].rstrip())
    return re.sub(r"^(\S+)\s+", r"\1 ", " ".join(parts).strip()), place


def _heredoc(lines: Sequence[str], place: int, end: str, *, strip: bool) -> tuple[str, int]:
    """The text up to the line `end`, and the place after it."""
    found: list[str] = []
    while place < len(lines):
        line = lines[place].lstrip("\t") if strip else lines[place]
        place += 1
        if line == end:
            return "".join(f"{line}\n" for line in found), place
        found.append(line)
    raise ValueError(f"Dockerfile: the here-document {end} does not end; add a line {end}")


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace $name, ${name}, ${name:-default} and ${name:+other}; unknown names become empty."""

    def value(match: re.Match) -> str:
        if match[0] == "\\$":
            return "$"
        found = variables.get(match[1] or match[2], "")
        if match[3] == "-":
            return found or match[4]
        if match[3] == "+":
            return match[4] if found else ""
        return found

    return _VARIABLE.sub(value, text)


def without_installs(line: str) -> tuple[str, list[str]]:
    """A RUN line with its package installs replaced by `true`, and the installs.

    Lines that are more than commands joined by && and ; stay whole: left as they are, or replaced
    whole where they mention an install.
    """
    pieces = _pieces(line)
    if pieces is None:
        return ("true", [line]) if _MENTIONS_INSTALLER.search(line) else (line, [])
    skipped = [piece.strip() for piece in pieces[::2] if _is_install(piece)]
    kept = [
        " true " if place % 2 == 0 and _is_install(piece) else piece
        for place, piece in enumerate(pieces)
    ]
    return "".join(kept).strip(), skipped


def _is_install(command: str) -> bool:
    words = command.split()
    while words and _ASSIGNMENT.match(words[0]):
        words.pop(0)
    return _INSTALLERS.match(" ".join(words)) is not None


def _pieces(line: str) -> list[str] | None:
    """Commands and the separators between them, in turn; None for a compound command."""
    pieces, start, place, quote = [], 0, 0, ""
    while place < len(line):
        char, pair = line[place], line[place : place + 2]
        if char == "\\" and quote != "'":
            place += 2
        elif quote:
            quote = "" if char == quote else quote
            place += 1
        elif char in "'\"":
            quote = char
            place += 1
        elif char in "()`" or pair in ("<<", ";;"):
            return None
        elif pair == "&&" or char in ";\n":
            width = 2 if pair == "&&" else 1
            pieces += [line[start:place], line[place : place + width]]
            place += width
            start = place
        else:
            place += 1
    pieces.append(line[start:])
    if quote or any(_COMPOUND.match(piece.strip()) for piece in pieces[::2]):
        return None
    return pieces
