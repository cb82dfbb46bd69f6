"""Which data shard computes which row of a global batch, so that all have even attention work.

A step lasts as long as its busiest shard. The attention of a row costs the sum of the squares of
its segments' lengths, which differs by several times between rows that are equally full. Shard k
of S holds the rows k * B / S to (k + 1) * B / S of a batch of B.

Heavy and light rows are first spread evenly over a few batches, since no dealing evens out a batch
of heavy rows and one very heavy one; then each batch's rows are dealt to its shards. No row leaves
the packing window in which it stands, so the curriculum's order stays as it is.
"""

from collections.abc import Iterator

import numpy as np

_CLOSE_ENOUGH = 1.005  # max / mean at which a batch is left alone
_MAX_SWAPS = 64  # of two rows, in one batch
_SPREAD_BATCHES = 16  # about so many


def deal(work: np.ndarray, window: np.ndarray, *, batch_size: int, num_shards: int) -> np.ndarray:
    """The order of the rows of whole batches, int64 [R].

    Args:
        work: of each row, int64 [R]; R is a multiple of the batch size.
        window: of each row, ascending, int64 [R].
        batch_size: rows of a global batch, B.
        num_shards: S; it divides B.
    """
    spread = np.arange(len(work))
    if 1 < num_shards < batch_size:
        spread = _spread(work, window, batch_size)
    return spread[_deal_batches(work[spread], batch_size, num_shards)]


def imbalance(work: np.ndarray, *, batch_size: int, num_shards: int) -> np.ndarray:
    """Largest over mean work of the shards, float [R / B]; 1 where a batch has no work."""
    of_shards = work.reshape(-1, num_shards, batch_size // num_shards).sum(2)
    mean = of_shards.mean(1)
    return np.where(mean > 0, of_shards.max(1) / np.maximum(mean, 1), 1.0)


def _spread(work: np.ndarray, window: np.ndarray, batch_size: int) -> np.ndarray:
    """An order in which the rows of neighbouring batches are dealt to them like cards, the heaviest
    first, to and fro; int64 [R]."""
    order = np.arange(len(work))
    for slots in _runs(window, batch_size * _SPREAD_BATCHES):
        batch = slots // batch_size
        sizes = np.bincount(batch - batch[0])
        within = slots - np.repeat(slots[0] + np.cumsum(sizes) - sizes, sizes)
        turn = (within + 0.5) / np.repeat(sizes, sizes)  # a part of a batch takes fewer cards
        to_and_fro = np.where(within % 2, -batch, batch)
        taken = slots[np.lexsort((to_and_fro, turn))]
        order[taken] = slots[np.argsort(-work[slots], kind="stable")]
    return order


def _runs(window: np.ndarray, num_rows: int) -> Iterator[np.ndarray]:
    """The rows of each window, cut into equal runs of about `num_rows`."""
    for rows in np.split(np.arange(len(window)), np.flatnonzero(np.diff(window)) + 1):
        if len(rows):
            yield from np.array_split(rows, max(1, round(len(rows) / num_rows)))


def _deal_batches(work: np.ndarray, batch_size: int, num_shards: int) -> np.ndarray:
    """Permute each batch for itself; int64 [R].

    The heaviest row first, each to the lightest shard that has room (longest processing time
    first); then rows are swapped between the heaviest shard and another while that helps. Within
    a shard the heaviest row comes first, so that a micro-batch, which takes the k-th row of every
    shard, does not put a heavy one beside light ones.
    """
    num_batches = len(work) // batch_size
    by_batch = work.reshape(num_batches, batch_size)
    heaviest = np.argsort(-by_batch, axis=1, kind="stable")
    cells = _longest_first(np.take_along_axis(by_batch, heaviest, 1), num_shards)
    rows = np.take_along_axis(heaviest, cells.reshape(by_batch.shape), 1).reshape(cells.shape)
    _swap(by_batch, rows)
    of_cells = np.take_along_axis(by_batch, rows.reshape(by_batch.shape), 1).reshape(rows.shape)
    within = np.argsort(-of_cells, axis=2, kind="stable")
    rows = np.take_along_axis(rows, within, 2).reshape(by_batch.shape)
    return (rows + batch_size * np.arange(num_batches)[:, None]).reshape(-1)


def _longest_first(work: np.ndarray, num_shards: int) -> np.ndarray:
    """Deal rows that are sorted by work, in all batches at once; ranks, int64 [N, S, B / S]."""
    num_batches, batch_size = work.shape
    room = batch_size // num_shards
    load = np.zeros((num_batches, num_shards), np.int64)
    held = np.zeros((num_batches, num_shards), np.int64)
    cells = np.empty((num_batches, num_shards, room), np.int64)
    every = np.arange(num_batches)
    full = np.iinfo(np.int64).max
    for rank in range(batch_size):
        shard = np.where(held < room, load, full).argmin(1)
        cells[every, shard, held[every, shard]] = rank
        load[every, shard] += work[:, rank]
        held[every, shard] += 1
    return cells


def _swap(work: np.ndarray, rows: np.ndarray) -> None:
    """Exchange rows of the heaviest shard, in place, in each batch whose shards are not even."""
    num_batches, num_shards, room = rows.shape
    at_work = np.arange(num_batches)
    for _ in range(_MAX_SWAPS if num_shards > 1 else 0):
        held = work[at_work[:, None, None], rows[at_work]]
        load = held.sum(2)
        uneven = load.max(1) > _CLOSE_ENOUGH * load.mean(1)
        at_work, held, load = at_work[uneven], held[uneven], load[uneven]
        if not len(at_work):
            return
        every = np.arange(len(at_work))
        top = load.argmax(1)
        # after[n, s, i, j]: the larger load of the two if row i of the top shard goes to shard s
        # for its row j.
        moved = held[every, top][:, None, :, None] - held[:, :, None, :]
        highest = load.max(1)[:, None, None, None]
        after = np.maximum(highest - moved, load[:, :, None, None] + moved)
        flat = after.reshape(len(at_work), -1)
        best = flat.argmin(1)
        helps = flat[every, best] < load.max(1)
        at_work, top, best = at_work[helps], top[helps], best[helps]
        shard, mine, other = np.unravel_index(best, (num_shards, room, room))
        given = rows[at_work, top, mine].copy()
        rows[at_work, top, mine] = rows[at_work, shard, other]
        rows[at_work, shard, other] = given
