"""What of each example is trained: whole examples, and the parts of those longer than a row."""

import dataclasses
from typing import Literal

import numpy as np
import pyarrow as pa

from data_pipeline import packing

Overlong = Literal["split", "truncate", "drop"]

_LOST_BY = {"split": "split", "truncate": "truncated", "drop": "dropped"}  # as reports name it


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The trained pieces of E examples, in their order; those of example e are
    offsets[e] to offsets[e + 1]."""

    offsets: np.ndarray  # int64 [E + 1]
    example: np.ndarray  # int64 [P]
    first: np.ndarray  # int64 [P]; first token
    num_tokens: np.ndarray  # int64 [P]
    num_loss_tokens: np.ndarray  # int64 [P]
    lost: dict[str, np.ndarray]  # reason -> int64 [E, 2]: tokens and loss tokens of each example
    num_overlong: int
    num_hard_cuts: int  # turns cut because they are longer than a row

    def of(self, examples: np.ndarray) -> np.ndarray:
        """The pieces of `examples`, one example's after the other's."""
        sizes = np.diff(self.offsets)[examples]
        ends = np.cumsum(sizes)
        within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - sizes, sizes)
        return np.repeat(self.offsets[examples], sizes) + within


def make_pieces(index: pa.Table, *, row_length: int, overlong: Overlong) -> Pieces:
    """Decide for each example of a tokens index what is trained.

    A part that holds no loss token is not trained. The first token of a part cannot be predicted,
    so where a turn is cut hard one loss token may go.
    """
    num_tokens = index["num_tokens"].to_numpy().astype(np.int64)
    num_loss = index["num_loss_tokens"].to_numpy().astype(np.int64)
    long = np.flatnonzero(num_tokens > row_length)
    lost = {reason: np.zeros((len(num_tokens), 2), np.int64) for reason in _LOST_BY.values()}
    parts, num_hard_cuts = {}, 0
    columns = [index[name] for name in ("turn_starts", "loss_starts", "loss_ends")]
    for example in long.tolist():
        lists = [np.asarray(column[example].values) for column in columns]
        all_parts, cuts = _parts(lists, int(num_tokens[example]), row_length, overlong)
        num_hard_cuts += cuts
        kept = [part for part in all_parts if part[2] > 0]
        parts[example] = np.array(kept, np.int64).reshape(-1, 3)
        went = np.array((num_tokens[example], num_loss[example])) - parts[example][:, 1:].sum(0)
        lost[_LOST_BY[overlong]][example] = went
    return _flat(num_tokens, num_loss, parts, lost, num_hard_cuts)


def _parts(
    lists: list[np.ndarray], num_tokens: int, row_length: int, overlong: Overlong
) -> tuple[list[tuple[int, int, int]], int]:
    """(first token, tokens, loss tokens) of each part, and the number of turns cut hard."""
    turn_starts, loss_starts, loss_ends = lists
    if overlong == "drop":
        return [], 0
    if overlong == "truncate":
        spans = [(0, row_length)]
    else:
        spans = packing.split(turn_starts, num_tokens, row_length)
    hard = [first for first, _ in spans if first not in turn_starts]
    cut_turns = np.unique(np.searchsorted(turn_starts, hard, side="right"))

    def loss_in(first: int, num: int) -> int:
        overlap = np.minimum(loss_ends, first + num) - np.maximum(loss_starts, first + 1)
        return int(np.maximum(overlap, 0).sum())  # from first + 1: see make_pieces

    return [(first, num, loss_in(first, num)) for first, num in spans], len(cut_turns)


def _flat(
    num_tokens: np.ndarray,
    num_loss: np.ndarray,
    parts: dict[int, np.ndarray],
    lost: dict[str, np.ndarray],
    num_hard_cuts: int,
) -> Pieces:
    sizes = np.ones(len(num_tokens), np.int64)
    for example, own in parts.items():
        sizes[example] = len(own)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    example_of = np.repeat(np.arange(len(num_tokens)), sizes)
    table = np.stack([np.zeros_like(example_of), num_tokens[example_of], num_loss[example_of]], 1)
    for example, own in parts.items():
        table[offsets[example] : offsets[example + 1]] = own
    return Pieces(
        offsets=offsets,
        example=example_of,
        first=table[:, 0],
        num_tokens=table[:, 1],
        num_loss_tokens=table[:, 2],
        lost=lost,
        num_overlong=len(parts),
        num_hard_cuts=num_hard_cuts,
    )
