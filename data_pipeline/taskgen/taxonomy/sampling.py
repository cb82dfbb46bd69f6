"""Draws combinations of skills: each skill as often as the others, no combination like another.

The i-th combination follows from the seed, the options and what was made before, and not from how
many are asked for or how far an earlier run came: a plan is the beginning of an endless list.
"""

import collections
import dataclasses
import random
from collections.abc import Iterable, Mapping
from typing import Literal

from data_pipeline.taskgen.taxonomy import overlaps, taxonomy

Difficulty = Literal["easy", "medium", "mixed"]
_TURNS: dict[str, tuple[str, ...]] = {
    "easy": ("easy",),
    "medium": ("medium",),
    "mixed": ("easy", "medium"),
}
_ATTEMPTS = 500  # draws before a domain counts as used up
_NOISE = 2.0  # uses by which a skill may be ahead of another and still be drawn before it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Combination:
    """What one task combines.

    Attributes:
        domain: the name of the domain.
        difficulty: "easy" or "medium".
        skills: ids, in the order of the taxonomy, of at least two types.
    """

    domain: str
    difficulty: str
    skills: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """How combinations are drawn.

    Attributes:
        seed: of the list.
        domains: names to draw from; all when empty.
        difficulty: "mixed" gives easy and medium by turns in each domain.
        weights: domain -> share; those not named have 1.
        quotas: domain -> the most combinations it gives; no limit for those not named.
        min_skills, max_skills: of a combination (the paper's 3 to 5, arXiv 2602.21193, 4.2.2).
        max_similarity: the largest Jaccard similarity of two combinations' skills. At 0.5 two of
            four may share two skills, and none may hold another of three.
    """

    seed: int = 0
    domains: tuple[str, ...] = ()
    difficulty: Difficulty = "mixed"
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    quotas: Mapping[str, int] = dataclasses.field(default_factory=dict)
    min_skills: int = 3
    max_skills: int = 5
    max_similarity: float = 0.5

    def __post_init__(self):
        faults = []
        if not 2 <= self.min_skills <= self.max_skills <= 8:
            faults.append(
                f"min_skills={self.min_skills} and max_skills={self.max_skills} must be in this "
                "order between 2 and 8"
            )
        if not 0 <= self.max_similarity < 1:
            faults.append(f"max_similarity={self.max_similarity} must be in [0, 1)")
        if self.difficulty not in _TURNS:
            faults.append(f"difficulty={self.difficulty} must be one of {', '.join(_TURNS)}")
        faults += [f"weights[{k}]={v} must be positive" for k, v in self.weights.items() if v <= 0]
        faults += [f"quotas[{k}]={v} must not be negative" for k, v in self.quotas.items() if v < 0]
        if faults:
            raise ValueError("; ".join(faults))


def plan(
    skills: taxonomy.Taxonomy,
    *,
    count: int,
    rules: Rules | None = None,
    earlier: Iterable[Iterable[str]] = (),
) -> list[Combination]:
    """The first `count` combinations; fewer when every domain's quota is reached before.

    Args:
        skills: the taxonomy.
        count: how many.
        rules: how they are drawn.
        earlier: the skills of tasks made by other plans, which are kept away from and count as
            used. Give the same at every start, and never this plan's own.

    Raises:
        ValueError: a bad rule, or no combination is left that is novel enough.
    """
    draw = _Draw(skills, rules or Rules(), earlier)
    found = []
    while len(found) < count and (combination := draw.next()) is not None:
        found.append(combination)
    return found


class _Draw:
    """The endless list, one by one."""

    def __init__(self, skills: taxonomy.Taxonomy, rules: Rules, earlier: Iterable[Iterable[str]]):
        names = dict.fromkeys((*rules.domains, *rules.weights, *rules.quotas))
        for name in names:
            skills.domain(name)  # each is known
        self._rules = rules
        self._domains = {n: skills.domain(n) for n in rules.domains or skills.domains}
        self._counts = dict.fromkeys(self._domains, 0)
        self._index = 0
        self._uses: collections.Counter[str] = collections.Counter()
        self._made = overlaps.Overlaps(max_similarity=rules.max_similarity)
        for ids in earlier:
            self._take(tuple(ids))

    def next(self) -> Combination | None:
        """The next combination, or None when the quotas are used up."""
        rng = random.Random(f"{self._rules.seed}/{self._index}")
        name = self._next_domain(rng)
        if name is None:
            return None
        ids = self._novel(self._domains[name], rng)
        turns = _TURNS[self._rules.difficulty]
        difficulty = turns[self._counts[name] % len(turns)]
        self._take(ids)
        self._counts[name] += 1
        self._index += 1
        return Combination(domain=name, difficulty=difficulty, skills=ids)

    def _next_domain(self, rng: random.Random) -> str | None:
        """By Sainte-Lague: after any number of draws each has its share, to about one draw."""
        quotas, weights = self._rules.quotas, self._rules.weights
        claims = {
            name: (-weights.get(name, 1.0) / (2 * count + 1), rng.random())
            for name, count in self._counts.items()
            if count < quotas.get(name, count + 1)
        }
        return min(claims, key=claims.__getitem__, default=None)

    def _novel(self, domain: taxonomy.Domain, rng: random.Random) -> tuple[str, ...]:
        for attempt in range(_ATTEMPTS):
            ids = self._candidate(domain, rng, noise=_NOISE * (1 + attempt / 10))
            if self._made.allows(ids):
                return ids
        rules = self._rules
        raise ValueError(
            f"domain {domain.name}: after {self._counts[domain.name]} combinations none is left "
            f"whose similarity to all others is at most --max_similarity={rules.max_similarity}; "
            "raise it, lower --count, or draw from more --domains"
        )

    def _candidate(
        self, domain: taxonomy.Domain, rng: random.Random, *, noise: float
    ) -> tuple[str, ...]:
        """Skills that were used least, nearly; of one type alone never."""
        size = rng.randint(self._rules.min_skills, self._rules.max_skills)
        uses, skills = self._uses, domain.skills
        ranks = [uses[skill.id] + noise * rng.random() for skill in skills]
        order = sorted(range(len(skills)), key=ranks.__getitem__)
        chosen = order[:size]
        if len({skills[i].type for i in chosen}) == 1:
            kind = skills[chosen[0]].type
            chosen[-1] = next(i for i in order if skills[i].type != kind)
        return tuple(skills[i].id for i in sorted(chosen))

    def _take(self, ids: tuple[str, ...]) -> None:
        self._made.add(ids)
        self._uses.update(ids)
