"""The training command as a user runs it: configs/tiny.py, on a smaller model in a few steps."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import safetensors.numpy

from jaxterm import metrics

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMALL = (
    "--config.model.embed_dim=32", "--config.model.mlp_dim=64", "--config.model.num_layers=2",
    "--config.model.num_heads=2", "--config.model.num_kv_heads=1", "--config.model.head_dim=16",
    "--config.data.row_length=2048", "--config.data.global_batch_size=2",
    "--config.log.checkpoint_every_steps=2", "--config.log.eval_every_steps=0",
)  # fmt: skip


def command(workdir: pathlib.Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "jaxterm.train", "--config=configs/tiny.py",
            f"--workdir={workdir}", *SMALL, *options]  # fmt: skip


def train(workdir: pathlib.Path, *options: str, check: bool = True, **environment: str):
    result = subprocess.run(
        command(workdir, *options), cwd=ROOT, env=os.environ | environment,
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert not check or result.returncode == 0, result.stderr
    return result


def losses(workdir: pathlib.Path) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in metrics.read_records(workdir, "train")}


def exported(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(workdir / "hf" / "model.safetensors")
