"""Near-duplicates: rows whose task and replies are largely those of an earlier row.

Compared are the sets of runs of five words in the instruction and in the replies, thinking
included; not in the rest of the prompt and the screens, which are alike in thousands of sessions
that differ. MinHash estimates the Jaccard similarity of two sets (to about 0.04), and
locality-sensitive hashing finds the pairs that are worth a look.
"""

from collections.abc import Mapping

from rensa import RMinHash, RMinHashLSH  # type: ignore[attr-defined]

from data_pipeline import records
from data_pipeline.curation import decontamination

_SHINGLE_WORDS = 5
_NUM_PERMUTATIONS, _SEED = 128, 42


def sketch_of(conversation: records.Conversation) -> bytes:
    """What is remembered of a row in order to compare it: its MinHash."""
    minhash = RMinHash(num_perm=_NUM_PERMUTATIONS, seed=_SEED)
    replies = (conversation.messages[turn].content for turn in conversation.replies)
    shingles: list[str] = []
    for text in (decontamination.instruction_of(conversation.messages), *replies):
        words = text.split()
        starts = range(max(len(words) - _SHINGLE_WORDS + 1, 1))
        shingles += [" ".join(words[i : i + _SHINGLE_WORDS]) for i in starts]
    minhash.update(shingles)
    return minhash.__getstate__()


def find_repeats(
    sketches: Mapping[int, bytes], *, threshold: float
) -> dict[int, tuple[int, float]]:
    """Rows that are like an earlier one that stays, with that one and their similarity.

    Args:
        sketches: of rows, by their numbers, in the order of the corpus.
        threshold: the similarity from which on a row goes.
    """
    index = RMinHashLSH(
        threshold=threshold, num_perm=_NUM_PERMUTATIONS, num_bands=_num_bands(threshold)
    )
    kept: dict[int, RMinHash] = {}
    repeats = {}
    for row, state in sketches.items():
        minhash = RMinHash(num_perm=_NUM_PERMUTATIONS, seed=_SEED)
        minhash.__setstate__(state)
        likes = ((minhash.jaccard(kept[other]), -other) for other in index.query(minhash))
        similarity, other = max(likes, default=(0.0, 0))  # of equally similar ones the first
        if similarity >= threshold:
            repeats[row] = (-other, similarity)
        else:
            kept[row] = minhash
            index.insert(row, minhash)
    return repeats


def _num_bands(threshold: float) -> int:
    """The fewest bands that miss at most one in a hundred pairs at the threshold."""
    for num_bands in (4, 8, 16, 32, 64):
        rows = _NUM_PERMUTATIONS // num_bands
        if (1 - threshold**rows) ** num_bands <= 0.01:
            return num_bands
    return _NUM_PERMUTATIONS
