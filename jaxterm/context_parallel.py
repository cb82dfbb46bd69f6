"""The order of a row's tokens when its length is cut over the `context` axis of the mesh.

A causal row is uneven work: the last token meets all keys, the first one. So a row is cut into 2C
pieces and shard i of C holds the pieces i and 2C - 1 - i, which together cost every shard the same:

    C = 2, pieces      0 1 2 3
    order in memory    0 3 | 1 2

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
from jaxtyping import Array, Shaped

from jaxterm import sharding


def num_pieces(num_shards: int) -> int:
    """Into which a row is cut."""
    return 2 * num_shards if num_shards > 1 else 1


def piece_order(num_shards: int) -> list[int]:
    """Which piece of a row lies where: 2C numbers; [0, 3, 1, 2] for two shards."""
    if num_shards == 1:
        return [0]
    return [piece for i in range(num_shards) for piece in (i, 2 * num_shards - 1 - i)]


def token_order(length: int, num_shards: int) -> np.ndarray:
    """Position in the row of each token as it lies in memory, [T] int32.

    Raises:
        ValueError: the length does not cut into 2C pieces.
    """
    order = piece_order(num_shards)
    if length % len(order):
        raise ValueError(
            f"config.data.row_length={length} must be a multiple of {len(order)}, twice "
            f"config.mesh.context={num_shards}: each shard holds two pieces of a row"
        )
    return np.arange(length, dtype=np.int32).reshape(len(order), -1)[order].reshape(-1)


def balance(x: Shaped[Array, "B T"]) -> Shaped[Array, "B T"]:
    """A batch's array from the row's own order into that of the shards of the mesh at hand."""
    return _take_pieces(x, piece_order(sharding.num_shards("length")))


def restore(x: Shaped[Array, "B T *dims"], num_shards: int) -> Shaped[Array, "B T *dims"]:
    """The inverse of `balance`, for an array that is whole on each shard."""
    return _take_pieces(x, np.argsort(piece_order(num_shards)).tolist())


def _take_pieces(x: Array, order: list[int]) -> Array:
    if order == [0]:
        return x
    pieces = jnp.split(x, len(order), axis=1)
    return jnp.concatenate([pieces[piece] for piece in order], axis=1)
