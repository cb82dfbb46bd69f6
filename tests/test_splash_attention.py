"""The TPU kernels, in Pallas' interpreter, against the definition; and the tiles they visit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import packed_rows
import pytest

from jaxterm import attention, context_parallel, sharding, splash_attention

LENGTH, HEADS, KV_HEADS, HEAD_DIM = 512, 2, 1, 128


@pytest.fixture(autouse=True)
def kernels_may_broadcast():
    with jax.numpy_rank_promotion("allow"):
        yield


def packings():
    """Random rows, one-token segments, a row of padding, padding from the middle of a tile on."""
    rng = np.random.default_rng(0)
    random_rows = packed_rows.random_segment_ids(rng, rows=2, length=LENGTH, longest=200)
    singles = np.where(np.arange(LENGTH) < 40, np.arange(LENGTH) + 1, 41)[None]
    padding = np.zeros((1, LENGTH))
    padded = np.where(np.arange(LENGTH) < 300, 1 + np.arange(LENGTH) // 100, 0)[None]
    return np.concatenate([random_rows, singles, padding, padded]).astype(np.int32)


@functools.cache
def forward_and_backward(implementation):
    """The jitted function (q, k, v, segment_ids, d_out) -> (out, gradients of q, k, v)."""

    @jax.jit
    def run(q, k, v, segment_ids, d_out):
        def attend(q, k, v):
            return attention.packed_attention(
                q, k, v, segment_ids, implementation=implementation,
                interpret=implementation != "reference",
            )  # fmt: skip

        out, pull_back = jax.vjp(attend, q, k, v)
        return out, *pull_back(d_out)

    return run


def random_arguments(segment_ids, seed=1):
    """Queries, keys, values and a gradient of the output, which padding has none of."""
    rng = np.random.default_rng(seed)
    shapes = [(*segment_ids.shape, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    q, k, v, d_out = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    return q, k, v, segment_ids, d_out * (segment_ids > 0)[..., None, None]


def assert_agree(found, expected, segment_ids):
    """Outputs of real tokens, and all gradients; to float32 sums of a few hundred products."""
    real = segment_ids > 0
    np.testing.assert_allclose(found[0][real], expected[0][real], rtol=0, atol=2e-5)
    for gradient, wanted in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.fixture
def small_tiles(monkeypatch):
    tiles = splash_attention.Blocks(*[128] * 6)
    monkeypatch.setattr(splash_attention, "blocks_for", lambda device_kind: tiles)


@pytest.mark.parametrize("implementation", ["splash", "jax_splash"])
def test_kernels_are_the_definition_forward_and_backward(implementation, small_tiles):
    segment_ids = packings()
    arguments = random_arguments(segment_ids)
    expected = forward_and_backward("reference")(*arguments)
    with jax.default_matmul_precision("float32"):
        found = forward_and_backward(implementation)(*arguments)
    assert_agree(found, expected, segment_ids)


@pytest.mark.parametrize("implementation", ["splash", "jax_splash", "blockwise", "reference"])
@pytest.mark.parametrize(("context", "num_pieces"), [(2, 4), (2, 8), (4, 8)])
def test_a_cut_length_changes_nothing(
    implementation, context, num_pieces, small_tiles, monkeypatch
):
    """Even work: each shard holds two pieces of every row or more, which come in another order."""
    length = 128 * num_pieces
    monkeypatch.setattr(context_parallel, "SHORTEST_PIECE", 128)
    assert context_parallel.num_pieces(length, context) == num_pieces
    segment_ids = np.tile(packings(), (1, 2))[:2, :length]
    segment_ids = np.maximum.accumulate(segment_ids, axis=1)  # ids never fall along a row
    arguments = random_arguments(segment_ids)
    expected = forward_and_backward("reference")(*arguments)
    order = context_parallel.token_order(length, context)
    mesh = sharding.make_mesh(
        {"data": 1, "fsdp": 8 // context // 2, "context": context, "tensor": 2}
        if context < 4
        else {"data": 1, "fsdp": 1, "context": 4, "tensor": 1},
        devices=jax.devices()[: 8 if context < 4 else 4],
    )
    kv_heads = mesh.shape["tensor"]
    q, k, v, ids, d_out = arguments
    k, v = (jnp.repeat(x, kv_heads, axis=2) for x in (k, v))
    with jax.set_mesh(mesh):
        run = jax.jit(forward_and_backward.__wrapped__(implementation))
        out, d_q, d_k, d_v = run(*(x[:, order] for x in (q, k, v, jnp.asarray(ids), d_out)))
    d_k, d_v = (x.reshape(*x.shape[:2], KV_HEADS, kv_heads, -1).sum(3) for x in (d_k, d_v))
    back = np.argsort(order)
    assert_agree([np.asarray(x)[:, back] for x in (out, d_q, d_k, d_v)], expected, segment_ids)


def needed_tiles(segment_ids, tile):
    """Tiles that hold a query and a key of one segment, the key not behind the query."""
    position = np.arange(len(segment_ids))
    needed = (position[:, None] >= position) & (segment_ids[:, None] == segment_ids)
    tiles = needed.reshape(len(needed) // tile, tile, -1, tile)
    return int(tiles.any((1, 3)).sum())


@pytest.mark.parametrize("is_backward", [False, True])
def test_the_tiles_that_are_visited_are_those_the_segments_need(is_backward):
    from tokamax._src.ops.experimental.tpu.splash_attention import (
        splash_attention_kernel as splash,
    )

    rng = np.random.default_rng(3)
    tile, length = 128, 4096
    kernel = splash_attention.make_kernel(
        "splash", num_heads=1, num_keys=length, num_shards=1,
        blocks=splash_attention.Blocks(*[tile] * 6),
    )  # fmt: skip
    info = kernel.dkv_mask_info if is_backward else kernel.fwd_mask_info
    num_causal = (length // tile) * (length // tile + 1) // 2
    for longest in (1, 100, 1500, 4096):
        ids = packed_rows.random_segment_ids(rng, rows=1, length=length, longest=longest)
        ids[:, -length // 5 :] = 0  # padding, which begins within a tile
        row, _ = (x[0] for x in splash_attention.padding_last(ids, ids))
        refined, _, _ = splash._refine_mask_info_with_segments(
            info, splash_attention._segment_ids_type(kernel)(q=row, kv=row),
            q_blocks=length // tile, kv_blocks=length // tile, bq=tile, bkv=tile,
            is_dkv=is_backward,
        )  # fmt: skip
        visited = int(refined.num_active_blocks[0])
        assert visited == needed_tiles(np.asarray(row), tile)
        assert longest > 1500 or visited < num_causal / 2


@pytest.mark.parametrize("shortest", [2048, 8])
def test_every_shard_of_the_length_has_as_much_to_do(shortest, monkeypatch):
    monkeypatch.setattr(context_parallel, "SHORTEST_PIECE", shortest)
    for context in (1, 2, 4, 8):
        order = context_parallel.token_order(64 * context, context).reshape(context, -1)
        assert sorted(order.reshape(-1)) == list(range(64 * context))
        work = (order.astype(np.int64) + 1).sum(1)  # keys that the queries of a causal row meet
        assert (work == work[0]).all()
        assert (np.diff(order) > 0).all()  # segment ids never fall along a shard
    with pytest.raises(ValueError, match=r"row_length=30 must be a multiple of 8, twice .*=4"):
        context_parallel.token_order(30, 4)


def test_pieces_are_dealt_to_and_fro_and_no_shorter_than_a_tile():
    assert context_parallel.piece_order(4096, 2) == [0, 3, 1, 2]
    assert context_parallel.piece_order(8192, 2) == [0, 3, 4, 7, 1, 2, 5, 6]
    assert context_parallel.num_pieces(32_768, 4) == 32
    assert context_parallel.num_pieces(131_072, 4) == 64  # eight times to and fro are enough
    assert context_parallel.num_pieces(3 * 2048, 2) == 4  # shorter ones would hold half a tile


def test_a_row_that_is_no_whole_tiles_is_refused():
    with pytest.raises(ValueError, match=r"row_length=1000 .*multiples of 128"):
        splash_attention.blocks_for("TPU v5p").fit(500, 1000)
    assert splash_attention.blocks_for("TPU v6 lite").fit(384, 768).q == 128
    assert splash_attention.blocks_for("TPU v5").fit(16_384, 32_768).q == 1024
