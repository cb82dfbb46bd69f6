"""What of each example is trained: whole examples, and the parts of those longer than a row."""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa

from data_pipeline.planning import splitting

Overlong = Literal["split", "truncate", "drop"]

_LISTS = ("turn_starts", "reply_starts", "loss_starts", "loss_ends")
LOST_BY = {"split": "split", "truncate": "truncated", "drop": "dropped"}  # as reports name it


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The trained pieces of E examples, in their order; those of example e are
    offsets[e] to offsets[e + 1].

    A piece takes prompt + num_tokens slots of a row. Of them `num_repeated` are trained, if at all,
    in another piece: they are context here.
    """

    row_length: int
    offsets: np.ndarray  # int64 [E + 1]
    example: np.ndarray  # int64 [P]
    prompt: np.ndarray  # int64 [P]; leading tokens of the example, repeated in front
    first: np.ndarray  # int64 [P]; first token behind the prompt
    num_tokens: np.ndarray  # int64 [P]; from `first` on
    num_repeated: np.ndarray  # int64 [P]
    num_loss_tokens: np.ndarray  # int64 [P]
    lost: np.ndarray  # int64 [E, 2]: tokens and loss tokens of each example that no piece holds
    overlong: np.ndarray  # bool [E]

    @property
    def num_slots(self) -> np.ndarray:
        """What each piece takes of a row, int64 [P]."""
        return self.prompt + self.num_tokens

    def of(self, examples: np.ndarray) -> np.ndarray:
        """The pieces of `examples`, one example's after the other's."""
        sizes = np.diff(self.offsets)[examples]
        ends = np.cumsum(sizes)
        within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - sizes, sizes)
        return np.repeat(self.offsets[examples], sizes) + within


def make_pieces(
    index: pa.Table, *, row_length: int, overlong: Overlong, carry_prompt: bool = True
) -> Pieces:
    """Decide for each example of a tokens index what is trained.

    A part that holds no loss token is not trained.
    """
    num_tokens = index["num_tokens"].to_numpy().astype(np.int64)
    num_loss = index["num_loss_tokens"].to_numpy().astype(np.int64)
    is_long = num_tokens > row_length
    long = np.flatnonzero(is_long).tolist()
    parts: dict[int, list[splitting.Part]] = {example: [] for example in long}
    losses: dict[int, list[int]] = {example: [] for example in long}
    if long and overlong != "drop":
        splitter = splitting.Splitter(row_length, carry_prompt=carry_prompt)
        lists = [_Lists(index[name]) for name in _LISTS]
        for example in long:
            turns, replies, starts, ends = (each[example] for each in lists)
            if overlong == "split":
                made = splitter.split(turns, replies, int(num_tokens[example]))
            else:
                made = [splitting.Part(0, 0, row_length, 0)]
            loss_before = _Counter(starts, ends)
            # From the second token on: nothing stands before the first that could predict it.
            counts = [
                loss_before(part.first + part.num_tokens) - loss_before(part.first + 1)
                for part in made
            ]
            parts[example] = [part for part, count in zip(made, counts, strict=True) if count]
            losses[example] = [count for count in counts if count]
    return _flat(num_tokens, num_loss, row_length, parts, losses)


class _Lists:
    """An Arrow column of int lists; `[i]` is a Python list, made without an Arrow scalar."""

    def __init__(self, column: pa.ChunkedArray):
        array = column.combine_chunks()
        self._offsets = array.offsets.to_numpy()
        self._values = array.values.to_numpy()

    def __getitem__(self, i: int) -> list[int]:
        return self._values[self._offsets[i] : self._offsets[i + 1]].tolist()


class _Counter:
    """How many loss tokens an example has before a token."""

    def __init__(self, starts: Sequence[int], ends: Sequence[int]):
        self._starts, self._ends = starts, ends
        sizes = (end - start for start, end in zip(starts, ends, strict=True))
        self._before = list(itertools.accumulate(sizes, initial=0))

    def __call__(self, token: int) -> int:
        span = bisect.bisect_left(self._starts, token) - 1  # the last that begins before it
        if span < 0:
            return 0
        return self._before[span] + min(token, self._ends[span]) - self._starts[span]


def _flat(
    num_tokens: np.ndarray,
    num_loss: np.ndarray,
    row_length: int,
    parts: dict[int, list[splitting.Part]],
    losses: dict[int, list[int]],
) -> Pieces:
    sizes = np.ones(len(num_tokens), np.int64)
    long = np.fromiter(parts, np.int64, len(parts))
    sizes[long] = [len(parts[example]) for example in parts]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    example = np.repeat(np.arange(len(num_tokens)), sizes)
    is_long = np.zeros(len(num_tokens), bool)
    is_long[long] = True
    table = np.zeros((4, len(example)), np.int64)  # prompt, first, tokens, overlap
    table[2] = num_tokens[example]
    loss = num_loss[example]
    made = [part for own in parts.values() for part in own]
    table[:, is_long[example]] = np.array(made, np.int64).reshape(-1, 4).T
    loss[is_long[example]] = [count for own in losses.values() for count in own]
    prompt, first, num, overlap = table
    held = [
        np.bincount(example, x, len(num_tokens)).astype(np.int64) for x in (num - overlap, loss)
    ]
    return Pieces(
        row_length=row_length,
        offsets=offsets,
        example=example,
        prompt=prompt,
        first=first,
        num_tokens=num,
        num_repeated=prompt + overlap,
        num_loss_tokens=loss,
        lost=np.stack([num_tokens - held[0], num_loss - held[1]], 1),
        overlong=is_long,
    )
