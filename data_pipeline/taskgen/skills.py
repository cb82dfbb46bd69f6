"""Tasks from combinations of skills (arXiv 2602.21193, 4.2.2).

    python -m data_pipeline.taskgen skills --count=1000 --base_url=http://localhost:8000/v1 \\
        --model=deepseek-v3.2 --output=tasks/skills
    python -m data_pipeline.taskgen skills --count=200 --domains=security,debugging \\
        --difficulty=medium --base_url=https://api.example.com/v1 --model=NAME \\
        --dollars_per_million_input=0.3 --dollars_per_million_output=1.2 --max_dollars=20 \\
        --output=tasks/security
    python -m data_pipeline.taskgen skills --count=20 --show        the combinations; asks nothing

Each task combines 3 to 5 skills of a domain; over a run every skill comes up about as often as the
others. The command can be stopped and run again: it goes on where it was, and nothing is paid for
twice. It leaves OUTPUT/tasks, a Harbor task folder each; attempts.jsonl, what became of each
question; funnel.json; and beside it OUTPUT.teacher.sqlite, every reply that was paid for.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator

import rich
from absl import flags

from data_pipeline import cli, manifest
from data_pipeline.taskgen import domains, generate, prompts, recipe, task, task_toml, teacher
from data_pipeline.taskgen.taxonomy import sampling, taxonomy


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkillOptions:
    """Which combinations are asked for."""

    count: int = dataclasses.field(
        default=100, metadata=cli.flag("tasks to ask for; what is kept is fewer")
    )
    seed: int = dataclasses.field(default=0, metadata=cli.flag("of the combinations"))
    domains: tuple[str, ...] = dataclasses.field(
        default=(),
        metadata=cli.flag(
            f"domains to draw from, of {', '.join(domains.NAMES)}; all when left out"
        ),
    )
    difficulty: sampling.Difficulty = dataclasses.field(
        default="mixed", metadata=cli.flag("of the tasks; mixed asks for either by turns")
    )
    max_similarity: float = dataclasses.field(
        default=0.5,
        metadata=cli.flag("share of the skills of two combinations that both may have (Jaccard)"),
    )
    solutions: bool = dataclasses.field(
        default=False,
        metadata=cli.flag(
            "ask for a solution with each task, and keep those alone that it solves; the paper "
            "does not"
        ),
    )
    earlier: tuple[str, ...] = dataclasses.field(
        default=(),
        metadata=cli.flag(
            "OUTPUT/tasks folders of other runs, whose combinations are kept away from",
            changes_output=False,  # the combinations do
        ),
    )

    def __post_init__(self):
        cli.require_choice("difficulty", self.difficulty, sampling.Difficulty)
        cli.require(self.count > 0, f"--count={self.count} must be positive")
        cli.require(
            0 <= self.max_similarity < 1,
            f"--max_similarity={self.max_similarity} must be in [0, 1)",
        )


class Skills:
    """The recipe: the i-th combination of a seeded plan."""

    def __init__(self, options: SkillOptions):
        earlier = _skills_of(options.earlier)
        self._takes_solution = options.solutions
        self._taxonomy = taxonomy.load()
        self._plan = sampling.plan(
            self._taxonomy,
            count=options.count,
            rules=sampling.Rules(
                seed=options.seed,
                domains=options.domains,
                difficulty=options.difficulty,
                max_similarity=options.max_similarity,
            ),
            earlier=earlier,
        )
        self.told = manifest.options_of(options) | {"earlier": manifest.digest_json(earlier)}
        # So that tasks of two plans can lie in one folder.
        self._mark = manifest.digest_json(self.told | {"count": 0})[:4]

    def __len__(self) -> int:
        return len(self._plan)

    def orders(self, is_settled: Callable[[int], bool]) -> Iterator[tuple[int, recipe.Order]]:
        """The question about each combination."""
        return ((i, self._order(i)) for i in range(len(self)) if not is_settled(i))

    def _order(self, index: int) -> recipe.Order:
        wanted = self._plan[index]
        domain = self._taxonomy.domain(wanted.domain)
        dockerfile = domains.dockerfile(wanted.domain)
        return recipe.Order(
            name=f"skill-{wanted.domain.replace('_', '-')}-{self._mark}-{index:06d}",
            messages=prompts.for_skills(
                domain, wanted, dockerfile, takes_solution=self._takes_solution
            ),
            dockerfile=dockerfile,
            source="skill",
            domain=wanted.domain,
            difficulty=wanted.difficulty,
            skills=wanted.skills,
            takes_solution=self._takes_solution,
        )


def _skills_of(folders: tuple[str, ...]) -> list[list[str]]:
    """The skills of every task in some folders."""
    found = []
    for name in folders:
        files = sorted(pathlib.Path(name).glob(f"[!.]*/{task.TASK_TOML}"))
        cli.require(bool(files), f"--earlier={name}: no task there; name an OUTPUT/tasks")
        found += [sorted(task_toml.parse(file.read_text("utf-8"))["skills"]) for file in files]
    return found


def digests() -> dict[str, str]:
    """SHA-256 of the files that shape the questions."""
    return taxonomy.digests() | prompts.digests() | domains.digests()


def define_flags() -> None:
    """Of this command."""
    cli.define_flags(SkillOptions, generate.GenerateOptions, teacher.Settings)
    cli.define_output_flags()
    flags.DEFINE_bool("show", False, "print the combinations and ask nothing")


def main(argv: list[str]) -> None:
    """Run the command."""
    cli.require(not argv, f"unexpected {' '.join(argv)}: every setting is a --flag, see --help")
    options = cli.options_from_flags(SkillOptions)
    skills = Skills(options)
    if flags.FLAGS.show:
        for _, order in skills.orders(lambda index: False):
            rich.print(f"{order.name} [dim]{order.difficulty}[/dim] {', '.join(order.skills)}")
        return
    generate.generate(
        skills,
        name="skills",
        inputs=digests(),
        told=skills.told,
        output_dir=cli.local_output_dir(),
        settings=cli.options_from_flags(teacher.Settings),
        options=cli.options_from_flags(generate.GenerateOptions),
        overwrite=flags.FLAGS.overwrite,
    )
