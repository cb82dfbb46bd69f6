"""Masked next-token cross-entropy whose logits never exist at full size.

Legend: B batch, T tokens, D embed, V vocab (padded), R shards of the rows, C shards of the length,
I positions of a piece or a chunk of it on each.

The logits of one chunk of every row are computed and reduced at once, to a loss a token or to their
share of the gradients: memory is B x chunk x V instead of B x T x V. In training, the tokens that
have a target come first and the others are never multiplied: of a terminal session half is what the
terminal said (of three real ones of Terminus 2 46% is trained).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Shaped

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


def sum_of_losses(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    *,
    vocab_size: int,
    chunk_tokens: int,
    trains_head: bool = True,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Cross-entropy in nats over all targets, and the number of targets.

    Where it is differentiated, each chunk's gradients are taken while its logits are there: the
    head is multiplied three times a target instead of four, and nothing is computed again. Rows
    keep pace with the one that has most targets.

    Args:
        hidden: the decoder's output, in the compute dtype.
        head: one row a token; rows from `vocab_size` on are padding and get no probability.
        targets: ids below `vocab_size`, or IGNORED.
        vocab_size: of the tokenizer and model, padding not counted.
        chunk_tokens: positions of a row whose logits exist at one time.
        trains_head: whether the head has a gradient; its memory and products are saved if not.
    """
    # Gathered once, here, and kept for all chunks; its gradient is reduced once too.
    head = sharding.constrain(head.astype(hidden.dtype), "vocab", None)
    total = _sum_of_losses((vocab_size, chunk_tokens, trains_head), hidden, head, targets)
    return total, (targets != IGNORED).sum()


def token_losses(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    *,
    vocab_size: int,
    chunk_tokens: int,
) -> Float[Array, "B T"]:
    """Cross-entropy in nats of each target, in float32; 0 where the target is IGNORED.

    For evaluation: a gradient of it keeps all logits. Arguments as in `sum_of_losses`.
    """
    head = sharding.constrain(head.astype(hidden.dtype), "vocab", None)
    losses = jax.lax.map(
        lambda piece: _chunk_losses(head, vocab_size, *piece)[0],
        (_to_chunks(hidden, chunk_tokens), _to_chunks(targets, chunk_tokens)),
    )
    return _from_chunks(losses)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_of_losses(
    sizes: tuple[int, int, bool],
    hidden: Float[Array, "B T D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B T"],
) -> Float[Array, ""]:
    vocab_size, chunk_tokens, _ = sizes
    return token_losses(
        hidden, head, targets, vocab_size=vocab_size, chunk_tokens=chunk_tokens
    ).sum()


def _forward(sizes: tuple[int, int, bool], hidden: Array, head: Array, targets: Array):
    """The sum, and its gradients: in the dtype of `hidden`, and in float32 as [D, V] or None."""
    vocab_size, chunk_tokens, trains_head = sizes
    row_shards, length_shards = sharding.num_shards("batch"), sharding.num_shards("length")
    size, num_chunks = _chunk_size(targets.shape[1], chunk_tokens)
    queue, places = _trained_first(hidden, targets)
    most = (queue.targets != IGNORED).sum(-1).max()

    def is_unfinished(carry):
        # The second half is always true where the first is: it tells the preflight a bound.
        return (carry[0] * size < most) & (carry[0] < num_chunks)

    def chunk(carry):
        index, sums, d_head, tokens = carry
        x, wanted = (_take_chunk(each, index, size) for each in (tokens, queue.targets))
        losses, logits, log_total = _chunk_losses(head, vocab_size, x, wanted)
        hits = jnp.arange(head.shape[0]).reshape(1, 1, 1, -1) == wanted[..., None]
        d_logits = jnp.exp(logits - log_total[..., None]) - hits
        d_logits = jnp.where((wanted == IGNORED)[..., None], 0.0, d_logits).astype(x.dtype)
        d_x = jnp.einsum("BCIV,VD->BCID", d_logits, head)
        if trains_head:
            d_head = _cut(d_head + _per_shard_products(x, d_logits, row_shards))
        # A token's gradient takes its place: it is not read again.
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, d_x, index * size, axis=2)
        return index + 1, sums + losses.sum(-1), d_head, tokens

    # Each shard of the rows and of the length sums its own losses, [B, C], and its own part of the
    # head's gradient, [R, C, D, V], over all chunks; they meet once, behind the loop. The zeros to
    # begin with are made once the head is there, not beside it.
    head, zero = jax.lax.optimization_barrier((head, jnp.float32(0)))
    no_loss = sharding.constrain(jnp.full(queue.targets.shape[:2], zero), "batch", "length")
    zeros = None
    if trains_head:
        zeros = _cut(jnp.full((row_shards, length_shards, *head.shape[::-1]), zero))
    _, sums, d_head, d_tokens = jax.lax.while_loop(
        is_unfinished, chunk, (jnp.int32(0), no_loss, zeros, queue.hidden)
    )
    total = sums.sum()
    d_hidden = _back_to_their_places(d_tokens, places, targets)
    if d_head is None:
        return total, (d_hidden, None)
    # Before anything else is done: so that the parts do not wait beside the blocks' backward pass.
    return total, jax.lax.optimization_barrier((d_hidden, _sum_of_parts(d_head)))


class _Queue(NamedTuple):
    """The tokens of each piece of a row, those that are trained first."""

    hidden: Float[Array, "B C I D"]
    targets: Int[Array, "B C I"]


def _trained_first(
    hidden: Float[Array, "B T D"], targets: Int[Array, "B T"]
) -> tuple[_Queue, Int[Array, "B C I"]]:
    """The tokens in the order in which they are done, and where in it each of them is."""
    hidden, targets = (_to_pieces(x) for x in (hidden, targets))
    order = jnp.argsort(targets == IGNORED, axis=-1, stable=True)
    return _Queue(_take(hidden, order), _take(targets, order)), jnp.argsort(order, axis=-1)


def _back_to_their_places(
    d_tokens: Float[Array, "B C I D"], places: Int[Array, "B C I"], targets: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    """Gradients of all tokens; of those that are not trained none was made, it is 0."""
    d_hidden = _take(d_tokens, places).reshape(*targets.shape, -1)
    return jnp.where((targets == IGNORED)[..., None], 0, d_hidden)


def _take(x: Shaped[Array, "B C I *dims"], index: Int[Array, "B C I"]) -> Array:
    """Of each piece, the tokens with these indices: a gather that no shard needs another for."""

    def of_piece(piece: Array, index: Array) -> Array:
        return piece.at[index].get(mode="promise_in_bounds", unique_indices=True)

    taken = jax.vmap(jax.vmap(of_piece))(x, index)
    return sharding.constrain(taken, "batch", "length", *[None] * (x.ndim - 2))


def _take_chunk(x: Shaped[Array, "B C I *dims"], index: Int[Array, ""], size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis=2)


def _sum_of_parts(parts: Float[Array, "R C D V"]) -> Float[Array, "D V"]:
    """Each shard gets the sum of its own rows of [D, V] alone: a reduce-scatter.

    Round a ring, written out: on more than one row of chips the TPU compiler would sum all of them
    everywhere, twice the bytes and a second array of this size, and then take the shard's own.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return parts.sum((0, 1))
    rows, length, embed, vocab = (
        sharding.RULES[axis] for axis in ("batch", "length", "embed", "vocab")
    )
    copies = tuple(axis for axis in rows if axis not in embed)

    def sum_shard(part: Float[Array, "1 1 D v"]) -> Float[Array, "d v"]:
        return jax.lax.psum(_ring_sum(part[0, 0], embed), copies)

    return jax.shard_map(
        sum_shard, in_specs=P(rows, length, None, vocab), out_specs=P(embed, vocab), check_vma=False
    )(parts)


def _ring_sum(x: Float[Array, "D v"], axes: str | tuple[str, ...]) -> Float[Array, "d v"]:
    """Piece i of the sum of x over the shards of the axes, on shard i.

    Each piece goes once round, is added to on every shard, and ends on its own.
    """
    num, own = jax.lax.axis_size(axes), jax.lax.axis_index(axes)
    size = x.shape[0] // num
    to_next = [(i, (i + 1) % num) for i in range(num)]

    def piece(number: Int[Array, ""]) -> Float[Array, "d v"]:
        return jax.lax.dynamic_slice_in_dim(x, (number % num) * size, size)

    def hop(step: Int[Array, ""], travelling: Float[Array, "d v"]) -> Float[Array, "d v"]:
        return jax.lax.ppermute(travelling, axes, to_next) + piece(own - step - 1)

    return jax.lax.fori_loop(1, num, hop, piece(own - 1))


def _per_shard_products(
    x: Float[Array, "B C I D"], d_logits: Float[Array, "B C I V"], row_shards: int
) -> Float[Array, "R C D V"]:
    """As [D, V], so that no copy of the logits' gradient has to be transposed."""
    x_RBCID, d_RBCIV = (each.reshape(row_shards, -1, *each.shape[1:]) for each in (x, d_logits))
    return jnp.einsum("RBCID,RBCIV->RCDV", x_RBCID, d_RBCIV, preferred_element_type=jnp.float32)


def _cut(d_head: Float[Array, "R C D V"]) -> Float[Array, "R C D V"]:
    return sharding.constrain(d_head, "batch", "length", None, "vocab")


def _backward(
    sizes: tuple[int, int, bool], gradients: tuple[Array, Array | None], scale: Float[Array, ""]
):
    d_hidden, d_head = gradients
    d_hidden = (d_hidden * scale).astype(d_hidden.dtype)
    if d_head is None:
        return d_hidden, None, None
    return d_hidden, (d_head * scale).T.astype(d_hidden.dtype), None


_sum_of_losses.defvjp(_forward, _backward)


def _chunk_losses(
    head: Float[Array, "V D"],
    vocab_size: int,
    x: Float[Array, "B C I D"],
    targets: Int[Array, "B C I"],
) -> tuple[Float[Array, "B C I"], Float[Array, "B C I V"], Float[Array, "B C I"]]:
    """Losses, logits and the log of the sum of their exponentials, in float32."""
    x = sharding.constrain(x, "batch", "length", None, None)
    logits = jnp.einsum("BCID,VD->BCIV", x, head, preferred_element_type=jnp.float32)
    logits = sharding.constrain(logits, "batch", "length", None, "vocab")
    token = jnp.arange(head.shape[0]).reshape(1, 1, 1, -1)
    logits = jnp.where(token < vocab_size, logits, -jnp.inf)
    # A sum over a comparison, not a gather: the vocabulary may be cut over devices.
    at_target = jnp.where(token == targets[..., None], logits, 0.0).sum(-1)
    log_total = jax.nn.logsumexp(logits, axis=-1)
    return jnp.where(targets == IGNORED, 0.0, log_total - at_target), logits, log_total


def _to_pieces(x: Shaped[Array, "B T *dims"]) -> Shaped[Array, "B C I *dims"]:
    """Each row cut into what lies on each shard of the length."""
    pieces = x.reshape(x.shape[0], sharding.num_shards("length"), -1, *x.shape[2:])
    return sharding.constrain(pieces, "batch", "length", *[None] * (x.ndim - 1))


def _to_chunks(x: Shaped[Array, "B T *dims"], chunk_tokens: int) -> Array:
    """Chunks of every piece of every row, [chunks, B, C, I, ...].

    So no shard waits for another while a chunk is computed.
    """
    size, num_chunks = _chunk_size(x.shape[1], chunk_tokens)
    pieces = _to_pieces(x)
    return jnp.moveaxis(pieces.reshape(*pieces.shape[:2], num_chunks, size, *x.shape[2:]), 2, 0)


def _from_chunks(x: Shaped[Array, "chunks B C I *dims"]) -> Array:
    """The inverse of `_to_chunks`."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(x.shape[0], -1, *x.shape[4:])


def _chunk_size(length: int, chunk_tokens: int) -> tuple[int, int]:
    """Tokens of each piece that are done at a time, and how often that makes a piece."""
    shards = sharding.num_shards("length")
    size = _largest_divisor(length // shards, at_most=max(chunk_tokens // shards, 1))
    return size, length // shards // size


def _largest_divisor(number: int, *, at_most: int) -> int:
    return next(d for d in range(min(number, at_most), 0, -1) if number % d == 0)
