"""A tree of stacked arrays as one tree a layer, whose gradients are stacked again in one go."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def unstack(tree: Any) -> list[Any]:
    """The trees along the first dim of all leaves, [L, ...] each.

    Differentiated as it is, indexing would add up L arrays of the full size, each zero but for one
    layer.
    """
    leaves, structure = jax.tree.flatten(tree)
    by_leaf = [
        _unstack(x) if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.unstack(x) for x in leaves
    ]
    return [structure.unflatten(layer) for layer in zip(*by_leaf, strict=True)]


@jax.custom_vjp
def _unstack(x: Float[Array, "L *dims"]) -> tuple[Float[Array, "*dims"], ...]:
    return jnp.unstack(x)


def _forward(x: Array):
    return _unstack(x), None


def _backward(residuals: None, grads: tuple[Array, ...]):
    del residuals
    return (jnp.stack(grads),)


_unstack.defvjp(_forward, _backward)
