"""The train step compiled for an H100 that is not there; wants the extra `cuda`, and no GPU."""

import re

import absent_gpus
import jax
import jax.numpy as jnp
import packed_rows
import pytest

from jaxterm import sharding, train_step

LENGTH = 1024


@pytest.mark.slow
@pytest.mark.skipif(not absent_gpus.CAN_COMPILE, reason="needs the extra `cuda`")
@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize(
    ("attention", "forward"),
    [
        ("cudnn", r"__cudnn\$fmhaSoftmax\""),
        # Told from the backward kernels by what it gives: the output, and two statistics.
        ("mosaic_gpu", r"\), custom_call_target=\"mosaic_gpu_v2\""),
    ],
)
def test_kept_attention_runs_once_a_block(attention, forward, scan_layers):
    run = packed_rows.tiny_run(
        rows=1, length=LENGTH, param_dtype="bfloat16", compute_dtype="bfloat16",
        remat="dots", attention=attention, scan_layers=scan_layers,
    )  # fmt: skip
    run = packed_rows.replace_fields(run, model={"head_dim": 128, "embed_dim": 256})
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), devices=absent_gpus.h100())
    placed = sharding.named_sharding(mesh, "batch", "length")
    names = ("tokens", "positions", "segment_ids", "loss_mask")
    row = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32, sharding=placed)
    with jax.set_mesh(mesh), absent_gpus.lowering("NVIDIA H100 80GB HBM3", 9.0):
        step = train_step.jit_train_step(run, mesh, 10)
        lowered = step.trace(
            train_step.abstract_state(run, mesh, 10), dict.fromkeys(names, row)
        ).lower()
    text = lowered.compile().as_text()
    calls = [line for line in text.splitlines() if re.search(forward, line)]
    if attention == "mosaic_gpu":
        calls = [line for line in calls if line.count(f"[{run.model.num_heads},{LENGTH}]") == 2]
    # cuDNN's stands a second time, in the loop over segments that one call did not take.
    bodies = 1 if scan_layers else run.model.num_layers
    assert len(calls) == bodies * (2 if attention == "cudnn" else 1)
