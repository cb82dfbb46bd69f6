"""task.toml: limits and metadata of a task, as Harbor's TaskConfig takes them (schema 1.4)."""

import dataclasses
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

SCHEMA_VERSION = "1.4"
_NETWORK = {True: "public", False: "no-network"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a trial may use.

    Attributes:
        network: whether agent and tests reach the network.
    """

    agent_timeout_s: float = 900
    verifier_timeout_s: float = 300
    build_timeout_s: float = 600
    cpus: int = 1
    memory_mb: int = 2048
    storage_mb: int = 10240
    network: bool = False

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "network" and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{field.name}={value} must be positive")


def render(
    *,
    source: str,
    domain: str,
    difficulty: str,
    skills: Sequence[str],
    answer_file: str,
    verified: bool,
    info: Mapping[str, str],
    limits: Limits,
) -> str:
    """The text of a task's task.toml.

    Domain and skills stand there once more as `category` and `tags`, the names that
    Terminal-Bench's tasks use. What a model chose to tell, `info`, has a table of its own, so that
    it never passes for `verified` or another of ours.
    """
    metadata = {
        "source": source,
        "domain": domain,
        "difficulty": difficulty,
        "skills": list(skills),
        "category": domain,
        "tags": list(skills),
        "verified": verified,
        "answer_file": answer_file,
    }
    environment = {
        "build_timeout_sec": float(limits.build_timeout_s),
        "cpus": limits.cpus,
        "memory_mb": limits.memory_mb,
        "storage_mb": limits.storage_mb,
        "network_mode": _NETWORK[limits.network],
    }
    tables = {
        "metadata": metadata,
        "metadata.info": dict(info),
        "agent": {"timeout_sec": float(limits.agent_timeout_s)},
        "verifier": {"timeout_sec": float(limits.verifier_timeout_s)},
        "environment": environment,
    }
    parts = [f"schema_version = {_value(SCHEMA_VERSION)}\n"]
    for name, table in tables.items():
        parts.append("\n".join((f"[{name}]", *(f"{_key(k)} = {_value(table[k])}" for k in table))))
        parts[-1] += "\n"
    return "\n".join(parts)


def parse(text: str) -> dict[str, Any]:
    """The fields of a task that stand in task.toml, `limits` among them.

    Raises:
        ValueError: telling what is absent or of the wrong type.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"task.toml: not valid TOML ({error})") from error
    faults: list[str] = []
    get = _Getter(document, faults)
    fields = {
        "source": get("metadata.source", str),
        "domain": get("metadata.domain", str),
        "difficulty": get("metadata.difficulty", str),
        "skills": tuple(get("metadata.skills", list)),
        "answer_file": get("metadata.answer_file", str),
        "info": get("metadata.info", dict),
    }
    limits = {
        "agent_timeout_s": get("agent.timeout_sec", float),
        "verifier_timeout_s": get("verifier.timeout_sec", float),
        "build_timeout_s": get("environment.build_timeout_sec", float),
        "cpus": get("environment.cpus", int),
        "memory_mb": get("environment.memory_mb", int),
        "storage_mb": get("environment.storage_mb", int),
    }
    network = get("environment.network_mode", str)
    strings = (*fields["skills"], *fields["info"].values())
    if not all(isinstance(value, str) for value in strings):
        faults.append("metadata.skills and metadata.info must hold strings")
    if network not in _NETWORK.values():
        faults.append(f"environment.network_mode={network!r} must be public or no-network")
    if faults:
        raise ValueError(f"task.toml: {'; '.join(faults)}")
    return {**fields, "limits": Limits(**limits, network=network == _NETWORK[True])}


@dataclasses.dataclass(frozen=True)
class _Getter:
    """Takes values out of a document and gathers what is wrong with them."""

    document: Mapping[str, Any]
    faults: list[str]

    def __call__(self, name: str, kind: type) -> Any:
        value: Any = self.document
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is kind:
            return value
        found = "is absent" if value is None else f"is of type {type(value).__name__}"
        self.faults.append(f"{name} {found}; it must be a {kind.__name__}")
        return kind()


def _key(name: str) -> str:
    is_bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if is_bare else _value(name)


def _value(value: Any) -> str:
    """A value in TOML. A string of JSON is one of TOML, but for DEL."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
