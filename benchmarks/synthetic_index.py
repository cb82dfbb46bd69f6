"""An index of tokens with the published length statistics of nvidia/Nemotron-Terminal-Corpus.

Documents, median, p90, p99, maximum and the share above 32,768 of each subset are those that Marin
measured with the Qwen3-8B tokenizer, thinking kept; the lowest lengths are chosen such that the
means come out. Turns: the paper, fig. 6. Between two known quantiles the logarithm is linear.
"""

import dataclasses

import numpy as np
import pyarrow as pa


@dataclasses.dataclass(frozen=True)
class Subset:
    name: str
    num_examples: int
    mean: int  # tokens
    quantiles: tuple[tuple[float, int], ...]  # (share of the examples below, tokens)


SUBSETS = (
    Subset(
        "adapters",
        226_313,
        17_642,
        ((0.5, 13_986), (0.86, 32_768), (0.9, 37_091), (0.99, 53_808), (1, 137_124)),
    ),
    Subset(
        "easy",
        44_809,
        13_335,
        ((0.5, 12_381), (0.9, 20_277), (0.99, 32_345), (0.9906, 32_768), (1, 70_829)),
    ),
    Subset(
        "medium",
        89_343,
        18_594,
        ((0.5, 18_079), (0.9, 25_958), (0.989, 32_768), (0.99, 32_888), (1, 72_316)),
    ),
    Subset("mixed", 5_689, 13_063, ((0.5, 12_196), (0.9, 19_126), (0.99, 23_296), (1, 27_961))),
)

_LOSS_SHARE = 0.61  # of the tokens behind the prompt (another reproduction's count)
_PROMPT_TOKENS = 1_200  # median: 2,836 characters of Terminus' prompt, and the task
_MEDIAN_MESSAGES = 16


def make(seed: int = 0, *, scale: float = 1.0) -> pa.Table:
    """The index, its examples in the order of the subsets; `scale` 1 is all 366,154 of them."""
    rng = np.random.default_rng(seed)
    sizes = [max(1, round(subset.num_examples * scale)) for subset in SUBSETS]
    num_tokens = np.concatenate([_lengths(s, n, rng) for s, n in zip(SUBSETS, sizes, strict=True)])
    sources = np.repeat([subset.name for subset in SUBSETS], sizes)
    return index_of(num_tokens, sources, rng)


def index_of(num_tokens: np.ndarray, sources: np.ndarray, rng: np.random.Generator) -> pa.Table:
    """Rows of tokens/index.parquet for examples of these lengths, cut into random turns."""
    num = len(num_tokens)
    num_turns = 2 * np.clip(rng.lognormal(np.log(_MEDIAN_MESSAGES / 2), 0.4, num), 1, 60).astype(
        int
    )
    offsets = np.concatenate([[0], np.cumsum(num_turns)])
    example_of = np.repeat(np.arange(num), num_turns)
    is_reply = (np.arange(offsets[-1]) - offsets[example_of]) % 2 == 1
    shares = rng.gamma(1.5, size=offsets[-1]) * np.where(is_reply, _LOSS_SHARE, 1 - _LOSS_SHARE)
    prompt = np.minimum(rng.lognormal(np.log(_PROMPT_TOKENS), 0.3, num), num_tokens / 4)
    shares[offsets[:-1]] = 0
    shares *= ((num_tokens - prompt) / np.add.reduceat(shares, offsets[:-1]))[example_of]
    shares[offsets[:-1]] = prompt
    ends = np.cumsum(shares) - np.concatenate([[0], np.cumsum(num_tokens)[:-1]])[example_of]
    ends = np.maximum.accumulate(np.round(ends).astype(np.int64) + (example_of << 32)) - (
        example_of << 32
    )
    starts = np.concatenate([[0], ends[:-1]])
    starts[offsets[:-1]] = 0
    ends[offsets[1:] - 1] = num_tokens
    header = np.minimum(3, ends - starts)  # <|im_start|>assistant\n
    loss_starts, loss_ends = (starts + header)[is_reply], ends[is_reply]
    num_loss = np.add.reduceat(loss_ends - loss_starts, (offsets[:-1] // 2))
    names, codes = np.unique(sources, return_inverse=True)
    return pa.table(
        {
            "shard": pa.array(np.arange(num) // 512, pa.int32()),
            "position": pa.array(np.arange(num) % 512, pa.int32()),
            "source": pa.DictionaryArray.from_arrays(codes, names.tolist()).cast(pa.string()),
            "domain": pa.nulls(num, pa.string()),
            "difficulty": pa.nulls(num, pa.string()),
            "num_tokens": pa.array(num_tokens, pa.int32()),
            "num_loss_tokens": pa.array(num_loss, pa.int32()),
            "num_turns": pa.array(num_turns, pa.int32()),
            "turn_starts": _lists(offsets, starts),
            "loss_starts": _lists(offsets // 2, loss_starts),
            "loss_ends": _lists(offsets // 2, loss_ends),
        }
    )


def _lengths(subset: Subset, num: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths at `num` evenly spread quantiles, shuffled."""
    at = (np.arange(num) + 0.5) / num
    low, high = 1.0, float(subset.quantiles[0][1])
    while high / low > 1.0001:  # the lengths below the median lie such that the mean comes out
        middle = (low * high) ** 0.5
        is_low = _at_quantiles(subset, middle, at).mean() < subset.mean
        low, high = (middle, high) if is_low else (low, middle)
    return rng.permutation(_at_quantiles(subset, low, at).astype(np.int64))


def _at_quantiles(subset: Subset, lowest: float, at: np.ndarray) -> np.ndarray:
    shares, tokens = zip((0.0, lowest), *subset.quantiles, strict=True)
    return np.exp(np.interp(at, shares, np.log(tokens)))


def _lists(offsets: np.ndarray, values: np.ndarray) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.int32()))
