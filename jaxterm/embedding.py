"""The look-up of tokens in an embedding table whose rows are cut over the mesh.

Legend: B batch, T tokens, V vocab, D embed.

Each shard holds some columns (`embed`) of some rows (`vocab`) of the table. Gathering the table
would bring every shard V x D numbers, and its gradient as many back. Instead each shard looks all
tokens up in its own columns, and the pieces are exchanged for those of its own tokens (all-to-all):
B x T x D numbers, there and back. The table's gradient is then whole where it is made, and nothing
of its size is reduced but over `data`.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from jaxterm import sharding


def look_up(
    table: Float[Array, "V D"], tokens: Int[Array, "B T"], dtype: jnp.dtype
) -> Float[Array, "B T D"]:
    """The table's row of each token, as `dtype`; its gradient is summed in the table's own."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return table[tokens].astype(dtype)
    rows, length = sharding.RULES["batch"], sharding.RULES["length"]
    vocab, embed = sharding.RULES["vocab"], sharding.RULES["embed"]
    sizes = dict(mesh.shape)
    is_vocab_cut = sizes[str(vocab)] > 1

    def look_up_shard(
        columns: Float[Array, "v d"], tokens: Int[Array, "b t"]
    ) -> Float[Array, "b t D"]:
        # Of all shards that hold other columns of the same rows, one behind the other.
        everyones = jax.lax.all_gather(tokens, embed)
        if is_vocab_cut:
            own = everyones - jax.lax.axis_index(vocab) * columns.shape[0]
            found = columns.at[own].get(mode="fill", fill_value=0, wrap_negative_indices=False)
            found = jax.lax.psum(found.astype(dtype), vocab)
        else:
            found = columns[everyones].astype(dtype)
        return jax.lax.all_to_all(found, embed, split_axis=0, concat_axis=3, tiled=True)[0]

    return jax.shard_map(
        look_up_shard,
        in_specs=(P(vocab, embed), P(rows, length)),
        out_specs=P(rows, length, None),
        check_vma=False,
    )(table, tokens)
