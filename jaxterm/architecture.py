"""The architecture of a Qwen3 dense decoder: its numbers, the published sizes, `config.json`.

Reading and writing Hugging Face's `config.json` lives here, so that one file knows its names.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary positions are stretched beyond the trained context (`rope_parameters` in HF).

    `linear` divides every frequency by `factor`; `yarn` (arXiv 2309.00071) interpolates the low
    frequencies only and scales the attention logits by `attention_factor` squared.
    """

    kind: Literal["none", "linear", "yarn"] = "none"
    factor: float = 1.0
    original_max_positions: int = 0  # yarn: the context the base model was trained with
    beta_fast: float = 32.0  # yarn: full rotations in the context from which nothing is stretched
    beta_slow: float = 1.0  # yarn: ... and below which everything is
    attention_factor: float | None = None  # yarn: None means 0.1 ln(factor) + 1

    def __post_init__(self):
        _require(
            self.kind in ("none", "linear", "yarn"),
            f"config.model.rope_scaling.kind={self.kind!r} must be 'none', 'linear' or 'yarn'",
        )
        _require(
            self.factor >= 1.0,
            f"config.model.rope_scaling.factor={self.factor} must be >= 1",
        )
        _require(
            self.kind != "yarn" or self.original_max_positions > 0,
            "config.model.rope_scaling.kind='yarn' needs original_max_positions > 0; "
            "set --config.model.rope_scaling.original_max_positions (32768 for Qwen3)",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Qwen3 dense decoder, as its Hugging Face `config.json` describes it."""

    vocab_size: int
    num_layers: int
    embed_dim: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int = 128
    tie_embeddings: bool = False
    rope_theta: float = 1_000_000.0
    rope_scaling: RopeScaling = dataclasses.field(default_factory=RopeScaling)
    norm_epsilon: float = 1e-6
    max_positions: int = 40_960
    vocab_multiple: int = 1  # the embedding is padded to a multiple of this; export undoes it

    def __post_init__(self):
        for name in ("vocab_size", "num_layers", "embed_dim", "mlp_dim", "num_heads",
                     "num_kv_heads", "head_dim", "max_positions", "vocab_multiple"):  # fmt: skip
            value = getattr(self, name)
            _require(value > 0, f"config.model.{name}={value} must be positive")
        _require(
            self.num_heads % self.num_kv_heads == 0,
            f"config.model.num_heads={self.num_heads} must be a multiple of "
            f"num_kv_heads={self.num_kv_heads}: each key head serves a whole group of query heads",
        )
        _require(
            self.head_dim % 2 == 0,
            f"config.model.head_dim={self.head_dim} must be even: rotary positions turn its halves",
        )

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding in memory: `vocab_size` rounded up to `vocab_multiple`."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def num_params(self) -> int:
        """Parameters of the published model, padding rows not counted."""
        attention = self.embed_dim * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        norms = 2 * self.embed_dim + 2 * self.head_dim
        block = attention + 3 * self.embed_dim * self.mlp_dim + norms
        heads = 1 if self.tie_embeddings else 2
        return heads * self.vocab_size * self.embed_dim + self.num_layers * block + self.embed_dim


def _qwen3(layers: int, embed: int, mlp: int, heads: int, *, tied: bool) -> ModelConfig:
    return ModelConfig(vocab_size=151_936, num_layers=layers, embed_dim=embed, mlp_dim=mlp,
                       num_heads=heads, num_kv_heads=8, tie_embeddings=tied)  # fmt: skip


# The published dense sizes (Qwen/Qwen3-*'s config.json, all with head_dim 128).
QWEN3: dict[str, ModelConfig] = {
    "0.6b": _qwen3(28, 1024, 3072, 16, tied=True),
    "1.7b": _qwen3(28, 2048, 6144, 16, tied=True),
    "4b": _qwen3(36, 2560, 9728, 32, tied=True),
    "8b": _qwen3(36, 4096, 12_288, 32, tied=False),
    "14b": _qwen3(40, 5120, 17_408, 40, tied=False),
    "32b": _qwen3(64, 5120, 25_600, 64, tied=False),
}

# config.json's name of each field that is written there as it is.
_HF_NAMES = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "embed_dim": "hidden_size",
    "mlp_dim": "intermediate_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "tie_embeddings": "tie_word_embeddings",
    "norm_epsilon": "rms_norm_eps",
    "max_positions": "max_position_embeddings",
}

# What a value of config.json must be, in words -> whether it is.
_RULES: dict[str, Callable[[Any], bool]] = {
    "a positive integer": lambda x: type(x) is int and x > 0,
    "a positive number": lambda x: type(x) in (int, float) and 0 < x < 1e300,  # NaN is not
    "a number of at least 1": lambda x: type(x) in (int, float) and 1 <= x < 1e300,
    "true or false": lambda x: type(x) is bool,
}
_REQUIRED = {
    **dict.fromkeys(_HF_NAMES.values(), "a positive integer"),
    "tie_word_embeddings": "true or false",
    "rms_norm_eps": "a positive number",
    "rope_theta": "a positive number",
}
_OPTIONAL = {"head_dim": "a positive integer"}
_ROPE_REQUIRED = {
    "default": {},
    "linear": {"factor": "a number of at least 1"},
    "yarn": {"factor": "a number of at least 1"},
}
_YARN_OPTIONAL = {
    "original_max_position_embeddings": "a positive integer",
    "beta_fast": "a positive number",
    "beta_slow": "a positive number",
    "attention_factor": "a positive number",
}


def from_hf_folder(folder: str | pathlib.Path) -> ModelConfig:
    """The architecture that `folder`/config.json describes.

    Raises:
        ValueError: no such file, not JSON, not a Qwen3 dense model, or a feature that is not built.
    """
    path = pathlib.Path(folder) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} is missing: {folder} is not a Hugging Face model folder; "
            "give the folder that holds config.json and the safetensors"
        ) from error
    except ValueError as error:  # UnicodeDecodeError is one as well
        raise ValueError(f"{path} is not JSON ({error}); copy or download it again") from error
    _require(
        isinstance(values, dict),
        f"{path} holds a {type(values).__name__} where a config.json has an object; "
        "copy or download it again",
    )
    return from_hf_json(values, str(path))


def from_hf_json(values: Mapping[str, Any], name: str) -> ModelConfig:
    """The architecture in the values of a `config.json`; `name` stands for it in errors.

    Raises:
        ValueError: naming every value that is missing, malformed or not built.
    """
    key, rope = _rope_values(values)
    if isinstance(rope, Mapping) and "rope_theta" in rope:
        values = {**values, "rope_theta": rope["rope_theta"]}
    faults = _unsupported(values) + _faults(values, _REQUIRED, _OPTIONAL) + _rope_faults(key, rope)
    _require(not faults, f"{name} is not a Qwen3 dense model: {'; '.join(faults)}")
    fields = {field: values[hf] for field, hf in _HF_NAMES.items()}
    try:
        return ModelConfig(
            **fields,
            head_dim=values.get("head_dim") or fields["embed_dim"] // fields["num_heads"],
            rope_theta=float(values["rope_theta"]),
            rope_scaling=_scaling_from_hf(rope, fields["max_positions"]),
        )
    except ValueError as error:  # values that do not fit each other
        raise ValueError(f"{name}: {_in_hf_names(str(error))}") from error


def to_hf_json(model: ModelConfig) -> dict[str, Any]:
    """The values of `model` under config.json's names, RoPE in transformers 5's form.

    Whatever else a config.json holds (architectures, token ids, ...) is not the architecture's:
    export takes it from the reference folder.
    """
    values = {hf: getattr(model, field) for field, hf in _HF_NAMES.items()}
    values |= {"head_dim": model.head_dim, "rope_parameters": _rope_to_hf(model)}
    values |= {"model_type": "qwen3", "hidden_act": "silu", "attention_bias": False}
    return values


def _unsupported(values: Mapping[str, Any]) -> list[str]:
    expected = {"model_type": "qwen3", "hidden_act": "silu", "attention_bias": False,
                "use_sliding_window": False, "attention_dropout": 0.0}  # fmt: skip
    faults = [
        f"{key}={values[key]!r} is not supported, only {wanted!r}"
        for key, wanted in expected.items()
        if values.get(key, wanted) != wanted
    ]
    return faults + ([] if "model_type" in values else ["model_type is missing"])


def _faults(
    values: Mapping[str, Any],
    required: Mapping[str, str],
    optional: Mapping[str, str],
    prefix: str = "",
) -> list[str]:
    """What is missing or breaks its rule; an optional value may be null."""
    faults = [f"{prefix}{key} is missing" for key in sorted(required.keys() - values.keys())]
    rules = {key: rule for key, rule in required.items() if key in values}
    rules |= {key: rule for key, rule in optional.items() if values.get(key) is not None}
    return faults + [
        f"{prefix}{key}={values[key]!r} must be {rule}"
        for key, rule in rules.items()
        if not _RULES[rule](values[key])
    ]


def _rope_values(values: Mapping[str, Any]) -> tuple[str, Any]:
    """RoPE's key and values: transformers 5's, or the hub's files' older `rope_scaling`."""
    key = "rope_scaling" if values.get("rope_parameters") in (None, {}) else "rope_parameters"
    found = values.get(key)
    return key, {} if found is None else found


def _rope_kind(rope: Mapping[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type", "default"))


def _rope_faults(key: str, rope: Any) -> list[str]:
    if not isinstance(rope, Mapping):
        return [f"{key}={rope!r} must be an object or null"]
    kind = _rope_kind(rope)
    if kind not in list(_ROPE_REQUIRED):  # a list: it may be of any type
        return [f"{key}.rope_type={kind!r} is not supported, only 'default', 'linear' and 'yarn'"]
    is_yarn = kind == "yarn"
    faults = _faults(rope, _ROPE_REQUIRED[kind], _YARN_OPTIONAL if is_yarn else {}, f"{key}.")
    unsupported = sorted({"mscale", "mscale_all_dim", "truncate"} & set(rope))
    if is_yarn and unsupported:
        faults.append(f"{key}: YaRN's {unsupported} are not supported; Qwen3 has none")
    return faults


def _in_hf_names(message: str) -> str:
    """An error of ModelConfig in the words of config.json."""
    for field, hf in _HF_NAMES.items():
        message = re.sub(rf"\b(config\.model\.)?{field}=", f"{hf}=", message)
    return message.replace("config.model.head_dim=", "head_dim=")


def _scaling_from_hf(rope: Mapping[str, Any], max_positions: int) -> RopeScaling:
    kind = _rope_kind(rope)
    if kind == "default":
        return RopeScaling()
    if kind == "linear":
        return RopeScaling(kind="linear", factor=float(rope["factor"]))
    return RopeScaling(
        kind="yarn",
        factor=float(rope["factor"]),
        original_max_positions=rope.get("original_max_position_embeddings") or max_positions,
        beta_fast=float(rope.get("beta_fast") or 32.0),
        beta_slow=float(rope.get("beta_slow") or 1.0),
        attention_factor=rope.get("attention_factor"),
    )


def _rope_to_hf(model: ModelConfig) -> dict[str, Any]:
    scaling = model.rope_scaling
    values: dict[str, Any] = {"rope_theta": model.rope_theta, "rope_type": "default"}
    if scaling.kind == "none":
        return values
    values |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "yarn":
        values |= {
            "original_max_position_embeddings": scaling.original_max_positions,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
        }
        if scaling.attention_factor is not None:
            values["attention_factor"] = scaling.attention_factor
    return values
