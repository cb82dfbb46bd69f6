"""A LoRA run by the command itself: resumed, and exported as merged weights."""

import shutil

import numpy as np
import pytest
import small_train

from convert import verify, verify_logits
from jaxterm import lora


@pytest.mark.parametrize("base_dtype", ["param", "nf4"])
def test_a_run_is_resumed_and_exported_as_merged_weights(tmp_path, base_dtype):
    """Whole, and again from its last checkpoint but one."""
    options = (
        "--config.lora.rank=4", f"--config.lora.base_dtype={base_dtype}",
        "--config.lora.weights=q,v,gate,down", "--config.optimizer.peak_lr=1e-2",
        "--config.max_steps=5",
    )  # fmt: skip
    whole, again = tmp_path / "whole", tmp_path / "again"
    small_train.train(whole, *options)
    shutil.copytree(whole, again)
    shutil.rmtree(again / "checkpoints" / "5")
    shutil.rmtree(again / "hf")
    small_train.train(again, *options)
    losses = small_train.losses(whole)
    assert losses[5] < losses[1]
    assert small_train.losses(again) == losses
    tensors = small_train.exported(whole)
    assert not [name for name in tensors if "lora" in name]
    for name, tensor in small_train.exported(again).items():
        np.testing.assert_array_equal(tensor, tensors[name])
    assert verify.compare(whole, whole / "hf").is_equal
    assert verify_logits.compare(whole, whole / "hf").is_equal
    start = verify.compare(whole / "start" / "hf", whole / "hf")
    changed = {leaf.name.rpartition(".")[2] for leaf in start.leaves if leaf.differing}
    assert changed == ({"q", "v", "gate", "down"} if base_dtype == "param" else {*lora.MODULES})
