"""An index of tokens with the published length statistics of nvidia/Nemotron-Terminal-Corpus.

Documents, median, p90, p99, maximum and the share above 32,768 of each subset are those that Marin
measured with the Qwen3-8B tokenizer, thinking kept. Above the median the logarithm of the length is
linear, between known quantiles, in that of the share that is longer; below it in that of the share
that is shorter, with the slope that gives the published mean. So made, over-long adapter examples
hold 269 million tokens beyond 32,768 (291 were measured). Turns: the paper, fig. 6.
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
_SHORTEST = 1_000  # tokens: a prompt and one reply


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
            "reply_starts": _lists(offsets // 2, starts[is_reply]),
            "loss_starts": _lists(offsets // 2, loss_starts),
            "loss_ends": _lists(offsets // 2, loss_ends),
        }
    )


def _lengths(subset: Subset, num: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths at `num` evenly spread quantiles, shuffled."""
    low, high = 0.0, 2.0
    while high - low > 1e-6:  # the steeper, the shorter the short ones
        slope = (low + high) / 2
        is_low = _at_quantiles(subset, slope, num).mean() < subset.mean
        low, high = (low, slope) if is_low else (slope, high)
    return rng.permutation(_at_quantiles(subset, low, num).astype(np.int64))


def _at_quantiles(subset: Subset, slope: float, num: int) -> np.ndarray:
    below = (np.arange(num) + 0.5) / num
    shares, tokens = (np.array(column) for column in zip(*subset.quantiles, strict=True))
    longer = np.maximum(1 - shares, 0.5 / num)
    upper = np.exp(np.interp(-np.log(1 - below), -np.log(longer), np.log(tokens)))
    lower = tokens[0] * (below / shares[0]) ** slope
    return np.where(below < shares[0], np.maximum(lower, _SHORTEST), upper)


def _lists(offsets: np.ndarray, values: np.ndarray) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.int32()))
