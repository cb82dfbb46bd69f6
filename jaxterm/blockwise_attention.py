"""Attention tile by tile in plain jax.numpy: memory linear in the row, work as the segments need.

Legend: B batch, T query tokens, S key tokens, N query heads, K kv heads, G query heads per kv
head, H head dim; q, k index one tile of `block` queries or keys.

The tiles of FlashAttention-2 (arXiv 2307.08691) with loops whose bounds come from the data: a tile
of queries visits the key tiles from the start of its first query's segment to itself, and none
when it holds padding alone. The backward pass computes the weights again from the kept logarithm
of their sum. This is the implementation for CPUs; accelerators have kernels.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

_PADDED_QUERY = -1  # segment ids of what is added to fill the last tile: they meet nobody
_PADDED_KEY = -2


class _Row(NamedTuple):
    """One row of a batch, head-major, its lengths whole numbers of tiles.

    Also the gradient of one, with None for the integers.
    """

    q: Float[Array, "K G T H"]
    k: Float[Array, "K S H"]
    v: Float[Array, "K S H"]
    segment_ids_q: Any
    segment_ids_k: Any
    offset: Any


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    segment_ids_q: Int[Array, "B T"],
    segment_ids_k: Int[Array, "B S"],
    offset: Int[Array, ""],
    *,
    block: int,
) -> Float[Array, "B T N H"]:
    """Attention of scaled queries over the keys of their segment that are not after them.

    Args:
        q: queries, already scaled.
        k: keys of the whole row.
        v: values of the whole row.
        segment_ids_q: of the queries.
        segment_ids_k: of the keys; equal ids are neighbours.
        offset: where in the row the first query is.
        block: tokens a side of a tile.

    Returns:
        One vector a query and head; zeros in tiles of padding.
    """
    num_queries, num_kv_heads = q.shape[1], k.shape[2]
    block = min(block, max(q.shape[1], k.shape[1]))

    def attend_row(row):
        q, k, v, segment_ids_q, segment_ids_k = row
        grouped = q.reshape(q.shape[0], num_kv_heads, -1, q.shape[-1])
        tiled = _Row(
            q=_fill(grouped.transpose(1, 2, 0, 3), block, axis=2, value=0),
            k=_fill(k.transpose(1, 0, 2), block, axis=1, value=0),
            v=_fill(v.transpose(1, 0, 2), block, axis=1, value=0),
            segment_ids_q=_fill(segment_ids_q, block, axis=0, value=_PADDED_QUERY),
            segment_ids_k=_fill(segment_ids_k, block, axis=0, value=_PADDED_KEY),
            offset=offset,
        )
        out = _attend_tiled(block, tiled)[:, :, :num_queries]
        return out.transpose(2, 0, 1, 3).reshape(q.shape)

    # One row after another: each has loop bounds of its own.
    return jax.lax.map(attend_row, (q, k, v, segment_ids_q, segment_ids_k))


def visited_tiles(
    segment_ids: Int[Array, "T"], block: int, offset: int = 0, num_queries: int | None = None
) -> tuple[Int[Array, "tiles"], Int[Array, "tiles"]]:
    """First and one-past-last key tile that each tile of queries visits in a row.

    Two segments of four tokens and two of padding, in tiles of two:

        segment_ids  1 1 | 1 1 | 2 2 | 2 2 | 0 0
        first         0     0     2     2     0
        end           1     2     3     4     0
    """
    num_queries = segment_ids.shape[0] if num_queries is None else num_queries
    segment_ids_k = _fill(segment_ids, block, axis=0, value=_PADDED_KEY)
    queries = segment_ids[offset : offset + num_queries]
    segment_ids_q = _fill(queries, block, axis=0, value=_PADDED_QUERY)
    return _tile_bounds(segment_ids_q, segment_ids_k, jnp.int32(offset), block)


def _fill(x: Array, block: int, *, axis: int, value: int) -> Array:
    missing = -x.shape[axis] % block
    widths = [(0, missing if dim == axis else 0) for dim in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value)


def _tile_bounds(
    segment_ids_q: Int[Array, "T"],
    segment_ids_k: Int[Array, "S"],
    offset: Int[Array, ""],
    block: int,
) -> tuple[Int[Array, "tiles"], Int[Array, "tiles"]]:
    index = jnp.arange(segment_ids_k.shape[0], dtype=jnp.int32)
    begins = jnp.concatenate([jnp.ones(1, bool), segment_ids_k[1:] != segment_ids_k[:-1]])
    segment_start = jax.lax.cummax(jnp.where(begins, index, 0))
    tile = jnp.arange(segment_ids_q.shape[0] // block, dtype=jnp.int32)
    first_query = jnp.minimum(offset + tile * block, segment_ids_k.shape[0] - 1)
    last_query = jnp.minimum(offset + (tile + 1) * block, segment_ids_k.shape[0]) - 1
    needed = (segment_ids_q.reshape(-1, block) > 0).any(axis=1)
    first = jnp.where(needed, segment_start[first_query] // block, 0)
    return first, jnp.where(needed, last_query // block + 1, 0)


def _slice(x: Array, tile: Int[Array, ""], block: int, axis: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, tile * block, block, axis)


def _visible(row: _Row, i: Int[Array, ""], j: Int[Array, ""], block: int) -> Bool[Array, "q k"]:
    """Which keys of tile j each query of tile i sees."""
    position = jnp.arange(block)
    past = (row.offset + i * block + position)[:, None] >= (j * block + position)[None, :]
    segment_q = _slice(row.segment_ids_q, i, block, 0)
    segment_k = _slice(row.segment_ids_k, j, block, 0)
    return past & (segment_q[:, None] == segment_k[None, :])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_tiled(block: int, row: _Row) -> Float[Array, "K G T H"]:
    return _forward(block, row)[0]


def _forward(block: int, row: _Row):
    """Output, and what the backward pass needs: the row, the output, log of the sum of weights."""
    num_kv_heads, num_groups, _, head_dim = row.q.shape
    first, end = _tile_bounds(row.segment_ids_q, row.segment_ids_k, row.offset, block)
    tile_shape = (num_kv_heads, num_groups, block)

    def query_tile(i):
        q = _slice(row.q, i, block, 2)

        def key_tile(j, carry):
            out, total, peak = carry
            k, v = _slice(row.k, j, block, 1), _slice(row.v, j, block, 1)
            logits = _matmul("KGqH,KkH->KGqk", q, k)
            logits = jnp.where(_visible(row, i, j, block), logits, -jnp.inf)
            new_peak = jnp.maximum(peak, logits.max(axis=-1))
            # A query that has met no key of its own yet has a peak of -inf: keep exp finite.
            shift = jnp.where(new_peak == -jnp.inf, 0.0, new_peak)
            weights = jnp.exp(logits - shift[..., None])
            decay = jnp.exp(peak - shift)
            update = _matmul("KGqk,KkH->KGqH", weights, v)
            return out * decay[..., None] + update, total * decay + weights.sum(-1), new_peak

        start = (
            jnp.zeros((*tile_shape, head_dim), jnp.float32),
            jnp.zeros(tile_shape, jnp.float32),
            jnp.full(tile_shape, -jnp.inf, jnp.float32),
        )
        out, total, peak = jax.lax.fori_loop(first[i], end[i], key_tile, start)
        met = total > 0
        safe_total = jnp.where(met, total, 1.0)
        out = jnp.where(met[..., None], out / safe_total[..., None], 0.0)
        # +inf where a query saw nothing: its weights are then exp(-inf) = 0 in the backward pass.
        return out.astype(row.q.dtype), jnp.where(met, peak + jnp.log(safe_total), jnp.inf)

    out, log_total = jax.lax.map(query_tile, jnp.arange(first.shape[0]))
    # Named for the remat policies: kept, the backward pass does not repeat this one.
    out = checkpoint_name(jnp.moveaxis(out, 0, 2).reshape(row.q.shape), "attention")
    log_total = jnp.moveaxis(log_total, 0, 2).reshape(row.q.shape[:3])
    log_total = checkpoint_name(log_total, "attention")
    return out, (row, out, log_total)


def _backward(block: int, residuals, d_out: Float[Array, "K G T H"]):
    """Gradients of the row's q, k, v, in one pass over the visited tiles.

    A tile is keys by queries here, and the gradient of q is gathered as [K, H, G, q]: so none of
    the five products needs a transposed copy of a tile.
    """
    row, out, log_total = residuals
    first, end = _tile_bounds(row.segment_ids_q, row.segment_ids_k, row.offset, block)
    correction = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(-1)

    def query_tile(carry, i):
        q, d_out_i = _slice(row.q, i, block, 2), _slice(d_out, i, block, 2)
        log_total_i, correction_i = (
            _slice(x, i, block, 2)[:, None] for x in (log_total, correction)
        )

        def key_tile(j, carry):
            d_q, d_k, d_v = carry
            k, v = _slice(row.k, j, block, 1), _slice(row.v, j, block, 1)
            visible = _visible(row, i, j, block).T[None, :, None, :]
            logits = jnp.where(visible, _matmul("KkH,KGqH->KkGq", k, q), -jnp.inf)
            weights = jnp.exp(logits - log_total_i)
            d_weights = _matmul("KkH,KGqH->KkGq", v, d_out_i)
            d_logits = weights * (d_weights - correction_i)
            d_q += _matmul("KkH,KkGq->KHGq", k, d_logits)
            d_k = _add_at(d_k, j, _matmul("KkGq,KGqH->KkH", d_logits, q), block)
            d_v = _add_at(d_v, j, _matmul("KkGq,KGqH->KkH", weights, d_out_i), block)
            return d_q, d_k, d_v

        d_q = jnp.zeros((q.shape[0], q.shape[3], q.shape[1], block), jnp.float32)
        d_q, d_k, d_v = jax.lax.fori_loop(first[i], end[i], key_tile, (d_q, *carry))
        return (d_k, d_v), d_q.transpose(0, 2, 3, 1).astype(row.q.dtype)

    start = (jnp.zeros(row.k.shape, jnp.float32), jnp.zeros(row.v.shape, jnp.float32))
    (d_k, d_v), d_q = jax.lax.scan(query_tile, start, jnp.arange(first.shape[0]))
    d_q = jnp.moveaxis(d_q, 0, 2).reshape(row.q.shape)
    return (_Row(d_q, d_k.astype(row.k.dtype), d_v.astype(row.v.dtype), None, None, None),)


def _matmul(dims: str, x: Array, y: Array) -> Array:
    # CPUs have no product of bfloat16 tiles; converting them costs little beside it.
    return jnp.einsum(dims, x.astype(jnp.float32), y.astype(jnp.float32))


def _add_at(x: Float[Array, "K S H"], tile: Int[Array, ""], update: Array, block: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(
        x, _slice(x, tile, block, 1) + update, tile * block, axis=1
    )


_attend_tiled.defvjp(_forward, _backward)
