"""down(silu(gate(x)) * up(x)): what the MLP of a block computes, whole or in chunks of F.

Legend: B batch, T tokens, D embed, F mlp.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxterm import config, lora, product, remat, sharding


def swiglu(
    x: Float[Array, "B T D"],
    gate: Float[Array, "F D"],
    up: Float[Array, "F D"],
    down: Float[Array, "D F"],
    adapters: dict[str, lora.Adapter] | None,
    compute: config.ComputeConfig,
) -> Float[Array, "B T D"]:
    """Transform each token.

    F may be cut into chunks, done one after another: the arrays [B, T, F], the largest of a block,
    then exist a chunk at a time, in both passes. What is computed and communicated stays the same.

    Args:
        x: the tokens, in the compute dtype.
        gate: weights, as `up` and `down` in the dtype of `x`.
        up: see `gate`.
        down: see `gate`.
        adapters: of the weights that have one; None where the weights themselves are trained.
        compute: says how many chunks, and what is kept of each.
    """
    num_chunks, kind = compute.mlp_chunks, compute.quantization
    if num_chunks == 1:
        return _of_chunk(x, gate, up, down, adapters, quantization=kind)

    @functools.partial(jax.checkpoint, policy=remat.policy_of(compute), prevent_cse=False)
    def add_chunk(total, chunk):
        return total + _of_chunk(x, *chunk, quantization=kind), None

    weights = (*(_chunks(w, num_chunks, 0) for w in (gate, up)), _chunks(down, num_chunks, 1))
    chunks = (*weights, _chunks_of_adapters(adapters, num_chunks))
    return jax.lax.scan(add_chunk, jnp.zeros_like(x), chunks)[0]


def _chunks(weight: Array, num_chunks: int, axis: int) -> Array:
    """[chunks, ...]: of each shard of `mlp` a piece in every chunk."""
    shards = sharding.num_shards("mlp")
    shape = weight.shape
    cut = weight.reshape(*shape[:axis], shards, num_chunks, -1, *shape[axis + 1 :])
    cut = jnp.moveaxis(cut, axis + 1, 0)
    return cut.reshape(num_chunks, *shape[:axis], -1, *shape[axis + 1 :])


def _chunks_of_adapters(
    adapters: dict[str, lora.Adapter] | None, num_chunks: int
) -> dict[str, lora.Adapter] | None:
    """What has a dim F is cut as its weight is; every chunk gets the other whole."""
    if adapters is None:
        return None

    def whole(x: Array) -> Array:
        return jnp.broadcast_to(x, (num_chunks, *x.shape))

    return {
        name: lora.Adapter(_chunks(adapter.a, num_chunks, 1), whole(adapter.b), adapter.scale)
        if name == "down"
        else lora.Adapter(whole(adapter.a), _chunks(adapter.b, num_chunks, 0), adapter.scale)
        for name, adapter in adapters.items()
    }


def _of_chunk(
    x: Float[Array, "B T D"],
    gate: Float[Array, "F D"],
    up: Float[Array, "F D"],
    down: Float[Array, "D F"],
    adapters: dict[str, lora.Adapter] | None,
    *,
    quantization: str,
) -> Float[Array, "B T D"]:
    own = (adapters or {}).get
    multiply = functools.partial(product.product, quantization=quantization)
    gated = remat.name(multiply("BTD,FD->BTF", x, gate, own("gate")), "gate")
    upped = remat.name(multiply("BTD,FD->BTF", x, up, own("up")), "up")
    if adapters is None and quantization == "none":
        return _down(gated, upped, down)
    # `_down` makes its weight's gradient whether or not that is asked for, and of plain products.
    return multiply("BTF,DF->BTD", jax.nn.silu(gated) * upped, down, own("down"))


@jax.custom_vjp
def _down(
    gate: Float[Array, "B T F"], up: Float[Array, "B T F"], weight: Float[Array, "D F"]
) -> Float[Array, "B T D"]:
    """down(silu(gate) * up), whose backward pass never holds more than three [B, T, F] arrays."""
    return jnp.einsum("BTF,DF->BTD", jax.nn.silu(gate) * up, weight)


def _down_forward(gate: Array, up: Array, weight: Array):
    return _down(gate, up, weight), (gate, up, weight)


def _down_backward(residuals: tuple[Array, Array, Array], d_out: Float[Array, "B T D"]):
    gate, up, weight = residuals
    d_weight = jnp.einsum("BTD,BTF->DF", d_out, jax.nn.silu(gate) * up)
    # The product that is made of gate and up is used up before its gradient is made; the gradients
    # of gate and up then take their places.
    d_weight, gate, up, d_out = jax.lax.optimization_barrier((d_weight, gate, up, d_out))
    d_product = jnp.einsum("BTD,DF->BTF", d_out, weight)
    silu, d_silu = jax.vjp(jax.nn.silu, gate)
    (d_gate,), d_up = d_silu(d_product * up), d_product * silu
    # Each is read by two products. XLA would make it again inside the transposed copy that one of
    # them takes on a CPU, element by element: longer than the product itself.
    d_gate, d_up = jax.lax.optimization_barrier((d_gate, d_up))
    return d_gate, d_up, d_weight


_down.defvjp(_down_forward, _down_backward)
