"""Frozen weights stored in 8 or 4 bits (QLoRA, arXiv 2305.14314).

A weight is cut along its last dim into tiles that share a scale: whole rows as int8, or tiles of 64
values as NF4, whose 16 values are quantiles of a normal distribution. A stored weight is {"codes":
..., "scale": ...}: int8 values, or NF4 codes two in a byte (uint8); and float32 scales.

The codes are made by qwix. They are read here: its look-up of NF4 flattens an array, which would
gather one that is cut over devices, and Orbax stores no type of 4 bits.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from flax import struct
from jaxtyping import Array

_NF4_TILE = 64

# The 16 values, in float32 (arXiv 2305.14314, appendix E).
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@struct.dataclass
class Quantized:
    """A weight in few bits, as a parameter of the model holds it."""

    codes: Any
    scale: Any


def describe(shape: tuple[int, ...], base_dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of what a stacked weight of this shape is stored as."""
    size, tile = shape[-1], _tile(shape[-1], base_dtype)
    is_nf4 = base_dtype == "nf4"
    codes = (*shape[:-1], size // 2 if is_nf4 else size)
    return {
        "codes": jax.ShapeDtypeStruct(codes, jnp.uint8 if is_nf4 else jnp.int8),
        "scale": jax.ShapeDtypeStruct((*shape[:-1], size // tile), jnp.float32),
    }


def quantize(weight: Array, base_dtype: str) -> dict[str, Array]:
    """A stacked weight in 8 bits (`int8`) or 4 (`nf4`), a layer at a time to save memory."""
    qtype = jnp.int8 if base_dtype == "int8" else base_dtype
    tile = _tile(weight.shape[-1], base_dtype)

    def of_layer(layer: Array) -> dict[str, Array]:
        last = layer.ndim - 1
        made = qwix.quantize(
            layer.astype(jnp.float32), qtype,
            channelwise_axes=tuple(range(last)), tiled_axes={last: tile},
        )  # fmt: skip
        codes = made.qvalue
        if base_dtype == "nf4":
            pairs = codes.astype(jnp.uint8).reshape(*codes.shape[:-1], -1, 2)
            codes = pairs[..., 0] | (pairs[..., 1] << 4)
        return {"codes": codes, "scale": made.scale}

    return jax.lax.map(of_layer, weight)


def dequantize(stored: Quantized) -> Array:
    """The weight in float32."""
    values, scale = stored.codes, stored.scale
    if values.dtype == jnp.uint8:
        codes = jnp.stack([values & 15, values >> 4], -1).reshape(*values.shape[:-1], -1)
        # Selects, not a look-up: that is slow on a TPU for single values.
        values = functools.reduce(
            lambda found, code: jnp.where(codes == code, jnp.float32(_NF4[code]), found),
            range(len(_NF4)),
            jnp.zeros(codes.shape, jnp.float32),
        )
    tiles = values.astype(jnp.float32).reshape(*scale.shape, -1)
    return (tiles * scale[..., None]).reshape(values.shape)


def dequantize_region(
    codes: np.ndarray, scale: np.ndarray, *, first: int, size: int, tile: int
) -> np.ndarray:
    """`dequantize` in numpy, of some columns, bit for bit the same.

    Args:
        codes: of all bytes that hold one of the columns.
        scale: of all tiles that hold one.
        first: the first column, in the whole weight.
        size: number of columns.
        tile: columns that share a scale.
    """
    values: np.ndarray = codes
    if codes.dtype == np.uint8:
        pairs = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], -1)
        values = np.asarray(_NF4, np.float32)[pairs[..., first % 2 : first % 2 + size]]
    scales = np.repeat(scale, tile, axis=-1)[..., first % tile : first % tile + size]
    return values.astype(np.float32) * scales


def as_array(weight: Array | Quantized, dtype: Any) -> Array:
    """A parameter's value as an array of `dtype`, whichever way it is stored."""
    return (dequantize(weight) if isinstance(weight, Quantized) else weight).astype(dtype)


def _tile(size: int, base_dtype: str) -> int:
    """Values of the last dim that share a scale; a divisor of its size."""
    return math.gcd(size, _NF4_TILE) if base_dtype == "nf4" else size
