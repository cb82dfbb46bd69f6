"""Which pieces share a row: best-fit decreasing in a window.

Rows are packed window by window: the pieces whose tokens would fill `window_rows` rows are packed
together, so a piece never moves further than one window from where the curriculum put it.
"""

import bisect
import dataclasses
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of pieces, flat: row i holds the pieces offsets[i] to offsets[i + 1]."""

    offsets: np.ndarray  # int64 [R + 1]
    pieces: np.ndarray  # int64 [P]; which piece, in the order of the row
    window: np.ndarray  # int64 [R]; the window of each row


def pack(
    num_tokens: np.ndarray, *, row_length: int, window_rows: int, max_segments: int = 0
) -> Rows:
    """Pack pieces, given in their order, into rows.

    Args:
        num_tokens: of each piece, in [1, row_length].
        row_length: tokens a row holds.
        window_rows: about how many rows are packed together.
        max_segments: pieces a row may hold; 0 sets no limit.

    Returns:
        The rows: those of a window before those of the next, within a window in the order of
        their earliest pieces; the pieces of a row in their order.
    """
    sizes, pieces = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)]
    for first, last in _windows(num_tokens, row_length * window_rows):
        row_of = best_fit_decreasing(num_tokens[first:last], row_length, max_segments)
        order, sizes_of_rows = _by_earliest(row_of)
        pieces.append(first + order)
        sizes.append(sizes_of_rows)
    num_rows = [len(each) for each in sizes[1:]]
    window = np.repeat(np.arange(len(num_rows)), num_rows)
    return Rows(np.cumsum(np.concatenate(sizes)), np.concatenate(pieces), window)


def best_fit_decreasing(
    num_tokens: np.ndarray, row_length: int, max_segments: int = 0
) -> np.ndarray:
    """The row of each piece, int64 [P]: the longest first, each to the row it fills most."""
    row_of = np.empty(len(num_tokens), np.int64)
    room: list[int] = []  # sorted; of each open row its free tokens, and below them its number
    segments: list[int] = []  # of each row
    limit = max_segments or len(num_tokens)
    bits = max(1, len(num_tokens)).bit_length()
    mask = (1 << bits) - 1
    longest_first = np.argsort(-num_tokens, kind="stable")
    for piece, size in zip(longest_first.tolist(), num_tokens[longest_first].tolist(), strict=True):
        at = bisect.bisect_left(room, size << bits)
        if at < len(room):
            free, row = room[at] >> bits, room[at] & mask
            del room[at]
        else:
            free, row = row_length, len(segments)
            segments.append(0)
        row_of[piece] = row
        segments[row] += 1
        if free > size and segments[row] < limit:
            bisect.insort(room, (free - size) << bits | row)
    return row_of


def _windows(num_tokens: np.ndarray, window_tokens: int) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) piece of each window."""
    ends = np.cumsum(num_tokens)
    first = 0
    while first < len(ends):
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + window_tokens, side="right")))
        yield first, last
        first = last


def _by_earliest(row_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pieces sorted by the first piece of their row, then by themselves; and the rows' sizes."""
    num_rows = int(row_of.max()) + 1
    earliest = np.full(num_rows, len(row_of))
    np.minimum.at(earliest, row_of, np.arange(len(row_of)))
    order = np.lexsort((np.arange(len(row_of)), earliest[row_of]))
    return order, np.bincount(row_of, minlength=num_rows)[np.argsort(earliest)]
