"""What of each example is trained, by hand and by laws over random turns."""

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.planning import pieces


def lists(values):
    return pa.array(list(values), pa.list_(pa.int32()))


def index_of(*examples):
    """Rows of an index; an example is (turn starts, reply starts, loss spans, number of tokens)."""
    return pa.table(
        {
            "num_tokens": [num for *_, num in examples],
            "num_loss_tokens": [sum(b - a for a, b in spans) for _, _, spans, _ in examples],
            "turn_starts": lists(turns for turns, *_ in examples),
            "reply_starts": lists(replies for _, replies, *_ in examples),
            "loss_starts": lists([a for a, _ in spans] for _, _, spans, _ in examples),
            "loss_ends": lists([b for _, b in spans] for _, _, spans, _ in examples),
        }
    )


def parts_of(made):
    return list(
        zip(made.prompt.tolist(), made.first.tolist(), made.num_tokens.tolist(), strict=True)
    )


def test_a_reply_that_is_not_trained_is_still_a_reply():
    # The reply at 20 is masked; the prompt ends before it, and a cut may stand behind it.
    masked = ([0, 20, 80, 110, 150, 180], [20, 110, 180], [(113, 150), (183, 240)], 240)
    made = pieces.make_pieces(index_of(masked), row_length=128, overlong="split")
    assert parts_of(made) == [(20, 80, 70), (20, 150, 90)]  # of 0 to 80 nothing is trained
    assert made.lost.tolist() == [[80, 0]]


def test_truncated_and_dropped():
    long = ([0, 20], [20], [(23, 100)], 100)
    short = ([0, 20], [20], [(23, 50)], 50)
    made = pieces.make_pieces(index_of(long, short), row_length=60, overlong="truncate")
    assert parts_of(made) == [(0, 0, 60), (0, 0, 50)] and made.lost.tolist() == [[40, 40], [0, 0]]
    made = pieces.make_pieces(index_of(long, short), row_length=60, overlong="drop")
    assert parts_of(made) == [(0, 0, 50)] and made.lost.tolist() == [[100, 77], [0, 0]]


@pytest.mark.parametrize("seed", range(60))
def test_every_loss_token_is_trained_once_behind_another_token(seed):
    rng = np.random.default_rng(seed)
    num = int(rng.integers(20, 300))
    turns = np.unique(np.append(0, rng.integers(1, num - 4, num // 15))).tolist()
    ends = [*turns[1:], num]
    replies = [(a, b) for a, b in zip(turns, ends, strict=True) if a and rng.random() < 0.6]
    spans = [(min(a + 3, b), b) for a, b in replies if rng.random() < 0.8 and b - a > 3]
    example = (turns, [a for a, _ in replies], spans, num)
    made = pieces.make_pieces(
        index_of(example, example), row_length=int(rng.integers(2, 80)), overlong="split"
    )
    counts = np.zeros(num, int)
    for piece in range(made.offsets[0], made.offsets[1]):
        first = made.first[piece]
        counts[first + 1 : first + made.num_tokens[piece]] += 1
    is_loss = np.zeros(num, bool)
    for a, b in spans:
        is_loss[a:b] = True
    assert (counts[is_loss] == 1).all() or made.overlong.sum() == 0
    assert made.num_loss_tokens[: made.offsets[1]].sum() == is_loss.sum()
    assert (made.of(np.array([1, 0])) == [*range(*made.offsets[1:]), *range(made.offsets[1])]).all()
