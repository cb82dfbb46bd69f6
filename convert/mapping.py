"""Which Hugging Face tensor is which parameter: one table, its inverse derived.

A parameter (`Leaf`) is a stacked array of jaxterm/model.py; a tensor is what a safetensors file
holds. Every tensor keeps its layout, [out, in]: a leaf is its tensors stacked along a leading dim
`layers` (or a single tensor), with the heads as a dim of their own. So conversion is reshape and
stack, never a transpose, and a region of a leaf is a region of some tensors.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from flax import traverse_util

from jaxterm import architecture, config, model

# (start, stop) in every dim of an array.
Region = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class _Row:
    tensor: str  # the tensor's name; {layer} where the leaf is stacked
    num_out_dims: int = 1  # the leading dims of the leaf (layers apart) that are the tensor's first


# Leaf -> tensor, in the order in which transformers saves the tensors.
TABLE = {
    "embedding": _Row("model.embed_tokens.weight"),
    "layers.attention.q": _Row("model.layers.{layer}.self_attn.q_proj.weight", 2),
    "layers.attention.k": _Row("model.layers.{layer}.self_attn.k_proj.weight", 2),
    "layers.attention.v": _Row("model.layers.{layer}.self_attn.v_proj.weight", 2),
    "layers.attention.o": _Row("model.layers.{layer}.self_attn.o_proj.weight"),
    "layers.attention.q_norm.scale": _Row("model.layers.{layer}.self_attn.q_norm.weight"),
    "layers.attention.k_norm.scale": _Row("model.layers.{layer}.self_attn.k_norm.weight"),
    "layers.mlp.gate": _Row("model.layers.{layer}.mlp.gate_proj.weight"),
    "layers.mlp.up": _Row("model.layers.{layer}.mlp.up_proj.weight"),
    "layers.mlp.down": _Row("model.layers.{layer}.mlp.down_proj.weight"),
    "layers.attention_norm.scale": _Row("model.layers.{layer}.input_layernorm.weight"),
    "layers.mlp_norm.scale": _Row("model.layers.{layer}.post_attention_layernorm.weight"),
    "final_norm.scale": _Row("model.norm.weight"),
    "output": _Row("lm_head.weight"),
}

# In a tied model the embedding is the head; published folders hold it a second time or not.
TIED_HEAD = TABLE["output"].tensor
EMBEDDING = "embedding"


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter and the tensors it is made of."""

    name: str  # dotted path in the parameter tree, which is Orbax's name of it
    shape: tuple[int, ...]  # without the vocabulary's padding rows
    padded_shape: tuple[int, ...]  # as a checkpoint stores it
    tensor_names: tuple[str, ...]  # one a layer, or a single one
    tensor_shape: tuple[int, ...]
    is_stacked: bool

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """The shape of one tensor seen as the leaf sees it, the heads a dim of their own."""
        return self.shape[1:] if self.is_stacked else self.shape

    def pieces(self, region: Region) -> Iterator[tuple[str, Any, Region]]:
        """Cut a region of the leaf into regions of its tensors.

        Yields:
            The tensor's name, the index of its part in an array that holds the region, and the
            part's region in `layer_shape`.
        """
        if not self.is_stacked:
            yield self.tensor_names[0], ..., region
            return
        start, stop = region[0]
        for layer in range(start, stop):
            yield self.tensor_names[layer], layer - start, region[1:]


def leaves(of_model: architecture.ModelConfig) -> dict[str, Leaf]:
    """Every parameter of the model by its name."""
    return dict(_leaves(of_model))


def tensors(of_model: architecture.ModelConfig) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, in the order in which transformers saves them."""
    result: dict[str, tuple[int, ...]] = {}
    for is_stacked, group in itertools.groupby(
        leaves(of_model).values(), lambda leaf: leaf.is_stacked
    ):
        members = list(group)
        layers = range(of_model.num_layers if is_stacked else 1)
        result |= {leaf.tensor_names[i]: leaf.tensor_shape for i in layers for leaf in members}
    return result


def to_tree(by_name: dict[str, Any]) -> model.Params:
    """Values by leaf name as the nested dict that the model and Orbax know."""
    return traverse_util.unflatten_dict(by_name, sep=".")


def grid(shape: tuple[int, ...], chunk: tuple[int, ...]) -> Iterator[Region]:
    """The regions of at most `chunk` that tile an array of `shape`, in memory's order."""
    cuts = [
        [(start, min(start + step, size)) for start in range(0, size, step)]
        for size, step in zip(shape, chunk, strict=True)
    ]
    yield from itertools.product(*cuts)


def chunk_shape(shape: tuple[int, ...], dtype: np.dtype, max_bytes: int) -> tuple[int, ...]:
    """The largest chunk of at most `max_bytes` that is contiguous in memory, evenly cut.

    Example:
        >>> chunk_shape((28, 3072, 1024), np.dtype("float32"), 64 * 2**20)
        (5, 3072, 1024)
    """
    chunk = list(shape)
    for dim, size in enumerate(shape):
        excess = math.prod(chunk) * dtype.itemsize / max_bytes
        if excess <= 1:
            break
        num_cuts = min(size, math.ceil(excess))
        chunk[dim] = math.ceil(size / num_cuts)
    return tuple(chunk)


def region_shape(
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    dtype: np.dtype,
    *,
    run_bytes: int,
    max_bytes: int,
) -> tuple[int, ...]:
    """Chunks put together, from the last dim on, until they lie in runs of `run_bytes` in memory.

    The region has no more than `max_bytes`, unless a single chunk has.

    Example: one layer of a Qwen3-14B that 32 devices have cut along its rows, in whole rows.
        >>> region_shape((40, 17408, 5120), (1, 17408, 160), np.dtype("float16"),
        ...              run_bytes=2**24, max_bytes=2**28)
        (1, 17408, 5120)
    """
    region = [min(part, size) for part, size in zip(chunk, shape, strict=True)]
    for dim in reversed(range(len(shape))):
        run_of_one = math.prod(region[dim + 1 :]) * dtype.itemsize
        all_of_one = run_of_one * math.prod(region[:dim])
        wanted = min(run_bytes // run_of_one, max_bytes // all_of_one)
        region[dim] = min(shape[dim], max(region[dim], wanted // region[dim] * region[dim]))
        if region[dim] < shape[dim]:
            break  # what lies before this dim is in another run
    return tuple(region)


def parts(region: Region, chunk: tuple[int, ...]) -> Iterator[tuple[tuple[slice, ...], Region]]:
    """Cut a region: each part's index in an array that holds the region, and the part itself."""
    for part in grid(extent(region), chunk):
        starts = [first for first, _ in region]
        moved = tuple((at + a, at + b) for at, (a, b) in zip(starts, part, strict=True))
        yield slices(part), moved


def slices(region: Region) -> tuple[slice, ...]:
    """The region as numpy and tensorstore index it."""
    return tuple(slice(start, stop) for start, stop in region)


def extent(region: Region) -> tuple[int, ...]:
    """The shape of the region."""
    return tuple(stop - start for start, stop in region)


@functools.cache
def _leaves(of_model: architecture.ModelConfig) -> tuple[tuple[str, Leaf], ...]:
    abstract = model.abstract_params(of_model, config.ComputeConfig())
    shapes: dict[str, Any] = dict(traverse_util.flatten_dict(abstract, sep="."))
    assert shapes.keys() <= TABLE.keys(), shapes.keys() - TABLE.keys()
    return tuple(
        (name, _leaf(name, row, tuple(shapes[name].shape), of_model))
        for name, row in TABLE.items()
        if name in shapes
    )


def _leaf(
    name: str, row: _Row, padded: tuple[int, ...], of_model: architecture.ModelConfig
) -> Leaf:
    is_stacked = "{layer}" in row.tensor
    has_vocabulary = name in (EMBEDDING, "output")
    shape = (of_model.vocab_size, *padded[1:]) if has_vocabulary else padded
    layer_shape = shape[1:] if is_stacked else shape
    out, rest = layer_shape[: row.num_out_dims], layer_shape[row.num_out_dims :]
    return Leaf(
        name=name,
        shape=shape,
        padded_shape=padded,
        tensor_names=tuple(
            row.tensor.format(layer=layer)
            for layer in range(of_model.num_layers if is_stacked else 1)
        ),
        tensor_shape=(math.prod(out), *([math.prod(rest)] if rest else [])),
        is_stacked=is_stacked,
    )
