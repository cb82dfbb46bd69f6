"""Training steps of Qwen3 on packed rows and one GPU: jaxterm against transformers and torch.

    uv run --extra cuda --group oracle python benchmarks/gpu_train_speed.py
    uv run --extra cuda --group oracle python benchmarks/gpu_train_speed.py --size=4b --rows=1
    uv run --group oracle python benchmarks/gpu_train_speed.py --size=tiny --device=cpu

A step is forward, backward, clipping and AdamW on rows of 32,768 tokens: some of those into which
data_pipeline packs conversations with the lengths of benchmarks/synthetic_index.py, evenly drawn
between the rows of least and of most attention. Each row is a micro-batch. Parameters, gradients
and moments are bfloat16 and logits exist a chunk at a time, on both sides.

A contestant is a process of its own, one after another, with the GPU to itself:

    jaxterm REMAT [unrolled]             a remat policy; the blocks in a scan, or one by one
    torch WAY eager|compiled full|kept   WAY is packed (positions tell the segments) or segments
                                         (each by itself); blocks computed again, or kept

torch attends by flash_attention_2 where flash_attn is installed, else by scaled_dot_product_
attention, whose kernels are tried in the order cuDNN, flash, efficient. Losses must agree.
"""

import contextlib
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import planned_rows
import random_weights
from absl import app, flags
from rich import console, table

from jaxterm import architecture

_SIZE = flags.DEFINE_enum("size", "1.7b", ["1.7b", "4b", "tiny"], "tiny: to see that it runs.")
_DEVICE = flags.DEFINE_enum("device", "cuda", ["cuda", "cpu"], "Where.")
_ROWS = flags.DEFINE_integer("rows", 2, "Rows of a step.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed steps of each contestant.")
_CONTESTANTS = flags.DEFINE_list(
    "contestants",
    ["jaxterm dots unrolled", "jaxterm dots", "jaxterm full", "torch segments eager full",
     "torch segments compiled full", "torch segments compiled kept", "torch packed eager full"],
    "Who takes part, as above.",
)  # fmt: skip
_ATTENTION = flags.DEFINE_string("attention", "auto", "config.compute.attention of jaxterm.")
_LIMIT_S = flags.DEFINE_integer("limit_s", 900, "Seconds for a contestant, start-up included.")

_WARM_UP = 2  # rounds that are not timed
_CHUNK = 4096  # tokens whose logits exist at one time
_LEARNING_RATE = 1e-3  # so large that bfloat16 parameters change
_NUM_STEPS = 1_000_000  # of the schedule: the learning rate stays where it is

TINY = architecture.ModelConfig(
    vocab_size=512, num_layers=2, embed_dim=64, mlp_dim=128, num_heads=4, num_kv_heads=2,
    head_dim=16, tie_embeddings=True,
)  # fmt: skip

Step = Callable[[], float]  # runs one training step and returns its loss


def model_and_length(size: str) -> tuple[architecture.ModelConfig, int]:
    """What is trained, and tokens of a row."""
    return (TINY, 1024) if size == "tiny" else (architecture.QWEN3[size], 32_768)


def make_hf_model(
    model: architecture.ModelConfig, implementation: str, device: str, recomputes: bool
) -> Any:
    """transformers' Qwen3 on a device, with the weights of random_weights."""
    import torch
    import transformers

    values = architecture.to_hf_json(model)
    del values["model_type"]
    settings = transformers.Qwen3Config(**values, use_cache=False)
    with torch.device(device):
        hf = transformers.AutoModelForCausalLM.from_config(
            settings, attn_implementation=implementation, dtype=torch.bfloat16
        )
    parameters = dict(hf.named_parameters())
    weights = random_weights.of_tensors({name: tuple(p.shape) for name, p in parameters.items()})
    for name, parameter in parameters.items():
        bits = torch.from_numpy(weights[name].view(np.int16))
        parameter.data.copy_(bits.view(torch.bfloat16))
    if recomputes:  # by its name in transformers before 5.23, too
        enable = getattr(hf, "activation_checkpointing_enable", hf.gradient_checkpointing_enable)
        enable()
    return hf.train()


def make_jaxterm_step(
    model_config: architecture.ModelConfig,
    batch: planned_rows.Batch,
    options: list[str],
    attention: Any,
) -> Step:
    import jax
    import ml_dtypes

    from convert import mapping
    from jaxterm import config, model, sharding, train_step

    rows, length = batch["tokens"].shape
    remat: Any = options[0]
    run = config.TrainConfig(
        model=model_config,
        compute=config.ComputeConfig(
            param_dtype="bfloat16", remat=remat, attention=attention, loss_chunk_tokens=_CHUNK,
            scan_layers="unrolled" not in options,
        ),
        data=config.DataConfig(row_length=length, global_batch_size=rows),
        optimizer=config.OptimizerConfig(
            peak_lr=_LEARNING_RATE, warmup_fraction=0.0, moment_dtype="bfloat16",
            num_micro_batches=rows,
        ),
    )  # fmt: skip
    mesh = sharding.make_mesh(run.mesh.sizes(1), devices=jax.devices()[:1])

    def place(path, leaf):
        name = mapping.TABLE[jax.tree_util.keystr(path, simple=True, separator=".")].tensor
        if "{layer}" in name:
            names = [name.format(layer=layer) for layer in range(model_config.num_layers)]
            bits = np.stack(
                list(random_weights.of_tensors(dict.fromkeys(names, leaf.shape[1:])).values())
            )
        else:
            bits = random_weights.of_tensor(name, leaf.shape)
        return jax.device_put(bits.reshape(leaf.shape).view(ml_dtypes.bfloat16), leaf.sharding)

    params = jax.tree.map_with_path(place, model.abstract_params(model_config, run.compute, mesh))
    train = train_step.jit_train_step(run, mesh, _NUM_STEPS)
    on_device = jax.device_put(batch, sharding.named_sharding(mesh, "batch", "length"))
    with jax.set_mesh(mesh):
        state = train_step.init_state(run, mesh, params, _NUM_STEPS)

    def step() -> float:
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = train(state, on_device)
        return float(jax.block_until_ready((state, metrics))[1]["loss"])

    return step


def torch_parts(batch: planned_rows.Batch, way: str, device: str) -> list[dict[str, Any]]:
    """What torch computes one after another: rows without their padding, or segments."""
    import torch

    parts = []
    for tokens, positions, ids in zip(
        batch["tokens"], batch["positions"], batch["segment_ids"], strict=True
    ):
        segments = [np.flatnonzero(ids == n) for n in range(1, ids.max() + 1)]
        for at in segments if way == "segments" else [np.concatenate(segments)]:
            ends = np.append(positions[at][1:] == 0, True)  # of segments: nothing to predict
            named = {"input_ids": tokens[at],
                     "targets": np.where(ends, -100, np.roll(tokens[at], -1))}  # fmt: skip
            if way == "packed":
                named["position_ids"] = positions[at]
            parts.append({k: torch.from_numpy(x)[None].long().to(device) for k, x in named.items()})
    return parts


def make_torch_step(
    model_config: architecture.ModelConfig,
    batch: planned_rows.Batch,
    options: list[str],
    device: str,
) -> Step:
    import torch
    from torch.utils import checkpoint

    way, mode, memory = options
    parts = torch_parts(batch, way, device)
    hf = make_hf_model(model_config, torch_attention(device), device, memory == "full")
    decoder = torch.compile(hf.model, dynamic=way == "segments") if mode == "compiled" else hf.model
    matrices = [p for p in hf.parameters() if p.ndim > 1]
    scales = [p for p in hf.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 1e-4}, {"params": scales, "weight_decay": 0.0}],
        lr=_LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8, fused=True,
    )  # fmt: skip
    num_targets = sum(int((part["targets"] != -100).sum()) for part in parts)

    def chunk_loss(hidden, targets):
        logits = hf.lm_head(hidden).float()
        return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")

    def step() -> float:
        optimizer.zero_grad()
        total = torch.zeros((), device=device)
        for part in parts:
            inputs = {name: x for name, x in part.items() if name != "targets"}
            hidden = decoder(**inputs).last_hidden_state[0]
            chunks = zip(hidden.split(_CHUNK), part["targets"][0].split(_CHUNK), strict=True)
            losses = [
                checkpoint.checkpoint(chunk_loss, *chunk, use_reentrant=False) for chunk in chunks
            ]
            loss = torch.stack(losses).sum()
            (loss / num_targets).backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return float(total) / num_targets

    return step


def torch_attention(device: str) -> str:
    """transformers' name of the fastest attention at hand."""
    from transformers.utils import import_utils

    has_flash = device == "cuda" and import_utils.is_flash_attn_2_available()
    return "flash_attention_2" if has_flash else "sdpa"


def torch_kernels(device: str) -> Any:
    """A context in which sdpa takes the first of these kernels that knows the case."""
    if device == "cpu":
        return contextlib.nullcontext()
    from torch.nn import attention

    kind = attention.SDPBackend
    order = [kind.CUDNN_ATTENTION, kind.FLASH_ATTENTION, kind.EFFICIENT_ATTENTION, kind.MATH]
    return attention.sdpa_kernel(order, set_priority=True)


def serve(connection: Any, name: str, settings: dict[str, Any]) -> None:
    """In a process of its own: losses and seconds of all rounds, or what went wrong."""
    os.environ["JAX_PLATFORMS"] = settings["device"]
    model_config, length = model_and_length(settings["size"])
    batch = planned_rows.draw_batch(
        planned_rows.draw_segment_ids(settings["rows"], length), model_config.vocab_size
    )
    contestant, *options = name.split()
    rounds = []
    try:
        if contestant == "jaxterm":
            kernels = contextlib.nullcontext()
            step = make_jaxterm_step(model_config, batch, options, settings["attention"])
        else:
            kernels = torch_kernels(settings["device"])
            step = make_torch_step(model_config, batch, options, settings["device"])
        with kernels:
            for _ in range(_WARM_UP + settings["rounds"]):
                start = time.perf_counter()
                loss = step()
                rounds.append((loss, time.perf_counter() - start))
    except (RuntimeError, ValueError) as error:  # of memory, most often; torch's and XLA's are both
        connection.send(f"{type(error).__name__}: {str(error)[:300]}")
        return
    connection.send(np.array(rounds))


def run_alone(name: str, settings: dict[str, Any]) -> np.ndarray | str:
    """Loss and seconds of every round, [rounds, 2], or why there are none."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(theirs, name, settings))
    process.start()
    theirs.close()  # so that a process that dies is an EOFError here
    try:
        if not ours.poll(_LIMIT_S.value):
            return f"not done within {_LIMIT_S.value} s"
        return ours.recv()
    except EOFError:
        return "its process died"
    finally:
        process.kill()
        process.join()


def show(
    rounds: dict[str, np.ndarray | str], segment_ids: np.ndarray, screen: console.Console
) -> None:
    """Medians, rates, and both utilisations where the device's peak is known."""
    from jaxterm import metrics

    model_config, length = model_and_length(_SIZE.value)
    lengths = [np.bincount(row)[1:].astype(float) for row in segment_ids]
    num_tokens, pairs = sum(x.sum() for x in lengths), sum(map(planned_rows.num_pairs, lengths))
    matrices, attention = metrics.step_flops(
        model_config, num_tokens=float(num_tokens), attention_pairs=pairs
    )
    peak = metrics.peak_flops(device_name())
    share = pairs / (len(segment_ids) * length * (length + 1) / 2)
    result = table.Table(
        title=f"Qwen3 {_SIZE.value}: {num_tokens:,.0f} tokens a step in {sum(map(len, lengths))} "
        f"segments, {1 - num_tokens / segment_ids.size:.1%} padding, {share:.2f} of causal rows"
    )
    for column in ("", "median s", "min s", "tokens/s", "MFU (6N)", "MFU (segment-true)"):
        result.add_column(column, justify="left" if not column else "right")
    for name, values in rounds.items():
        if isinstance(values, str):
            result.add_row(name, "-", "-", "-", "-", "-")
            continue
        seconds = values[_WARM_UP:, 1].tolist()
        median = statistics.median(seconds)
        shares = [f"{x / median / peak:.3f}" if peak else "-"
                  for x in (matrices, matrices + attention)]  # fmt: skip
        result.add_row(
            name, f"{median:.3f}", f"{min(seconds):.3f}", f"{num_tokens / median:,.0f}", *shares
        )
    screen.print(result)
    for name, values in rounds.items():
        if isinstance(values, str):
            screen.print(f"{name}: {values}", markup=False)


def device_name() -> str:
    """As JAX has it, e.g. "NVIDIA H100 80GB HBM3"."""
    import torch

    return torch.cuda.get_device_name() if _DEVICE.value == "cuda" else platform.machine()


def main(_):
    import jax
    import torch
    import transformers

    screen = console.Console(width=120)
    screen.print(
        f"{device_name()}; jax {jax.__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, torch attends by {torch_attention(_DEVICE.value)}"
    )
    settings = {"size": _SIZE.value, "device": _DEVICE.value, "rows": _ROWS.value,
                "attention": _ATTENTION.value, "rounds": _ROUNDS.value}  # fmt: skip
    _, length = model_and_length(_SIZE.value)
    segment_ids = planned_rows.draw_segment_ids(_ROWS.value, length)
    rounds = {}
    for name in _CONTESTANTS.value:
        rounds[name] = run_alone(name, settings)
        screen.print(f"{name}: {rounds[name]}", markup=False)
    done = {name: x for name, x in rounds.items() if not isinstance(x, str)}
    for name, values in done.items():
        expected = next(iter(done.values()))[:, 0]
        if np.abs(values[:, 0] - expected).max() > 0.01 * expected.max():  # a few eps of bfloat16
            raise RuntimeError(f"{name} computes other losses: {values[:, 0]}, not {expected}")
    show(rounds, segment_ids, screen)


if __name__ == "__main__":
    app.run(main)
