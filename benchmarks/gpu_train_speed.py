"""Training steps of Qwen3-1.7B on packed rows and one GPU: jaxterm against transformers and torch.

    uv run --extra cuda --group oracle python benchmarks/gpu_train_speed.py
    uv run --group oracle python benchmarks/gpu_train_speed.py --size=tiny --device=cpu

A step is forward, backward, clipping and AdamW on rows of 32,768 tokens, whose segments have the
lengths of benchmarks/synthetic_index.py. Parameters, gradients and moments are bfloat16, blocks
are computed again in the backward pass, logits exist a chunk at a time: on both sides. torch
attends by flash_attention_2 where flash_attn is installed, else by sdpa, over the packed rows
(positions tell it the segments) and over each segment alone. Losses must agree. Each contestant is
a process of its own; they take steps by turns, on a GPU whose memory all of them share.
"""

import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import synthetic_index
from absl import app, flags
from rich import console, table

from jaxterm import architecture

_SIZE = flags.DEFINE_enum("size", "1.7b", ["1.7b", "tiny"], "tiny: to see that it runs.")
_DEVICE = flags.DEFINE_enum("device", "cuda", ["cuda", "cpu"], "Where.")
_ROWS = flags.DEFINE_integer("rows", 2, "Rows of a step; each is a micro-batch.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed steps of each contestant.")
_REMAT = flags.DEFINE_list("remat", ["full", "attention"], "jaxterm's remat policies to run.")
_ATTENTION = flags.DEFINE_string("attention", "auto", "config.compute.attention of jaxterm.")
_COMPILE = flags.DEFINE_bool("compile", False, "torch.compile the decoder, beside the eager one.")

_WARM_UP = 2  # rounds that are not timed
_CHUNK = 1024  # tokens whose logits exist at one time
_LEARNING_RATE = 1e-5
_NUM_STEPS = 1_000_000  # of the schedule: the learning rate stays where it is

TINY = architecture.ModelConfig(
    vocab_size=512, num_layers=2, embed_dim=64, mlp_dim=128, num_heads=4, num_kv_heads=2,
    head_dim=16, tie_embeddings=True,
)  # fmt: skip

Step = Callable[[], float]  # runs one training step and returns its loss
Batch = dict[str, np.ndarray]


def model_and_length(size: str) -> tuple[architecture.ModelConfig, int]:
    """What is trained, and tokens of a row."""
    return (TINY, 1024) if size == "tiny" else (architecture.QWEN3["1.7b"], 32_768)


def draw_segment_ids(rows: int, length: int) -> np.ndarray:
    """Rows filled first-fit from a shuffled list of lengths; what is left at the end is padding."""
    rng = np.random.default_rng(0)
    lengths = synthetic_index.make(scale=0.01)["num_tokens"].to_numpy()
    lengths = rng.permutation(np.clip(lengths * length // 32_768, 1, length)).tolist()
    segment_ids = np.zeros((rows, length), np.int32)
    for row in segment_ids:
        used, segment = 0, 1
        while (fitting := next((n for n in lengths if n <= length - used), None)) is not None:
            lengths.remove(fitting)
            row[used : used + fitting] = segment
            used, segment = used + fitting, segment + 1
    return segment_ids


def draw_batch(segment_ids: np.ndarray, vocab_size: int) -> Batch:
    """Random tokens, all of them trained."""
    rng = np.random.default_rng(1)
    index = np.arange(segment_ids.shape[1])
    begins = np.diff(segment_ids, axis=1, prepend=0) != 0
    positions = index - np.maximum.accumulate(np.where(begins, index, 0), axis=1)
    return {
        "tokens": rng.integers(0, vocab_size, segment_ids.shape).astype(np.int32),
        "positions": positions.astype(np.int32),
        "segment_ids": segment_ids,
        "loss_mask": (segment_ids > 0).astype(np.int32),
    }


def make_hf_model(model: architecture.ModelConfig, implementation: str) -> Any:
    """transformers' Qwen3 with random bfloat16 weights, the same ones every time."""
    import torch
    import transformers

    torch.manual_seed(0)
    values = architecture.to_hf_json(model)
    del values["model_type"]
    settings = transformers.Qwen3Config(**values, use_cache=False)
    hf = transformers.AutoModelForCausalLM.from_config(
        settings, attn_implementation=implementation, dtype=torch.bfloat16
    )
    hf.activation_checkpointing_enable()
    return hf.train()


def make_jaxterm_step(
    model_config: architecture.ModelConfig, batch: Batch, remat: Any, attention: Any
) -> Step:
    import jax
    import ml_dtypes

    from convert import mapping
    from jaxterm import config, model, sharding, train_step

    rows, length = batch["tokens"].shape
    run = config.TrainConfig(
        model=model_config,
        compute=config.ComputeConfig(
            param_dtype="bfloat16", remat=remat, attention=attention, loss_chunk_tokens=_CHUNK
        ),
        data=config.DataConfig(row_length=length, global_batch_size=rows),
        optimizer=config.OptimizerConfig(
            peak_lr=_LEARNING_RATE, warmup_fraction=0.0, moment_dtype="bfloat16",
            num_micro_batches=rows,
        ),
    )  # fmt: skip
    mesh = sharding.make_mesh(run.mesh.sizes(1), devices=jax.devices()[:1])
    weights = dict(make_hf_model(model_config, "sdpa").named_parameters())

    def place(path, leaf):
        name = mapping.TABLE[jax.tree_util.keystr(path, simple=True, separator=".")].tensor
        layers = range(model_config.num_layers) if "{layer}" in name else [0]
        tensors = [weights[name.format(layer=layer)].detach().float() for layer in layers]
        stacked = np.stack([x.numpy() for x in tensors]).astype(ml_dtypes.bfloat16)
        return jax.device_put(stacked.reshape(leaf.shape), leaf.sharding)

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


def torch_parts(batch: Batch, way: str, device: str) -> list[dict[str, Any]]:
    """What torch computes one after another: rows without their padding, or segments."""
    import torch

    parts = []
    for tokens, positions, ids in zip(
        batch["tokens"], batch["positions"], batch["segment_ids"], strict=True
    ):
        segments = [np.flatnonzero(ids == n) for n in range(1, ids.max() + 1)]
        for at in segments if way == "unpacked" else [np.concatenate(segments)]:
            ends = np.append(positions[at][1:] == 0, True)  # of segments: nothing to predict
            named = {"input_ids": tokens[at], "position_ids": positions[at],
                     "targets": np.where(ends, -100, np.roll(tokens[at], -1))}  # fmt: skip
            parts.append({k: torch.from_numpy(x)[None].long().to(device) for k, x in named.items()})
    return parts


def make_torch_step(
    model_config: architecture.ModelConfig, batch: Batch, way: str, device: str, compiled: bool
) -> Step:
    import torch
    from torch.utils import checkpoint

    parts = torch_parts(batch, way, device)
    hf = make_hf_model(model_config, torch_attention(device)).to(device)
    decoder = torch.compile(hf.model, dynamic=way == "unpacked") if compiled else hf.model
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
            hidden = decoder(
                input_ids=part["input_ids"], position_ids=part["position_ids"]
            ).last_hidden_state[0]
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


def serve(connection: Any, name: str, settings: dict[str, Any]) -> None:
    """In a process of its own: a step's loss and seconds for every message, until None."""
    os.environ["JAX_PLATFORMS"] = settings["device"]
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the memory is shared with torch
    model_config, length = model_and_length(settings["size"])
    batch = draw_batch(draw_segment_ids(settings["rows"], length), model_config.vocab_size)
    contestant, way, *mode = name.split()
    if contestant == "jaxterm":
        step = make_jaxterm_step(model_config, batch, way, settings["attention"])
    else:
        step = make_torch_step(
            model_config, batch, way, settings["device"], compiled=mode == ["compiled"]
        )
    while connection.recv() is not None:
        start = time.perf_counter()
        loss = step()
        connection.send((loss, time.perf_counter() - start))


def run_in_turns(names: list[str], settings: dict[str, Any]) -> dict[str, np.ndarray]:
    """Name -> loss and seconds of every round, [rounds, 2]; one process works at a time."""
    spawn = multiprocessing.get_context("spawn")
    ends = {}
    for name in names:
        ends[name], theirs = spawn.Pipe()
        spawn.Process(target=serve, args=(theirs, name, settings), daemon=True).start()
        theirs.close()  # so that a process that dies is an EOFError here
    rounds = {name: [] for name in names}
    for _ in range(_WARM_UP + _ROUNDS.value):
        for name, end in ends.items():
            end.send("step")
            rounds[name].append(end.recv())
    for end in ends.values():
        end.send(None)
    return {name: np.array(values) for name, values in rounds.items()}


def show(rounds: dict[str, np.ndarray], segment_ids: np.ndarray, screen: console.Console) -> None:
    """Medians, rates, and both utilisations where the device's peak is known."""
    from jaxterm import metrics

    model_config, _ = model_and_length(_SIZE.value)
    lengths = [np.bincount(row)[1:].astype(float) for row in segment_ids]
    num_tokens = float(sum(x.sum() for x in lengths))
    matrices, attention = metrics.step_flops(
        model_config, num_tokens=num_tokens,
        attention_pairs=float(sum((x * (x + 1) / 2).sum() for x in lengths)),
    )  # fmt: skip
    peak = metrics.peak_flops(device_name())
    result = table.Table(
        title=f"{num_tokens:,.0f} tokens a step in {sum(map(len, lengths))} segments, "
        f"{1 - num_tokens / segment_ids.size:.1%} padding"
    )
    for column in ("", "median s", "min s", "tokens/s", "MFU (6N)", "MFU with attention"):
        result.add_column(column, justify="left" if not column else "right")
    for name, values in rounds.items():
        seconds = values[_WARM_UP:, 1].tolist()
        median = statistics.median(seconds)
        shares = [f"{x / median / peak:.1%}" if peak else "-"
                  for x in (matrices, matrices + attention)]  # fmt: skip
        result.add_row(
            name, f"{median:.3f}", f"{min(seconds):.3f}", f"{num_tokens / median:,.0f}", *shares
        )
    screen.print(result)


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
    names = [f"jaxterm {remat}" for remat in _REMAT.value]
    for way in ("packed", "unpacked"):
        names += [f"torch {way} eager", *([f"torch {way} compiled"] if _COMPILE.value else [])]
    settings = {"size": _SIZE.value, "device": _DEVICE.value, "rows": _ROWS.value,
                "attention": _ATTENTION.value}  # fmt: skip
    rounds = run_in_turns(names, settings)
    expected = rounds[names[0]][:, 0]
    for name, values in rounds.items():
        if np.abs(values[:, 0] - expected).max() > 0.01 * expected.max():  # a few eps of bfloat16
            raise RuntimeError(f"{name} computes other losses: {values[:, 0]}, not {expected}")
    _, length = model_and_length(_SIZE.value)
    show(rounds, draw_segment_ids(_ROWS.value, length), screen)


if __name__ == "__main__":
    app.run(main)
