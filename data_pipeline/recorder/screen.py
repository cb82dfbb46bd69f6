"""Reads an observation as a solver does: which command printed what, and what went wrong."""

import re
from collections.abc import Sequence

_PROMPT = re.compile(r"^root@agent:\S+#(?: |$)")
_ERROR = re.compile(
    r"No such file|not found|unrecognized|invalid|cannot|Error|error:|FAILED|Permission denied"
    r"|missing|unknown|Is a directory|syntax|unbound|ambiguous",
)


def output_lines(observation: str) -> list[str]:
    """The lines that commands printed: neither prompts, nor what was typed, nor blank lines."""
    lines = observation.splitlines()
    return [x for x in lines if x.strip() and not _PROMPT.match(x) and not x.startswith("> ")]


def output_of(observation: str, command: str) -> list[str]:
    """The lines printed by the command whose typed line contains `command`; [] when none did."""
    lines = observation.splitlines()
    starts = [i for i, x in enumerate(lines) if _PROMPT.match(x) and command in x]
    if not starts:
        return []
    rest = lines[starts[-1] + 1 :]
    ends = [i for i, x in enumerate(rest) if _PROMPT.match(x)]
    return rest[: ends[0]] if ends else rest


def error_line(observation: str) -> str | None:
    """The last line that reads like an error message."""
    errors = [line for line in output_lines(observation) if _ERROR.search(line)]
    return errors[-1].strip() if errors else None


def quote(lines: Sequence[str], *, max_chars: int = 70) -> str:
    """The last of the lines, in backticks, shortened; "" when there is none to show."""
    shown = [" ".join(line.split()) for line in lines if "`" not in line]
    if not shown:
        return ""
    return f"`{shown[-1]}`" if len(shown[-1]) <= max_chars else f"`{shown[-1][:max_chars]}...`"
