"""What a task family is: a name, a domain, and a maker of tasks from a random source."""

import dataclasses
import importlib
import pkgutil
import random
from collections.abc import Callable, Generator, Mapping

from data_pipeline.recorder import checks, families, solver

DOMAINS = (  # the nine of the paper's text, and system_administration of its appendix
    "data_processing",
    "data_querying",
    "data_science",
    "debugging",
    "dependency_management",
    "file_operations",
    "scientific_computing",
    "security",
    "software_engineering",
    "system_administration",
)
DIFFICULTIES = ("easy", "medium", "hard")
COMMON_TOOLS = ("bash", "setsid", "grep", "sed", "awk", "sort", "find", "python3")

Play = Generator[solver.Turn, str, None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One concrete task.

    Attributes:
        instruction: what is asked, with every parameter spelled out.
        brief: the same in a few words, as a noun phrase ("the number of failed logins").
        files: the environment, path below /app -> content.
        check: looks at the folder after the session and gives the reward, 0 to 1.
        solve: plays the task: yields turns, is sent observations.
    """

    instruction: str
    brief: str
    files: Mapping[str, str | bytes]
    check: checks.Check
    solve: Callable[[solver.Agent], Play]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A parametrised task; `make(rng)` draws one."""

    name: str
    domain: str
    difficulty: str
    tools: tuple[str, ...]
    make: Callable[[random.Random], Task]


_REGISTRY: dict[str, Family] = {}


def register(
    domain: str, *, difficulty: str = "easy", tools: tuple[str, ...] = ()
) -> Callable[[Callable[[random.Random], Task]], Callable[[random.Random], Task]]:
    """Decorate a task maker: the function's name becomes the family's name.

    Args:
        domain: one of DOMAINS.
        difficulty: one of DIFFICULTIES.
        tools: programs it needs beyond COMMON_TOOLS and coreutils.
    """
    assert domain in DOMAINS, domain
    assert difficulty in DIFFICULTIES, difficulty

    def add(make: Callable[[random.Random], Task]) -> Callable[[random.Random], Task]:
        name = make.__name__  # pyright: ignore[reportAttributeAccessIssue]
        assert name not in _REGISTRY, name
        _REGISTRY[name] = Family(
            name=name,
            domain=domain,
            difficulty=difficulty,
            tools=(*COMMON_TOOLS, *tools),
            make=make,
        )
        return make

    return add


def load_all() -> dict[str, Family]:
    """Every family by name, sorted."""
    for module in pkgutil.iter_modules(families.__path__):
        importlib.import_module(f"{families.__name__}.{module.name}")
    return dict(sorted(_REGISTRY.items()))
