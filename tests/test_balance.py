"""Dealing rows to shards: a permutation of each batch, as even as an exhaustive search."""

import itertools

import numpy as np
import pytest

from data_pipeline.planning import balance


def best_by_trying_all(work, num_shards):
    """The smallest largest load over all ways of dealing a few rows."""
    room = len(work) // num_shards
    loads = (
        [sum(order[k * room : (k + 1) * room]) for k in range(num_shards)]
        for order in itertools.permutations(work.tolist())
    )
    return min(max(each) for each in loads)


def deal(work, window=None, **sizes):
    return balance.deal(work, np.zeros_like(work) if window is None else window, **sizes)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("batch_size", "num_shards"), [(8, 1), (8, 4), (12, 12), (64, 16)])
def test_every_row_stays_in_its_window(seed, batch_size, num_shards):
    rng = np.random.default_rng(seed)
    work = rng.integers(0, 1000, 40 * batch_size)
    window = np.sort(rng.integers(0, 5, len(work)))
    order = deal(work, window, batch_size=batch_size, num_shards=num_shards)
    assert sorted(order) == list(range(len(work)))
    for was, now in zip(
        window.reshape(-1, batch_size), window[order].reshape(-1, batch_size), strict=True
    ):
        assert sorted(was) == sorted(now)  # of each batch
    assert (abs(order - np.arange(len(work))) < 32 * batch_size).all()
    of_shards = work[order].reshape(-1, batch_size // num_shards)
    assert (np.diff(of_shards, axis=1) <= 0).all()  # the heaviest row of a shard comes first


@pytest.mark.parametrize("seed", range(5))
def test_heavy_rows_are_spread_where_no_dealing_would_help(seed):
    # One batch holds a row of 300 that nothing there can weigh up; all others hold lighter rows.
    work = np.random.default_rng(seed).integers(0, 100, (8, 16))
    work[3] = [300] + [100] * 15
    work = work.reshape(-1)
    alone = balance._deal_batches(work, 16, 4)
    sizes = {"batch_size": 16, "num_shards": 4}
    assert balance.imbalance(work[alone], **sizes)[3] == pytest.approx(600 / 450)
    spread = balance.imbalance(work[deal(work, **sizes)], **sizes)
    assert spread.max() < 1.25


@pytest.mark.parametrize("seed", range(8))
def test_nearly_as_even_as_the_best(seed):
    work = np.random.default_rng(seed).integers(1, 1000, 8)
    order = deal(work, batch_size=8, num_shards=4)
    found = work[order].reshape(4, 2).sum(1).max()
    assert found <= 1.05 * best_by_trying_all(work, 4)


@pytest.mark.parametrize("seed", range(5))
def test_never_less_even_than_dealing_without_swaps(seed):
    rng = np.random.default_rng(seed)
    work = (rng.random(128) ** 2 * 1e9).astype(np.int64)
    order = deal(work, batch_size=128, num_shards=32)
    dealt = balance.imbalance(work[order], batch_size=128, num_shards=32)[0]
    load, held = np.zeros(32), np.zeros(32, int)
    for each in sorted(work.tolist(), reverse=True):
        shard = min((k for k in range(32) if held[k] < 4), key=lambda k: load[k])
        load[shard] += each
        held[shard] += 1
    assert dealt <= load.max() / load.mean() + 1e-12
    assert dealt <= 1.05 < balance.imbalance(work, batch_size=128, num_shards=32)[0]


def test_imbalance_by_hand():
    work = np.array([4, 1, 2, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(balance.imbalance(work, batch_size=4, num_shards=2), [5 / 4, 1.0])
    assert len(balance.imbalance(work[:0], batch_size=4, num_shards=2)) == 0
    assert len(deal(work[:0], batch_size=4, num_shards=2)) == 0
