"""Combinations of skills: coverage, novelty, shares, and the same list at every start."""

import collections
import itertools
import json
import subprocess
import sys
import time

import pytest

from data_pipeline.taskgen.taxonomy import overlaps, sampling, taxonomy

SKILLS = taxonomy.load()
TYPE_OF = {skill.id: skill.type for d in SKILLS.domains.values() for skill in d.skills}
DOMAIN_OF = {skill.id: name for name, d in SKILLS.domains.items() for skill in d.skills}


def plan(count, *, earlier=(), **rules):
    return sampling.plan(SKILLS, count=count, rules=sampling.Rules(**rules), earlier=earlier)


def jaccard(one, other):
    one, other = set(one), set(other)
    return len(one & other) / len(one | other)


@pytest.mark.parametrize("seed", range(8))
def test_500_tasks_cover_95_percent_of_all_skills(seed):
    found = plan(500, seed=seed)
    used = {skill for combination in found for skill in combination.skills}
    assert len(used) >= 0.95 * len(TYPE_OF)
    # And each domain by itself.
    by_domain = collections.Counter(DOMAIN_OF[skill] for skill in used)
    for name, domain in SKILLS.domains.items():
        assert by_domain[name] >= 0.95 * len(domain.skills)


def test_skills_come_up_about_equally_often():
    uses = collections.Counter(s for c in plan(2000, seed=3) for s in c.skills)
    for domain in SKILLS.domains.values():
        counts = [uses[skill.id] for skill in domain.skills]
        assert max(counts) - min(counts) <= 4


def test_partners_vary():
    """Least-used first must not pair the same skills again and again."""
    found = plan(2000, seed=5)
    pairs = {pair for c in found for pair in itertools.combinations(sorted(c.skills), 2)}
    possible = sum(len(d.skills) * (len(d.skills) - 1) // 2 for d in SKILLS.domains.values())
    assert len(pairs) >= 0.8 * possible


@pytest.mark.parametrize("seed", range(3))
def test_every_combination_keeps_the_rules(seed):
    for each in plan(1000, seed=seed):
        assert 3 <= len(each.skills) == len(set(each.skills)) <= 5
        assert {DOMAIN_OF[skill] for skill in each.skills} == {each.domain}
        assert len({TYPE_OF[skill] for skill in each.skills}) >= 2
        assert each.difficulty in ("easy", "medium")


def test_no_combination_is_like_another():
    """Against the definition, pair by pair."""
    found = [c.skills for c in plan(900, seed=1, domains=("security", "debugging", "data_science"))]
    worst = max(jaccard(a, b) for a, b in itertools.combinations(found, 2))
    assert worst <= 0.5 and len({frozenset(skills) for skills in found}) == 900


@pytest.mark.parametrize("max_similarity", [0.0, 0.25, 1 / 3, 0.5, 0.6, 0.75, 0.99])
def test_overlaps_decide_as_the_definition_does(max_similarity):
    """Every combination of six letters against every subset of them."""
    some = [c for size in range(1, 6) for c in itertools.combinations("abcdef", size)]
    for old in some:
        known = overlaps.Overlaps(max_similarity=max_similarity)
        known.add(old)
        for new in some:
            assert known.allows(reversed(new)) == (jaccard(old, new) <= max_similarity + 1e-12)


def test_a_plan_is_the_beginning_of_a_longer_one():
    longer = plan(700, seed=9)
    for count in (0, 1, 137, 699):
        assert plan(count, seed=9) == longer[:count]
    assert plan(700, seed=10)[:5] != longer[:5]


def test_another_process_makes_the_same_plan():
    code = (
        "import json; from data_pipeline.taskgen.taxonomy import sampling, taxonomy; "
        "found = sampling.plan(taxonomy.load(), count=300, rules=sampling.Rules(seed=4)); "
        "print(json.dumps([[c.domain, c.difficulty, *c.skills] for c in found]))"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    here = [[c.domain, c.difficulty, *c.skills] for c in plan(300, seed=4)]
    assert json.loads(told[0]) == json.loads(told[1]) == here


def test_it_keeps_away_from_what_was_made_before():
    first = [c.skills for c in plan(300, seed=0, domains=("security",))]
    second = [c.skills for c in plan(300, seed=1, domains=("security",), earlier=first)]
    assert all(jaccard(a, b) <= 0.5 for a in first for b in second)
    alone = {frozenset(c.skills) for c in plan(300, seed=1, domains=("security",))}
    assert alone != {frozenset(skills) for skills in second}


def test_what_was_made_before_counts_as_used():
    """Skills that earlier plans left out come first; ids that are gone do no harm."""
    security = SKILLS.domain("security").skills
    worn, fresh = security[:20], [skill.id for skill in security[20:]]
    earlier = [(skill.id, f"gone-{i}-{skill.id}") for skill in worn for i in range(5)]
    found = plan(2, domains=("security",), earlier=earlier)
    assert {skill for c in found for skill in c.skills} <= set(fresh)


@pytest.mark.parametrize("count", [10, 57, 400])
def test_domains_share_by_weight(count):
    weights = {"security": 3.0, "debugging": 0.5}
    found = collections.Counter(c.domain for c in plan(count, weights=weights))
    total = 8 + 3.0 + 0.5
    for name in SKILLS.domains:
        assert abs(found[name] - count * weights.get(name, 1.0) / total) <= 1.5


def test_quotas_end_a_domain_and_then_the_plan():
    quotas = {"security": 4, "debugging": 7}
    found = plan(100, domains=("security", "debugging"), quotas=quotas)
    assert collections.Counter(c.domain for c in found) == quotas
    assert plan(5, domains=("security",), quotas={"security": 0}) == []


def test_difficulty():
    assert {c.difficulty for c in plan(40, difficulty="easy")} == {"easy"}
    assert {c.difficulty for c in plan(40, difficulty="medium")} == {"medium"}
    mixed = collections.Counter((c.domain, c.difficulty) for c in plan(200, difficulty="mixed"))
    assert set(mixed.values()) == {10}


def test_a_domain_that_is_used_up_says_so():
    with pytest.raises(
        ValueError,
        match=r"domain security: after .* --max_similarity=0\.0; raise it, lower --count",
    ):
        plan(50, domains=("security",), max_similarity=0.0)


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"min_skills": 4, "max_skills": 3}, "min_skills=4 and max_skills=3"),
        ({"min_skills": 1}, "min_skills=1"),
        ({"max_similarity": 1.0}, "max_similarity=1.0 must be in"),
        ({"difficulty": "hard"}, "difficulty=hard must be one of easy, medium, mixed"),
        ({"weights": {"security": 0}}, r"weights\[security\]=0 must be positive"),
        ({"quotas": {"security": -1}}, r"quotas\[security\]=-1"),
        ({"domains": ("fishing",)}, "'fishing' is none of"),
        ({"weights": {"fishing": 1}}, "'fishing' is none of"),
    ],
)
def test_bad_rules_are_named(rules, told):
    with pytest.raises(ValueError, match=told):
        plan(1, **rules)


def test_10_000_combinations_in_seconds():
    began = time.process_time()
    found = plan(10_000, seed=2)
    assert len({frozenset(c.skills) for c in found}) == 10_000
    assert time.process_time() - began < 20
