"""Is a combination too like one made before? Asked in constant time, however many there are.

Two combinations of a and b skills that share s have the Jaccard similarity s / (a + b - s). With a
limit on it, a new one of a skills must not share more than `_most_shared` with any old one of b: it
must hold no group of one more that an old one of b holds. So the groups of every old one are
remembered: for at most five skills those are a few dozen.
"""

import collections
import itertools
import math
from collections.abc import Iterable


class Overlaps:
    """The combinations made so far.

    A combination is a set of ids; the order in which they are given makes no difference.
    """

    def __init__(self, *, max_similarity: float):
        """Take the largest Jaccard similarity that two combinations may have, in [0, 1)."""
        self._max_similarity = max_similarity
        # (size of the old one, size of the group) -> groups
        self._groups: dict[tuple[int, int], set[tuple[str, ...]]] = collections.defaultdict(set)
        self._sizes: set[int] = set()

    def allows(self, ids: Iterable[str]) -> bool:
        """Whether the combination is as unlike all old ones as is asked."""
        new = sorted(set(ids))
        return not any(self._shares(new, size) for size in self._sizes)

    def add(self, ids: Iterable[str]) -> None:
        """Remember a combination."""
        old = sorted(set(ids))
        self._sizes.add(len(old))
        for size in range(1, len(old) + 1):
            self._groups[len(old), size].update(itertools.combinations(old, size))

    def _shares(self, new: list[str], old_size: int) -> bool:
        forbidden = _most_shared(len(new), old_size, self._max_similarity) + 1
        if forbidden > min(len(new), old_size):
            return False
        groups = self._groups[old_size, forbidden]
        return any(group in groups for group in itertools.combinations(new, forbidden))


def _most_shared(new_size: int, old_size: int, max_similarity: float) -> int:
    """The most ids that two combinations of these sizes may have in common."""
    share = max_similarity * (new_size + old_size) / (1 + max_similarity)
    return math.floor(share + 1e-9)
