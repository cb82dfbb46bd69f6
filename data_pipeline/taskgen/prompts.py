"""The teacher's prompts: Markdown files with {{places}}, which are filled in once, all at a time.

What is filled in is never searched for places again: problems and errors come from models.
"""

import functools
import hashlib
import pathlib
import re

from data_pipeline.taskgen.recipe import Message
from data_pipeline.taskgen.taxonomy import sampling, taxonomy

FOLDER = pathlib.Path(__file__).parent / "prompts"
_PLACE = re.compile(r"\{\{(\w+)\}\}")
_BACKTICKS = re.compile(r"`{3,}")


def for_skills(
    domain: taxonomy.Domain,
    wanted: sampling.Combination,
    dockerfile: str,
    *,
    takes_solution: bool = False,
) -> tuple[Message, ...]:
    """The question for a task that combines skills (arXiv 2602.21193, 4.2.2 and Figure 11).

    Args:
        domain: that of the combination.
        wanted: the skills and the difficulty.
        dockerfile: the environment.
        takes_solution: ask for a solution too, which the paper does not.
    """
    system = render(
        "skills_system",
        role=domain.role,
        title=domain.title,
        focus="\n".join(f"- {area}" for area in domain.focus),
        checking=domain.checking,
        requirements=render("requirements"),
        output_format=_output_format(takes_solution=takes_solution),
    )
    skills = [domain.skill(skill_id) for skill_id in wanted.skills]
    user = render(
        "skills_user",
        title=domain.title,
        difficulty=wanted.difficulty,
        difficulty_text=render(f"difficulty_{wanted.difficulty}"),
        skills="\n".join(f"- ({domain.types[skill.type]}) {skill.text}" for skill in skills),
        dockerfile=fenced(dockerfile),
    )
    return _messages(system, user)


def for_seed(
    *, problem: str, label: str, solution: str, domain: str, dockerfile: str
) -> tuple[Message, ...]:
    """The question for a task made from a seed problem (arXiv 2602.21193, 4.2.1).

    Args:
        problem: its description.
        label: the seed's own domain, as in "organic chemistry"; may be empty.
        solution: the reference solution; may be empty.
        domain: the name of the domain whose environment is used.
        dockerfile: that environment.
    """
    field = taxonomy.load().domain(domain)
    if solution:
        reference = render("seeds_reference", solution=fenced(solution))
    else:
        reference = render("seeds_no_reference")
    system = render(
        "seeds_system",
        requirements=render("requirements"),
        output_format=_output_format(takes_solution=True),
    )
    user = render(
        "seeds_user",
        label=label or field.title,
        problem=fenced(problem),
        reference=reference,
        title=field.title,
        checking=field.checking,
        dockerfile=fenced(dockerfile),
    )
    return _messages(system, user)


def repair(error: str) -> str:
    """What is said to the teacher when its reply makes no task, and why."""
    return render("repair", error=fenced(error))


def digests() -> dict[str, str]:
    """File -> SHA-256 of every prompt."""
    return {
        f"prompts/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(FOLDER.glob("*.md"))
    }


def render(name: str, **values: str) -> str:
    """The text of prompts/NAME.md with every place filled in.

    Raises:
        ValueError: the file's places are not those that have values.
    """
    text = _text(name)
    places = set(_PLACE.findall(text))
    if places != values.keys():
        told = ", ".join(sorted(places ^ values.keys()))
        raise ValueError(f"prompts/{name}.md: a place without a value, or the reverse: {told}")
    return _PLACE.sub(lambda match: values[match[1]], text).strip()


@functools.cache
def _text(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text("utf-8").strip()


def fenced(text: str) -> str:
    """The text in a code block that nothing in it can end."""
    longest = max(map(len, _BACKTICKS.findall(text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}\n{text.strip()}\n{fence}"


def _output_format(*, takes_solution: bool) -> str:
    parts = ("solution_format", "solution_note")
    values = {part: f"{render(part)}\n" if takes_solution else "" for part in parts}
    return render("output_format", **values)


def _messages(system: str, user: str) -> tuple[Message, ...]:
    return ({"role": "system", "content": system}, {"role": "user", "content": user})
