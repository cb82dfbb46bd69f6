import numpy as np
import pytest

from data_pipeline.planning import packing


def lengths(seed, num, row_length):
    """Log-normal lengths, a few of them exactly a row."""
    rng = np.random.default_rng(seed)
    made = np.clip(rng.lognormal(np.log(row_length / 3), 0.8, num).astype(int), 1, row_length)
    made[rng.random(num) < 0.05] = row_length
    return made


def naive_best_fit_decreasing(num_tokens, row_length):
    """The textbook's loop: look at every open row, take the fullest that has room."""
    room = []
    for size in sorted(num_tokens, reverse=True):
        fits = [row for row, free in enumerate(room) if free >= size]
        if fits:
            room[min(fits, key=lambda row: room[row])] -= size
        else:
            room.append(row_length - size)
    return len(room)


def first_fit(num_tokens, row_length):
    room = []
    for size in num_tokens:
        for row, free in enumerate(room):
            if free >= size:
                room[row] -= size
                break
        else:
            room.append(row_length - size)
    return len(room)


def pieces_of(rows):
    return [rows.pieces[a:b] for a, b in zip(rows.offsets, rows.offsets[1:], strict=False)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("window_rows", [1, 4, 1000])
def test_rows_hold_every_piece_once_within_capacity(seed, window_rows):
    num_tokens = lengths(seed, 200, 100)
    rows = packing.pack(num_tokens, row_length=100, window_rows=window_rows)
    assert sorted(rows.pieces) == list(range(200))
    for row in pieces_of(rows):
        assert 0 < num_tokens[row].sum() <= 100
        assert list(row) == sorted(row)


@pytest.mark.parametrize("seed", range(20))
def test_as_good_as_the_textbook_and_within_its_bound(seed):
    num_tokens = lengths(seed, 300, 1000)
    num_rows = packing.best_fit_decreasing(num_tokens, 1000).max() + 1
    assert num_rows == naive_best_fit_decreasing(num_tokens, 1000)
    optimum = int(np.ceil(num_tokens.sum() / 1000))
    assert num_rows <= 11 / 9 * max(optimum, (num_tokens > 500).sum()) + 1
    assert num_rows <= first_fit(num_tokens, 1000)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("window_rows", [1, 3, 8])
def test_the_order_survives_up_to_the_window(seed, window_rows):
    num_tokens = lengths(seed, 300, 100)
    rows = packing.pack(num_tokens, row_length=100, window_rows=window_rows)
    # Windows by the definition: pieces until their tokens would pass window_rows full rows.
    window, windows, tokens = 0, [], 0
    for size in num_tokens:
        if tokens + size > 100 * window_rows and tokens:
            window, tokens = window + 1, 0
        tokens += size
        windows.append(window)
    windows = np.array(windows)
    of_rows = [windows[row] for row in pieces_of(rows)]
    assert all(len(set(each)) == 1 for each in of_rows)
    assert [each[0] for each in of_rows] == rows.window.tolist()
    firsts = [(each[0], row[0]) for each, row in zip(of_rows, pieces_of(rows), strict=True)]
    assert firsts == sorted(firsts)


def test_no_pieces_make_no_rows():
    rows = packing.pack(np.zeros(0, np.int64), row_length=10, window_rows=2)
    assert list(rows.offsets) == [0] and len(rows.pieces) == 0


def test_fill_at_the_scale_of_a_window():
    num_tokens = lengths(0, 20_000, 32_768)
    rows = packing.pack(num_tokens, row_length=32_768, window_rows=4096)
    num_rows = len(rows.offsets) - 1
    best = max(num_tokens.sum() / 32_768, (num_tokens > 16_384).sum())
    assert num_rows <= 1.005 * best + 2


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("max_segments", [1, 2, 5])
def test_no_row_holds_more_segments_than_told(seed, max_segments):
    num_tokens = lengths(seed, 200, 100)
    rows = packing.pack(num_tokens, row_length=100, window_rows=20, max_segments=max_segments)
    assert sorted(rows.pieces) == list(range(200))
    of_rows = pieces_of(rows)
    assert max(map(len, of_rows)) <= max_segments
    assert max(num_tokens[row].sum() for row in of_rows) <= 100
    assert max_segments > 1 or len(of_rows) == 200
