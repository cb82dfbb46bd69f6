"""Packed attention on NVIDIA GPUs since Hopper: cuDNN's kernels, told where each segment lies.

Legend: T tokens of all rows laid end to end, N query heads, K kv heads, H head dim, M segments a
call.

A call of cuDNN takes the places of M segments and attends causally within each of them; the rest
of the row is neither read nor written. Rows with more segments take more calls. So attention costs
what the segments cost, in one kernel forward and one backward, and nothing of size T x T exists.

cuDNN gives the log of each query's sum of weights as [M, N, T], mostly void; kept for the backward
pass is [N, T]. Its backward pass adds up the gradients of queries in no fixed order: their last
bits change from run to run, as those of the embedding's gradient do on any GPU, unless XLA is told
to leave such kernels out: --xla_gpu_exclude_nondeterministic_ops=true (openxla/xla#14125).

The functions that call it lie under a private path of a pinned jax.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

_NAME = "attention"  # of what the remat policies may keep: output and log-sums
_SCRATCH_BYTES = 2**31  # of a backward call, as jaxterm lets it have


class Segments(NamedTuple):
    """Where the segments of the rows lie; slots of first and last that are left over hold -1."""

    number: Int[Array, "T"]  # of each token's segment, from 0 over all rows; -1: padding
    first: Int[Array, "slots"]  # token of each segment
    last: Int[Array, "slots"]
    total: Int[Array, ""]


class Places(NamedTuple):
    """What one call is told: -1 where there is no segment."""

    first: Int[Array, "M"]
    lengths: Int[Array, "M"]


@runtime_checkable
class Kernel(Protocol):
    """Causal attention within each of M places of q, k and v; what is elsewhere is undefined."""

    def forward(self, q: Array, k: Array, v: Array, places: Places, /) -> tuple[Array, Array]:
        """The output [T, N, H], and log-sums [M, N, T] counted from each place's first token."""
        ...

    def backward(
        self, q: Array, k: Array, v: Array, places: Places,
        log_sums: Array, out: Array, d_out: Array, /,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """The gradients of q, k and v."""
        ...


class CuDNN:
    """The kernel itself."""

    def forward(self, q: Array, k: Array, v: Array, places: Places) -> tuple[Array, Array]:
        """See Kernel."""
        from jax._src.cudnn import fused_attention_stablehlo as cudnn

        out, log_sums = cudnn._dot_product_attention_fwd_impl(
            **_settings(q, k, v, places), is_training=True
        )
        return out[0], log_sums

    def backward(
        self, q: Array, k: Array, v: Array, places: Places,
        log_sums: Array, out: Array, d_out: Array,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """See Kernel."""
        from jax._src.cudnn import fused_attention_stablehlo as cudnn

        d_q, d_k, d_v = cudnn._dot_product_attention_bwd_impl(
            **_settings(q, k, v, places),
            activation=log_sums, fwd_output=out[None], grad_output=d_out[None],
        )  # fmt: skip
        return d_q[0], d_k[0], d_v[0]


def _settings(q: Array, k: Array, v: Array, places: Places) -> dict[str, Any]:
    """What both of jax's functions take: one row, its segments, no more than a causal mask."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    lengths, offsets = places.lengths[None], jnp.append(places.first, -1)[None]
    unused = jnp.zeros(0, q.dtype)
    return {
        "query": q[None], "key": k[None], "value": v[None],
        "q_seqlen": lengths, "kv_seqlen": lengths, "q_offsets": offsets, "kv_offsets": offsets,
        "mask_type": cudnn.MaskType.PADDING_CAUSAL, "layout": cudnn.AttentionLayout.BTNH.value,
        "scale": 1.0, "seed": 0, "dropout_rate": 0.0, "sliding_window_length": None,
        "bias": unused, "page_table_k": unused, "page_table_v": unused,
        "score_mod_args": (), "score_mod": None, "variadic_args": (False, False),
    }  # fmt: skip


def check(dtype: Any, head_dim: int, num_shards: int) -> None:
    """Refuse what cuDNN's packed kernels do not know.

    Raises:
        ValueError: naming the setting.
    """
    setting = "config.compute.attention=cudnn needs"
    if jnp.dtype(dtype).itemsize != 2:
        raise ValueError(
            f"{setting} config.compute.compute_dtype=bfloat16, not {jnp.dtype(dtype).name}: leave "
            "attention=auto, or set triton_gpu"
        )
    if head_dim % 8 or head_dim > 256:
        raise ValueError(
            f"{setting} config.model.head_dim to be a multiple of 8 up to 256, not {head_dim}: set "
            "attention=mosaic_gpu"
        )
    if num_shards > 1:
        raise ValueError(
            f"{setting} whole rows on a device, and config.mesh.context={num_shards} cuts them: "
            "leave attention=auto, or set mosaic_gpu"
        )


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids_q: Int[Array, "B T"],
    segment_ids_k: Int[Array, "B T"],
    offset: Int[Array, ""],
    *,
    kernel: Kernel,
    segments_a_call: int | None = None,
) -> Float[Array, "B T N H"]:
    """Attention of scaled queries over the keys of their segment that are not after them.

    Args:
        q: queries, already scaled.
        k: keys of the same rows.
        v: values of the same rows.
        segment_ids_q: 1, 2, ... along a row; 0 is padding.
        segment_ids_k: the same.
        offset: of the queries in the row: 0.
        kernel: `CuDNN()`.
        segments_a_call: M, at least 2; None: `fitting_segments`.

    Returns:
        One vector a query and head; zeros for padding.
    """
    del segment_ids_k, offset
    end_to_end = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
    segments_a_call = segments_a_call or fitting_segments(q.size)
    segments = find_segments(segment_ids_q, segments_a_call)
    return _attend(kernel, segments_a_call, *end_to_end, segments).reshape(q.shape)


def fitting_segments(num_values: int) -> int:
    """M for queries of so many values: what fits in the memory that calls may have.

    The backward pass has two float32 arrays as large as the queries for each segment (measured on
    an H100 with cuDNN 9.19: 2.4 GB for 4 segments of 32,768 x 16 x 128, 34.9 GB for 64).
    """
    return min(64, max(2, _SCRATCH_BYTES // (8 * num_values)))


def find_segments(segment_ids: Int[Array, "B T"], segments_a_call: int) -> Segments:
    """Number, first and last token of each segment, over rows laid end to end.

    segment_ids  1 1 2 0    1 1 1 2
    number       0 0 1 -1   2 2 2 3
    first        0   2      4     7   -1 ...
    last         1   2      6     7   -1 ...
    """
    num_tokens = segment_ids.size
    outside = jnp.zeros((segment_ids.shape[0], 1), segment_ids.dtype)
    framed = jnp.concatenate([outside, segment_ids, outside], axis=1)
    real = segment_ids.reshape(-1) > 0
    begins = real & (framed[:, :-2] != segment_ids).reshape(-1)
    ends = real & (framed[:, 2:] != segment_ids).reshape(-1)
    number = jnp.where(real, jnp.cumsum(begins, dtype=jnp.int32) - 1, -1)

    num_slots = num_tokens + segments_a_call  # a call's worth of void ones at the end
    void = jnp.full(num_slots, -1, jnp.int32)
    index = jnp.arange(num_tokens, dtype=jnp.int32)
    first, last = (
        void.at[jnp.where(at, number, num_slots)].set(index, mode="drop") for at in (begins, ends)
    )
    return Segments(number, first, last, begins.sum(dtype=jnp.int32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(
    kernel: Kernel,
    segments_a_call: int,
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    segments: Segments,
) -> Float[Array, "T N H"]:
    return _forward(kernel, segments_a_call, q, k, v, segments)[0]


def _forward(
    kernel: Kernel, segments_a_call: int, q: Array, k: Array, v: Array, segments: Segments
):
    """Output, and what the backward pass needs: all above, and each query's log-sum [N, T]."""

    def call(places):
        out, log_sums = kernel.forward(q, k, v, places)
        return out, _by_token(log_sums, places)

    out, log_sums = _in_calls(call, segments, segments_a_call)
    # Named for the remat policies: kept, the backward pass repeats neither this nor the search.
    out, log_sums, segments = jax.tree.map(
        lambda x: checkpoint_name(x, _NAME), (out, log_sums.T, segments)
    )
    return out, (q, k, v, segments, out, log_sums)


def _backward(kernel: Kernel, segments_a_call: int, residuals: Any, d_out: Float[Array, "T N H"]):
    """Gradients of q, k, v; each token's come from the one call that knows its segment."""
    q, k, v, segments, out, log_sums = residuals

    def call(places):
        by_segment = _by_segment(log_sums, places)
        return kernel.backward(q, k, v, places, by_segment, out, d_out)

    return *_in_calls(call, segments, segments_a_call), None


_attend.defvjp(_forward, _backward)


def _in_calls(
    call: Callable[[Places], tuple[Array, ...]], segments: Segments, segments_a_call: int
) -> tuple[Array, ...]:
    """What the calls give for the tokens of their segments, [T, ...] each; zeros for padding."""

    def places(at):
        first, last = (
            jax.lax.dynamic_slice_in_dim(x, at, segments_a_call)
            for x in (segments.first, segments.last)
        )
        return Places(first, jnp.where(first < 0, -1, last - first + 1))

    def select(known, new, old):
        return jnp.where(known.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    def run(index, so_far):
        at = index * segments_a_call
        # What this call leaves undefined after its segments, the next ones have.
        take = functools.partial(select, segments.number >= at)
        return jax.tree.map(take, call(places(at)), so_far)

    # The first by itself: most rows need no other, and its results are taken as they are.
    num_calls = (segments.total + segments_a_call - 1) // segments_a_call
    found = jax.lax.fori_loop(1, num_calls, run, call(places(0)))
    return jax.tree.map(lambda x: select(segments.number >= 0, x, 0), found)


def _by_token(log_sums: Float[Array, "M N T"], places: Places) -> Float[Array, "T N"]:
    """Each token's log-sums; those of tokens outside of the places mean nothing."""
    index = jnp.arange(log_sums.shape[-1], dtype=jnp.int32)
    place = (index[:, None] >= places.first[None]) & (places.first >= 0)[None]
    place = jnp.maximum(place.sum(axis=1, dtype=jnp.int32) - 1, 0)
    return log_sums[place, :, index - jnp.maximum(places.first[place], 0)]


def _by_segment(log_sums: Float[Array, "N T"], places: Places) -> Float[Array, "M N T"]:
    """Each place's log-sums from its first token on; what follows its last means nothing."""
    num_tokens = log_sums.shape[-1]
    padded = jnp.pad(log_sums, ((0, 0), (0, num_tokens)))

    def of(first):
        return jax.lax.dynamic_slice_in_dim(padded, jnp.maximum(first, 0), num_tokens, axis=1)

    return jax.vmap(of)(places.first)
