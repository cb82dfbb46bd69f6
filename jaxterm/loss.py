"""Masked next-token cross-entropy whose logits never exist at full size.

Legend: B batch, T tokens, D embed, V vocab (padded), C shards of the length, I positions of a
chunk on each.

The logits of one chunk of every row are computed, reduced to one loss a token, and computed again
in the backward pass: memory is B x chunk x V instead of B x T x V.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxterm import sharding

IGNORED = -1  # the target of a position that is not trained


def next_tokens(
    tokens: Int[Array, "B T"], segment_ids: Int[Array, "B T"], loss_mask: Int[Array, "B T"]
) -> Int[Array, "B T"]:
    """Target of each position: the next token of its segment where the mask wants it predicted.

    A row with a prompt (10, 11) and a reply (20, 21), then another segment, and padding:

        tokens       10  11  20  21 | 30  40 |  0
        segment_ids   1   1   1   1 |  2   2 |  0
        loss_mask     0   0   1   1 |  0   1 |  0
        targets      -1  20  21  -1 | 40  -1 | -1
    """

    def following(x: Array) -> Array:
        return jnp.roll(x, -1, axis=1).at[:, -1].set(0)

    wanted = (
        (following(loss_mask) > 0) & (following(segment_ids) == segment_ids) & (segment_ids > 0)
    )
    return jnp.where(wanted, following(tokens), IGNORED)


def token_losses(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    *,
    vocab_size: int,
    chunk_tokens: int,
) -> Float[Array, "B T"]:
    """Cross-entropy in nats of each target, in float32; 0 where the target is IGNORED.

    Args:
        hidden: the decoder's output, in the compute dtype.
        head: one row a token; rows from `vocab_size` on are padding and get no probability.
        targets: ids below `vocab_size`, or IGNORED.
        vocab_size: of the tokenizer and model, padding not counted.
        chunk_tokens: positions of a row whose logits exist at one time.
    """
    rows, length, dim = hidden.shape
    shards = sharding.axis_size("context")
    chunk = _largest_divisor(length // shards, at_most=max(chunk_tokens // shards, 1))
    # A chunk takes a piece of every shard of the length, so that no shard waits for another.
    x_BCnID = hidden.reshape(rows, shards, -1, chunk, dim)
    targets_BCnI = targets.reshape(rows, shards, -1, chunk)
    # Gathered once, here, and kept for all chunks; its gradient is reduced once too.
    head = sharding.constrain(head.astype(hidden.dtype), "vocab", None)
    chunk_losses = functools.partial(_chunk_losses, head, vocab_size)
    losses_nBCI = jax.lax.map(
        lambda piece: jax.checkpoint(chunk_losses)(*piece),
        (jnp.moveaxis(x_BCnID, 2, 0), jnp.moveaxis(targets_BCnI, 2, 0)),
    )
    return jnp.moveaxis(losses_nBCI, 0, 2).reshape(rows, length)


def _chunk_losses(
    head: Float[Array, "V D"],
    vocab_size: int,
    x: Float[Array, "B C I D"],
    targets: Int[Array, "B C I"],
) -> Float[Array, "B C I"]:
    x = sharding.constrain(x, "batch", "length", None, None)
    logits = jnp.einsum("BCID,VD->BCIV", x, head, preferred_element_type=jnp.float32)
    logits = sharding.constrain(logits, "batch", "length", None, "vocab")
    token = jnp.arange(head.shape[0]).reshape(1, 1, 1, -1)
    logits = jnp.where(token < vocab_size, logits, -jnp.inf)
    # A sum over a comparison, not a gather: the vocabulary may be cut over devices.
    at_target = jnp.where(token == targets[..., None], logits, 0.0).sum(-1)
    losses = jax.nn.logsumexp(logits, axis=-1) - at_target
    return jnp.where(targets == IGNORED, 0.0, losses)


def _largest_divisor(number: int, *, at_most: int) -> int:
    return next(d for d in range(min(number, at_most), 0, -1) if number % d == 0)
