"""Replies in Terminus 2's format, JSON and XML: what one says, and which of the rules it breaks.

    {"analysis": "...", "plan": "...", "commands": [{"keystrokes": "ls\\n", "duration": 0.1}],
     "task_complete": false}

An error is what Terminus 2 refuses, so that nothing is typed; a warning is what it tells the model.
Both are decided as Harbor's parsers decide (tests/goldens/terminus_replies.jsonl holds what those
say), but for three rules: control keys that are not alone and waits above 60 s are warnings here,
though Harbor does not look; and angle brackets inside keystrokes are no tags here.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

NO_OBJECT, NO_JSON, NO_RESPONSE = "no JSON object", "not valid JSON", "no <response> block"

_FIELDS = ("analysis", "plan", "commands")
_MAX_SECONDS = 60.0  # Terminus 2 waits no longer, whatever it is told
_DEFAULT_SECONDS = 1.0
_CONTROL_KEY = re.compile(r"(?<!\S)C-[a-z](?!\S)")

_DECODER = json.JSONDecoder()
_BRACE_OR_QUOTE = re.compile(r'\\.|["{}]', re.DOTALL)
# An object with at most one level of braces inside it; possessive, so that it takes linear time.
_SHALLOW_OBJECT = re.compile(r"\{(?:[^{}]++|\{[^{}]*+\})*+\}")

_KEYSTROKES_END = "</keystrokes>"
_KEYSTROKES = re.compile(rf"<keystrokes([^<>]*)>(.*?){_KEYSTROKES_END}", re.DOTALL)
_ATTRIBUTE = re.compile(r"""(?<!\w)(\w++)\s*+=\s*("[^"]*"|'[^']*'|[^"'\s>]+)""")
_TAG = re.compile(r"<(/?)([A-Za-z]\w*+)[^<>]*?(/?)>")  # possessive: linear time, too
_COMPLETE = re.compile(r"<task_complete>\s*true\s*</task_complete>", re.IGNORECASE)
_SECTIONS = (*_FIELDS, "task_complete")
_ENTITIES = ("&lt;", "&gt;", "&amp;", "&quot;", "&apos;")


@dataclasses.dataclass(frozen=True)
class Command:
    """Keys to type, and the seconds to wait behind them."""

    keystrokes: str
    duration: float


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a reply says; with an error it says nothing."""

    commands: tuple[Command, ...] = ()
    is_complete: bool = False  # it declares that the task is done
    error: str = ""
    warnings: tuple[str, ...] = ()


def behind_thinking(content: str) -> str:
    """The reply proper, without the thinking before it."""
    return content.partition("</think>")[2] if "</think>" in content else content


def parse(content: str) -> Reply:
    """Read an assistant turn, in the variant that it looks like."""
    reply = behind_thinking(content)
    is_xml = "<response>" in reply and not reply.lstrip().startswith("{")
    return parse_xml(reply) if is_xml else parse_json(reply)


def parse_json(reply: str) -> Reply:
    """Read the JSON variant; what Terminus 2 repairs is repaired, with a warning."""
    found = _read_json(reply)
    if not found.error:
        return found
    for name, repaired in _repairs(reply, found.error):
        again = _read_json(repaired)
        if not again.error:
            return dataclasses.replace(again, warnings=(name, *again.warnings))
    return found


def _repairs(reply: str, error: str) -> Iterator[tuple[str, str]]:
    num_open = reply.count("{") - reply.count("}")
    if num_open > 0 and error.startswith((NO_OBJECT, NO_JSON)):
        yield "closing braces were missing", reply + "}" * num_open
    for candidate in _SHALLOW_OBJECT.findall(reply):
        if _loads(candidate)[1] == "":
            yield "the object was taken out of other text", candidate
            return


def _read_json(reply: str) -> Reply:
    start, end, fields, error = _object_in(reply)
    if end < 0:
        return Reply(error=NO_OBJECT, warnings=(NO_OBJECT,))
    warnings = []
    if reply[:start].strip():
        warnings.append("text before the object")
    if reply[end:].strip():
        warnings.append("text behind the object")
    error = error or _field_error(fields)
    if error:
        return Reply(error=error, warnings=tuple(warnings))
    warnings += _field_warnings(fields)
    is_complete = fields.get("task_complete", False)
    if isinstance(is_complete, str):
        is_complete = is_complete.lower() in ("true", "1", "yes")
    commands, error = _commands_from(fields["commands"], warnings)
    return _reply(commands, bool(is_complete), error, warnings)


def _reply(commands: list[Command], is_complete: bool, error: str, warnings: list[str]) -> Reply:
    if error and is_complete:  # who is done needs no commands
        error, warnings = "", [*warnings, error]
    if not error:
        warnings = [*warnings, *_own_warnings(commands)]
    return Reply(tuple(commands), is_complete and not error, error, tuple(warnings))


def _object_in(text: str) -> tuple[int, int, Any, str]:
    """Where the first {...} begins and ends, what it holds, and why it cannot be read."""
    start = len(text) - len(text.lstrip())
    try:  # nearly always the reply is one object, which need not be looked for
        if text.startswith("{", start):
            fields, end = _DECODER.raw_decode(text, start)
            return start, end, fields, ""
    except (ValueError, RecursionError):
        pass
    start, end = _outermost_object(text)
    fields, error = _loads(text[start:end]) if end >= 0 else (None, NO_OBJECT)
    return start, end, fields, error


def _outermost_object(text: str) -> tuple[int, int]:
    """Where the first {...} begins and ends; the end is -1 where there is none."""
    depth, start, in_string = 0, -1, False
    for found in _BRACE_OR_QUOTE.finditer(text):
        mark = found.group()
        if mark == '"':
            in_string = not in_string
        elif in_string or len(mark) == 2:
            continue
        elif mark == "{":
            start = found.start() if depth == 0 else start
            depth += 1
        else:
            depth -= 1
            if depth == 0 and start >= 0:
                return start, found.end()
    return start, -1


def _loads(text: str) -> tuple[Any, str]:
    try:
        return json.loads(text), ""
    except json.JSONDecodeError as error:
        return None, f"{NO_JSON}: {error.msg} at character {error.pos}"
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond all measure
        return None, f"{NO_JSON}: {error}"


def _field_error(fields: dict[str, Any]) -> str:
    if missing := [name for name in _FIELDS if name not in fields]:
        return f"missing fields: {', '.join(missing)}"
    return "" if isinstance(fields["commands"], list) else "`commands` is not an array"


def _field_warnings(fields: dict[str, Any]) -> Iterator[str]:
    for name in ("analysis", "plan"):
        if not isinstance(fields[name], str):
            yield f"`{name}` is not a string"
    order = [name for name in fields if name in _FIELDS]
    if order != list(_FIELDS):
        yield f"order of fields: {', '.join(order)}"
    if not isinstance(fields.get("task_complete"), bool | str | None):
        yield "`task_complete` is neither a boolean nor a string"


def _commands_from(values: list[Any], warnings: list[str]) -> tuple[list[Command], str]:
    """The commands, or none and an error; adds to `warnings`."""
    commands = []
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            return [], f"command {number} is not an object"
        if "keystrokes" not in value:
            return [], f"command {number} has no keystrokes"
        keystrokes = value["keystrokes"]
        if not isinstance(keystrokes, str):
            return [], f"command {number} has keystrokes that are not a string"
        if "duration" not in value:
            warnings.append(f"command {number} has no duration")
        duration = value.get("duration", _DEFAULT_SECONDS)
        if not isinstance(duration, int | float):
            warnings.append(f"command {number} has a duration that is not a number")
            duration = _DEFAULT_SECONDS
        if unknown := sorted(value.keys() - {"keystrokes", "duration"}):
            warnings.append(f"command {number} has unknown fields: {', '.join(unknown)}")
        if number < len(values) and keystrokes and not keystrokes.endswith("\n"):
            warnings.append(f"command {number} runs into the next one: no newline at its end")
        commands.append(Command(keystrokes, _seconds(duration)))
    return commands, ""


def _seconds(duration: float) -> float:
    try:
        return float(duration)
    except OverflowError:  # an int larger than any float
        return float("inf")


def _own_warnings(commands: list[Command]) -> Iterator[str]:
    for number, command in enumerate(commands, 1):
        key = "C-" in command.keystrokes and _CONTROL_KEY.search(command.keystrokes)
        if key and command.keystrokes.strip() != key.group():
            yield f"command {number}: {key.group()} is not alone, so it is typed as text"
        if not 0 <= command.duration <= _MAX_SECONDS:
            yield f"command {number}: a wait of {command.duration:g} s is outside 0 to 60"


def parse_xml(reply: str) -> Reply:
    """Read the XML variant."""
    before, opened, rest = reply.partition("<response>")
    content, closed, after = rest.partition("</response>")
    content = content.strip()
    warnings = []
    if opened and before.strip():
        warnings.append("text before <response>")
    if closed and after.strip():
        warnings.append("text behind </response>")
        if reply.count("<response>") > 1:
            warnings.append("several <response> blocks; only the first counts")
    if not content:
        return Reply(error=NO_RESPONSE, warnings=tuple(warnings))
    sections = {name: _section(name, content) for name in _SECTIONS}
    warnings += _section_warnings(sections, content)
    is_complete = bool(_COMPLETE.search(content))
    body = sections["commands"]
    if body is None:
        return _reply([], is_complete, "" if is_complete else "no <commands>", warnings)
    if not body:
        warnings += [] if is_complete else ["<commands> is empty"]
        return _reply([], is_complete, "", warnings)
    return _reply(_keystrokes_from(body, warnings), is_complete, "", warnings)


def _section(name: str, content: str) -> str | None:
    """What stands in the first element of that name; None where there is none."""
    start = content.find(f"<{name}>")
    end = content.find(f"</{name}>", start)
    if 0 <= start < end:
        return content[start + len(name) + 2 : end].strip()
    return "" if re.search(rf"<{name}\s*/>", content) else None


def _section_warnings(sections: dict[str, str | None], content: str) -> Iterator[str]:
    for name in _FIELDS:
        if sections[name] is None:
            yield f"no <{name}>"
    for tag in dict.fromkeys(_outer_tags(content)):
        if tag not in _SECTIONS:
            yield f"unknown tag <{tag}>"
    places = {}
    for name in _SECTIONS:
        tags = list(re.finditer(rf"<{name}(?:\s|>|/>)", content))
        if len(tags) > 1:
            yield f"several <{name}>; only the first counts"
        if tags and name in _FIELDS:
            places[name] = tags[0].start()
    if (order := sorted(places, key=places.__getitem__)) != list(places):
        yield f"order of sections: {', '.join(order)}"


def _outer_tags(content: str) -> Iterator[str]:
    """The names of the tags that stand in no other; what a section holds is no tag."""
    depth, inside = 0, ""
    for closing, name, empty in _TAG.findall(content):
        if inside:
            inside = "" if closing and name == inside else inside
        elif closing:
            depth = max(depth - 1, 0)
        else:
            if depth == 0:
                yield name
            if not empty:
                inside = name if name in _SECTIONS else ""
                depth += not inside


def _keystrokes_from(body: str, warnings: list[str]) -> list[Command]:
    """The commands; adds to `warnings`."""
    elements = _KEYSTROKES.findall(body[: body.rfind(_KEYSTROKES_END) + len(_KEYSTROKES_END)])
    commands = []
    for number, (attributes, keystrokes) in enumerate(elements, 1):
        duration = _duration_from(number, attributes, warnings)
        if number < len(elements) and not keystrokes.endswith("\n"):
            warnings.append(f"command {number} runs into the next one: no newline at its end")
        commands.append(Command(keystrokes, duration))
    warnings += [f"{entity} is typed as it stands" for entity in _ENTITIES if entity in body]
    if r"\r\n" in body:
        warnings.append(r"\r\n is typed as it stands")
    return commands


def _duration_from(number: int, attributes: str, warnings: list[str]) -> float:
    given = None
    for name, value in _ATTRIBUTE.findall(attributes):
        is_quoted = value[0] in "\"'"
        if not is_quoted:
            warnings.append(f"command {number}: attribute {name} is not quoted")
        elif value[0] == "'":
            warnings.append(f"command {number}: attribute {name} is in single quotes")
        if name != "duration":
            warnings.append(f"command {number}: unknown attribute {name}")
        elif is_quoted and given is None:
            given = value[1:-1]
    if given is None:
        warnings.append(f"command {number} has no duration")
        return _DEFAULT_SECONDS
    try:
        return float(given)
    except ValueError:
        warnings.append(f"command {number} has a duration that is not a number")
        return _DEFAULT_SECONDS
