"""Packed attention on TPUs: tokamax's splash kernel, or jax's own, behind one signature.

Legend: T query tokens of this shard, S key tokens of the row, N query heads, K kv heads, H head
dim, C shards of the length (`context`).

tokamax's kernel visits only tiles in which a query and a key share a segment: attention costs what
the segments cost. Its backward pass sums the gradient of the queries in three buffers
(dq_reduction_steps) instead of one for each tile of keys, so its memory is linear in the row. It
lives under a private path of a pinned version; tests hold it to the reference. jax's own kernel
visits every causal tile, and takes its gradients in two passes.

A kernel holds tables of tiles that take seconds of Python at 32k: each is made once.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxterm import context_parallel

Kind = Literal["splash", "jax_splash"]

SAVED_NAME = "attention"  # of what the remat policies may keep: output and log of the weights' sum


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Tokens a side of the tiles: of queries and keys, forward and backward."""

    q: int
    kv: int
    kv_compute: int  # keys of a tile that are multiplied at a time
    q_backward: int
    kv_backward: int
    kv_compute_backward: int

    def fit(self, num_queries: int, num_keys: int) -> "Blocks":
        """Tiles no longer than the row's shard, and dividing it.

        Raises:
            ValueError: the lengths are no multiples of 128, the lanes of a TPU.
        """
        if num_queries % 128 or num_keys % 128:
            raise ValueError(
                f"TPU attention needs whole tiles of 128 tokens: config.data.row_length={num_keys} "
                f"and each of its pieces, {num_queries}, must be multiples of 128"
            )
        of_queries, of_keys = ({name: getattr(self, name) for name in names} for names in _SIDES)
        return Blocks(
            **{name: _largest_tile(num_queries, size) for name, size in of_queries.items()},
            **{name: _largest_tile(num_keys, size) for name, size in of_keys.items()},
        )


_SIDES = (("q", "q_backward"), ("kv", "kv_compute", "kv_backward", "kv_compute_backward"))


def _largest_tile(length: int, at_most: int) -> int:
    """The largest power of two times 128 that divides the length and is no more than told."""
    tile = 128
    while tile * 2 <= at_most and length % (tile * 2) == 0:
        tile *= 2
    return tile


# Tiles by the beginning of a device's kind. Large tiles keep the matrix units busy, small ones
# follow the segments; these are the largest whose backward pass fits the kernels' share of VMEM.
BLOCKS: Mapping[str, Blocks] = {
    "TPU v5 lite": Blocks(1024, 1024, 512, 1024, 1024, 512),
    "TPU v5": Blocks(1024, 1024, 512, 1024, 1024, 512),
    "TPU v6": Blocks(1024, 1024, 512, 1024, 1024, 512),
    "TPU7x": Blocks(1024, 1024, 512, 1024, 1024, 512),
}
_OTHER_BLOCKS = Blocks(512, 512, 512, 512, 512, 512)


def blocks_for(device_kind: str) -> Blocks:
    """The tiles for a device, e.g. "TPU v6 lite"."""
    kinds = [kind for kind in BLOCKS if device_kind.startswith(kind)]
    return BLOCKS[max(kinds, key=len)] if kinds else _OTHER_BLOCKS


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    segment_ids_q: Int[Array, "B T"],
    segment_ids_k: Int[Array, "B S"],
    kernel: Any,
) -> Float[Array, "B T N H"]:
    """Attention of scaled queries over the keys of their segment that are not after them.

    Args:
        q: queries of this shard, already scaled, in the order of jaxterm/context_parallel.py.
        k: keys of the whole row, in the row's own order.
        v: values of the whole row.
        segment_ids_q: of the queries.
        segment_ids_k: of the keys.
        kernel: this shard's part of what `make_kernel` gives.
    """

    def attend_row(row):
        q, k, v, ids_q, ids_k = row
        heads_first = (x.transpose(1, 0, 2) for x in (q, k, v))
        return _attend_row(*heads_first, ids_q, ids_k, kernel).transpose(1, 0, 2)

    rows = (q, k, v, *padding_last(segment_ids_q, segment_ids_k))
    if q.shape[0] == 1:
        return attend_row(jax.tree.map(lambda x: x[0], rows))[None]
    # One row after another: each visits the tiles of its own segments.
    return jax.lax.map(attend_row, rows)


def padding_last(
    segment_ids_q: Int[Array, "B T"], segment_ids_k: Int[Array, "B S"]
) -> tuple[Int[Array, "B T"], Int[Array, "B S"]]:
    """Ids in which padding has the highest, so that ids never fall along a row.

    A tile is visited where the ranges of ids of its queries and keys meet: with 0 for padding the
    tile in which padding begins would meet every key.
    """
    last = segment_ids_k.max(axis=1, keepdims=True) + 1

    def renamed(ids: Array) -> Array:
        return jnp.where(ids > 0, ids, last)

    return renamed(segment_ids_q), renamed(segment_ids_k)


@jax.custom_vjp
def _attend_row(
    q: Float[Array, "N T H"],
    k: Float[Array, "K S H"],
    v: Float[Array, "K S H"],
    ids_q: Int[Array, "T"],
    ids_k: Int[Array, "S"],
    kernel: Any,
) -> Float[Array, "N T H"]:
    return kernel(q, k, v, _segment_ids_type(kernel)(q=ids_q, kv=ids_k))


def _forward(q: Array, k: Array, v: Array, ids_q: Array, ids_k: Array, kernel: Any):
    """The kernels write the log of the weights' sum 128 times, a lane each, 671 MB in a 14B block.

    The barrier has one of them taken before the output is used, so that the others do not wait
    for the backward pass.
    """
    ids = _segment_ids_type(kernel)(q=ids_q, kv=ids_k)
    out, backward = jax.vjp(lambda q, k, v: kernel(q, k, v, ids), q, k, v)
    return jax.lax.optimization_barrier((out, backward))


def _backward(backward: Callable[[Array], tuple[Array, ...]], d_out: Array):
    return *backward(d_out), None, None, None


_attend_row.defvjp(_forward, _backward)


def _segment_ids_type(kernel: Any) -> Any:
    if _is_tokamax(kernel):
        from tokamax._src.ops.experimental.tpu.splash_attention import base

        return base.SegmentIds
    from jax.experimental.pallas.ops.tpu import splash_attention

    return splash_attention.SegmentIds


@functools.lru_cache(maxsize=8)
def make_kernel(
    kind: Kind,
    *,
    num_heads: int,
    num_keys: int,
    num_shards: int,
    blocks: Blocks,
    interpret: bool = False,
) -> Any:
    """The kernel for rows of `num_keys` tokens cut into `num_shards`; its tables are numpy arrays.

    It is a pytree whose leaves are cut over the shards of the length: `partition_specs` says how.

    Args:
        kind: `splash` for tokamax's, `jax_splash` for jax's own.
        num_heads: query heads of a shard.
        num_keys: tokens of a row.
        num_shards: of the length.
        blocks: tiles, as `Blocks.fit` leaves them.
        interpret: run by Pallas' interpreter, where there is no TPU.
    """
    order = context_parallel.token_order(num_keys, num_shards)
    make = _make_tokamax if kind == "splash" else _make_jax
    # In a thread of its own, which knows nothing of the trace around this call nor of its mesh,
    # whose devices may not be there: the tables are computed now, on a device that is.
    with futures.ThreadPoolExecutor(max_workers=1) as thread:
        made = thread.submit(make, order, num_heads, num_shards, blocks, interpret)
        return jax.tree.map(np.asarray, made.result())


def partition_specs(kernel: Any, mesh: Any, axis: str | tuple[str, ...]) -> Any:
    """How shard_map cuts the kernel's leaves over a mesh axis."""
    dims = (axis,) if _is_tokamax(kernel) else (None, axis)  # jax's tables have a dim of heads
    return kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(*dims)))


def _is_tokamax(kernel: Any) -> bool:
    return type(kernel).__module__.startswith("tokamax")


def _kernel_names(blocks: Blocks) -> dict[str, Any]:
    """The tiles by the names that both kernels have for them."""
    return {
        "block_q": blocks.q,
        "block_kv": blocks.kv,
        "block_kv_compute": blocks.kv_compute,
        "block_q_dkv": blocks.q_backward,
        "block_kv_dkv": blocks.kv_backward,
        "block_kv_dkv_compute": blocks.kv_compute_backward,
    }


def _make_tokamax(
    order: np.ndarray, num_heads: int, num_shards: int, blocks: Blocks, interpret: bool
) -> Any:
    from tokamax._src.ops.experimental.tpu.splash_attention import (
        splash_attention_kernel as splash,
    )
    from tokamax._src.ops.experimental.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    del num_heads  # the kernel takes as many as come
    mask = masks.CausalMask((len(order), len(order)), shard_count=num_shards)
    mask.q_sequence = order
    return splash.make_splash_mha(
        mask,
        config=splash.SplashConfig(
            **_kernel_names(blocks),
            dq_reduction_steps=3,
            residual_checkpoint_name=SAVED_NAME,
            interpret=interpret,
        ),
        q_seq_shards=num_shards,
    )


def _make_jax(
    order: np.ndarray, num_heads: int, num_shards: int, blocks: Blocks, interpret: bool
) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    mask = splash.CausalMask((len(order), len(order)), shard_count=num_shards)
    mask.q_sequence = order
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * num_heads),
        block_sizes=splash.BlockSizes(
            **_kernel_names(blocks),
            block_q_dq=blocks.q_backward,
            block_kv_dq=blocks.kv_backward,
        ),
        head_shards=1,
        q_seq_shards=num_shards,
        residual_checkpoint_name=SAVED_NAME,
        interpret=interpret,
    )
