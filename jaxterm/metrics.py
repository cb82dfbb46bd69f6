"""What a run measures of itself, and where it is written: metrics.jsonl, TensorBoard, W&B.

Two model-FLOPs utilisations are told apart: `mfu` counts six FLOPs a parameter and token,
`mfu_attention` adds what attention needs for the segments that are really there (12 x layers x
heads x head_dim FLOPs for each pair of tokens that meet), and takes off the head's products with
tokens that are not trained, which are not made. Both are left out where the device's peak is not
known.
"""

import importlib
import json
import os
import pathlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxterm import architecture

FILE_NAME = "metrics.jsonl"

# Dense bfloat16 FLOP/s of a device, by the beginning of its `device_kind`
# (TPU: Google's system architecture pages; GPU: NVIDIA's data sheets, without sparsity).
PEAK_FLOPS: dict[str, float] = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "TPU7x": 1153.5e12,  # a chip is two devices
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(device_kind: str) -> float:
    """Peak FLOP/s of one device, 0 when it is not in the table."""
    kinds = [kind for kind in PEAK_FLOPS if device_kind.startswith(kind)]
    return PEAK_FLOPS[max(kinds, key=len)] if kinds else 0.0


def step_flops(
    model: architecture.ModelConfig,
    *,
    num_tokens: float,
    attention_pairs: float,
    is_frozen: bool = False,
) -> tuple[float, float]:
    """FLOPs of a training step for its matrices, and for attention, padding not counted.

    Args:
        model: its input embedding is a look-up and does not count, its output head does.
        num_tokens: of all segments.
        attention_pairs: (query, key) pairs that meet: len (len + 1) / 2, over the segments.
        is_frozen: the matrices have no gradients (LoRA); the few FLOPs of adapters do not count.
    """
    embedding = 0 if model.tie_embeddings else model.vocab_size * model.embed_dim
    matrices = (4.0 if is_frozen else 6.0) * (model.num_params() - embedding) * num_tokens
    heads = 12.0 * model.num_layers * model.num_heads * model.head_dim
    return matrices, heads * attention_pairs


def head_flops(
    model: architecture.ModelConfig, num_tokens: float, *, is_frozen: bool = False
) -> float:
    """Of the FLOPs for matrices in `step_flops`, those of the output head for so many tokens."""
    return (4.0 if is_frozen else 6.0) * model.vocab_size * model.embed_dim * num_tokens


def throughput(
    model: architecture.ModelConfig,
    *,
    seconds: float,
    num_tokens: float,
    num_loss_tokens: float,
    num_positions: float,
    attention_pairs: float,
    is_frozen: bool = False,
) -> dict[str, float]:
    """Rates of some steps that took `seconds` on all devices; `is_frozen` as in `step_flops`."""
    rates = {
        "seconds": seconds,
        "tokens_per_s": num_tokens / seconds,
        "loss_tokens_per_s": num_loss_tokens / seconds,
        "padding_share": 1 - num_tokens / num_positions,
    }
    peak = peak_flops(jax.devices()[0].device_kind) * jax.device_count() * seconds
    if peak:
        matrices, attention = step_flops(
            model, num_tokens=num_tokens, attention_pairs=attention_pairs, is_frozen=is_frozen
        )
        untrained = head_flops(model, num_tokens - num_loss_tokens, is_frozen=is_frozen)
        needed = matrices - untrained + attention
        rates |= {"mfu": matrices / peak, "mfu_attention": needed / peak}
    return rates


def step_times(seconds: Sequence[float]) -> dict[str, float]:
    """How the seconds of some steps are spread; Ledger.watch of goodput.py says what they measure.

    Interpolated where a percentile lies between two steps.
    """
    p50, p90 = np.percentile(seconds, [50, 90])
    return {
        "step_seconds_p50": float(p50),
        "step_seconds_p90": float(p90),
        "step_seconds_max": max(seconds),
    }


class MetricsWriter:
    """Writes records of a run, each under its step; a resumed run goes on in the same files."""

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        first_step: int,
        wandb_project: str = "",
        settings: Any = None,
    ):
        """Open the files.

        Args:
            workdir: folder of the run.
            first_step: records of later steps, left by a killed run, are forgotten.
            wandb_project: where to log too; empty for nowhere.
            settings: JSON values of the run's config, for W&B.
        """
        import tensorboardX  # with torch, where that is installed: seconds that no error waits for

        self._wandb = _start_wandb(wandb_project, workdir, settings) if wandb_project else None
        self._path = workdir / FILE_NAME
        _forget_after(self._path, first_step)
        self._file = self._path.open("a")
        self._board = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=first_step + 1 if first_step else None
        )

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """One record, e.g. kind "train" with {"loss": 1.5, ...}; it is on disk on return."""
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Flush everything."""
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_records(workdir: pathlib.Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The records of one kind, or all, as they were written; without an unfinished last line."""
    path = workdir / FILE_NAME
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in records if kind is None or record["kind"] == kind]


def _forget_after(path: pathlib.Path, step: int) -> None:
    if not path.exists():
        return
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


def _start_wandb(project: str, workdir: pathlib.Path, settings: Any) -> Any:
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        raise ValueError(
            f"config.log.wandb_project={project!r} needs the package wandb; "
            "install the extra: uv sync --extra wandb"
        ) from error
    identity = workdir / "wandb_id"  # a resumed run goes on in the same W&B run
    if not identity.exists():
        identity.write_text(uuid.uuid4().hex)
    return wandb.init(
        project=project, dir=str(workdir), config=settings, id=identity.read_text(), resume="allow"
    )
