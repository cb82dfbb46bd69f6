"""Which tasks are held out: whole tasks, so that no session of one is on both sides."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence


def choose_tasks(
    rows: Sequence[tuple[str, str, str]], *, fraction: float, seed: int
) -> frozenset[str]:
    """Choose about `fraction` of the tasks.

    The tasks of each domain of each source give their share, rounded; then each source that has at
    least two tasks gives at least one. No source gives all it has. Which tasks go follows from
    their names and the seed alone, not from the order of the rows.

    Args:
        rows: (task, source, domain) of each row.
        fraction: in [0, 1); 0 holds nothing out.
        seed: chooses other tasks.
    """
    if fraction == 0:
        return frozenset()
    by_source: dict[str, set[str]] = defaultdict(set)
    by_domain: dict[tuple[str, str], set[str]] = defaultdict(set)
    sources_of: dict[str, set[str]] = defaultdict(set)
    for task, source, domain in rows:
        by_source[source].add(task)
        by_domain[source, domain].add(task)
        sources_of[task].add(source)
    left = {source: len(tasks) for source, tasks in by_source.items()}
    chosen: set[str] = set()

    def choose(tasks: set[str], share: int) -> None:
        """Add tasks to `chosen` until `share` of `tasks` are in, leaving every source one."""
        num = len(tasks & chosen)
        for task in sorted(tasks - chosen, key=lambda task: _rank(task, seed)):
            if num >= share:
                return
            if all(left[source] > 1 for source in sources_of[task]):
                chosen.add(task)
                num += 1
                for source in sources_of[task]:
                    left[source] -= 1

    for _, tasks in sorted(by_domain.items()):
        choose(tasks, round(fraction * len(tasks)))
    for _, tasks in sorted(by_source.items()):
        choose(tasks, max(1, round(fraction * len(tasks))) if len(tasks) > 1 else 0)
    return frozenset(chosen)


def _rank(task: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{task}".encode(), digest_size=16).digest()
