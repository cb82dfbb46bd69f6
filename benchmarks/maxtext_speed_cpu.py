"""Training steps of one small Qwen3 on one packed batch, on the CPU: jaxterm against MaxText.

    uv run --group oracle python benchmarks/maxtext_speed_cpu.py
    uv run --group oracle python benchmarks/maxtext_speed_cpu.py --packing=drawn --rounds=9
    uv run --group oracle python benchmarks/maxtext_speed_cpu.py --maxtext_python=mt/bin/python

Model, weights, batch and optimizer are those of benchmarks/train_speed_cpu.py, whose jaxterm runs
here as it does there. A step is forward, backward, clipping and AdamW in float32, with the batch
already on the devices; its seconds are wall-clock, from the call until the new state is there.

MaxText runs in an environment of its own (benchmarks/maxtext_step.py), by its own set-up, jitted
train step and optimizer, with the settings that can matter to its speed tried one by one; of its
attentions only `dot_product` runs on a CPU. Its loss is the sum over the targets whose segment is
not 0, divided by their number, so our targets are given to it as such segments, and all losses
must agree to 1e-4. What it computes beside the step (norms of gradients, parameters) it always
computes, and so does jaxterm.

The contestants take steps by turns, so that a slow minute slows all. Run it on a machine with
nothing else to do; --rounds, --packing and --only are those of train_speed_cpu.py.
"""

import contextlib
import json
import math
import multiprocessing
import os
import pathlib
import platform
import shlex
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

import numpy as np
import train_speed_cpu as setup
from absl import app, flags
from rich import console, progress, table

from jaxterm import architecture

_MAXTEXT = flags.DEFINE_string(
    "maxtext_version", "0.2.5", "Which MaxText uv is to install, where --maxtext_python is empty."
)
_PYTHON = flags.DEFINE_string("maxtext_python", "", "A python that has MaxText; empty: by uv.")

_WARM_UP = 2  # rounds that are not timed
_PAUSE_S = 1.0  # before each step: threads of the one before may spin for a while
_TOLERANCE = 1e-4  # nats, between the losses of the same step

CORES = os.cpu_count() or 1
DEVICES = max(n for n in range(1, CORES + 1) if setup.ROWS % n == 0)  # jaxterm's, too

# Name -> what MaxText is told beside the model: devices, parts of the batch, and its own settings.
MAXTEXT = {
    "MaxText, remat full": (DEVICES, 1, ["remat_policy=full"]),
    "MaxText, remat full, a row at a time": (
        DEVICES, setup.ROWS // DEVICES, ["remat_policy=full"],
    ),
    "MaxText, remat full, one device": (1, 1, ["remat_policy=full"]),
    "MaxText, remat full, layers not scanned": (
        DEVICES, 1, ["remat_policy=full", "scan_layers=false"],
    ),
    "MaxText, remat none": (DEVICES, 1, ["remat_policy=none"]),
    "MaxText, remat none, layers not scanned": (
        DEVICES, 1, ["remat_policy=none", "scan_layers=false"],
    ),
}  # fmt: skip
JAXTERM = ("jaxterm, remat none", "jaxterm, remat dots")


class Answer(NamedTuple):
    """What a contestant says of a step."""

    loss: float  # nats a target, before the step
    seconds: float
    num_params: int
    versions: dict[str, str]  # of the packages that matter


Ask = Callable[[], Answer]  # has one step done


def model_settings(of_model: architecture.ModelConfig) -> dict[str, object]:
    """The architecture in MaxText's names."""
    return {
        "decoder_block": "qwen3", "mlp_activations": ["silu", "linear"], "use_qk_norm": True,
        "normalize_embedding_logits": False, "enable_dropout": False,
        "vocab_size": of_model.vocab_size, "base_num_decoder_layers": of_model.num_layers,
        "base_emb_dim": of_model.embed_dim, "base_mlp_dim": of_model.mlp_dim,
        "base_num_query_heads": of_model.num_heads, "base_num_kv_heads": of_model.num_kv_heads,
        "head_dim": of_model.head_dim, "logits_via_embedding": of_model.tie_embeddings,
        "rope_max_timescale": int(of_model.rope_theta),
        "normalization_layer_epsilon": of_model.norm_epsilon,
    }  # fmt: skip


def run_settings(num_devices: int, num_parts: int, folder: pathlib.Path) -> dict[str, object]:
    """Batch, dtypes, optimizer; and none of what a cluster needs."""
    optimizer = setup.OPTIMIZER
    return {
        "run_name": "speed", "base_output_directory": str(folder), "hardware": "cpu",
        "dataset_type": "synthetic", "skip_jax_distributed_system": True,
        "enable_checkpointing": False, "enable_tensorboard": False,
        "max_target_length": setup.LENGTH, "gradient_accumulation_steps": num_parts,
        "per_device_batch_size": setup.ROWS // (num_devices * num_parts),
        "ici_data_parallelism": -1, "ici_fsdp_parallelism": 1, "attention": "dot_product",
        "dtype": "float32", "weight_dtype": "float32", "steps": setup.NUM_STEPS,
        "learning_rate": optimizer.peak_lr, "warmup_steps_fraction": optimizer.warmup_fraction,
        "adam_b1": optimizer.beta1, "adam_b2": optimizer.beta2, "adam_eps": optimizer.epsilon,
        "adam_weight_decay": optimizer.weight_decay, "adamw_mask": ["scale"],
        "gradient_clipping_threshold": optimizer.max_grad_norm,
    }  # fmt: skip


def maxtext_batch(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In MaxText's names; what is not trained is, as its loss wants it, of segment 0."""
    targets = setup.next_token_targets(batch)
    trained = targets >= 0
    return {
        "inputs": batch["tokens"],
        "inputs_position": batch["positions"],
        "inputs_segmentation": batch["segment_ids"],
        "targets": np.where(trained, targets, 0).astype(np.int32),
        "targets_position": batch["positions"],
        "targets_segmentation": np.where(trained, batch["segment_ids"], 0).astype(np.int32),
    }


def write_inputs(folder: pathlib.Path, packing: str) -> None:
    """What benchmarks/maxtext_step.py reads."""
    batch = setup.draw_batch(setup.draw_segment_ids(packing))
    parameters = setup.make_torch_model().named_parameters()
    np.savez(folder / "batch.npz", allow_pickle=False, **maxtext_batch(batch))
    np.savez(
        folder / "weights.npz",
        allow_pickle=False,
        **{name: p.detach().numpy() for name, p in parameters},
    )


def maxtext_command() -> list[str]:
    """A python that can import MaxText. Its package names what it needs in extras only."""
    if _PYTHON.value:
        return shlex.split(_PYTHON.value)
    package = f"maxtext[tpu]=={_MAXTEXT.value}"
    return ["uv", "run", "--no-project", "--python", "3.12", "--with", package, "python"]


def start_jaxterm(name: str, packing: str, stack: contextlib.ExitStack) -> Ask:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    spawn.Process(target=setup.serve, args=(theirs, name, packing), daemon=True).start()
    stack.callback(ours.send, None)
    versions = {package: metadata.version(package) for package in ("jax", "flax", "optax")}

    def ask() -> Answer:
        ours.send("step")
        loss, seconds = ours.recv()
        return Answer(loss, seconds, setup.MODEL.num_params(), versions)

    return ask


def start_maxtext(name: str, folder: pathlib.Path, stack: contextlib.ExitStack) -> Ask:
    num_devices, num_parts, own = MAXTEXT[name]
    settings = model_settings(setup.MODEL) | run_settings(num_devices, num_parts, folder)
    script = pathlib.Path(__file__).with_name("maxtext_step.py")
    log = folder / f"{name}.log"
    process = subprocess.Popen(
        [*maxtext_command(), str(script), str(folder), str(num_devices),
         *(f"{key}={value}" for key, value in settings.items()), *own],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        stderr=stack.enter_context(log.open("w")),
    )  # fmt: skip
    stack.callback(process.communicate)  # without a further line it ends
    assert process.stdin is not None and process.stdout is not None
    to_it, from_it = process.stdin, process.stdout

    def ask() -> Answer:
        to_it.write("step\n")
        line = from_it.readline()
        if not line:
            raise RuntimeError(f"{name} ended; the last it wrote: {log.read_text()[-3000:]}")
        return Answer(**json.loads(line))

    return ask


def run_in_turns(names: list[str], packing: str, num_rounds: int) -> dict[str, list[Answer]]:
    """Name -> the answer of every round; one process works at a time."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        place = pathlib.Path(folder)
        write_inputs(place, packing)
        asks = {
            name: start_maxtext(name, place, stack)
            if name in MAXTEXT
            else start_jaxterm(name, packing, stack)
            for name in names
        }
        rounds = {name: [] for name in names}
        for _ in progress.track(range(num_rounds), description=f"packing {packing}"):
            for name, ask in asks.items():
                time.sleep(_PAUSE_S)
                rounds[name].append(ask())
    return rounds


def check(rounds: dict[str, list[Answer]]) -> None:
    """All contestants train as many parameters and compute the same losses."""
    first = next(iter(rounds.values()))
    for name, answers in rounds.items():
        differences = [a.loss - b.loss for a, b in zip(answers, first, strict=True)]
        if np.abs(differences).max() > _TOLERANCE:
            raise RuntimeError(f"{name} computes other losses: they differ by {differences}")
        if answers[0].num_params != setup.MODEL.num_params():
            raise RuntimeError(
                f"{name} trains another model, of {answers[0].num_params} parameters"
            )


def show(packing: str, rounds: dict[str, list[Answer]], screen: console.Console) -> None:
    """A table, the versions, and how many times as long MaxText's best takes as jaxterm's best."""
    seconds = {name: [a.seconds for a in answers[_WARM_UP:]] for name, answers in rounds.items()}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    bests = {
        whose: min((x for name, x in medians.items() if name.startswith(whose)), default=math.nan)
        for whose in ("jaxterm", "MaxText")
    }
    result = table.Table(title=f"packing {packing}: {setup.ROWS} rows of {setup.LENGTH} tokens")
    for column in ("", "median s", "min s", "tokens/s", "best MaxText / this"):
        result.add_column(column, justify="left" if not column else "right")
    for name, x in medians.items():
        result.add_row(name, f"{x:.3f}", f"{min(seconds[name]):.3f}",
                       f"{setup.ROWS * setup.LENGTH / x:,.0f}",
                       f"{bests['MaxText'] / x:.2f}")  # fmt: skip
    screen.print(result)
    for whose in bests:
        versions = [a[-1].versions for name, a in rounds.items() if name.startswith(whose)][:1]
        screen.print(f"{whose}: " + ", ".join(f"{k} {v}" for x in versions for k, v in x.items()))
    screen.print(f"best MaxText / best jaxterm: {bests['MaxText'] / bests['jaxterm']:.2f}")


def main(_):
    screen = console.Console(width=120)
    screen.print(f"{platform.machine()}, {CORES} cores, python {platform.python_version()}")
    wanted = flags.FLAGS.only or [""]
    names = [name for name in (*JAXTERM, *MAXTEXT) if any(part in name for part in wanted)]
    packing = flags.FLAGS.packing
    for one in ("drawn", "one") if packing == "all" else (packing,):
        rounds = run_in_turns(names, one, _WARM_UP + flags.FLAGS.rounds)
        check(rounds)
        show(one, rounds, screen)


if __name__ == "__main__":
    app.run(main)
