r"""How even the attention of packed rows is, cut over 1, 2, 4 or 8 devices: what no compiler tells.

    PYTHONPATH=. uv run python benchmarks/context_balance.py
    PYTHONPATH=. uv run python benchmarks/context_balance.py --devices=64 --model=32b

The corpus is drawn from the published length statistics (synthetic_index.py), packed and dealt as
data_pipeline.plan does it. In a micro-batch each device has one row, or its two pieces of one
(jaxterm/context_parallel.py); all wait for the slowest, since they gather the same weights. So the
attention of a step takes the sum over its micro-batches of the most work of a device; the table
tells it over the mean, and what that makes of a step's FLOPs. Work is (query, key) pairs that meet.
"""

import numpy as np
import synthetic_index
from absl import app, flags
from rich import console, table

from data_pipeline.planning import balance, packing
from jaxterm import architecture, context_parallel, metrics

_MODEL = flags.DEFINE_enum("model", "14b", sorted(architecture.QWEN3), "Its share of attention.")
_DEVICES = flags.DEFINE_integer("devices", 32, "Of the pod.")
_SHARE = flags.DEFINE_float("share", 0.1, "Part of the corpus.")

ROW_LENGTH, BATCH_ROWS, WINDOW_ROWS = 32_768, 128, 4096


def pairs_of(num_tokens: np.ndarray, num_shards: int) -> np.ndarray:
    """Pairs that each shard of a row computes, [C], of the row's segments in their order."""
    past = np.concatenate([np.arange(1, n + 1) for n in num_tokens])
    past = np.pad(past, (0, ROW_LENGTH - len(past)))
    order = context_parallel.token_order(ROW_LENGTH, num_shards)
    return past[order].reshape(num_shards, -1).sum(1)


def packed_rows() -> tuple[list[np.ndarray], np.ndarray]:
    """The segments of each row, whole batches of them, and each row's work."""
    index = synthetic_index.make(scale=_SHARE.value)
    rng = np.random.default_rng(0)
    num_tokens = np.minimum(index["num_tokens"].to_numpy(), ROW_LENGTH)
    num_tokens = num_tokens[rng.permutation(len(num_tokens))]
    rows = packing.pack(num_tokens, row_length=ROW_LENGTH, window_rows=WINDOW_ROWS)
    segments = [num_tokens[pieces] for pieces in np.split(rows.pieces, rows.offsets[1:-1])]
    whole = len(segments) // BATCH_ROWS * BATCH_ROWS
    segments = segments[:whole]
    return segments, np.array([(each.astype(np.int64) ** 2).sum() for each in segments])


def spread_of(segments: list[np.ndarray], work: np.ndarray, num_shards: int) -> float:
    """Work of the slowest devices over the mean, all micro-batches together."""
    data_shards = _DEVICES.value // num_shards
    window = np.arange(len(work)) // WINDOW_ROWS
    order = balance.deal(work, window, batch_size=BATCH_ROWS, num_shards=data_shards)
    pairs = np.stack([pairs_of(segments[row], num_shards) for row in order])  # [R, C]
    by_shard = pairs.reshape(-1, data_shards, BATCH_ROWS // data_shards, num_shards)
    of_micro_batches = by_shard.swapaxes(1, 2).reshape(-1, data_shards * num_shards)
    return float(of_micro_batches.max(1).sum() / of_micro_batches.mean(1).sum())


def main(_):
    """Print the table."""
    segments, work = packed_rows()
    model = architecture.QWEN3[_MODEL.value]
    num_tokens = sum(int(each.sum()) for each in segments)
    pairs = sum(int((each.astype(np.int64) * (each + 1) // 2).sum()) for each in segments)
    matrices, attention = metrics.step_flops(model, num_tokens=num_tokens, attention_pairs=pairs)
    share = attention / (matrices + attention)
    shown = table.Table("context", "slowest / mean attention", "a step's FLOPs, times")
    for num_shards in (1, 2, 4, 8):
        spread = spread_of(segments, work, num_shards)
        shown.add_row(str(num_shards), f"{spread:.3f}", f"{1 + share * (spread - 1):.3f}")
    title = f"{_MODEL.value}, {_DEVICES.value} devices, {len(segments):,} rows of {ROW_LENGTH:,}: "
    console.Console(width=100).print(f"{title}{share:.0%} of the FLOPs are attention", shown)


if __name__ == "__main__":
    app.run(main)
