"""How much of which source a stage draws, and in which order: shuffles, budgets, rates, replay."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline.planning import stage_specs

_MOST_PASSES = 1000  # over one source in one stage
SUBSAMPLE, _REPLAY, _PART = 1 << 20, 1 << 21, 1 << 22  # keys of streams that no epoch has


@dataclasses.dataclass(frozen=True)
class Draw:
    """Draws examples for one stage; every shuffle has a random stream of its own."""

    num_tokens: np.ndarray  # int64 [E]
    sources: np.ndarray  # str [E]
    seed: int
    stage: int

    def shuffled(self, examples: np.ndarray, epoch: int, source: int = 0) -> np.ndarray:
        """A permutation that does not depend on that of any other epoch, source or stage."""
        key = np.random.SeedSequence((self.seed, self.stage, epoch, source))
        return np.random.Generator(np.random.Philox(key)).permutation(examples)

    def fractions(self, examples: np.ndarray, share: float) -> np.ndarray:
        """Of each source's examples, shuffled, as many as hold `share` of its tokens."""
        parts = [np.zeros(0, np.int64)]
        for number, (_, own) in enumerate(self._by_source(examples)):
            shuffled = self.shuffled(own, _PART, number)
            tokens = self.num_tokens[shuffled]
            num = _nearest(np.cumsum(tokens), share * tokens.sum())
            parts.append(shuffled[: max(1, num)])  # no source goes altogether
        return np.concatenate(parts)

    def budgets(self, examples: np.ndarray, spec: stage_specs.StageSpec) -> dict[str, float]:
        """Tokens to draw of each source.

        Weights, or the temperature, share out the `tokens` of the stage, or its epochs' worth. As
        in T5's mixtures a source of n tokens has the rate n ** (1 / temperature).

        Raises:
            ValueError: weights or epochs of other sources than the stage has.
        """
        sizes = {name: float(self.num_tokens[own].sum()) for name, own in self._by_source(examples)}
        if isinstance(spec.epochs, Mapping):
            _require_sources(spec.name, "epochs", spec.epochs, sizes)
            return {name: sizes[name] * epochs for name, epochs in spec.epochs.items()}
        total = spec.tokens or sum(sizes.values()) * spec.epochs
        if spec.weights:
            _require_sources(spec.name, "weights", spec.weights, sizes)
            wanted = dict(spec.weights)
        else:
            wanted = {name: size ** (1 / (spec.temperature or 1)) for name, size in sizes.items()}
        return {name: total * rate / sum(wanted.values()) for name, rate in wanted.items()}

    def mix(self, examples: np.ndarray, spec: stage_specs.StageSpec) -> np.ndarray:
        """Each source's examples, again and again until its budget is drawn, spread evenly.

        Raises:
            ValueError: the rates do not fit the sources, or repeat one absurdly often.
        """
        budgets = self.budgets(examples, spec)
        drawn = []
        for number, (name, own) in enumerate(self._by_source(examples)):
            passes = budgets.get(name, 0.0) / self.num_tokens[own].sum()
            if passes > _MOST_PASSES:
                raise ValueError(
                    f"stage {spec.name!r} would pass {passes:,.0f} times over the source {name!r}; "
                    "lower its tokens, weight or temperature"
                )
            drawn.append(self._until(own, budgets.get(name, 0.0), number))
        return self._spread(drawn)

    def with_replay(
        self, passes: Sequence[np.ndarray], earlier: np.ndarray, share: float
    ) -> list[np.ndarray]:
        """The passes with examples of earlier stages spread over each: `share` of its tokens."""
        sizes = [share * self.num_tokens[each].sum() for each in passes]
        replayed = self._until(earlier, sum(sizes), _REPLAY)
        ends = np.cumsum(self.num_tokens[replayed])
        cuts = [_nearest(ends, size) for size in np.cumsum(sizes)[:-1]]
        parts = np.split(replayed, cuts)
        return [self._spread([own, part]) for own, part in zip(passes, parts, strict=True)]

    def _by_source(self, examples: np.ndarray) -> list[tuple[str, np.ndarray]]:
        names, codes = np.unique(self.sources[examples], return_inverse=True)
        return [(str(name), examples[codes == code]) for code, name in enumerate(names)]

    def _until(self, examples: np.ndarray, budget: float, source: int) -> np.ndarray:
        """Shuffled passes over `examples`, cut where their tokens come nearest to the budget."""
        size = self.num_tokens[examples].sum()
        num_passes = int(np.ceil(budget / size)) if size else 0
        passes = [self.shuffled(examples, epoch, source) for epoch in range(num_passes)]
        drawn = np.concatenate([np.zeros(0, np.int64), *passes])
        return drawn[: _nearest(np.cumsum(self.num_tokens[drawn]), budget)]

    def _spread(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """Merge sequences such that at any point the same share of the tokens of each has come."""
        positions = [np.zeros(0)]
        for sequence in sequences:
            tokens = self.num_tokens[sequence]
            positions.append((np.cumsum(tokens) - tokens / 2) / max(1, tokens.sum()))
        order = np.argsort(np.concatenate(positions), kind="stable")
        return np.concatenate([np.zeros(0, np.int64), *sequences])[order]


def _nearest(ends: np.ndarray, target: float) -> int:
    """How many items to take so that their sum, of which `ends` are the running values, comes
    nearest to `target`."""
    num = int(np.searchsorted(ends, target))
    if num == len(ends):
        return num
    below = ends[num - 1] if num else 0
    return num + 1 if ends[num] - target < target - below else num


def _require_sources(
    stage: str, setting: str, given: Mapping[str, float], sizes: Mapping[str, float]
) -> None:
    if given.keys() != sizes.keys():
        raise ValueError(
            f"stage {stage!r}: {setting} are given for {sorted(given)}, and its sources are "
            f"{sorted(sizes)}; name each once (0 draws none)"
        )
