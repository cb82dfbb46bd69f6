"""What a corpus holds, a `Conversation`, and what it becomes, an `Example` of tokens.

A row is checked where a Conversation is made of it, an Example's mask where it is made: everything
behind this file trusts them. Files of them are read and written by `corpus` (Parquet, JSONL) and
`shards` (ArrayRecord).
"""

import dataclasses
import hashlib
import json
import math
import reprlib
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

ROLES = ("system", "user", "assistant", "tool")
_KEYS = ("role", "content")  # of a turn
NULL_REPLY = "null"  # stands where an episode was asked and no answer was kept
_NUM_SHOWN = 3  # faults told of one row

# The columns of nvidia/Nemotron-Terminal-Corpus, and behind `source` our own.
METADATA_TYPES: dict[str, type] = {
    "agent": str, "model": str, "task": str, "episode": str, "run_id": str, "trial_name": str,
    "enable_thinking": bool, "source": str,
    "reward": float, "complete": bool, "domain": str, "difficulty": str,
    "num_commands": int, "num_errors": int,
}  # fmt: skip
# Columns of lists: what curate did to the row, and the assistant turns that are no targets.
_LIST_TYPES: dict[str, type] = {"edits": str, "untrained_turns": int}

_INT_END = 1 << 31
_ARROW_TYPES = {str: pa.string(), bool: pa.bool_(), float: pa.float64(), int: pa.int32()}
CORPUS_SCHEMA = pa.schema(
    [
        (
            "conversations",
            pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
        ),
        *((name, _ARROW_TYPES[kind]) for name, kind in METADATA_TYPES.items()),
        *((name, pa.list_(_ARROW_TYPES[kind])) for name, kind in _LIST_TYPES.items()),
        ("extra", pa.string()),  # columns outside this schema, as one JSON object
    ]
)


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn: who speaks and what is said."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Conversation:
    """One session: its turns, what is known about it, and where it was read."""

    messages: tuple[Message, ...]
    metadata: Mapping[str, Any]  # the columns of METADATA_TYPES and _LIST_TYPES that the row has
    location: str  # "FILE line 3" or "FILE row 2"; begins every message about it
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def get(self, name: str) -> Any:
        """The metadata column `name`, or None."""
        return self.metadata.get(name)

    @property
    def replies(self) -> list[int]:
        """The numbers of the assistant turns."""
        return [i for i, message in enumerate(self.messages) if message.role == "assistant"]

    def digests(self) -> list[bytes]:
        """For each number of leading turns, an 8-byte digest of them; the last is of all."""
        running = hashlib.blake2b(digest_size=8)
        digests = []
        for message in self.messages:
            content = message.content.encode()
            running.update(b"%b\0%d\0" % (message.role.encode(), len(content)))
            running.update(content)
            digests.append(running.digest())
        return digests

    def to_row(self) -> dict[str, Any]:
        """The row of CORPUS_SCHEMA."""
        extra = json.dumps(dict(self.extra), sort_keys=True, default=str) if self.extra else None
        return {
            "conversations": [dataclasses.asdict(message) for message in self.messages],
            **self.metadata,
            "extra": extra,
        }


def conversation_from_row(row: Any, *, location: str) -> Conversation:
    """Check a row of a corpus and make a Conversation of it.

    Raises:
        ValueError: beginning with `location` and naming every fault of the row.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"{location}: a row must be an object, not {type(row).__name__}")
    messages, faults = _messages_from(row)
    metadata, extra = {}, {}
    for name, value in row.items():
        if name in METADATA_TYPES:
            if value is not None:
                metadata[name] = _metadata_from(name, value, faults)
        elif name in _LIST_TYPES:
            if value:  # none and an empty list say the same
                metadata[name] = _list_from(name, value, faults)
        elif name == "extra" and isinstance(value, str):
            extra.update(_extra_from(value, faults))
        elif name != "conversations" and value is not None:
            extra[name] = value
    faults += _untrained_faults(messages, metadata.get("untrained_turns"))
    if faults:
        more = len(faults) - _NUM_SHOWN
        told = [*faults[:_NUM_SHOWN], f"and {more} more"] if more > 0 else faults
        raise ValueError(f"{location}: " + "; ".join(told))
    return Conversation(tuple(messages), metadata, location, extra)


def _messages_from(row: Mapping[str, Any]) -> tuple[list[Message], list[str]]:
    if "conversations" not in row:
        return [], [f"no column `conversations`; it has {reprlib.repr(sorted(row))}"]
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        return [], ["`conversations` must be a non-empty list of {role, content}"]
    turns = [*turns[:-1], _with_null_reply(turns[-1])]
    faults = [f"turn {i} {fault}" for i, turn in enumerate(turns) for fault in _turn_faults(turn)]
    if faults:
        return [], faults
    return [Message(turn["role"], turn["content"]) for turn in turns], []


def _with_null_reply(turn: Any) -> Any:
    """A last reply that was kept as a null, not as the text `null`, is one like the other."""
    is_reply = isinstance(turn, Mapping) and turn.get("role") == "assistant"
    is_null = is_reply and turn.get("content", "") is None
    return {**turn, "content": NULL_REPLY} if is_null else turn


def _turn_faults(turn: Any) -> list[str]:
    if not isinstance(turn, Mapping):
        return [f"must be an object {{role, content}}, not {type(turn).__name__}"]
    if {"from", "value"} <= turn.keys():
        return ["has its role and text in from, value; name them role, content"]
    faults = [_unknown_key(key) for key in turn if key not in _KEYS and turn[key] is not None]
    if turn.get("role") not in ROLES:
        role = reprlib.repr(turn.get("role"))
        faults.append(f"has the unknown role {role}; roles are {', '.join(ROLES)}")
    content = turn.get("content")
    if not isinstance(content, str):
        faults.append(f"has content of type {type(content).__name__}, not a string")
    elif not _is_unicode(content):
        faults.append("holds half of a surrogate pair, which no text file can")
    return faults


def _unknown_key(key: str) -> str:
    way_out = (
        "put it into content, as <think>...</think> before the reply"
        if key == "reasoning_content"
        else "write what it says into content, or remove it"
    )
    return f"has `{reprlib.repr(key)[1:-1]}`, which is not part of the schema; {way_out}"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _metadata_from(name: str, value: Any, faults: list[str]) -> Any:
    kind = METADATA_TYPES[name]
    if isinstance(value, str) and not _is_unicode(value):
        faults.append(f"`{name}` holds half of a surrogate pair, which no text file can")
    elif kind is float and isinstance(value, (int, float)):  # a bool too: `reward: true` is 1.0
        if _is_finite(value):
            return float(value)
        faults.append(f"`{name}` is {reprlib.repr(value)}; give a finite number, or leave it out")
    elif kind is int and type(value) is int and not -_INT_END <= value < _INT_END:
        faults.append(f"`{name}` is {reprlib.repr(value)}, which no int32 can be")
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    elif kind is str and isinstance(value, (int, float)):  # e.g. episode: 3
        return str(value)
    else:
        faults.append(f"`{name}` is {reprlib.repr(value)}, not a {kind.__name__}")
    return None


def _list_from(name: str, value: Any, faults: list[str]) -> list[Any] | None:
    kind = _LIST_TYPES[name]
    if not isinstance(value, list) or not all(type(each) is kind for each in value):
        faults.append(f"`{name}` is {reprlib.repr(value)}, not a list of {kind.__name__}")
    elif kind is str and not all(map(_is_unicode, value)):
        faults.append(f"`{name}` holds half of a surrogate pair, which no text file can")
    else:
        return value
    return None


def _untrained_faults(messages: list[Message], turns: list[int] | None) -> list[str]:
    return [
        f"`untrained_turns` names turn {turn}, which is no assistant turn"
        for turn in turns or ()
        if messages and not (0 <= turn < len(messages) and messages[turn].role == "assistant")
    ]


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an int larger than any float
        return False


def _extra_from(text: str, faults: list[str]) -> Mapping[str, Any]:
    try:
        extra = json.loads(text)
    except (ValueError, RecursionError):
        extra = None
    if not isinstance(extra, dict):
        faults.append("`extra` is not a JSON object")
        return {}
    return extra


@dataclasses.dataclass(frozen=True)
class Example:
    """One tokenised conversation of T tokens and N turns."""

    tokens: np.ndarray  # int32 [T]
    loss_mask: np.ndarray  # uint8 [T]; 1: this token is to be predicted
    turn_starts: np.ndarray  # int32 [N]; the first token of each turn, the first is 0
    turn_is_assistant: np.ndarray  # uint8 [N]
    id: str  # hex digest of the conversation
    source: str

    def __post_init__(self):
        if not self.loss_mask.any() or self.loss_mask.all():
            only = "zeros, so nothing is learnt" if not self.loss_mask.any() else "ones"
            raise ValueError(f"the loss mask holds only {only}; remove the row")

    def loss_spans(self) -> tuple[np.ndarray, np.ndarray]:
        """Starts and ends of the runs of loss tokens, int32 each."""
        edges = np.flatnonzero(np.diff(self.loss_mask, prepend=0, append=0)).astype(np.int32)
        return edges[0::2], edges[1::2]


# An example on disk, little-endian: this header; then tokens int32 [T], turn_starts int32 [N],
# turn_is_assistant uint8 [N], loss_mask 1 bit a token, and a JSON object of the rest. The checksum
# is of all behind the header.
_HEADER = struct.Struct("<4sHHIIII")  # magic, version, reserved, T, N, JSON bytes, CRC-32
_MAGIC, _VERSION = b"JTEX", 1


def example_to_bytes(example: Example) -> bytes:
    """The record of an example; `example_from_bytes` is the inverse."""
    rest = json.dumps({"id": example.id, "source": example.source}, sort_keys=True).encode()
    body = b"".join(
        (
            example.tokens.astype("<i4").tobytes(),
            example.turn_starts.astype("<i4").tobytes(),
            example.turn_is_assistant.astype(np.uint8).tobytes(),
            np.packbits(example.loss_mask).tobytes(),
            rest,
        )
    )
    sizes = (len(example.tokens), len(example.turn_starts), len(rest))
    return _HEADER.pack(_MAGIC, _VERSION, 0, *sizes, zlib.crc32(body)) + body


def example_from_bytes(record: bytes) -> Example:
    """Read a record.

    Raises:
        ValueError: it is not a record, is of another version, or is damaged.
    """
    if len(record) < _HEADER.size or record[:4] != _MAGIC:
        raise ValueError("not a record of an example")
    _, version, _, num_tokens, num_turns, num_rest, checksum = _HEADER.unpack_from(record)
    if version != _VERSION:
        raise ValueError(f"record version {version}; this program reads {_VERSION}: tokenize again")
    sizes = (4 * num_tokens, 4 * num_turns, num_turns, (num_tokens + 7) // 8, num_rest)
    ends = _HEADER.size + np.cumsum((0, *sizes))
    if len(record) != ends[-1] or zlib.crc32(memoryview(record)[_HEADER.size :]) != checksum:
        raise ValueError("the record is damaged: its checksum differs")
    starts = [int(end) for end in ends]
    bits = np.frombuffer(record, np.uint8, sizes[3], starts[3])
    return Example(
        tokens=np.frombuffer(record, "<i4", num_tokens, starts[0]),
        turn_starts=np.frombuffer(record, "<i4", num_turns, starts[1]),
        turn_is_assistant=np.frombuffer(record, np.uint8, num_turns, starts[2]),
        loss_mask=np.unpackbits(bits, count=num_tokens),
        **json.loads(record[starts[4] :]),
    )
