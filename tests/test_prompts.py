"""The teacher's prompts: complete, filled in once, and true of what the parser takes."""

import re

import pytest

from data_pipeline.taskgen import domains, prompts, tagged
from data_pipeline.taskgen.taxonomy import sampling, taxonomy

SKILLS = taxonomy.load()
PLAN = sampling.plan(SKILLS, count=40, rules=sampling.Rules(seed=3))


def skills_question(wanted, **options):
    domain = SKILLS.domain(wanted.domain)
    return prompts.for_skills(domain, wanted, domains.dockerfile(wanted.domain), **options)


def seed_question(**changes):
    values = {
        "problem": "Find all primes below n.",
        "label": "number theory",
        "solution": "Use the sieve of Eratosthenes.",
        "domain": "scientific_computing",
        "dockerfile": domains.dockerfile("scientific_computing"),
    }
    return prompts.for_seed(**(values | changes))


@pytest.mark.parametrize("wanted", PLAN, ids=lambda c: f"{c.domain}-{c.difficulty}")
def test_a_question_about_skills_holds_what_the_paper_lists(wanted):
    """Arxiv 2602.21193, 4.2.2 and Figure 11: role, domain, requirements, format, rules; category,
    skills, Dockerfile, difficulty."""
    system, user = skills_question(wanted)
    assert (system["role"], user["role"]) == ("system", "user")
    domain = SKILLS.domain(wanted.domain)
    assert system["content"].startswith(f"You are {domain.role}.")
    for area in domain.focus:
        assert f"- {area}" in system["content"]
    for heading in ("# The field: ", "# Requirements", "# Output", "# Critical rules"):
        assert f"\n{heading}" in system["content"]
    assert f"Category: {domain.title}\n" in user["content"]
    assert f"Difficulty: {wanted.difficulty}. " in user["content"]
    assert domains.dockerfile(wanted.domain).strip() in user["content"]
    listed = re.findall(r"^- \((.+?)\) (.+)$", user["content"], re.MULTILINE)
    expected = [domain.skill(skill_id) for skill_id in wanted.skills]
    assert listed == [(domain.types[skill.type], skill.text) for skill in expected]


def test_questions_differ_in_the_user_part_alone_within_a_domain():
    """So that a server's prefix cache holds the long part."""
    by_domain = {}
    for wanted in PLAN:
        system, user = skills_question(wanted)
        by_domain.setdefault(wanted.domain, (set(), set()))
        by_domain[wanted.domain][0].add(system["content"])
        by_domain[wanted.domain][1].add(user["content"])
    assert all(len(systems) == 1 for systems, _ in by_domain.values())
    assert sum(len(users) for _, users in by_domain.values()) == len(PLAN)


def test_a_question_about_a_seed():
    system, user = seed_question()
    for part in ("Find all primes below n.", "Domain: number theory", "sieve of Eratosthenes"):
        assert part in user["content"] and part not in system["content"]
    assert "There is no reference solution" not in user["content"]
    assert domains.dockerfile("scientific_computing").strip() in user["content"]
    _, user = seed_question(solution="", label="")
    assert "There is no reference solution" in user["content"]
    assert "Reference solution" not in user["content"]
    assert "Domain: Scientific computing" in user["content"]


def test_a_solution_is_asked_for_where_it_is_taken():
    for system, takes_solution in (
        (seed_question()[0], True),
        (skills_question(PLAN[0])[0], False),
        (skills_question(PLAN[0], takes_solution=True)[0], True),
    ):
        text = system["content"]
        assert ("<solution>\n" in text) == ("`<solution>`" in text) == takes_solution
        assert "\n\n\n" not in text and "{{" not in text


def example_reply(takes_solution):
    """The reply that the prompt shows, its descriptions replaced by a task."""
    system, _ = skills_question(PLAN[0], takes_solution=takes_solution)
    text = system["content"]
    example = text[text.index("<prompt>\n") : text.index("\n- `<weights>`:")]
    tests = "def test_name():\n    assert 0\n\n\ndef test_other_name():\n    assert 0\n"
    return example.replace("The Python test file.", tests)


@pytest.mark.parametrize("takes_solution", [False, True])
def test_the_parser_takes_the_format_that_the_prompt_shows(takes_solution):
    draft = tagged.parse(example_reply(takes_solution), takes_solution=takes_solution)
    # What the prompt says of these two files.
    assert draft.files == {
        "data/stations.csv": b"id,name\n1,Hurst\n",
        "seal.bin": bytes.fromhex("deadbeef"),
    }
    assert draft.weights == {"test_name": 2.0, "test_other_name": 1.0}
    assert {"title", "summary", "traps", "why_checkable"} == draft.info.keys()
    assert draft.test_requirements == ()
    assert bool(draft.solution) == takes_solution


def test_the_order_of_the_tags_is_the_papers():
    shown = re.findall(r"^<(\w+)>$", example_reply(True), re.MULTILINE)
    assert tuple(shown) == tagged.TAGS


def test_an_empty_file_as_the_prompt_writes_it():
    system, _ = skills_question(PLAN[0])
    empty = re.search(r"an empty file is written `(<file .*?</file>)`", system["content"])
    assert empty is not None
    reply = re.sub(r"<file path.*</file>", empty[1], example_reply(False), flags=re.DOTALL)
    assert tagged.parse(reply).files == {"empty.txt": b""}


def test_limits_that_the_prompt_states_are_the_parsers():
    system, _ = skills_question(PLAN[0])
    stated = re.search(r"at most (\d+) files, (\d+) MB each and (\d+) MB", system["content"])
    assert stated is not None
    limits = tagged.SizeLimits()
    assert int(stated[1]) == limits.num_files
    assert int(stated[2]) << 20 == limits.file and int(stated[3]) << 20 == limits.all_files
    names = re.search(r"no file called (.+?)\.\n", system["content"])
    assert names is not None
    for name in re.split(r", | or ", names[1]):
        files = f'<file path="{name}">x</file>'
        reply = re.sub(r"<file path.*</file>", files, example_reply(False), flags=re.DOTALL)
        with pytest.raises(ValueError, match="reserved"):
            tagged.parse(reply)


@pytest.mark.parametrize(
    "text", ["{{error}} {{dockerfile}}", "```\n# Critical rules\n````", "<prompt>", "\\1 \\g<0>"]
)
def test_what_is_filled_in_is_neither_a_place_nor_an_end(text):
    """Problems and errors come from datasets and models."""
    for filled in (
        prompts.repair(text),
        seed_question(problem=text)[1]["content"],
        seed_question(solution=text)[1]["content"],
    ):
        assert filled.count(text) == 1
        fence = filled[: filled.index(text)].rstrip("\n").rpartition("\n")[2]
        assert set(fence) == {"`"} and fence not in text
        assert filled[filled.index(text) + len(text) :].startswith(f"\n{fence}\n")


def test_a_place_without_a_value_is_an_error():
    with pytest.raises(ValueError, match=r"prompts/repair\.md: .* error"):
        prompts.render("repair")
    with pytest.raises(ValueError, match=r"prompts/repair\.md: .* more"):
        prompts.render("repair", error="x", more="y")


def test_every_prompt_is_used_and_digested():
    used = " ".join(
        path.read_text() for path in prompts.FOLDER.parent.glob("*.py") if path.stem == "prompts"
    )
    for path in prompts.FOLDER.glob("*.md"):
        stem = path.stem
        assert f'"{stem}"' in used or (stem.startswith("difficulty_") and "difficulty_{" in used)
    assert prompts.digests().keys() == {f"prompts/{p.name}" for p in prompts.FOLDER.glob("*.md")}
