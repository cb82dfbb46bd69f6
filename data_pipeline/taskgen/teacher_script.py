"""What the scripted teacher answers: a TOML file of rules, first match wins.

    model = "scripted"                # all keys before the rules may be left out
    api_key = ""                      # where set, requests with another key are refused
    counts_tokens = true              # false: replies have no usage
    reasoning_field = "reasoning_content"

    [[rule]]
    match = 'Write a task about (?P<topic>\\w+)'   # a regular expression; '' matches all
    where = "last"                    # in the last message (default), the first, or any
    by = "turn"                       # the k-th text answers the k-th turn of a conversation
    texts = ['first {{topic}}', 'second']         # the last one again when they run out
    template = true                   # {{topic}}, {{turn}}, {{call}}, {{digest}} are filled in
    reasoning = ''

    [[rule.fault]]                    # before the answer, in this order, each so often
    kind = "status"
    status = 429
    retry_after_s = 1
    times = 2                         # 0: always
    each = "question"                 # counted for each question, or for the "rule"

A turn is the number of assistant messages in the question, so a script answers any number of
conversations at once. `by = "call"` counts the rule's answers instead. `text_files` names files
beside the script instead of `texts`. Tokens are words here.
"""

import collections
import dataclasses
import hashlib
import json
import pathlib
import re
import threading
import tomllib
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Where = Literal["last", "first", "any"]
By = Literal["turn", "call"]
FaultKind = Literal[
    "status",  # refuse with `status`, and `retry_after_s` where it is set
    "refuse_field",  # status 400 as long as the request has `field`
    "disconnect",  # close the connection without a word
    "cut",  # close it in the middle of the reply
    "malformed",  # send what is no JSON
    "error_in_stream",  # an error in the middle of the reply, after its 200
    "endless",  # never stop
    "length",  # half of the reply, with finish_reason "length"
    "delay",  # wait delay_s, then answer
    "stall",  # wait delay_s in the middle of the reply
    "slow",  # wait delay_s before each piece
]
_PLACE = re.compile(r"\{\{(\w+)\}\}")
_GIVEN = ("turn", "call", "digest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault of a rule.

    Attributes:
        times: how often; 0: always.
        message: what a refusal says.
        each: what is counted: the rule's requests, or each question's.
    """

    kind: FaultKind
    times: int = 1
    each: Literal["question", "rule"] = "rule"
    status: int = 500
    retry_after_s: float = 0.0
    field: str = ""
    delay_s: float = 0.0
    message: str = "a fault of the script"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """Which questions, and the answers to them."""

    match: str
    where: Where = "last"
    by: By = "turn"
    texts: tuple[str, ...]
    template: bool = False
    reasoning: str = ""
    faults: tuple[Fault, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Script:
    """A script file."""

    rules: tuple[Rule, ...]
    model: str = "scripted"
    api_key: str = ""
    counts_tokens: bool = True
    reasoning_field: Literal["reasoning_content", "reasoning"] = "reasoning_content"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What one request gets.

    Attributes:
        rule: its index in the script.
        turn: the number of assistant messages in the question.
        digest: of the question's messages.
        fault: what goes wrong with it; None where nothing does.
    """

    rule: int
    turn: int
    digest: str
    text: str
    reasoning: str
    fault: Fault | None


class Player:
    """A script that is being played: it counts, and may be asked by many threads."""

    def __init__(self, script: Script):
        self.script = script
        self._lock = threading.Lock()
        self._num_calls: collections.Counter[int] = collections.Counter()
        self._num_faults: collections.Counter[tuple[int, int, str]] = collections.Counter()

    def answer(self, body: Mapping[str, Any]) -> Answer | None:
        """The answer to a request; None where no rule matches."""
        messages = body["messages"]
        said = [_text_of(message.get("content")) for message in messages]
        for index, rule in enumerate(self.script.rules):
            if found := _find(rule, said):
                turn = sum(message.get("role") == "assistant" for message in messages)
                return self._play(index, body, turn=turn, found=found)
        return None

    def _play(
        self, index: int, body: Mapping[str, Any], *, turn: int, found: re.Match[str]
    ) -> Answer:
        rule = self.script.rules[index]
        digest = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()[:12]
        with self._lock:
            fault = self._fault(index, digest, body)
            call = self._num_calls[index]
            if fault is None or fault.kind in ("length", "delay", "stall", "slow"):
                self._num_calls[index] += 1  # an answer is given
        number = turn if rule.by == "turn" else call
        text = rule.texts[min(number, len(rule.texts) - 1)]
        if rule.template:
            values = found.groupdict(default="") | {
                "turn": str(turn), "call": str(call), "digest": digest
            }  # fmt: skip
            text = _PLACE.sub(lambda place: values[place[1]], text)
        return Answer(
            rule=index, turn=turn, digest=digest, text=text, reasoning=rule.reasoning, fault=fault
        )

    def _fault(self, index: int, digest: str, body: Mapping[str, Any]) -> Fault | None:
        """The first of the rule's faults that is not used up."""
        for number, fault in enumerate(self.script.rules[index].faults):
            counted = (index, number, digest if fault.each == "question" else "")
            if fault.kind == "refuse_field" and fault.field not in body:
                continue
            if fault.times == 0 or self._num_faults[counted] < fault.times:
                self._num_faults[counted] += 1
                return fault
        return None


def read(path: pathlib.Path) -> Script:
    """The script in a file.

    Raises:
        ValueError: naming the file, the key and what may stand there.
    """
    try:
        return script_from(tomllib.loads(path.read_text("utf-8")), folder=path.parent)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def script_from(told: Mapping[str, Any], *, folder: pathlib.Path) -> Script:
    """The script that parsed TOML describes; `text_files` are looked up in `folder`."""
    rules = told.get("rule", [])
    if not isinstance(rules, list) or not rules:
        raise ValueError("no [[rule]]; write at least one")
    return _made(
        Script,
        {name: value for name, value in told.items() if name != "rule"}
        | {"rules": tuple(_rule(rule, f"rule {n + 1}", folder) for n, rule in enumerate(rules))},
        "the script",
    )


def _rule(told: Mapping[str, Any], where: str, folder: pathlib.Path) -> Rule:
    values = dict(told)
    files = values.pop("text_files", [])
    texts = [*values.get("texts", []), *((folder / name).read_text("utf-8") for name in files)]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: `texts` or `text_files` must list at least one text")
    values["texts"] = tuple(texts)
    values["faults"] = tuple(
        _made(Fault, one, f"{where}, a fault") for one in values.pop("fault", [])
    )
    rule = _made(Rule, values, where)
    try:
        groups = re.compile(rule.match).groupindex
    except re.error as error:
        raise ValueError(
            f"{where}: match={rule.match!r} is no regular expression: {error}"
        ) from None
    unknown = {place for text in texts for place in _PLACE.findall(text)} - {*groups, *_GIVEN}
    if rule.template and unknown:
        raise ValueError(
            f"{where}: {{{{{min(unknown)}}}}} is neither a named group of `match` nor one of "
            f"{', '.join(_GIVEN)}"
        )
    return rule


def _made(schema: type, values: Mapping[str, Any], where: str) -> Any:
    """The dataclass with these values; ValueError where a name or a type is another."""
    hints = typing.get_type_hints(schema)
    if unknown := sorted(set(values) - set(hints)):
        raise ValueError(
            f"{where}: unknown key {unknown[0]!r}; there are {', '.join(sorted(hints))}"
        )
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{where}: {name}={value!r} is not {_shown(hints[name])}")
    try:
        return schema(**values)
    except TypeError as error:  # one is missing
        raise ValueError(f"{where}: {error}") from None


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if hint is float:
        return type(value) in (int, float)
    return type(value) is (typing.get_origin(hint) or hint)


def _shown(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    return f"of type {getattr(hint, '__name__', hint)}"


def _find(rule: Rule, said: Sequence[str]) -> re.Match[str] | None:
    chosen = {"last": said[-1:], "first": said[:1], "any": said}[rule.where]
    found = (re.search(rule.match, text, re.DOTALL) for text in chosen)
    return next((match for match in found if match), None)


def _text_of(content: Any) -> str:
    """A message's content: a text, or parts of which some are texts."""
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
