"""In which order examples are trained: the stages of a curriculum, each an order of examples.

A stage passes over its examples; the passes follow one another and are packed each for itself, so
that an example never comes a second time before all have come once. A stage that mixes its sources
by rates or replays earlier stages is one pass, in which each source is spread evenly.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline.planning import mixing, stage_specs


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage: its passes, each an order of example numbers, int64 [E]."""

    spec: stage_specs.StageSpec
    passes: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Examples:
    """What orders are made from: one entry an example, E of them."""

    num_tokens: np.ndarray  # int64
    num_turns: np.ndarray  # int64
    sources: np.ndarray  # str
    difficulties: np.ndarray  # str; empty where not known
    chosen: np.ndarray  # int64; the numbers of the examples that are trained, ascending


def make_stages(
    specs: Sequence[stage_specs.StageSpec],
    examples: Examples,
    *,
    seed: int,
    difficulty_order: Sequence[str] = (),
) -> list[Stage]:
    """The orders of all stages.

    Args:
        specs: the stages, in their order.
        examples: all that the tokens index holds.
        seed: of the shuffles.
        difficulty_order: names of difficulties, the easiest first.

    Raises:
        ValueError: naming the stage whose sources, difficulties or rates do not fit the examples.
    """
    stages: list[Stage] = []
    seen = np.zeros(0, np.int64)
    for number, spec in enumerate(specs):
        own = _members(spec, examples)
        draw = mixing.Draw(examples.num_tokens, examples.sources, seed, number)
        passes = _passes(spec, own, draw)
        if spec.order != "shuffle":
            passes = [np.sort(each) for each in passes]
        if spec.order == "easy_to_hard":  # ties stay in the corpus's order
            keys = _keys(spec, examples, difficulty_order)
            passes = [each[np.argsort(keys[each], kind="stable")] for each in passes]
        drawn = np.unique(np.concatenate([np.zeros(0, np.int64), *passes]))
        if spec.replay and len(seen):
            passes = draw.with_replay(passes, seen, spec.replay)
        stages.append(Stage(spec, tuple(passes)))
        seen = np.union1d(seen, drawn)
    return stages


def subsample(examples: Examples, max_tokens: int, *, seed: int) -> Examples:
    """A seeded part of the examples that holds about `max_tokens` tokens, the same share of each
    source: so that differently filtered corpora are compared at equal volume."""
    tokens = examples.num_tokens[examples.chosen]
    share = max_tokens / max(1, tokens.sum())
    if share >= 1:
        return examples
    draw = mixing.Draw(examples.num_tokens, examples.sources, seed, mixing.SUBSAMPLE)
    kept = draw.fractions(examples.chosen, share)
    return dataclasses.replace(examples, chosen=np.sort(kept))


def _passes(spec: stage_specs.StageSpec, own: np.ndarray, draw: mixing.Draw) -> list[np.ndarray]:
    if spec.tokens or spec.weights or spec.temperature or isinstance(spec.epochs, Mapping):
        return [draw.mix(own, spec)]
    whole = int(spec.epochs)
    passes = [draw.shuffled(own, epoch) for epoch in range(whole)]
    if spec.epochs > whole:
        passes.append(draw.shuffled(draw.fractions(own, spec.epochs - whole), whole))
    return passes


def _members(spec: stage_specs.StageSpec, examples: Examples) -> np.ndarray:
    """The examples of a stage's sources, int64."""
    known = sorted(set(examples.sources[examples.chosen].tolist()))
    if unknown := sorted(set(spec.sources) - set(known)):
        raise ValueError(
            f"stage {spec.name!r}: sources={unknown} are not among the sources of the tokens, "
            f"{known}"
        )
    if not spec.sources:
        return examples.chosen
    return examples.chosen[np.isin(examples.sources[examples.chosen], list(spec.sources))]


def _keys(
    spec: stage_specs.StageSpec, examples: Examples, difficulty_order: Sequence[str]
) -> np.ndarray:
    """What easy_to_hard sorts by, one number an example."""
    if spec.by == "length":
        return examples.num_tokens
    if spec.by == "turns":
        return examples.num_turns
    rank_of = {name: rank for rank, name in enumerate(difficulty_order)}
    used = set(examples.difficulties[_members(spec, examples)].tolist())
    if unknown := sorted(used - rank_of.keys()):
        raise ValueError(
            f"stage {spec.name!r}: the difficulties {unknown} are not in --difficulty_order="
            f"{','.join(difficulty_order)}; name all, the easiest first, or sort by length or turns"
        )
    return np.array([rank_of.get(name, -1) for name in examples.difficulties.tolist()])
