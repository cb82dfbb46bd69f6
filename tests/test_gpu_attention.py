"""NVIDIA kernels: against the definition without a GPU as far as that goes, and with one.

Triton's kernels run in Pallas' interpreter. Mosaic's have none: tokamax's plain-JAX form of the
same op takes their place, and the real ones are lowered for CUDA. With a GPU both are run.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys
from unittest import mock

import absent_gpus
import gpu_parity
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import packed_rows
import pytest

from jaxterm import attention, config, context_parallel, gpu_attention, remat, sharding

LENGTH = 512
SMALL = {"heads": 4, "kv_heads": 2, "head_dim": 16}


@pytest.fixture(autouse=True)
def kernels_may_broadcast():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def interpreter():
    """Lets tokamax's Triton kernels run on a CPU.

    Their `when` guards grids of unlike lengths, which square tiles have not; the interpreter knows
    no program_id inside of one.
    """
    from tokamax._src import config as tokamax_config
    from tokamax._src.pallas import block

    interpreted = functools.partial(block.pl.pallas_call, interpret=True)
    with (
        tokamax_config.cross_compile(True),
        mock.patch.object(block.pl, "pallas_call", interpreted),
        mock.patch.object(block.pl, "when", lambda condition: lambda body: body()),
    ):
        yield


def plain_op():
    """tokamax's definition of the op and of its gradients; knows whole rows only."""
    from tokamax._src.ops.attention import base

    op = base.DotProductAttention()
    object.__setattr__(op, "vjp", base.DotProductAttentionVjp())
    return op


def in_tiles_of(kernel, tile):
    """Attention by the kernel, its backward pass in tiles of this size."""

    def attend(q, k, v, segment_ids):
        scaled = q * (1.0 / np.sqrt(q.shape[-1]))
        return gpu_attention.attend(
            scaled, k, v, segment_ids, segment_ids, jnp.int32(0), kernel=kernel, tile=tile
        )

    return gpu_parity.forward_and_backward(attend)


def assert_agree(found, expected):
    """Finite, and the definition to float32 sums of a few hundred products."""
    assert all(np.isfinite(x).all() for x in found)
    assert max(gpu_parity.relative_errors(found, expected)) < 2e-6


def test_the_mask_and_the_vjp_of_tokamax_are_the_definition():
    arguments = gpu_parity.random_arguments(gpu_parity.packings(LENGTH), jnp.float32, **SMALL)
    expected = gpu_parity.by_name("reference")(*arguments)
    assert_agree(in_tiles_of(plain_op(), LENGTH)(*arguments), expected)


@pytest.mark.parametrize("tile", [128, 256, 512])
def test_triton_is_the_definition_in_tiles_of_any_size(tile, interpreter):
    arguments = gpu_parity.random_arguments(gpu_parity.packings(LENGTH), jnp.float32, **SMALL)
    expected = gpu_parity.by_name("reference")(*arguments)
    kernel = gpu_attention.make_kernel("triton_gpu", jnp.float32)
    assert_agree(in_tiles_of(kernel, tile)(*arguments), expected)


@pytest.mark.parametrize("num_pieces", [4, 8])
def test_a_cut_length_changes_nothing(num_pieces, interpreter, monkeypatch):
    length = 128 * num_pieces
    monkeypatch.setattr(context_parallel, "SHORTEST_PIECE", 128)
    assert context_parallel.num_pieces(length, 2) == num_pieces
    ids = np.tile(gpu_parity.packings(LENGTH)[[0, 5]], (1, 2))[:, :length]
    ids = np.maximum.accumulate(ids, axis=1)  # ids never fall along a row
    arguments = gpu_parity.random_arguments(ids, jnp.float32, **SMALL)
    expected = gpu_parity.by_name("reference")(*arguments)
    order = context_parallel.token_order(length, 2)
    mesh = sharding.make_mesh(
        {"data": 1, "fsdp": 2, "context": 2, "tensor": 2}, devices=jax.devices()[:8]
    )
    with jax.set_mesh(mesh):
        found = gpu_parity.by_name("triton_gpu")(*(x[:, order] for x in arguments))
    back = np.argsort(order)
    assert_agree([np.asarray(x)[:, back] for x in found], expected)


def test_what_another_segment_holds_is_never_read(interpreter):
    """Its NaNs would be felt through weights of zero, in whatever tile is visited."""
    ids = np.repeat([[1, 2]], LENGTH // 2, axis=1).reshape(1, -1)
    q, k, v, ids, d_out = gpu_parity.random_arguments(ids, jnp.float32, **SMALL)
    second = np.arange(LENGTH) >= LENGTH // 2
    k, v = (jnp.where(second[:, None, None], x, jnp.nan) for x in (k, v))
    kernel = gpu_attention.make_kernel("triton_gpu", jnp.float32)
    found = in_tiles_of(kernel, 128)(q, k, v, ids, d_out)
    for x in found:
        assert np.isfinite(np.asarray(x)[:, second]).all()
        assert np.isnan(np.asarray(x)[:, ~second]).any()  # the check sees what it looks for


@pytest.mark.parametrize("tile", [4, 8, 40])
def test_exactly_the_needed_tiles_are_visited_backward(tile):
    rng = np.random.default_rng(tile)
    for longest in (1, 5, 17, 40):
        ids = packed_rows.random_segment_ids(rng, rows=1, length=40, longest=longest)[0]
        starts = gpu_attention.segment_starts(jnp.asarray(ids))
        first = gpu_attention.first_tiles(starts, tile)
        visited = {(i, j) for i in range(len(first)) for j in range(int(first[i]), i + 1)}
        seen = {(t, s) for t in range(40) for s in range(t) if ids[t] == ids[s] > 0}
        needed = {(t // tile, s // tile) for t, s in seen | {(t, t) for t in range(40)}}
        assert visited == needed


def test_starts_of_the_docstring():
    starts = gpu_attention.segment_starts(jnp.array([1, 1, 1, 2, 2, 0, 0]))
    assert starts.tolist() == [0, 0, 0, 3, 3, 5, 6]


@pytest.mark.parametrize("context", [1, 2])
@pytest.mark.parametrize(
    ("device_kind", "capability", "dtype", "called"),
    [
        ("NVIDIA H100 80GB HBM3", 9.0, jnp.bfloat16, ("cudnn$fmha", "mosaic_gpu")),
        ("NVIDIA H100 80GB HBM3", 9.0, jnp.float32, ("xla.gpu.triton",) * 2),
        ("NVIDIA A100-SXM4-80GB", 8.0, jnp.bfloat16, ("xla.gpu.triton",) * 2),
        ("NVIDIA B200", 10.0, jnp.bfloat16, ("cudnn$fmha", "mosaic_gpu")),
    ],
)
def test_auto_lowers_the_kernels_for_cuda(device_kind, capability, dtype, called, context):
    """Forward and backward, by shapes of Qwen3-1.7B, on whole rows and on cut ones."""
    q, k, v = (jax.ShapeDtypeStruct((1, 4096, n, 128), dtype) for n in (16, 8, 8))
    ids = jax.ShapeDtypeStruct((1, 4096), jnp.int32)

    def step(q, k, v, ids):
        out, pull_back = jax.vjp(lambda q, k, v: attention.packed_attention(q, k, v, ids), q, k, v)
        return out, pull_back(out)

    with absent_gpus.abstract_mesh(device_kind, capability, context):
        text = jax.jit(step).trace(q, k, v, ids).lower(lowering_platforms=("cuda",)).as_text()
    # Forward; backward before the diagonal, and on it. cuDNN: both for more segments, too.
    assert text.count(called[context - 1]) >= 3
    assert "4096x4096" not in text  # no mask


def count_kernels(jaxpr, name):
    """Calls of a Pallas kernel in a jaxpr and in those inside of it."""
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            count += name in str(equation.params["name"])
            continue
        inner = jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        )
        count += sum(count_kernels(x, name) for x in inner if hasattr(x, "eqns"))
    return count


def num_forward_kernels(policy):
    """In a step whose attention is rematerialised by the policy."""
    q, k, v, ids, _ = gpu_parity.random_arguments(np.ones((1, 128), np.int32), jnp.float32, **SMALL)

    def total(q, k, v):
        return attention.packed_attention(q, k, v, ids, implementation="triton_gpu").sum()

    compute = config.ComputeConfig(remat=policy)
    kept = jax.checkpoint(total, policy=remat.policy_of(compute))
    jaxpr = jax.make_jaxpr(jax.grad(kept, (0, 1, 2)))(q, k, v)
    return count_kernels(jaxpr, "flash_attention_fwd_res")


def test_kept_attention_is_not_computed_again(interpreter):
    again, kept = (num_forward_kernels(policy) for policy in ("full", "attention"))
    assert (again, kept) == (2, 1)


@pytest.mark.parametrize(
    ("device_kind", "dtype", "num_shards", "kind"),
    [
        ("NVIDIA H200", jnp.bfloat16, 1, "cudnn"),
        ("NVIDIA H200", jnp.bfloat16, 2, "mosaic_gpu"),
        ("NVIDIA GH200 480GB", jnp.bfloat16, 1, "cudnn"),
        ("NVIDIA B200", jnp.float16, 1, "cudnn"),
        ("NVIDIA H100 PCIe", jnp.float32, 1, "triton_gpu"),
        ("NVIDIA GeForce RTX 4090", jnp.bfloat16, 1, "triton_gpu"),
        ("AMD Instinct MI300X", jnp.bfloat16, 1, None),
    ],
)
def test_the_kernel_of_a_device(device_kind, dtype, num_shards, kind, caplog):
    assert gpu_attention.best_for(device_kind, dtype, num_shards) == kind
    for platform in ("gpu", "cuda"):
        chosen = attention.choose("auto", platform, device_kind, dtype, num_shards)
        assert chosen == (kind or "blockwise")
    assert bool(caplog.records) == (kind is None)  # a slow choice is a loud one


def test_what_ignores_segments_is_refused():
    with pytest.raises(ValueError, match=r"compute\.attention=xla: it must heed the segments"):
        attention.choose("xla", "gpu", "NVIDIA H100", jnp.bfloat16)
    with pytest.raises(ValueError, match="xla heeds no segments"):
        gpu_attention.make_kernel("xla", jnp.bfloat16)
    with pytest.raises(ValueError, match=r"mosaic_gpu needs config\.compute\.compute_dtype"):
        gpu_attention.make_kernel("mosaic_gpu", jnp.float32)
    with pytest.raises(ValueError, match=r"row_length.* here 1000, must be a multiple of 128"):
        gpu_attention.tile_for(1000)
    assert [gpu_attention.tile_for(n) for n in (384, 1024, 32_768)] == [128, 1024, 2048]


@pytest.mark.gpu
@pytest.mark.skipif(not pathlib.Path("/dev/nvidiactl").exists(), reason="no NVIDIA GPU")
def test_the_real_kernels_are_the_definition():
    """Within bfloat16: logits, weights and outputs are rounded once each."""
    environment = os.environ | {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(
        [sys.executable, gpu_parity.__file__], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads(done.stdout.splitlines()[-1])
    eps = float(jnp.finfo(jnp.bfloat16).eps)
    assert errors and all(max(values) < 4 * eps for values in errors.values()), errors
