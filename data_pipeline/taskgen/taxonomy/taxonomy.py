"""Reads the taxonomy: one TOML file a domain, with its skills under their types.

    title, role, checking   texts for the prompt
    focus                   a list of areas
    [types]                 type = "its name in the paper" (arXiv 2602.21193, Table 10)
    [skills.TYPE]           id = "One sentence that says what is to be done and how far."

The types are the paper's; it does not publish its skills, and these are our own.
"""

import dataclasses
import functools
import hashlib
import pathlib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

FOLDER = pathlib.Path(__file__).parent
MIN_SKILLS = 22  # of a domain
MIN_TYPES = 4
_MIN_WORDS, _MAX_WORDS = 10, 30  # of a skill's sentence
_NAME = re.compile(r"[a-z]+(_[a-z]+)*")
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+")
_TEXTS = ("title", "role", "checking")
_KEYS = {*_TEXTS, "focus", "types", "skills"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skill:
    """Something that a task may demand.

    Attributes:
        id: unique in the whole taxonomy, as in "null-safe-anti-join".
        type: a key of the domain's types.
        text: one sentence.
    """

    id: str
    type: str
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Domain:
    """A field of work.

    Attributes:
        name: as in "data_querying"; also that of its file and its environment.
        title: the name in words.
        role: who writes tasks in it: "You are ...".
        focus: areas that its tasks deal with.
        checking: how such tasks are checked well.
        types: type -> its name in words.
        skills: at least MIN_SKILLS.
    """

    name: str
    title: str
    role: str
    focus: tuple[str, ...]
    checking: str
    types: Mapping[str, str]
    skills: tuple[Skill, ...]

    def skill(self, skill_id: str) -> Skill:
        """The skill with this id.

        Raises:
            ValueError: the domain has none.
        """
        found = next((skill for skill in self.skills if skill.id == skill_id), None)
        if found is None:
            raise ValueError(f"domain {self.name} has no skill {skill_id!r}")
        return found


@dataclasses.dataclass(frozen=True)
class Taxonomy:
    """All domains, by name."""

    domains: Mapping[str, Domain]

    def domain(self, name: str) -> Domain:
        """The domain with this name.

        Raises:
            ValueError: there is none.
        """
        if name not in self.domains:
            raise ValueError(f"domain {name!r} is none of {', '.join(self.domains)}")
        return self.domains[name]


@functools.cache
def load(folder: pathlib.Path = FOLDER) -> Taxonomy:
    """Read every domain.

    Raises:
        ValueError: telling every fault, each with its file.
    """
    domains, faults = {}, []
    for path in _files(folder):
        table, found = _read(path)
        faults += [f"{path.name}: {fault}" for fault in found]
        if not found:
            domains[path.stem] = _domain(path.stem, table)
    faults += _repeated_ids(domains.values())
    if not domains and not faults:
        faults = [f"{folder} holds no .toml file; a taxonomy has one a domain"]
    if faults:
        raise ValueError("; ".join(faults))
    return Taxonomy(domains)


def digests(folder: pathlib.Path = FOLDER) -> dict[str, str]:
    """File -> SHA-256, to tell whether a plan is of the taxonomy that is there."""
    return {
        f"taxonomy/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in _files(folder)
    }


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.glob("*.toml"))


def _read(path: pathlib.Path) -> tuple[dict[str, Any], list[str]]:
    """What a file says, and what is wrong with it."""
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return {}, [f"is not TOML ({error})"]
    faults = list(_shape_faults(path.stem, table))
    return table, faults or list(_skill_faults(table))


def _shape_faults(name: str, table: Mapping[str, Any]) -> Iterator[str]:
    if not _NAME.fullmatch(name):
        yield f"its name must match {_NAME.pattern}"
    for key in sorted(_KEYS ^ table.keys()):
        yield f"{key} is {'unknown' if key in table else 'absent'}"
    for key in sorted(_TEXTS & table.keys()):
        if not _is_text(table[key]):
            yield f"{key} must be a text"
    focus = table.get("focus", [""])
    if not isinstance(focus, list) or not focus or not all(map(_is_text, focus)):
        yield "focus must be a list of texts"
    for key in ("types", "skills"):
        if not isinstance(table.get(key, {}), dict):
            yield f"{key} must be a table"


def _skill_faults(table: Mapping[str, Any]) -> Iterator[str]:
    types, skills = table["types"], table["skills"]
    for name, title in types.items():
        if not _NAME.fullmatch(name) or not _is_text(title):
            yield f"type {name} must be a text under a name that matches {_NAME.pattern}"
    for name in sorted(types.keys() ^ skills.keys()):
        yield f"type {name} must be under [types] and have skills under [skills.{name}]"
    if len(types) < MIN_TYPES:
        yield f"{len(types)} types; a domain has at least {MIN_TYPES}"
    lists = {name: each for name, each in skills.items() if isinstance(each, dict)}
    for name in skills.keys() - lists.keys():
        yield f"skills.{name} must be a table of id = sentence"
    total = sum(map(len, lists.values()))
    if total < MIN_SKILLS:
        yield f"{total} skills; a domain has at least {MIN_SKILLS}"
    for each in lists.values():
        for skill_id, text in each.items():
            yield from (f"skill {skill_id}: {fault}" for fault in _faults_of(skill_id, text))


def _faults_of(skill_id: str, text: Any) -> Iterator[str]:
    if not _ID.fullmatch(skill_id):
        yield f"its id must match {_ID.pattern}"
    if not _is_text(text) or not text.isprintable():
        yield "must be a text of one line"
        return
    if not text.endswith(".") or not text[0].isupper() or ". " in text:
        yield "must be one sentence, with a capital and a full stop"
    if not _MIN_WORDS <= len(text.split()) <= _MAX_WORDS:
        yield f"has {len(text.split())} words; {_MIN_WORDS} to {_MAX_WORDS} are allowed"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _domain(name: str, table: Mapping[str, Any]) -> Domain:
    return Domain(
        name=name,
        title=table["title"],
        role=table["role"],
        focus=tuple(table["focus"]),
        checking=table["checking"],
        types=dict(table["types"]),
        skills=tuple(
            Skill(id=skill_id, type=kind, text=text)
            for kind, skills in table["skills"].items()
            for skill_id, text in skills.items()
        ),
    )


def _repeated_ids(domains: Iterable[Domain]) -> list[str]:
    owners: dict[str, str] = {}
    faults = []
    for domain in domains:
        for skill in domain.skills:
            if skill.id in owners:
                faults.append(f"skill {skill.id} is in {owners[skill.id]} and in {domain.name}")
            owners.setdefault(skill.id, domain.name)
    return faults
