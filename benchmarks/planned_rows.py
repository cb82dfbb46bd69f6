"""Packed rows to time steps on: the corpus's lengths as the planner packs them, random tokens."""

import numpy as np
import synthetic_index

from data_pipeline.planning import packing

Batch = dict[str, np.ndarray]


def draw_segment_ids(rows: int, length: int) -> np.ndarray:
    """Rows of a plan, evenly drawn from those with the least attention to those with the most."""
    lengths = synthetic_index.make(scale=0.01)["num_tokens"].to_numpy()
    lengths = np.random.default_rng(0).permutation(lengths) * length // 32_768
    lengths = np.clip(lengths, 1, length)  # what is longer fills a row, as its first piece would
    packed = packing.pack(lengths, row_length=length, window_rows=256)
    planned = [lengths[at] for at in np.split(packed.pieces, packed.offsets[1:-1])]
    planned.sort(key=num_pairs)
    segment_ids = np.zeros((rows, length), np.int32)
    for row, ids in enumerate(segment_ids):
        of_row = planned[(2 * row + 1) * len(planned) // (2 * rows)]
        ids[: of_row.sum()] = np.repeat(np.arange(len(of_row)) + 1, of_row)
    return segment_ids


def num_pairs(lengths: np.ndarray) -> float:
    """Of a query and a key that it sees, over segments of these lengths."""
    return float((lengths * (lengths + 1.0) / 2).sum())


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
