"""Packed causal grouped-query attention behind one function, `packed_attention`.

Legend: B batch, T query tokens, S key tokens, N query heads, K kv heads, G query heads per kv
head, H head dim.

A token sees the tokens of its own segment that are not after it. Segments are runs of equal
`segment_ids` in a row; 0 is padding, whose outputs mean nothing and reach no loss.

Under a mesh the work is cut over rows and heads, and over the length of the queries (`context`), in
the order of jaxterm/context_parallel.py: each shard gathers all keys and values of its rows, and
their gradients are reduced to the shards that they came from.
"""

import functools
import logging
import math
import typing
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from jaxterm import (
    blockwise_attention,
    context_parallel,
    cudnn_attention,
    gpu_attention,
    sharding,
    splash_attention,
)

# Each of them heeds segments.
Implementation = Literal[
    "auto", "reference", "blockwise", "splash", "jax_splash", "cudnn", "mosaic_gpu", "triton_gpu"
]

_log = logging.getLogger(__name__)


def packed_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    *,
    implementation: Implementation = "auto",
    block: int = 256,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Attention of every token over its segment's past, scaled by 1/sqrt(H).

    Args:
        q: queries, after RoPE.
        k: keys, after RoPE.
        v: values.
        segment_ids: 1, 2, ... along a row; 0 is padding.
        implementation: `reference` builds the T x T mask; `blockwise` only ever holds one tile and
            does the work that the segments need, in plain jax.numpy; `splash` and `jax_splash` are
            TPU kernels, `cudnn`, `mosaic_gpu` and `triton_gpu` NVIDIA ones; `auto` is the fastest
            on the devices of the mesh at hand.
        block: tokens a side of blockwise's tiles.
        interpret: run a TPU kernel in Pallas' interpreter, where there is no TPU.

    Raises:
        ValueError: the implementation is none of the above, or not for such arrays.
    """
    scaled = q * (1.0 / math.sqrt(q.shape[-1]))
    platform, device_kind = sharding.device_at_hand()
    num_shards = sharding.num_shards("length")
    implementation = choose(implementation, platform, device_kind, q.dtype, num_shards)
    if implementation in ("splash", "jax_splash"):
        return _splash(implementation, scaled, k, v, segment_ids, device_kind, interpret)
    attend = functools.partial(blockwise_attention.attend, block=block)
    if implementation == "reference":
        attend = _reference
    elif implementation == "cudnn":
        cudnn_attention.check(q.dtype, q.shape[-1], num_shards)
        attend = functools.partial(cudnn_attention.attend, kernel=cudnn_attention.CuDNN())
    elif implementation in ("mosaic_gpu", "triton_gpu"):
        pieces = context_parallel.num_pieces(q.shape[1], num_shards)
        attend = functools.partial(
            gpu_attention.attend,
            kernel=gpu_attention.make_kernel(implementation, q.dtype),
            tile=gpu_attention.tile_for(q.shape[1] // pieces),
        )
    if jax.sharding.get_abstract_mesh().empty:
        return attend(scaled, k, v, segment_ids, segment_ids, jnp.int32(0))
    return _on_shards(functools.partial(_attend_pieces, attend), scaled, k, v, segment_ids, (), ())


def _splash(
    kind: splash_attention.Kind,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    device_kind: str,
    interpret: bool,
) -> Float[Array, "B T N H"]:
    """A TPU kernel, whose tables of tiles are cut over the shards of the length."""
    length, num_shards = q.shape[1], sharding.num_shards("length")
    of_piece = length // context_parallel.num_pieces(length, num_shards)
    kernel = splash_attention.make_kernel(
        kind,
        num_heads=q.shape[2] // sharding.num_shards("heads"),
        num_keys=length,
        num_shards=num_shards,
        blocks=splash_attention.blocks_for(device_kind).fit(of_piece, length),
        interpret=interpret,
    )
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return splash_attention.attend(q, k, v, segment_ids, segment_ids, kernel)
    specs = splash_attention.partition_specs(kernel, mesh, sharding.RULES["length"])
    return _on_shards(splash_attention.attend, q, k, v, segment_ids, kernel, specs)


def choose(
    implementation: str, platform: str, device_kind: str, dtype: Any, num_shards: int = 1
) -> Implementation:
    """The implementation that `auto` stands for on these devices; any other is what it is.

    Rows are cut over `num_shards` of them.

    Raises:
        ValueError: it is unknown, as is one that lets segments see each other.
    """
    if implementation not in typing.get_args(Implementation):
        raise ValueError(
            f"config.compute.attention={implementation}: it must heed the segments of packed rows, "
            f"as {', '.join(typing.get_args(Implementation))} do"
        )
    if implementation != "auto":
        return typing.cast(Implementation, implementation)
    if platform == "tpu":
        return "splash"
    if platform == "cpu":
        return "blockwise"
    kernel = None
    if platform in ("gpu", "cuda"):
        kernel = gpu_attention.best_for(device_kind, dtype, num_shards)
    if kernel is None:
        _log.warning(
            "No attention kernel that heeds segments is known for %s (%s): config.compute.attention"
            "=auto is blockwise, in plain jax.numpy, which is slow there",
            device_kind, platform,
        )  # fmt: skip
    return kernel or "blockwise"


def _on_shards(
    attend: Callable[..., Array],
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    kernel: object,
    kernel_specs: object,
) -> Float[Array, "B T N H"]:
    """`attend` on the shards of the mesh; keys and values come to it in the row's own order."""
    num_shards = sharding.num_shards("length")

    rows, length, heads = (sharding.RULES[axis] for axis in ("batch", "length", "heads"))

    def whole(x: Array) -> Array:
        if num_shards == 1:
            return x
        gathered = jax.lax.all_gather(x, length, axis=1, tiled=True)
        return context_parallel.restore(gathered, num_shards)

    def attend_shard(q, k, v, segment_ids, kernel):
        return attend(q, whole(k), whole(v), segment_ids, whole(segment_ids), kernel)

    cut = P(rows, length, heads)
    return jax.shard_map(
        attend_shard,
        in_specs=(cut, cut, cut, P(rows, length), kernel_specs),
        out_specs=cut,
        check_vma=False,  # custom_vjp and loops with data-dependent bounds lie inside
    )(q, k, v, segment_ids, kernel)


def _attend_pieces(
    attend: Callable[..., Array],
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    ids_q: Int[Array, "B T"],
    ids_k: Int[Array, "B S"],
    kernel: object,
) -> Float[Array, "B T N H"]:
    """`attend` for the pieces of a row that this shard holds, each of which is contiguous."""
    del kernel
    num_shards = k.shape[1] // q.shape[1]
    if num_shards == 1:
        return attend(q, k, v, ids_q, ids_k, jnp.int32(0))
    num_pieces = context_parallel.num_pieces(k.shape[1], num_shards)
    length, num_held = k.shape[1] // num_pieces, num_pieces // num_shards
    held = context_parallel.pieces_of(jax.lax.axis_index("context"), num_shards, num_pieces)
    pieces = zip(
        held, jnp.split(q, num_held, axis=1), jnp.split(ids_q, num_held, axis=1), strict=True
    )
    return jnp.concatenate(
        [attend(queries, k, v, ids, ids_k, piece * length) for piece, queries, ids in pieces],
        axis=1,
    )


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
