"""The order of a row's tokens when its length is cut over the `context` axis of the mesh.

A causal row is uneven work: the last token meets all keys, the first one. So a row is cut into
pieces that are dealt to the C shards to and fro, an even number of times:

    C = 2, pieces      0 1 2 3 4 5 6 7
    order in memory    0 3 4 7 | 1 2 5 6

Two pieces a shard even out a row of one segment. Those of a packed row end anywhere, so pieces are
as short as the kernels' tiles allow. On the paper's lengths the slowest of 32 devices then has 1.12
times the mean attention where two or four share a row, less than where rows are whole (1.16); with
two pieces a shard it had 1.27 and 1.37 times (benchmarks/context_balance.py).

The whole step works in this order: embedding, norms, MLP and loss know no neighbours, positions and
segment ids travel with their tokens, and targets are found before. Attention alone must know: its
queries lie in this order, its keys and values are gathered and put back into the row's own.

They are gathered rather than passed around a ring, which wins at no length of ours: a Llama of 8B
with CP=64 on 64 chips of v5p takes 1.09, 2.98 and 9.71 s a step at 65,536, 131,072 and 262,144
tokens with gathering, 1.42, 3.71 and 10.78 s with tokamax's ring (MaxText#4893). That ring also
wants its mask as a table of T x T (tokamax 0.0.17, make_ring_attention): 17 GB at 131,072. What is
gathered are 0.5 GB there, of one block of Qwen3-14B at a time.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Shaped

from jaxterm import sharding

SHORTEST_PIECE = 1024  # tokens: a tile of the kernels
_MOST_TURNS = 8  # of dealing; more even out nothing that is left


def num_pieces(length: int, num_shards: int) -> int:
    """Into which a row is cut.

    Raises:
        ValueError: the length does not cut into 2C pieces.
    """
    if num_shards == 1:
        return 1
    pieces = 2 * num_shards
    if length % pieces:
        raise ValueError(
            f"config.data.row_length={length} must be a multiple of {pieces}, twice "
            f"config.mesh.context={num_shards}: each shard holds as many pieces of a row"
        )
    turns = 1
    while (
        2 * turns <= _MOST_TURNS
        and length % (2 * turns * pieces) == 0
        and length // (2 * turns * pieces) >= SHORTEST_PIECE
    ):
        turns *= 2
    return turns * pieces


def pieces_of(shard: int | Array, num_shards: int, pieces: int) -> list[int | Array]:
    """Those of a shard, ascending: dealt to and fro, as 0 1 | 1 0 | 0 1 | ... to two shards."""
    if num_shards == 1:
        return [0]
    turns = range(0, pieces, 2 * num_shards)
    return [piece for turn in turns for piece in (turn + shard, turn + 2 * num_shards - 1 - shard)]


def piece_order(length: int, num_shards: int) -> list[int]:
    """Which piece of a row lies where; [0, 3, 1, 2] for four pieces and two shards."""
    pieces = num_pieces(length, num_shards)
    shards = range(num_shards)
    return [int(piece) for i in shards for piece in pieces_of(i, num_shards, pieces)]


def token_order(length: int, num_shards: int) -> np.ndarray:
    """Position in the row of each token as it lies in memory, [T] int32.

    Raises:
        ValueError: the length does not cut into 2C pieces.
    """
    order = piece_order(length, num_shards)
    return np.arange(length, dtype=np.int32).reshape(len(order), -1)[order].reshape(-1)


def balance(x: Shaped[Array, "B T"]) -> Shaped[Array, "B T"]:
    """A batch's array from the row's own order into that of the shards of the mesh at hand."""
    return _take_pieces(x, piece_order(x.shape[1], sharding.num_shards("length")))


def restore(x: Shaped[Array, "B T *dims"], num_shards: int) -> Shaped[Array, "B T *dims"]:
    """The inverse of `balance`, for an array that is whole on each shard."""
    return _take_pieces(x, np.argsort(piece_order(x.shape[1], num_shards)).tolist())


def _take_pieces(x: Array, order: list[int]) -> Array:
    if order == [0]:
        return x
    pieces = jnp.split(x, len(order), axis=1)
    return jnp.concatenate([pieces[piece] for piece in order], axis=1)
