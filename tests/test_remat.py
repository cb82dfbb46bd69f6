"""What is recomputed, offloaded or done in chunks changes memory, and nothing else."""

import collections
import dataclasses
import functools

import jax
import numpy as np
import packed_rows
import pytest

from jaxterm import model, sharding, train_step
from jaxterm.preflight import hlo_kept

ROWS, LENGTH = 2, 32
STACKED = {  # a tensor of every block of packed_rows.TINY
    "stream": f"f32[2,{ROWS},{LENGTH},32]",
    "q": f"f32[2,{ROWS},{LENGTH},4,16]",
    "k": f"f32[2,{ROWS},{LENGTH},2,16]",
    "gate": f"f32[2,{ROWS},{LENGTH},48]",
}


@functools.cache
def loss_and_gradients(**compute):
    """Of a batch of packed rows, with a fixed start."""
    run = packed_rows.tiny_run(rows=ROWS, length=LENGTH, **compute)
    mesh = sharding.make_mesh(
        {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}, devices=jax.devices()[:1]
    )
    params = model.init_params(run.model, run.compute, mesh, seed=0)
    batch = packed_rows.random_batch(0, rows=ROWS, length=LENGTH, longest=20)
    total = train_step.num_loss_tokens(batch)
    compute_gradients = jax.jit(lambda p: train_step._accumulate(run, p, batch, total))
    with jax.set_mesh(mesh):
        return jax.device_get(compute_gradients(params)), compute_gradients.lower(params).compile()


@pytest.mark.parametrize(
    "compute",
    [
        {"remat": "full"}, {"remat": "attention"}, {"remat": "projections"}, {"remat": "dots"},
        {"remat": "full", "remat_keep": ("q", "gate")},
        {"remat": "attention", "remat_offload": ("stream", "middle")},
        {"remat": "full", "mlp_chunks": 4}, {"remat": "dots", "mlp_chunks": 2},
        {"remat": "none", "mlp_chunks": 2},
        {"remat": "dots", "scan_layers": False}, {"remat": "full", "scan_layers": False},
        {"remat": "none", "scan_layers": False},
    ],
    ids=str,
)  # fmt: skip
def test_losses_and_gradients_are_the_same(compute):
    (expected_loss, expected), _ = loss_and_gradients(remat="none")
    (found_loss, found), _ = loss_and_gradients(**compute)
    np.testing.assert_allclose(found_loss, expected_loss, rtol=1e-6)
    for gradient, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


def test_blocks_without_a_scan_compute_again_what_they_do_not_keep():
    flops = {
        remat: loss_and_gradients(remat=remat, scan_layers=False)[1].cost_analysis()["flops"]
        for remat in ("dots", "full")
    }
    assert flops["full"] > 1.1 * flops["dots"]


@pytest.mark.parametrize("keep", [("q",), ("k", "gate")], ids=str)
def test_what_is_kept_is_what_was_told(keep):
    def kept(**compute):
        _, compiled = loss_and_gradients(remat="full", **compute)
        stacks = hlo_kept.kept_stacks(compiled.as_text(), packed_rows.TINY.num_layers)
        return collections.Counter(map(str, stacks))

    least = kept()
    assert least[STACKED["stream"]] == 1
    assert kept(remat_keep=keep) - least == collections.Counter(STACKED[name] for name in keep)


def test_an_unknown_tensor_is_named():
    run = packed_rows.tiny_run(rows=1, length=8)
    with pytest.raises(ValueError, match=r"remat_keep=nope: a tensor is one of q, k, v"):
        dataclasses.replace(run.compute, remat_keep=("nope",))
    with pytest.raises(ValueError, match=r"remat=none keeps everything"):
        dataclasses.replace(run.compute, remat="none", remat_offload=("stream",))
