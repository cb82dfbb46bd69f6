"""In which order examples are trained: the stages of a curriculum, each an order of examples.

A stage passes over its examples a whole number of times; the passes follow one another, so an
example never comes a second time before all have come once.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

Curriculum = Literal["mixed", "in_order", "short_to_long", "two_stage"]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: its passes, each an order of example numbers, int64 [E]."""

    name: str
    passes: tuple[np.ndarray, ...]


def make_stages(
    curriculum: Curriculum,
    *,
    num_tokens: np.ndarray,
    sources: Sequence[str],
    epochs: int,
    seed: int,
    first_sources: Sequence[str] = (),
) -> list[Stage]:
    """The stages of a curriculum.

    Args:
        curriculum: mixed (one stage, shuffled anew in each epoch), in_order (as in the corpus),
            short_to_long (each epoch by length), two_stage (the examples of `first_sources`, all
            epochs; then the others; each shuffled).
        num_tokens: the length of each example, int [E].
        sources: the source of each example, E of them.
        epochs: passes over each example.
        seed: of the shuffles.
        first_sources: of two_stage.

    Raises:
        ValueError: two_stage without, or with unknown, first sources.
    """
    everything = np.arange(len(num_tokens))
    if curriculum == "in_order":
        return [Stage("in_order", (everything,) * epochs)]
    if curriculum == "short_to_long":
        return [Stage("short_to_long", (np.argsort(num_tokens, kind="stable"),) * epochs)]
    if curriculum == "mixed":
        return [_shuffled("mixed", everything, epochs, seed, 0)]
    unknown = sorted(set(first_sources) - set(sources))
    is_first = np.isin(np.asarray(sources, object).astype(str), list(first_sources))
    if not first_sources or unknown or is_first.all():
        raise ValueError(
            f"--first_sources={','.join(first_sources)} must name some, not all, of the sources "
            f"{sorted(set(sources))} for --curriculum=two_stage"
        )
    return [
        _shuffled("first", everything[is_first], epochs, seed, 0),
        _shuffled("second", everything[~is_first], epochs, seed, 1),
    ]


def _shuffled(name: str, examples: np.ndarray, epochs: int, seed: int, stage: int) -> Stage:
    # Philox keyed by (seed, stage, epoch): one epoch's order does not depend on another's.
    orders = (
        np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, stage, epoch))))
        for epoch in range(epochs)
    )
    return Stage(name, tuple(rng.permutation(examples) for rng in orders))
