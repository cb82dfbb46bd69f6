"""Packed attention on NVIDIA GPUs: tokamax's flash kernels, told where each segment begins.

Legend: T query tokens, S key tokens, N query heads, K kv heads, H head dim; q one tile of queries.

Of every query the kernels are given the first key of its segment: the rest of the mask is causal,
so nothing of size T x S exists. Forward they skip the keys before a tile's first segment.

Backward they only mask those (tokamax 0.0.17), and Triton's kernel wants a mask of T x S. So a row
is cut into tiles of up to 2,048 tokens, and the kernels are called for the pairs of tiles in which
a segment has queries and keys: given the whole row's softmax statistics, the gradients of the pairs
add up to those of the row. Attention costs what the segments cost, and memory is linear in T.

The kernels lie under a private path of a pinned version; tests hold them to the reference.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

Kind = Literal["cudnn", "mosaic_gpu", "triton_gpu"]

_NAME = "attention"  # of what the remat policies may keep: output and softmax statistics
_TILE = 2048  # of the backward pass: on an H100 2,048 and 4,096 are equal within 2%
_SMALLEST_TILE = 128  # no block of a kernel is longer

# Device kinds, after "NVIDIA ", of compute capability 9.0 and 10.x: cuDNN's packed layout needs it,
# and tokamax has Mosaic kernels for it.
_SINCE_HOPPER = ("H100", "H200", "H800", "H20", "GH200", "B100", "B200", "B300", "GB200", "GB300")


def best_for(device_kind: str, dtype: Any, num_shards: int) -> Kind | None:
    """The kernel for a device, e.g. "NVIDIA H100 80GB HBM3"; None for what is not NVIDIA's.

    cuDNN's (jaxterm/cudnn_attention.py) is the fastest where rows are whole: on an H100 its
    backward pass takes half of the time of ours. Like Mosaic's it knows 16-bit numbers only.
    """
    brand, _, name = device_kind.partition(" ")
    if brand != "NVIDIA":
        return None
    is_16_bit = jnp.dtype(dtype).itemsize == 2
    if not (is_16_bit and name.startswith(_SINCE_HOPPER)):
        return "triton_gpu"
    return "cudnn" if num_shards == 1 else "mosaic_gpu"


def make_kernel(kind: str, dtype: Any) -> Any:
    """tokamax's attention op, whose `vjp` is the op of its gradients.

    Raises:
        ValueError: no such kernel heeds segments, or not for this dtype.
    """
    if kind == "mosaic_gpu":
        if jnp.dtype(dtype).itemsize != 2:
            raise ValueError(
                f"config.compute.attention={kind} needs config.compute.compute_dtype=bfloat16, "
                f"not {jnp.dtype(dtype).name}: leave attention=auto, or set triton_gpu"
            )
        from tokamax._src.ops.attention import pallas_mosaic_gpu

        return pallas_mosaic_gpu.PallasMosaicGpuFlashAttention()
    if kind == "triton_gpu":
        from tokamax._src.ops.attention import pallas_triton

        return pallas_triton.PallasTritonFlashAttention()
    raise ValueError(f"{kind} heeds no segments: packed rows need mosaic_gpu or triton_gpu")


def tile_for(num_queries: int) -> int:
    """Tokens a side of a backward tile: the largest power of two that divides the queries.

    Raises:
        ValueError: the length is no multiple of the kernels' blocks.
    """
    if num_queries % _SMALLEST_TILE:
        raise ValueError(
            f"GPU attention needs whole blocks of {_SMALLEST_TILE} tokens: config.data.row_length, "
            f"and each piece that config.mesh.context cuts it into, here {num_queries}, must be "
            f"a multiple of {_SMALLEST_TILE}"
        )
    tile = _SMALLEST_TILE
    while tile < _TILE and num_queries % (tile * 2) == 0:
        tile *= 2
    return tile


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    segment_ids_q: Int[Array, "B T"],
    segment_ids_k: Int[Array, "B S"],
    offset: Int[Array, ""],
    *,
    kernel: Any,
    tile: int,
) -> Float[Array, "B T N H"]:
    """Attention of scaled queries over the keys of their segment that are not after them.

    Args:
        q: queries, already scaled, contiguous in the row.
        k: keys of the whole row.
        v: values of the whole row.
        segment_ids_q: of the queries; only their number matters.
        segment_ids_k: of the keys.
        offset: where in the row the first query is, a multiple of T.
        kernel: as `make_kernel` gives it.
        tile: tokens a side of a backward tile; divides T.

    Returns:
        One vector a query and head; a padding token's is its own value.
    """
    starts = jax.vmap(segment_starts)(segment_ids_k)
    starts = jax.lax.dynamic_slice_in_dim(starts, offset, segment_ids_q.shape[1], axis=1)

    def attend_row(row):
        return _attend_row(kernel, tile, *row, offset)

    if q.shape[0] == 1:
        return attend_row(jax.tree.map(lambda x: x[0], (q, k, v, starts)))[None]
    # One row after another: the backward pass has loop bounds of its own in each.
    return jax.lax.map(attend_row, (q, k, v, starts))


def segment_starts(segment_ids: Int[Array, "S"]) -> Int[Array, "S"]:
    """Position in the row of the first token of each token's segment.

    A padding token is a segment by itself: padding costs nothing, and all weights are finite.

        segment_ids  1 1 1 2 2 0 0
        starts       0 0 0 3 3 5 6
    """
    index = jnp.arange(segment_ids.shape[0], dtype=jnp.int32)
    goes_on = (segment_ids[1:] == segment_ids[:-1]) & (segment_ids[1:] > 0)
    begins = jnp.concatenate([jnp.ones(1, bool), ~goes_on])
    return jax.lax.cummax(jnp.where(begins, index, 0))


def first_tiles(starts: Int[Array, "T"], tile: int) -> Int[Array, "tiles"]:
    """The first tile of keys that each tile of queries meets; the last is the one it lies in."""
    return starts.reshape(-1, tile).min(axis=1) // tile


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend_row(
    kernel: Any,
    tile: int,
    q: Float[Array, "T N H"],
    k: Float[Array, "S K H"],
    v: Float[Array, "S K H"],
    starts: Int[Array, "T"],
    offset: Int[Array, ""],
) -> Float[Array, "T N H"]:
    return _forward(kernel, tile, q, k, v, starts, offset)[0]


def _forward(kernel: Any, tile: int, q: Array, k: Array, v: Array, starts: Array, offset: Array):
    """Output, and what the backward pass needs: all above, and each query's softmax statistics."""
    from tokamax._src.ops.attention import base

    del tile
    if q.shape[0] == k.shape[0]:
        mask = base.Mask(k_start=starts[None], is_causal=True)
    else:  # a shard's piece of the row
        ends = offset + jnp.arange(1, q.shape[0] + 1, dtype=jnp.int32)
        mask = base.Mask(k_start=starts[None], k_end=ends[None])
    out, statistics = kernel(q, k, v, mask=mask, logits_scale=1.0, return_residuals=True)
    # Named for the remat policies: kept, the backward pass does not repeat this one.
    out, statistics = jax.tree.map(lambda x: checkpoint_name(x, _NAME), (out, statistics))
    return out, (q, k, v, starts, offset, out, statistics)


def _backward(kernel: Any, tile: int, residuals: Any, d_out: Float[Array, "T N H"]):
    """Gradients of q, k, v, pair of tiles by pair of tiles, summed in float32."""
    q, k, v, starts, offset, out, statistics = residuals
    first = first_tiles(starts, tile)

    def query_tile(carry, i):
        part = functools.partial(_slice, tile=tile)
        of_queries = (
            tuple(part(x, i, axis=1) for x in statistics),
            *(part(x, i) for x in (out, d_out, q)),
        )
        starts_q = part(starts, i)

        def add(j, carry, *, on_diagonal):
            # Before the tile on the diagonal every key is past; starts are counted from the tile.
            more_q, more_k, more_v = _pull_back(
                kernel, of_queries, part(k, j), part(v, j),
                jnp.maximum(starts_q - j * tile, 0), is_causal=on_diagonal,
            )  # fmt: skip
            d_q, d_k, d_v = carry
            return d_q + more_q, _add_at(d_k, j, more_k), _add_at(d_v, j, more_v)

        diagonal = offset // tile + i
        carry = (jnp.zeros((tile, *q.shape[1:]), jnp.float32), *carry)
        before = functools.partial(add, on_diagonal=False)
        carry = jax.lax.fori_loop(first[i], diagonal, before, carry)
        d_q, *carry = add(diagonal, carry, on_diagonal=True)
        return tuple(carry), d_q.astype(q.dtype)

    zeros = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
    (d_k, d_v), d_q = jax.lax.scan(query_tile, zeros, jnp.arange(first.shape[0], dtype=jnp.int32))
    return d_q.reshape(q.shape), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None


_attend_row.defvjp(_forward, _backward)


def _pull_back(
    kernel: Any,
    of_queries: tuple[Any, ...],
    k: Float[Array, "q K H"],
    v: Float[Array, "q K H"],
    starts: Int[Array, "q"],
    *,
    is_causal: bool,
) -> tuple[Float[Array, "q N H"], Float[Array, "q K H"], Float[Array, "q K H"]]:
    """What one tile of keys adds to the gradients of q, k, v, in float32."""
    from tokamax._src.ops.attention import base

    mask = base.Mask(k_start=starts[None], is_causal=is_causal)
    settings = kernel.bind(of_queries[-1], k, v, mask=mask, logits_scale=1.0).kwargs
    del settings["return_residuals"]
    pulled = kernel.vjp(*of_queries, k, v, **settings)
    d_q, d_k, d_v = (pulled[name].astype(jnp.float32) for name in ("q", "k", "v"))
    return d_q, d_k, d_v


def _slice(x: Array, index: Int[Array, ""], *, tile: int, axis: int = 0) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, index * tile, tile, axis)


def _add_at(x: Float[Array, "S K H"], index: Int[Array, ""], update: Array) -> Array:
    tile = update.shape[0]
    added = _slice(x, index, tile=tile) + update
    return jax.lax.dynamic_update_slice_in_dim(x, added, index * tile, axis=0)
