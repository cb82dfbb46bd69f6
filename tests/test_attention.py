"""Attention against a plain loop, tile by tile against the definition, and its cost."""

import functools

import jax
import jax.numpy as jnp
import jaxpr_shapes
import numpy as np
import packed_rows
import pytest

from jaxterm import attention, blockwise_attention

HEAD_DIM = 8


def random_qkv(seed, rows, length, num_heads, num_kv_heads, dtype="float32"):
    rng = np.random.default_rng(seed)
    shapes = [(rows, length, heads, HEAD_DIM) for heads in (num_heads, num_kv_heads, num_kv_heads)]
    return tuple(jnp.asarray(rng.normal(size=shape) * 2, dtype) for shape in shapes)


def attention_by_loops(q, k, v, segment_ids):
    """Token by token and head by head, in float64; zeros at padding."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(q.shape[:3]):
        if segment_ids[b, t] == 0:
            continue
        head = n * k.shape[2] // q.shape[2]
        past = [s for s in range(t + 1) if segment_ids[b, s] == segment_ids[b, t]]
        logits = np.array([q[b, t, n] @ k[b, s, head] for s in past]) / np.sqrt(q.shape[-1])
        weights = np.exp(logits - logits.max())
        out[b, t, n] = weights @ v[b, past, head] / weights.sum()
    return out


@functools.cache
def forward_and_backward(implementation, block):
    """The jitted function (q, k, v, segment_ids, d_out) -> (out, gradients of q, k, v)."""

    @jax.jit
    def run(q, k, v, segment_ids, d_out):
        out, pull_back = jax.vjp(
            lambda q, k, v: attention.packed_attention(
                q, k, v, segment_ids, implementation=implementation, block=block
            ),
            q, k, v,
        )  # fmt: skip
        return out, pull_back(d_out)

    return run


def awkward_packings(length):
    """Rows of every kind: one segment, one-token segments, padding of all lengths, random."""
    rng = np.random.default_rng(length)
    random_rows = packed_rows.random_segment_ids(rng, rows=3, length=length, longest=length // 2)
    short = packed_rows.random_segment_ids(rng, rows=2, length=length, longest=3)
    one, all_padding = np.ones((1, length)), np.zeros((1, length))
    singles = np.arange(1, length + 1)[None]
    one_token_left = np.where(np.arange(length) == 0, 1, 0)[None]
    rows = [random_rows, short, one, all_padding, singles, one_token_left]
    return np.concatenate(rows).astype(np.int32)


@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
def test_output_is_that_of_plain_loops(implementation):
    segment_ids = awkward_packings(21)
    q, k, v = random_qkv(0, *segment_ids.shape, 4, 2)
    out, _ = forward_and_backward(implementation, 8)(q, k, v, segment_ids, jnp.zeros_like(q))
    real = segment_ids > 0
    expected = attention_by_loops(q, k, v, segment_ids)
    np.testing.assert_allclose(out[real], expected[real], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("length", "block", "num_heads", "num_kv_heads"),
    [(48, 8, 4, 4), (48, 16, 4, 2), (48, 48, 4, 1), (37, 8, 4, 1), (37, 16, 2, 2), (37, 64, 2, 1)],
)
def test_blockwise_is_the_reference(length, block, num_heads, num_kv_heads):
    segment_ids = awkward_packings(length)
    qkv = random_qkv(1, *segment_ids.shape, num_heads, num_kv_heads)
    real = jnp.asarray(segment_ids > 0)[..., None, None]
    d_out = jnp.where(real, random_qkv(2, *segment_ids.shape, num_heads, num_heads)[0], 0)
    out, gradients = forward_and_backward("blockwise", block)(*qkv, segment_ids, d_out)
    expected, expected_gradients = forward_and_backward("reference", 0)(*qkv, segment_ids, d_out)
    np.testing.assert_allclose(out * real, expected * real, rtol=0, atol=5e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * float(jnp.abs(theirs).max()))
        assert not (np.asarray(ours) * ~np.asarray(real)).any()  # padding gets none
        assert np.isfinite(ours).all()
    assert np.isfinite(out).all()


@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
def test_bfloat16_is_the_reference_within_its_precision(num_kv_heads):
    """Every grouping: XLA's CPU backend has bfloat16 products of some forms only."""
    segment_ids = awkward_packings(37)
    qkv = random_qkv(3, *segment_ids.shape, 4, num_kv_heads, "bfloat16")
    real = jnp.asarray(segment_ids > 0)[..., None, None]
    d_out = jnp.where(real, random_qkv(4, *segment_ids.shape, 4, 4, "bfloat16")[0], 0)
    out, gradients = forward_and_backward("blockwise", 8)(*qkv, segment_ids, d_out)
    exact_qkv = [x.astype(jnp.float32) for x in qkv]
    expected, expected_gradients = forward_and_backward("reference", 0)(
        *exact_qkv, segment_ids, d_out.astype(jnp.float32)
    )
    assert out.dtype == jnp.bfloat16
    # Queries are rounded after scaling, weights and outputs once each: a few eps of the largest.
    eps = float(jnp.finfo(jnp.bfloat16).eps)
    pairs = [(out * real, expected * real), *zip(gradients, expected_gradients, strict=True)]
    for ours, theirs in pairs:
        error = jnp.abs(ours.astype(jnp.float32) - theirs).max() / jnp.abs(theirs).max()
        assert float(error) < 4 * eps


def test_visited_tiles_of_the_docstring():
    first, end = blockwise_attention.visited_tiles(jnp.array([1, 1, 1, 1, 2, 2, 2, 2, 0, 0]), 2)
    assert first.tolist() == [0, 0, 2, 2, 0]
    assert end.tolist() == [1, 2, 3, 4, 0]


def needed_tiles(segment_ids, block, offset, num_queries):
    """Pairs of (query tile, key tile) in which some query that is not padding sees a key."""
    return {
        ((t - offset) // block, s // block)
        for t in range(offset, offset + num_queries)
        for s in range(t + 1)
        if segment_ids[t] == segment_ids[s] != 0
    }


@pytest.mark.parametrize(("length", "block"), [(32, 4), (37, 8), (40, 40), (21, 64)])
def test_exactly_the_needed_tiles_are_visited(length, block):
    for segment_ids in awkward_packings(length):
        first, end = blockwise_attention.visited_tiles(jnp.asarray(segment_ids), block)
        visited = {(i, j) for i in range(len(first)) for j in range(int(first[i]), int(end[i]))}
        assert visited == needed_tiles(segment_ids, block, 0, length)


@pytest.mark.parametrize(("num_queries", "block"), [(8, 4), (10, 4), (5, 8)])
def test_needed_tiles_are_visited_from_a_shard(num_queries, block):
    for segment_ids in awkward_packings(40):
        for offset in range(0, 40, num_queries):
            first, end = blockwise_attention.visited_tiles(
                jnp.asarray(segment_ids), block, offset, num_queries
            )
            visited = {(i, j) for i in range(len(first)) for j in range(int(first[i]), int(end[i]))}
            needed = needed_tiles(segment_ids, block, offset, num_queries)
            assert needed <= visited
            # Nothing before the segment of a tile's first query, nothing after its last.
            assert len(visited - needed) <= len(first)


def gradient_of_attention(implementation, length):
    qkv = random_qkv(0, 1, length, 2, 1)
    segment_ids = jnp.ones((1, length), jnp.int32)

    def total(q, k, v):
        out = attention.packed_attention(
            q, k, v, segment_ids, implementation=implementation, block=256
        )
        return out.sum()

    return jaxpr_shapes.intermediate_shapes(jax.grad(total, (0, 1, 2)), *qkv)


def test_memory_of_blockwise_is_linear_in_the_length():
    length = 4096
    largest = {
        implementation: max(
            np.prod(shape) for shape in gradient_of_attention(implementation, length)
        )
        for implementation in ("auto", "blockwise", "reference")
    }
    assert largest["reference"] >= length**2  # the check sees what it looks for
    inputs = length * 2 * HEAD_DIM
    tile = 256 * 256 * 2
    assert largest["auto"] == largest["blockwise"] <= max(inputs, tile) * 2
