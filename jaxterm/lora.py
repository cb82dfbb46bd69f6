"""Low-rank adapters (LoRA, arXiv 2106.09685): what is added to the product with a frozen weight.

y = W x + (alpha / rank) B (A x). A takes the input dims of W to `rank` numbers, B takes those to
its output dims. B starts at zero, so the first step sees the frozen model.

Legend: L layers, r rank. A is stored [L, r, *in], B [L, *out, r], with the dims of W.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array

from jaxterm import config

# The part of a block that a weight is in, and how many of its dims are outputs. They come first.
MODULES = {
    "q": "attention", "k": "attention", "v": "attention", "o": "attention",
    "gate": "mlp", "up": "mlp", "down": "mlp",
}  # fmt: skip
NUM_OUT_DIMS = {"q": 2, "k": 2, "v": 2, "o": 1, "gate": 1, "up": 1, "down": 1}


@struct.dataclass
class Adapter:
    """The low-rank part of one weight, of one layer or of all that are stacked."""

    a: Any  # [(L,) r, *in]
    b: Any  # [(L,) *out, r]
    scale: float = struct.field(pytree_node=False)  # alpha / rank


# Module -> weight -> adapter, as a block is given them. None where the weights are trained
# themselves, empty where a module's weights are frozen and have no adapters.
Adapters = dict[str, dict[str, Adapter]]


def shapes(name: str, weight: tuple[int, ...], rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of `a` and `b` for a stacked weight of this shape, [L, *out, *in]."""
    cut = 1 + NUM_OUT_DIMS[name]
    return {"a": (weight[0], rank, *weight[cut:]), "b": (*weight[:cut], rank)}


def axes(name: str, weight: tuple[str | None, ...]) -> dict[str, tuple[str | None, ...]]:
    """Logical axes of `a` and `b` for those of the weight: cut as its dims are, the rank never."""
    cut = 1 + NUM_OUT_DIMS[name]
    return {"a": (weight[0], None, *weight[cut:]), "b": (*weight[:cut], None)}


def fresh(key: jax.Array, shapes_: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """Uniform `a` whose bound is one over the root of the number of inputs, and `b` of zeros."""
    bound = 1 / math.sqrt(math.prod(shapes_["a"][2:]))
    return {
        "a": jax.random.uniform(key, shapes_["a"], jnp.float32, -bound, bound),
        "b": jnp.zeros(shapes_["b"], jnp.float32),
    }


def bind(params: dict[str, dict[str, dict[str, Array]]], settings: config.LoraConfig) -> Adapters:
    """The stored arrays, module -> weight -> {a, b}, as what a block is given."""
    adapters: Adapters = {"attention": {}, "mlp": {}}
    for module, weights in params.items():
        for name, arrays in weights.items():
            scale = settings.alpha / settings.rank
            adapters[module][name] = Adapter(arrays["a"], arrays["b"], scale)
    return adapters


def low_rank(subscripts: str, x: Array, adapter: Adapter) -> Array:
    """(alpha / rank) B (A x), where W x is `einsum(subscripts, x, W)`; in the dtype of `x`."""
    operands, out = subscripts.split("->")
    of_x, of_weight = operands.split(",")
    inputs = "".join(dim for dim in of_weight if dim in of_x)
    outputs = "".join(dim for dim in of_weight if dim not in of_x)
    kept = "".join(dim for dim in of_x if dim not in inputs)
    low = jnp.einsum(f"{of_x},r{inputs}->{kept}r", x, adapter.a.astype(x.dtype))
    added = jnp.einsum(f"{kept}r,{outputs}r->{out}", low, adapter.b.astype(x.dtype))
    return added * jnp.asarray(adapter.scale, x.dtype)
