"""The settings of a run: schema, defaults and validation, and their way to and from ConfigDict.

A file in configs/ returns `to_config_dict(TrainConfig(...))`; the command line overrides single
values (`--config.optimizer.peak_lr=1e-5`); `from_config_dict` then builds the frozen dataclasses
again, which is where everything is validated, once. Below `main` nobody sees a ConfigDict.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from jaxterm import architecture
from jaxterm.config_sections import (
    ComputeConfig,
    DataConfig,
    ExportConfig,
    LogConfig,
    LoraConfig,
    MeshConfig,
    OptimizerConfig,
    StartConfig,
    require,
)

__all__ = [
    "ComputeConfig",
    "DataConfig",
    "ExportConfig",
    "LogConfig",
    "LoraConfig",
    "MeshConfig",
    "OptimizerConfig",
    "StartConfig",
    "TrainConfig",
    "from_config_dict",
    "setting_names",
    "to_config_dict",
    "to_json_dict",
    "validate_on_devices",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything a run is told."""

    model: architecture.ModelConfig
    seed: int = 42
    max_steps: int = 0  # 0: all the plan holds
    start: StartConfig = dataclasses.field(default_factory=StartConfig)
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    export: ExportConfig = dataclasses.field(default_factory=ExportConfig)

    def __post_init__(self):
        require(self.max_steps >= 0, f"config.max_steps={self.max_steps} must not be negative")
        require(
            self.data.global_batch_size % self.optimizer.num_micro_batches == 0,
            f"config.data.global_batch_size={self.data.global_batch_size} must be a multiple of "
            f"config.optimizer.num_micro_batches={self.optimizer.num_micro_batches}",
        )
        require(
            not self.lora.rank or self.optimizer.name == "adamw",
            f"config.optimizer.name={self.optimizer.name!r} is for whole weights, and config.lora."
            f"rank={self.lora.rank} trains none; set --config.optimizer.name=adamw",
        )
        odd = [name for name in ("embed_dim", "mlp_dim", "head_dim")
               if getattr(self.model, name) % 2 and self.lora.base_dtype == "nf4"]  # fmt: skip
        require(
            not odd,
            f"config.model.{', '.join(odd)} must be even for config.lora.base_dtype='nf4', which "
            "stores two values in a byte; set base_dtype=int8",
        )


def validate_on_devices(config: TrainConfig, num_devices: int) -> dict[str, int]:
    """Check the settings against a number of devices.

    Returns:
        Mesh axis -> size.

    Raises:
        ValueError: naming every setting that the mesh does not divide.
    """
    sizes = config.mesh.sizes(num_devices)
    model, data = config.model, config.data
    rows = data.global_batch_size // config.optimizer.num_micro_batches
    cut = sizes["fsdp"] * sizes["context"]
    divisions = (
        ("data.global_batch_size / optimizer.num_micro_batches", rows, "data*fsdp",
         sizes["data"] * sizes["fsdp"]),
        ("data.row_length", data.row_length, "2*context" if sizes["context"] > 1 else "context",
         2 * sizes["context"] if sizes["context"] > 1 else 1),
        ("model.embed_dim", model.embed_dim, "fsdp*context", cut),
        ("model.num_heads", model.num_heads, "tensor", sizes["tensor"]),
        ("model.num_kv_heads", model.num_kv_heads, "tensor", sizes["tensor"]),
        ("model.mlp_dim", model.mlp_dim, "tensor*compute.mlp_chunks",
         sizes["tensor"] * config.compute.mlp_chunks),
        ("the padded vocabulary (model.vocab_multiple)", model.padded_vocab_size, "tensor",
         sizes["tensor"]),
        ("mesh.data", sizes["data"], "mesh.num_slices", config.mesh.num_slices),
    )  # fmt: skip
    faults = [
        f"config.{name}={value} must be a multiple of {by}={divisor}"
        for name, value, by, divisor in divisions
        if value % divisor
    ]
    require(
        not faults,
        f"on this {num_devices}-device mesh {sizes}: "
        + "; ".join(faults)
        + "; change those settings or --config.mesh",
    )
    return sizes


def setting_names(schema: type = TrainConfig) -> list[str]:
    """What may stand behind `--config.`: sections, and settings as `section.name`."""
    names = []
    for name, hint in typing.get_type_hints(schema).items():
        names.append(name)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            names += [f"{name}.{inner}" for inner in setting_names(hint)]
    return names


def to_config_dict(config: Any) -> ml_collections.ConfigDict:
    """A dataclass as a ConfigDict whose values the command line can override with type checks."""
    result = ml_collections.ConfigDict()
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = to_config_dict(value)
        elif value is None:
            value = config_dict.placeholder(_inner_type(hints[field.name]))
        result[field.name] = value
    return result


def from_config_dict(
    values: ml_collections.ConfigDict | Mapping[str, Any], schema: type = TrainConfig
) -> Any:
    """The frozen dataclass of `schema` that a ConfigDict or a JSON object holds, validated.

    Raises:
        ValueError: an unknown setting, a missing one, or one that breaks its rule.
    """
    hints = typing.get_type_hints(schema)
    unknown = sorted(set(values) - set(hints))
    require(not unknown, f"unknown settings {unknown} in {schema.__name__}; it has {sorted(hints)}")
    arguments = {name: _value_from(hints[name], values[name]) for name in values}
    try:
        return schema(**arguments)
    except TypeError as error:  # a setting without default is missing
        raise ValueError(f"{schema.__name__}: {error}") from error


def to_json_dict(config: Any) -> dict[str, Any]:
    """The dataclass as plain JSON values; `from_config_dict` is its inverse."""
    return dataclasses.asdict(config)


def _inner_type(hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        return next(option for option in typing.get_args(hint) if option is not type(None))
    return hint


def _value_from(hint: Any, value: Any) -> Any:
    hint = _inner_type(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_config_dict(value, hint)
    if typing.get_origin(hint) is tuple and value is not None:
        # `--config.data.corpus=a,b` arrives as one string.
        return tuple(part for item in value for part in str(item).split(",") if part)
    return value
