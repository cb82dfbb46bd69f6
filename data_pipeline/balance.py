"""Which data shard computes which row of a global batch, so that all have even attention work.

A step lasts as long as its busiest shard. The attention of a row costs the sum of the squares of
its segments' lengths, which differs by several times between rows that are equally full. Shard k
of S holds the rows k * B / S to (k + 1) * B / S of a batch of B; the dealing only permutes the rows
within their batch, so the curriculum's order stays.
"""

import numpy as np

_CLOSE_ENOUGH = 1.005  # max / mean at which a batch is left alone
_MAX_SWAPS = 64  # of two rows, in one batch


def deal(work: np.ndarray, *, batch_size: int, num_shards: int) -> np.ndarray:
    """The order of the rows of whole batches, int64 [R].

    The heaviest row first, each to the lightest shard that has room (longest processing time
    first); then rows are swapped between the heaviest shard and another while that helps. Within
    a shard the heaviest row comes first, so that micro-batches, which take the k-th row of every
    shard, are alike too.

    Args:
        work: of each row, int64 [R]; R is a multiple of the batch size.
        batch_size: rows of a global batch, B.
        num_shards: S; it divides B.
    """
    num_batches = len(work) // batch_size
    by_batch = work.reshape(num_batches, batch_size)
    heaviest = np.argsort(-by_batch, axis=1, kind="stable")
    cells = _longest_first(np.take_along_axis(by_batch, heaviest, 1), num_shards)
    rows = np.take_along_axis(heaviest, cells.reshape(by_batch.shape), 1)
    rows = rows.reshape(cells.shape)
    _swap(by_batch, rows)
    of_cells = np.take_along_axis(by_batch, rows.reshape(by_batch.shape), 1).reshape(rows.shape)
    within = np.argsort(-of_cells, axis=2, kind="stable")
    rows = np.take_along_axis(rows, within, 2).reshape(by_batch.shape)
    return (rows + batch_size * np.arange(num_batches)[:, None]).reshape(-1)


def imbalance(work: np.ndarray, *, batch_size: int, num_shards: int) -> np.ndarray:
    """Largest over mean work of the shards, float [R / B]; 1 where a batch has no work."""
    of_shards = work.reshape(-1, num_shards, batch_size // num_shards).sum(2)
    mean = of_shards.mean(1)
    return np.where(mean > 0, of_shards.max(1) / np.maximum(mean, 1), 1.0)


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
