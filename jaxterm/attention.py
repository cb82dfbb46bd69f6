"""Packed causal grouped-query attention behind one function, `packed_attention`.

Legend: B batch, T query tokens, S key tokens, N query heads, K kv heads, G query heads per kv
head, H head dim.

A token sees the tokens of its own segment that are not after it. Segments are runs of equal
`segment_ids` in a row; 0 is padding, whose outputs mean nothing and reach no loss.

Under a mesh the work is cut over rows and heads, and over the length of the queries (`context`):
each shard then holds all keys and values of its rows, gathered before and reduced after by jit.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from jaxterm import blockwise_attention, sharding

Implementation = Literal["auto", "reference", "blockwise"]


def packed_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    *,
    implementation: Implementation = "auto",
    block: int = 256,
) -> Float[Array, "B T N H"]:
    """Attention of every token over its segment's past, scaled by 1/sqrt(H).

    Args:
        q: queries, after RoPE.
        k: keys, after RoPE.
        v: values.
        segment_ids: 1, 2, ... along a row; 0 is padding.
        implementation: `reference` builds the T x T mask, `blockwise` only ever holds one tile and
            does the work that the segments need; `auto` is blockwise.
        block: tokens a side of blockwise's tiles.
    """
    scaled = q * (1.0 / math.sqrt(q.shape[-1]))
    if implementation == "reference":
        attend = _reference
    else:
        attend = functools.partial(blockwise_attention.attend, block=block)
    if jax.sharding.get_abstract_mesh().empty:
        return attend(scaled, k, v, segment_ids, segment_ids, jnp.int32(0))

    def attend_shard(q, k, v, segment_ids_q, segment_ids_k):
        offset = jax.lax.axis_index("context") * q.shape[1]
        return attend(q, k, v, segment_ids_q, segment_ids_k, offset)

    rows, length, heads = (sharding.RULES[axis] for axis in ("batch", "length", "heads"))
    return jax.shard_map(
        attend_shard,
        in_specs=(
            P(rows, length, heads),
            P(rows, None, heads),
            P(rows, None, heads),
            P(rows, length),
            P(rows, None),
        ),
        out_specs=P(rows, length, heads),
        check_vma=False,  # custom_vjp and loops with data-dependent bounds lie inside
    )(scaled, k, v, segment_ids, segment_ids)


def _reference(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    segment_ids_q: Int[Array, "B T"],
    segment_ids_k: Int[Array, "B S"],
    offset: Int[Array, ""],
) -> Float[Array, "B T N H"]:
    """The definition, with the mask written out: what every other implementation is tested by."""
    num_groups = q.shape[2] // k.shape[2]
    q_BTKGH = q.reshape(*q.shape[:2], k.shape[2], num_groups, q.shape[3])
    logits = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k, preferred_element_type=jnp.float32)
    past = offset + jnp.arange(q.shape[1])[:, None] >= jnp.arange(k.shape[1])[None, :]
    same = segment_ids_q[:, :, None] == segment_ids_k[:, None, :]
    visible = (past[None] & same)[:, None, None, :, :]
    weights = jax.nn.softmax(jnp.where(visible, logits, -jnp.inf), axis=-1).astype(v.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights, v).reshape(q.shape)
