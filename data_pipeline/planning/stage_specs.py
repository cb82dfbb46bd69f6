"""What the stages of a curriculum are made of, and what the names of curricula stand for."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

Order = Literal["shuffle", "in_order", "easy_to_hard"]
By = Literal["length", "turns", "difficulty"]
Curriculum = Literal["mixed", "in_order", "short_to_long", "easy_to_hard", "two_stage", "staged"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSpec:
    """What a stage is made of."""

    name: str
    sources: tuple[str, ...] = ()  # all, unless some are named
    order: Order = "shuffle"
    by: By = "length"  # of easy_to_hard
    epochs: float | Mapping[str, float] = 1.0  # of all its sources, or of each
    tokens: int = 0  # instead of epochs: the budget of the whole stage
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)  # shares of the tokens
    temperature: float = 0.0  # or shares by size ** (1 / temperature); 0: neither
    replay: float = 0.0  # tokens of earlier stages' examples, as a share of this stage's own
    row_length: int = 0  # 0: the plan's
    global_batch_size: int = 0  # 0: the plan's


def presets(
    curriculum: Curriculum,
    *,
    epochs: float,
    by: By = "length",
    first_sources: Sequence[str] = (),
    sources: Sequence[str] = (),
    replay: float = 0.0,
) -> list[StageSpec]:
    """The stages that the name of a curriculum stands for; `staged` has none of its own.

    Raises:
        ValueError: two_stage without, or with unknown, first sources.
    """
    if curriculum == "mixed":
        return [StageSpec(name="mixed", epochs=epochs)]
    if curriculum == "in_order":
        return [StageSpec(name="in_order", order="in_order", epochs=epochs)]
    if curriculum == "short_to_long":
        return [StageSpec(name="short_to_long", order="easy_to_hard", by="length", epochs=epochs)]
    if curriculum == "easy_to_hard":
        return [StageSpec(name="easy_to_hard", order="easy_to_hard", by=by, epochs=epochs)]
    known = set(sources)
    rest = known - set(first_sources)
    if not first_sources or not set(first_sources) <= known or not rest:
        raise ValueError(
            f"--first_sources={','.join(first_sources)} must name some, not all, of the sources "
            f"{sorted(known)} for --curriculum=two_stage"
        )
    return [
        StageSpec(name="first", sources=tuple(first_sources), epochs=epochs),
        StageSpec(name="second", sources=tuple(sorted(rest)), epochs=epochs, replay=replay),
    ]
