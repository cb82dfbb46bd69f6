"""Tasks from seed problems (arXiv 2602.21193, 4.2.1).

    python -m data_pipeline.taskgen seeds seeds.jsonl --base_url=http://localhost:8000/v1 \\
        --model=deepseek-v3.2 --output=tasks/seeds
    python -m data_pipeline.taskgen seeds physics.parquet biology.parquet \\
        --domain=scientific_computing --base_url=http://localhost:8000/v1 --model=NAME \\
        --output=tasks/science

A seed is a row of Parquet or JSONL: `problem` (or question, prompt, description), and where there
are any `domain` (or subject, category) and `solution` (or reference_solution, answer). The teacher
makes a terminal task of it, with input files, edge cases and tests; the reference solution tells
it what the tests must expect, and no agent ever sees it. The teacher's own solution is run in the
sandbox: a task whose tests it does not pass is not kept.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from rich import console as rich_console

from data_pipeline import cli, corpus, manifest, storage
from data_pipeline.taskgen import (
    dataset_rows,
    domains,
    generate,
    prompts,
    recipe,
    teacher,
)

_PROBLEM = ("problem", "question", "prompt", "description")
_DOMAIN = ("domain", "subject", "category")
_SOLUTION = ("solution", "reference_solution", "answer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedOptions:
    """How rows become orders."""

    domain: str = dataclasses.field(
        default="scientific_computing",
        metadata=cli.flag("environment of seeds whose own domain is not one of the ten"),
    )
    max_problem_chars: int = dataclasses.field(
        default=20_000, metadata=cli.flag("longer seeds are left out")
    )

    def __post_init__(self):
        cli.require(
            self.domain in domains.NAMES,
            f"--domain={self.domain} must be one of {', '.join(domains.NAMES)}",
        )
        cli.require(
            self.max_problem_chars > 0,
            f"--max_problem_chars={self.max_problem_chars} must be positive",
        )


@dataclasses.dataclass(frozen=True)
class Seed:
    """A seed record; the reference solution may be empty."""

    problem: str
    label: str
    solution: str


class Seeds:
    """The recipe: a seed an order; rows are streamed, and only counted beforehand."""

    def __init__(self, files: Sequence[storage.Path], options: SeedOptions):
        """Count the seeds.

        Raises:
            ValueError: there is none.
        """
        self._files = files
        self._options = options
        self.num_left_out = 0
        self.first_fault = ""
        self._num_seeds = sum(1 for _ in self._seeds(counting=True))
        if not self._num_seeds:
            raise ValueError(
                f"{', '.join(map(str, files))}: no seed there ({self.first_fault or 'no row'}); "
                f"a row needs text in {', '.join(_PROBLEM)}"
            )

    def __len__(self) -> int:
        return self._num_seeds

    def orders(self, is_settled: Callable[[int], bool]) -> Iterator[tuple[int, recipe.Order]]:
        """The question about each seed."""
        for index, seed in enumerate(self._seeds()):
            if not is_settled(index):
                yield index, self._order(index, seed)

    def _order(self, index: int, seed: Seed) -> recipe.Order:
        domain = seed.label if seed.label in domains.NAMES else self._options.domain
        dockerfile = domains.dockerfile(domain)
        return recipe.Order(
            name=f"seed-{domain.replace('_', '-')}-{_mark(seed)}-{index:06d}",
            messages=prompts.for_seed(
                problem=seed.problem,
                label=seed.label,
                solution=seed.solution,
                domain=domain,
                dockerfile=dockerfile,
            ),
            dockerfile=dockerfile,
            source="seed",
            domain=domain,
            takes_solution=True,
            reference=seed.solution,
            info={"label": seed.label} if seed.label else {},
        )

    def _seeds(self, *, counting: bool = False) -> Iterator[Seed]:
        for row in dataset_rows.read(self._files):
            seed, fault = (
                (None, row.fault) if row.values is None else self._seed(row.values, row.location)
            )
            if seed is not None:
                yield seed
            elif counting:
                self.num_left_out += 1
                self.first_fault = self.first_fault or fault

    def _seed(self, values: Mapping[str, Any], location: str) -> tuple[Seed | None, str]:
        problem = _text_in(values, _PROBLEM)
        if not problem:
            return None, f"{location}: no text in {', '.join(_PROBLEM)}"
        if len(problem) > self._options.max_problem_chars:
            told = f"{location}: {len(problem):,} characters, --max_problem_chars is "
            return None, f"{told}{self._options.max_problem_chars:,}"
        texts = (problem, _text_in(values, _DOMAIN), _text_in(values, _SOLUTION))
        if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
            return None, f"{location}: half of a surrogate pair, which no file can hold"
        label = _text_in(values, _DOMAIN).strip().lower().replace(" ", "_").replace("-", "_")
        return Seed(problem, label[:64], _text_in(values, _SOLUTION)), ""


def _mark(seed: Seed) -> str:
    return manifest.digest_json([seed.problem, seed.solution])[:4]


def _text_in(values: Mapping[str, Any], columns: Sequence[str]) -> str:
    found = (values.get(column) for column in columns)
    numbers = (int, float)
    texts = (
        str(value) for value in found
        if isinstance(value, str) or (isinstance(value, numbers) and not isinstance(value, bool))
    )  # fmt: skip
    return next((text for text in texts if text.strip()), "")


def define_flags() -> None:
    """Of this command."""
    cli.define_flags(SeedOptions, generate.GenerateOptions, teacher.Settings)
    cli.define_output_flags()


def main(argv: list[str]) -> None:
    """Run the command."""
    cli.require(bool(argv), "name files or folders of seeds: Parquet or JSONL")
    files = corpus.find_files(argv)
    options = cli.options_from_flags(SeedOptions)
    output_dir = cli.local_output_dir()
    seeds = Seeds(files, options)
    if seeds.num_left_out:
        told = f"seeds: {seeds.num_left_out:,} rows left out, the first: {seeds.first_fault}"
        rich_console.Console(stderr=True).print(told, soft_wrap=True, markup=False)
    generate.generate(
        seeds,
        name="seeds",
        inputs=manifest.digest_files(files) | prompts.digests() | domains.digests(),
        told=manifest.options_of(options),
        output_dir=output_dir,
        settings=cli.options_from_flags(teacher.Settings),
        options=cli.options_from_flags(generate.GenerateOptions),
        overwrite=flags.FLAGS.overwrite,
    )
