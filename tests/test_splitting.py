"""Laws of the parts of an example, and one cut by hand."""

import itertools

import numpy as np
import pytest

from data_pipeline.planning import splitting


def random_example(seed):
    rng = np.random.default_rng(seed)
    num_tokens = int(rng.integers(2, 500))
    inner = rng.integers(1, num_tokens, size=num_tokens // 12)
    turn_starts = np.unique(np.append(0, inner)).tolist()
    replies = [start for start in turn_starts[1:] if rng.random() < 0.5]
    return turn_starts, replies, num_tokens, int(rng.integers(2, 90)), rng


@pytest.mark.parametrize("seed", range(200))
def test_each_token_is_new_in_one_part_and_none_overfills(seed):
    turns, replies, num_tokens, row_length, rng = random_example(seed)
    splitter = splitting.Splitter(row_length, carry_prompt=bool(rng.random() < 0.7))
    parts = splitter.split(turns, replies, num_tokens)
    counts = np.zeros(num_tokens, int)
    for part in parts:
        assert part.prompt + part.num_tokens <= row_length and part.num_tokens > part.overlap
        counts[part.first + part.overlap : part.first + part.num_tokens] += 1
    assert (counts == 1).all()
    carried = replies[0] if replies and splitter.carry_prompt else 0
    assert parts[0].prompt == parts[0].overlap == 0
    for part in parts[1:]:
        assert part.prompt == (carried if carried < row_length // 2 else 0)
        # A token is repeated only inside a turn, where it is what predicts the next one.
        assert part.overlap == (part.first + part.overlap not in turns)


@pytest.mark.parametrize("carry_prompt", [True, False])
@pytest.mark.parametrize("seed", range(200))
def test_a_cut_stands_behind_a_reply_or_no_place_for_one_fits(seed, carry_prompt):
    turns, replies, num_tokens, row_length, _ = random_example(seed)
    parts = splitting.Splitter(row_length, carry_prompt=carry_prompt).split(
        turns, replies, num_tokens
    )
    for part, following in itertools.pairwise(parts):
        first, end = part.first + part.overlap, following.first + following.overlap
        limit = part.first + row_length - part.prompt
        behind_replies = [
            t for t, before in zip(turns[1:], turns, strict=False) if before in replies
        ]
        good = [t for t in behind_replies if first < t <= limit]
        early = [t for t in good if t <= limit - row_length // 4]
        if good and limit - max(good) > row_length // 200 and early:
            assert end == max(early)
        else:
            assert end == (max(good) if good else limit)


def test_by_hand():
    turns, replies = [0, 10, 20, 24, 40, 50], [10, 24, 50]
    plain = splitting.Splitter(40)
    assert plain.split(turns, replies, 60) == [
        splitting.Part(0, 0, 40, 0),
        splitting.Part(10, 40, 20, 0),
    ]
    assert plain.split(turns, replies, 40) == [splitting.Part(0, 0, 40, 0)]
    # A turn of 45 tokens in rows of 30: cut where the row ends, one token repeated.
    assert splitting.Splitter(30).split([0, 5], [5], 50) == [
        splitting.Part(0, 0, 30, 0),
        splitting.Part(5, 29, 21, 1),
    ]
    # Up to 24 the part would leave 6 tokens of 30, for which few examples are short enough.
    assert splitting.Splitter(30).split([0, 10, 18, 24], [10, 24], 48) == [
        splitting.Part(0, 0, 18, 0),
        splitting.Part(10, 18, 20, 0),
        splitting.Part(10, 37, 11, 1),
    ]


def test_a_prompt_of_half_a_row_is_not_carried():
    [_, *later] = splitting.Splitter(40).split([0, 20, 30, 35], [20, 35], 60)
    assert {part.prompt for part in later} == {0}
