"""cuDNN's packed attention: our side of it by a kernel written out, the kernel itself on a GPU.

No CPU runs cuDNN. Here the definition takes its place, with NaN wherever cuDNN leaves memory as it
was; the real one is lowered for CUDA, and compared in test_gpu_attention.py where a GPU is.
"""

import re

import gpu_parity
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxterm import attention, config, cudnn_attention, remat

LENGTH = 256
SHAPES = {"heads": 4, "kv_heads": 2, "head_dim": 16}


class WrittenOut:
    """`cudnn_attention.Kernel` by its definition; what is outside of the places is NaN."""

    def forward(self, q, k, v, places):
        weights, log_sums = softmax(q, k, places, None)
        out = jnp.einsum("NTS,SNH->TNH", weights, per_query_head(v, q))
        return jnp.where(inside(places, q)[:, None, None], out, jnp.nan), log_sums

    def backward(self, q, k, v, places, log_sums, out, d_out):
        weights, _ = softmax(q, k, places, log_sums)
        values, keys = per_query_head(v, q), per_query_head(k, q)
        known = inside(places, q)[:, None, None]
        out, d_out = jnp.where(known, out, 0), jnp.where(known, d_out, 0)
        d_weights = jnp.einsum("TNH,SNH->NTS", d_out, values)
        d_logits = weights * (d_weights - jnp.einsum("TNH,TNH->NT", d_out, out)[:, :, None])
        grads = (
            jnp.einsum("NTS,SNH->TNH", d_logits, keys),
            per_kv_head(jnp.einsum("NTS,TNH->SNH", d_logits, q), k),
            per_kv_head(jnp.einsum("NTS,TNH->SNH", weights, d_out), v),
        )
        return tuple(jnp.where(known, x, jnp.nan) for x in grads)


def softmax(q, k, places, log_sums):
    """Weights [N, T, S], zero outside of the places, and log-sums [M, N, T]; or by those given."""
    index, place = jnp.arange(q.shape[0]), place_of(places, q)
    mask = (place[:, None] == place) & (place >= 0) & (index[:, None] >= index)
    logits = jnp.einsum("TNH,SNH->NTS", q, per_query_head(k, q))
    found = None
    if log_sums is None:
        of_token = jax.nn.logsumexp(jnp.where(mask, logits, -jnp.inf), axis=-1)
        at = places.first[:, None] + index  # [M, T]
        known = (index < places.lengths[:, None])[:, None]
        found = jnp.where(known, of_token[:, at].swapaxes(0, 1), jnp.nan)
    else:
        of_token = log_sums[place, :, index - places.first[place]].T
    return jnp.where(mask, jnp.exp(logits - of_token[:, :, None]), 0), found


def place_of(places, q):
    """Of each token; -1 outside of them all."""
    index = jnp.arange(q.shape[0])[:, None]
    within = (index >= places.first) & (index < places.first + places.lengths)
    return jnp.where(within.any(axis=1), within.argmax(axis=1), -1)


def inside(places, q):
    return place_of(places, q) >= 0


def per_query_head(x, q):
    return jnp.repeat(x, q.shape[1] // x.shape[1], axis=1)


def per_kv_head(x, like):
    return x.reshape(x.shape[0], like.shape[1], -1, x.shape[2]).sum(axis=2)


def in_calls_of(segments_a_call):
    def attend(q, k, v, segment_ids):
        return cudnn_attention.attend(
            q * (1.0 / np.sqrt(q.shape[-1])), k, v, segment_ids, segment_ids, jnp.int32(0),
            kernel=WrittenOut(), segments_a_call=segments_a_call,
        )  # fmt: skip

    return gpu_parity.forward_and_backward(attend)


@pytest.fixture
def kernel_may_broadcast():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("segments_a_call", [2, 5, 8, 64])
def test_any_number_of_segments_in_calls_of_any_size_is_the_definition(
    segments_a_call, kernel_may_broadcast
):
    packings = gpu_parity.packings(LENGTH)
    gap = np.where(np.arange(LENGTH) % 50 < 7, 0, 1 + np.arange(LENGTH) // 50)[None]
    ids = np.concatenate([packings, gap]).astype(np.int32)  # padding between segments, too
    arguments = gpu_parity.random_arguments(ids, jnp.float32, **SHAPES)
    expected = gpu_parity.by_name("reference")(*arguments)
    found = in_calls_of(segments_a_call)(*arguments)
    assert all(np.isfinite(x).all() for x in found)
    real = (ids > 0)[..., None, None]
    expected = [np.where(real, x, 0) for x in expected]
    assert max(gpu_parity.relative_errors(found, expected)) < 2e-6


def test_a_batch_of_padding_gives_zeros(kernel_may_broadcast):
    arguments = gpu_parity.random_arguments(np.zeros((2, LENGTH), np.int32), jnp.float32, **SHAPES)
    assert all((np.asarray(x) == 0).all() for x in in_calls_of(8)(*arguments))


def test_segments_of_the_docstring():
    ids = jnp.array([[1, 1, 2, 0], [1, 1, 1, 2]])
    number, first, last, total = cudnn_attention.find_segments(ids, 2)
    assert number.tolist() == [0, 0, 1, -1, 2, 2, 2, 3]
    assert first.tolist() == [0, 2, 4, 7] + [-1] * 6
    assert last.tolist() == [1, 2, 6, 7] + [-1] * 6
    assert total == 4


def test_as_many_segments_as_tokens():
    ids = jnp.arange(1, 9)[None]
    number, first, last, total = cudnn_attention.find_segments(ids, 2)
    assert number.tolist() == first.tolist()[:8] == last.tolist()[:8] == list(range(8))
    assert total == 8 and first.shape == (10,)


def test_segments_a_call_fit_in_the_memory_they_may_have():
    values_of = {"1.7b": 16 * 128, "4b": 32 * 128, "14b": 40 * 128}  # a token's queries
    found = {size: cudnn_attention.fitting_segments(32_768 * n) for size, n in values_of.items()}
    assert found == {"1.7b": 4, "4b": 2, "14b": 2}
    assert cudnn_attention.fitting_segments(1024 * 128) == 64


def lowered_gradients(policy):
    """The text of a rematerialised attention's gradients, lowered for a GPU."""
    compute = config.ComputeConfig(remat=policy)
    shapes = [jax.ShapeDtypeStruct((1, 4096, n, 128), jnp.bfloat16) for n in (16, 8, 8)]

    def total(q, k, v, ids):
        return attention.packed_attention(q, k, v, ids, implementation="cudnn").sum()

    kept = jax.checkpoint(total, policy=remat.policy_of(compute))
    traced = jax.jit(jax.value_and_grad(kept, (0, 1, 2))).trace(
        *shapes, jax.ShapeDtypeStruct((1, 4096), jnp.int32)
    )
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(("policy", "times"), [("attention", 1), ("full", 2)])
def test_kept_attention_is_not_computed_again(policy, times):
    text = lowered_gradients(policy)
    assert "4096x4096" not in text  # no mask
    # Each call stands twice: for the first segments, and in the loop over those left.
    assert text.count("@__cudnn$fmhaSoftmax(") == 2 * times
    assert text.count("@__cudnn$fmhaSoftmaxBackward(") == 2
    # The search for segments writes where each begins, and where each ends.
    num_slots = 4096 + cudnn_attention.fitting_segments(4096 * 16 * 128)
    assert len(re.findall(rf"}}\) : \(tensor<{num_slots}xi32>", text)) == 2 * times


def test_what_cudnn_does_not_know_is_refused():
    with pytest.raises(ValueError, match=r"cudnn needs config\.compute\.compute_dtype=bfloat16"):
        cudnn_attention.check(jnp.float32, 128, 1)
    with pytest.raises(ValueError, match=r"head_dim to be a multiple of 8 up to 256, not 100"):
        cudnn_attention.check(jnp.bfloat16, 100, 1)
    with pytest.raises(ValueError, match=r"whole rows on a device, and config\.mesh\.context=2"):
        cudnn_attention.check(jnp.bfloat16, 128, 2)
    cudnn_attention.check(jnp.bfloat16, 128, 1)
