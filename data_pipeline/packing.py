"""Which pieces share a row: splitting what is too long, and best-fit decreasing in a window.

A piece is (example, first token, number of tokens). Rows are packed window by window: the pieces
whose tokens would fill `window_rows` rows are packed together, so a piece never moves further than
one window from where the curriculum put it.
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


def split(turn_starts: np.ndarray, num_tokens: int, row_length: int) -> list[tuple[int, int]]:
    """Cut an example that is longer than a row at the starts of its turns.

    Each part takes as many whole turns as fit; a turn that is longer than a row is cut where the
    row ends. The parts joined are the example.

    Returns:
        (first token, number of tokens) of each part.

    Example: turns at 0, 4, 7 of an example of 12 tokens, rows of 8 tokens -> (0, 7), (7, 5).
    """
    parts, first = [], 0
    while num_tokens - first > row_length:
        limit = first + row_length
        end = int(turn_starts[np.searchsorted(turn_starts, limit, side="right") - 1])
        end = end if end > first else limit
        parts.append((first, end - first))
        first = end
    return [*parts, (first, num_tokens - first)]


def pack(num_tokens: np.ndarray, *, row_length: int, window_rows: int) -> Rows:
    """Pack pieces, given in their order, into rows.

    Args:
        num_tokens: of each piece, in [1, row_length].
        row_length: tokens a row holds.
        window_rows: about how many rows are packed together.

    Returns:
        The rows: those of a window before those of the next, within a window in the order of
        their earliest pieces; the pieces of a row in their order.
    """
    sizes, pieces = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)]
    for first, last in _windows(num_tokens, row_length * window_rows):
        row_of = best_fit_decreasing(num_tokens[first:last], row_length)
        order, sizes_of_rows = _by_earliest(row_of)
        pieces.append(first + order)
        sizes.append(sizes_of_rows)
    return Rows(np.cumsum(np.concatenate(sizes)), np.concatenate(pieces))


def best_fit_decreasing(num_tokens: np.ndarray, row_length: int) -> np.ndarray:
    """The row of each piece, int64 [P]: the longest first, each to the row it fills most."""
    row_of = np.empty(len(num_tokens), np.int64)
    room: list[int] = []  # sorted; of each open row its free tokens, and below them its number
    num_rows, bits = 0, max(1, len(num_tokens)).bit_length()
    mask = (1 << bits) - 1
    longest_first = np.argsort(-num_tokens, kind="stable")
    for piece, size in zip(longest_first.tolist(), num_tokens[longest_first].tolist(), strict=True):
        at = bisect.bisect_left(room, size << bits)
        if at < len(room):
            free, row = room[at] >> bits, room[at] & mask
            del room[at]
        else:
            free, row = row_length, num_rows
            num_rows += 1
        row_of[piece] = row
        if free > size:
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
