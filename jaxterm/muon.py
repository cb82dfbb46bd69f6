"""Muon for the matrices of the blocks: momentum, made orthogonal by Newton-Schulz iterations.

Muon (Keller Jordan 2024, https://kellerjordan.github.io/posts/muon): of the momentum's singular
value decomposition U S V^T a step takes about U V^T. What is a matrix here is the [out, in] tensor
of one layer, the heads of an attention weight together, as in the Hugging Face checkpoint.
Embedding, output head and norm scales are not its business (jaxterm/optimizer.py gives them AdamW).

A product needs a whole matrix, and every device has a part of each. So the devices trade parts of
all layers for whole layers, and the results for parts again: two all-to-alls, of as many bytes as
a device's share of the matrices in float32. (Left to the compiler, as under optax.contrib.muon,
each of ten products gathers.) With fewer layers than `fsdp * context` some devices wait.

One moment instead of AdamW's two. Five iterations of an [m, n] matrix, m <= n, are
5 * (4 m^2 n + 2 m^3) FLOPs a layer, however many tokens the batch has.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxterm import config, sharding


class Matrix(NamedTuple):
    """How a stacked weight of jaxterm/model.py, [layers, *out, *in], is a matrix a layer."""

    num_out_dims: int
    out_axis: str  # logical axis of each side, as declared there
    in_axis: str


MATRICES = {
    "attention/q": Matrix(2, "heads", "embed"),
    "attention/k": Matrix(2, "kv_heads", "embed"),
    "attention/v": Matrix(2, "kv_heads", "embed"),
    "attention/o": Matrix(1, "embed", "heads"),
    "mlp/gate": Matrix(1, "mlp", "embed"),
    "mlp/up": Matrix(1, "mlp", "embed"),
    "mlp/down": Matrix(1, "embed", "mlp"),
}

# Of Jordan's post: an odd polynomial of degree five, steep at 0. Five times it takes a singular
# value in (0, 1], unless tiny, to between 0.68 and 1.13.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5

# Root mean square of AdamW's updates in practice (arXiv 2502.16982, section 2.2).
_UPDATE_RMS = 0.2


def make_muon(
    settings: config.OptimizerConfig, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    """Nesterov momentum, made orthogonal, and weight decay, at a learning rate for AdamW.

    An orthogonal [m, n] matrix has elements of root mean square 1 / sqrt(max(m, n)); times
    0.2 * sqrt(max(m, n)) they move as far as AdamW's (arXiv 2502.16982, equation 4).
    """
    return optax.chain(
        optax.trace(settings.muon_momentum, nesterov=True),
        optax.stateless(lambda momentum, _: jax.tree_util.tree_map_with_path(_direction, momentum)),
        optax.add_decayed_weights(settings.weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def is_matrix_of_a_block(path: tuple[Any, ...]) -> bool:
    """Whether the parameter at this path of the tree is Muon's."""
    return path[:1] == (jax.tree_util.DictKey("layers"),) and _name(path) in MATRICES


def orthogonalize(x: Float[Array, "L m n"]) -> Float[Array, "L m n"]:
    """Of each matrix U S V^T nearly U V^T, by Newton-Schulz iterations; of zeros, zeros."""
    if x.shape[1] > x.shape[2]:  # the products of the short side are the small ones
        return orthogonalize(x.swapaxes(1, 2)).swapaxes(1, 2)
    a, b, c = _COEFFICIENTS

    def iterate(_: Any, x: Float[Array, "L m n"]) -> Float[Array, "L m n"]:
        square = jnp.einsum("Lmn,Lkn->Lmk", x, x)
        factor = b * square + c * jnp.einsum("Lmk,Lkj->Lmj", square, square)
        return a * x + jnp.einsum("Lmk,Lkn->Lmn", factor, x)

    norm = jnp.sqrt((x * x).sum((1, 2), keepdims=True))
    return jax.lax.fori_loop(0, _NUM_ITERATIONS, iterate, x / (norm + 1e-8))


def _direction(path: tuple[Any, ...], momentum: Array) -> Array:
    """The momentum of one weight, orthogonal and as large as an update of AdamW's."""
    matrix = MATRICES[_name(path)]
    num_out = math.prod(momentum.shape[1 : 1 + matrix.num_out_dims])
    x = momentum.reshape(len(momentum), num_out, -1)
    axes = (matrix.out_axis, matrix.in_axis)
    # Said on both sides of the products: else the compiler trades their summands, not their sum.
    whole = ("whole_layers", *(None if axis == "embed" else axis for axis in axes))
    x = sharding.constrain(orthogonalize(sharding.constrain(x, *whole)), *whole)
    x = sharding.constrain(x * (_UPDATE_RMS * math.sqrt(max(x.shape[1:]))), None, *axes)
    return x.reshape(momentum.shape)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path[-2:], simple=True, separator="/")
