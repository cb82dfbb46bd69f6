"""Training steps of one small Qwen3 on one packed batch: jaxterm against transformers and torch.

    uv run --group oracle python benchmarks/train_speed_cpu.py
    uv run --group oracle python benchmarks/train_speed_cpu.py --rounds=9 --packing=one

A step is forward, backward, clipping and AdamW in float32. torch runs the packed rows under a
block-diagonal mask (what transformers makes of positions that restart), and one sequence at a time
(not packed: no mask, its fastest attention kernel), each eager and compiled. Half of the tokens are
trained, and both sides make logits of those alone. All losses must agree to 1e-4. Each contestant
is a process of its own; rounds alternate between them, so that a slow minute slows all. Run it on a
machine with nothing else to do.
"""

import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import torch
import transformers
from absl import app, flags
from rich import console, progress, table

from convert import mapping
from jaxterm import architecture, config, distributed, model, sharding, train_step

_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed steps of each contestant.")
_PACKING = flags.DEFINE_enum("packing", "all", ["all", "drawn", "one"], "Which batch to train.")
_ONLY = flags.DEFINE_list("only", [], "Parts of the names of the contestants to run; empty: all.")

_WARM_UP = 2  # rounds that are not timed
_PAUSE_S = 1.0  # before each step: OpenMP's threads of the one before spin for a while

ROWS, LENGTH = 4, 2048
MODEL = architecture.ModelConfig(
    vocab_size=4096, num_layers=4, embed_dim=256, mlp_dim=768, num_heads=8, num_kv_heads=4,
    head_dim=32, tie_embeddings=True,
)  # fmt: skip
OPTIMIZER = config.OptimizerConfig(
    peak_lr=1e-4, warmup_fraction=0.0, weight_decay=1e-4,
    num_micro_batches=2,  # ours: a row of each core at a time, whose activations stay in the cache
)  # fmt: skip
NUM_STEPS = 1_000_000  # of the schedule: the learning rate stays where it is

Step = Callable[[], float]  # runs one training step and returns its loss


def draw_segment_ids(packing: str) -> np.ndarray:
    """Rows of segments of 200 to 1500 tokens, or of one segment each."""
    if packing == "one":
        return np.ones((ROWS, LENGTH), np.int32)
    rng = np.random.default_rng(0)
    segment_ids = np.zeros((ROWS, LENGTH), np.int32)
    for row in segment_ids:
        start, segment = 0, 1
        while start < LENGTH:
            stop = min(start + int(rng.integers(200, 1501)), LENGTH)
            row[start:stop] = segment
            start, segment = stop, segment + 1
    return segment_ids


def draw_batch(segment_ids: np.ndarray) -> dict[str, np.ndarray]:
    """Random tokens; turns of 64 tokens are by turns read and trained."""
    rng = np.random.default_rng(1)
    index = np.arange(LENGTH)
    begins = np.diff(segment_ids, axis=1, prepend=0) != 0
    positions = index - np.maximum.accumulate(np.where(begins, index, 0), axis=1)
    return {
        "tokens": rng.integers(0, MODEL.vocab_size, segment_ids.shape).astype(np.int32),
        "positions": positions.astype(np.int32),
        "segment_ids": segment_ids,
        "loss_mask": (positions // 64 % 2).astype(np.int32),
    }


def next_token_targets(batch: dict[str, np.ndarray]) -> np.ndarray:
    """The next token of the segment where it is trained, torch's -100 elsewhere."""
    following = {name: np.roll(x, -1, axis=1) for name, x in batch.items()}
    trained = (following["loss_mask"] > 0) & (following["segment_ids"] == batch["segment_ids"])
    trained[:, -1] = False
    return np.where(trained, following["tokens"], -100)


def make_jaxterm_step(batch: dict[str, np.ndarray], weights: dict[str, np.ndarray], remat) -> Step:
    run = config.TrainConfig(
        model=MODEL,
        compute=config.ComputeConfig(
            compute_dtype="float32", remat=remat, attention_block=128, loss_chunk_tokens=128
        ),
        data=config.DataConfig(row_length=LENGTH, global_batch_size=ROWS),
        mesh=config.MeshConfig(data=-1, fsdp=1),
        optimizer=OPTIMIZER,
    )
    mesh = sharding.make_mesh(run.mesh.sizes(jax.device_count()))
    placed = model.abstract_params(MODEL, run.compute, mesh)
    params = jax.tree.map_with_path(
        lambda path, leaf: jax.device_put(_stacked(path, weights).reshape(leaf.shape),
                                          leaf.sharding), placed
    )  # fmt: skip
    train = train_step.jit_train_step(run, mesh, NUM_STEPS)
    on_device = jax.device_put(batch, sharding.named_sharding(mesh, "batch", "length"))
    with jax.set_mesh(mesh):
        state = train_step.init_state(run, mesh, params, NUM_STEPS)

    def step() -> float:
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = train(state, on_device)
        return float(jax.block_until_ready((state, metrics))[1]["loss"])

    return step


def _stacked(path, weights: dict[str, np.ndarray]) -> np.ndarray:
    """The tensors of a parameter, one after another."""
    name = mapping.TABLE[jax.tree_util.keystr(path, simple=True, separator=".")].tensor
    layers = range(MODEL.num_layers) if "{layer}" in name else [0]
    return np.stack([weights[name.format(layer=layer)] for layer in layers])


def make_torch_model() -> Any:
    torch.manual_seed(0)
    values = architecture.to_hf_json(MODEL)
    del values["model_type"]
    settings = transformers.Qwen3Config(**values, use_cache=False)
    return transformers.AutoModelForCausalLM.from_config(
        settings, attn_implementation="sdpa"
    ).train()


def make_torch_step(parts: list[dict[str, torch.Tensor]], *, compiled: bool) -> Step:
    """A step over `parts` of the batch, whose gradients are summed."""
    hf = make_torch_model()
    decoder = torch.compile(hf.model, dynamic=len(parts) > 1) if compiled else hf.model
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in hf.parameters() if p.ndim > 1]},
         {"params": [p for p in hf.parameters() if p.ndim == 1], "weight_decay": 0.0}],
        lr=OPTIMIZER.peak_lr, betas=(OPTIMIZER.beta1, OPTIMIZER.beta2), eps=OPTIMIZER.epsilon,
        weight_decay=OPTIMIZER.weight_decay, fused=True,
    )  # fmt: skip
    num_targets = sum(int((part["targets"] != -100).sum()) for part in parts)

    def step() -> float:
        optimizer.zero_grad()
        total = 0.0
        for part in parts:
            inputs = {name: x for name, x in part.items() if name != "targets"}
            is_trained = part["targets"] != -100
            logits = hf.lm_head(decoder(**inputs).last_hidden_state[is_trained])
            loss = torch.nn.functional.cross_entropy(
                logits, part["targets"][is_trained], reduction="sum"
            )
            (loss / num_targets).backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(hf.parameters(), OPTIMIZER.max_grad_norm)
        optimizer.step()
        return total / num_targets

    return step


def packed_parts(batch: dict[str, np.ndarray]) -> list[dict[str, torch.Tensor]]:
    """The batch as it is; transformers finds the segments in the positions."""
    named = {"input_ids": batch["tokens"], "position_ids": batch["positions"],
             "targets": next_token_targets(batch)}  # fmt: skip
    return [{name: torch.from_numpy(x).long() for name, x in named.items()}]


def single_parts(batch: dict[str, np.ndarray]) -> list[dict[str, torch.Tensor]]:
    """Each sequence alone."""
    targets = next_token_targets(batch)
    parts = []
    for row, segment_ids in enumerate(batch["segment_ids"]):
        for segment in range(1, segment_ids.max() + 1):
            at = segment_ids == segment
            named = {"input_ids": batch["tokens"][row, at], "targets": targets[row, at]}
            parts.append({name: torch.from_numpy(x)[None].long() for name, x in named.items()})
    return parts


# How each way for torch cuts the batch into the parts whose gradients it sums.
CUTS = {"packed": packed_parts, "single": single_parts}

CONTESTANTS = (
    *(f"jaxterm, remat {remat}" for remat in ("none", "dots")),
    *(f"torch {cut}, {mode}" for cut in CUTS for mode in ("eager", "compiled")),
)


def make_step(name: str, packing: str) -> Step:
    batch = draw_batch(draw_segment_ids(packing))
    contestant, *_, way = name.split()
    if contestant == "jaxterm,":
        weights = {key: p.detach().numpy() for key, p in make_torch_model().named_parameters()}
        return make_jaxterm_step(batch, weights, way)
    cut = CUTS[name.split()[1].rstrip(",")]
    return make_torch_step(cut(batch), compiled=way == "compiled")


def serve(connection, name: str, packing: str) -> None:
    """In a process of its own: a step and its seconds for every message, until None."""
    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    distributed.start(num_cpu_devices=max(n for n in range(1, cores + 1) if ROWS % n == 0))
    step = make_step(name, packing)
    while connection.recv() is not None:
        start = time.perf_counter()
        loss = step()
        connection.send((loss, time.perf_counter() - start))


def run_in_turns(names: list[str], packing: str, num_rounds: int) -> dict[str, np.ndarray]:
    """Name -> loss and seconds of every round, [num_rounds, 2]; one process works at a time."""
    spawn = multiprocessing.get_context("spawn")
    ends = {}
    for name in names:
        ends[name], theirs = spawn.Pipe()
        spawn.Process(target=serve, args=(theirs, name, packing), daemon=True).start()
    rounds = {name: [] for name in names}
    for _ in progress.track(range(num_rounds), description=f"packing {packing}"):
        for name, end in ends.items():
            time.sleep(_PAUSE_S)
            end.send("step")
            rounds[name].append(end.recv())
    for end in ends.values():
        end.send(None)
    return {name: np.array(values) for name, values in rounds.items()}


def compare(packing: str, screen: console.Console) -> None:
    """Time the contestants in turns, check that their losses agree, print a table."""
    names = [
        name
        for name in CONTESTANTS
        if any(part in name for part in _ONLY.value or ["torch", "jax"])
    ]
    # The first rounds compile, and torch.compile meets every length.
    rounds = run_in_turns(names, packing, _WARM_UP + _ROUNDS.value)
    expected = rounds[names[0]][:, 0]
    for name, values in rounds.items():
        if np.abs(values[:, 0] - expected).max() > 1e-4:
            raise RuntimeError(f"{name} computes other losses: {values[:, 0]}, not {expected}")
    seconds = {name: values[_WARM_UP:, 1].tolist() for name, values in rounds.items()}
    num_segments = int((np.diff(draw_segment_ids(packing), axis=1) != 0).sum()) + ROWS
    show(packing, num_segments, seconds, screen)


def show(
    packing: str, num_segments: int, seconds: dict[str, list[float]], screen: console.Console
) -> None:
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ours = {name: x for name, x in medians.items() if name.startswith("jaxterm")}
    theirs = {name: x for name, x in medians.items() if name.startswith("torch")}
    result = table.Table(
        title=f"packing {packing}: {ROWS} rows of {LENGTH} tokens, {num_segments} segments"
    )
    bests = {
        cut: min((x for name, x in theirs.items() if cut in name), default=float("nan"))
        for cut in CUTS
    }
    ratios = tuple(f"best torch {cut} / this" for cut in CUTS)
    for column in ("", "median s", "min s", "tokens/s", *ratios):
        result.add_column(column, justify="left" if not column else "right")
    for name, x in (ours | theirs).items():
        result.add_row(name, f"{x:.3f}", f"{min(seconds[name]):.3f}",
                       f"{ROWS * LENGTH / x:,.0f}",
                       *(f"{best / x:.2f}" for best in bests.values()))  # fmt: skip
    screen.print(result)


def main(_):
    screen = console.Console(width=120)
    screen.print(
        f"jax {jax.__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {platform.machine()}, {os.cpu_count()} cores"
    )
    for packing in ("drawn", "one") if _PACKING.value == "all" else (_PACKING.value,):
        compare(packing, screen)


if __name__ == "__main__":
    app.run(main)
