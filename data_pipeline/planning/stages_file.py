"""A curriculum of one's own: the TOML file that --curriculum=staged reads.

    [[stage]]
    name = "adapters"
    sources = ["math", "code", "swe"]
    epochs = 1

    [[stage]]
    name = "synthetic"
    sources = ["easy", "medium"]
    tokens = 2_000_000_000
    weights = {easy = 1, medium = 3}
    replay = 0.1

    [[stage]]
    name = "long"
    row_length = 65_536
    global_batch_size = 64
    epochs = 0.5
    order = "easy_to_hard"
    by = "turns"

`temperature = 2.0` or `mixture = "module:name"`, a SeqIO mixture, may stand for the weights;
`epochs` may be a table, too, one number a source.
"""

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from typing import Any

from data_pipeline import storage
from data_pipeline.planning import stage_specs

_KINDS: dict[str, tuple[type, ...]] = {
    "name": (str,), "sources": (list,), "order": (str,), "by": (str,),
    "epochs": (int, float, dict), "tokens": (int,), "weights": (dict,), "mixture": (str,),
    "temperature": (int, float), "replay": (int, float), "row_length": (int,),
    "global_batch_size": (int,),
}  # fmt: skip
_MOST = 10**15  # of any number
_SHARERS = ("weights", "mixture", "temperature")


def read(path: storage.Path) -> list[stage_specs.StageSpec]:
    """The stages of a file.

    Raises:
        ValueError: naming the file, the stage and what is wrong with it.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--stages={path}: cannot be read ({error})") from error
    stages = document.get("stage")
    is_list = isinstance(stages, list) and all(isinstance(stage, dict) for stage in stages)
    if set(document) != {"stage"} or not is_list or not stages:
        raise ValueError(
            f"--stages={path}: must hold tables [[stage]], in double brackets, and nothing else; "
            f"it has {sorted(document)}"
        )
    if "replay" in stages[0]:
        raise ValueError(f"--stages={path}: stage 0: replay has no earlier stage to draw from")
    specs = [_spec(path, number, values) for number, values in enumerate(stages)]
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise ValueError(f"--stages={path}: two stages have one name: {names}")
    return specs


def _spec(path: storage.Path, number: int, values: Any) -> stage_specs.StageSpec:
    where = f"--stages={path}: stage {number}"
    values = dict(values)
    for key, value in values.items():
        if key not in _KINDS:
            raise ValueError(f"{where}: unknown setting {key!r}; known are {', '.join(_KINDS)}")
        if not isinstance(value, _KINDS[key]) or isinstance(value, bool):
            kinds = " or ".join(kind.__name__ for kind in _KINDS[key])
            raise ValueError(f"{where}: {key}={value!r} must be of type {kinds}")
    _check_choices(where, values)
    _check_numbers(where, values)
    if sum(name in values for name in _SHARERS) > 1:
        raise ValueError(f"{where}: give one of {', '.join(_SHARERS)}")
    if "by" in values and values.get("order") != "easy_to_hard":
        raise ValueError(f"{where}: by={values['by']!r} is of order = 'easy_to_hard'")
    if "tokens" in values and "epochs" in values:
        raise ValueError(f"{where}: give tokens or epochs, not both")
    if isinstance(values.get("epochs"), dict) and any(name in values for name in _SHARERS):
        raise ValueError(f"{where}: epochs by source already say each source's share")
    if mixture := values.pop("mixture", None):
        from data_pipeline import seqio_tasks  # TensorFlow: only for those who ask for it

        values["weights"] = seqio_tasks.mixture_rates(mixture)
    sources = values.pop("sources", [])
    if any(not isinstance(source, str) for source in sources):
        raise ValueError(f"{where}: sources={sources!r} must be names")
    name = values.pop("name", f"stage-{number}")
    return stage_specs.StageSpec(name=name, sources=tuple(sources), **values)


def _check_choices(where: str, values: Mapping[str, Any]) -> None:
    for key, choices in (("order", stage_specs.Order), ("by", stage_specs.By)):
        allowed = typing.get_args(choices)
        if values.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{where}: {key}={values[key]!r} must be one of {', '.join(allowed)}")


def _check_numbers(where: str, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, (int, float)) and not abs(value) <= _MOST:
            raise ValueError(f"{where}: {key}={value!r} must be at most {_MOST}")
    for key in ("tokens", "global_batch_size", "epochs"):
        value = values.get(key, 1)
        if not isinstance(value, dict) and not value > 0:
            raise ValueError(f"{where}: {key}={value!r} must be positive")
    for key, least in (("row_length", 2), ("temperature", 1)):
        if key in values and not values[key] >= least:
            raise ValueError(f"{where}: {key}={values[key]!r} must be at least {least}")
    for key in ("weights", "epochs"):
        table = values.get(key)
        if not isinstance(table, dict):
            continue
        for source, value in table.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{where}: {key}.{source}={value!r} must be a number")
            if not 0 <= value <= _MOST:
                raise ValueError(f"{where}: {key}.{source}={value!r} must be in [0, {_MOST}]")
        if not any(table.values()):
            raise ValueError(f"{where}: {key} are all 0, so nothing would be drawn")
    if not values.get("replay", 0.0) >= 0:
        raise ValueError(f"{where}: replay={values['replay']!r} must not be negative")


def fields_of(specs: list[stage_specs.StageSpec]) -> list[dict[str, Any]]:
    """The stages as JSON values, for the plan's manifest."""
    return [dataclasses.asdict(spec) for spec in specs]
