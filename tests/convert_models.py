"""Tiny Qwen3 folders for the tests of convert/: random, as transformers would write them."""

import dataclasses
import json
import pathlib

import numpy as np
from safetensors import numpy as safetensors_numpy

from convert import random_hf
from jaxterm import architecture

TOKENIZER = pathlib.Path(__file__).resolve().parents[1] / "data_pipeline" / "embedded" / "tokenizer"

UNTIED = architecture.ModelConfig(
    vocab_size=2570, num_layers=3, embed_dim=64, mlp_dim=96, num_heads=4, num_kv_heads=2,
    head_dim=16,
)  # fmt: skip
MODELS = {
    "untied": UNTIED,
    "tied": dataclasses.replace(UNTIED, tie_embeddings=True, num_layers=11),
    "wide_heads": dataclasses.replace(UNTIED, head_dim=40, num_kv_heads=1),
    "yarn": dataclasses.replace(
        UNTIED,
        rope_scaling=architecture.RopeScaling(kind="yarn", factor=4.0, original_max_positions=512),
    ),
    "linear": dataclasses.replace(
        UNTIED, rope_scaling=architecture.RopeScaling(kind="linear", factor=2.0)
    ),
}

# Cuts UNTIED into several shards, one of which is larger than this.
SMALL_SHARD_GB = 0.0002


def make(folder: pathlib.Path, model: architecture.ModelConfig = UNTIED, **options) -> pathlib.Path:
    """A random model folder at `folder`."""
    random_hf.make_random_hf_folder(model, TOKENIZER, folder, **options)
    return folder


def shards(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.glob("*.safetensors"))


def tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors as the safetensors library reads them."""
    result = {}
    for file in shards(folder):
        result |= safetensors_numpy.load_file(file)
    return result


def rewrite(file: pathlib.Path, changes: dict[str, np.ndarray | None]) -> None:
    """Save a safetensors file again with tensors set, or removed where None."""
    values = safetensors_numpy.load_file(file) | changes
    values = {name: value for name, value in values.items() if value is not None}
    safetensors_numpy.save_file(values, file, metadata={"format": "pt"})


def edit_json(file: pathlib.Path, **changes) -> None:
    """Set values of a JSON file; None removes one."""
    values = json.loads(file.read_text()) | changes
    values = {name: value for name, value in values.items() if value is not None}
    file.write_text(json.dumps(values, indent=2) + "\n")


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file's bytes by its name."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def leftovers(folder: pathlib.Path) -> list[str]:
    """What conversion left beside its outputs."""
    return [path.name for path in folder.iterdir() if ".convert-" in path.name]
