"""The product of a stream of tokens with a weight: plain or in 8 bits, with or without an adapter.

config.compute.quantization makes both operands 8-bit numbers with a scale for each row that is
summed over, and the gradients of the result likewise before they are multiplied: all three products
of a weight then run at the rate of 8 bits, where the hardware has one. `fp8` is e4m3 forward and
e5m2 for gradients (arXiv 2209.05433), `int8` is int8 throughout. The parameters stay what they are.

The quantised product is qwix's. Its providers, which change a model from outside, guess which
operand is a weight, add nothing inside a scan, and see no backward pass of a custom_vjp: so the
product is called here.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from qwix._src.core import dot_general_qt  # its public way in is such a provider

from jaxterm import lora

# Format of both operands, and of the gradient of their product.
_FORMATS: dict[str, tuple[Any, Any]] = {
    "int8": (jnp.int8, jnp.int8),
    "fp8": (jnp.float8_e4m3fn, jnp.float8_e5m2),
}


def product(
    subscripts: str,
    x: Array,
    weight: Array,
    adapter: lora.Adapter | None = None,
    *,
    quantization: str = "none",
) -> Array:
    """`einsum(subscripts, x, weight)`, and what the adapter adds, which is never quantised."""
    if quantization == "none":
        y = jnp.einsum(subscripts, x, weight)
    else:
        y = jnp.einsum(subscripts, x, weight, _dot_general=_quantized(quantization))
    return y if adapter is None else y + lora.low_rank(subscripts, x, adapter)


def _quantized(quantization: str) -> Any:
    forward, backward = _FORMATS[quantization]
    settings = dot_general_qt.DotGeneralQtConfig(
        lhs_qtype=forward, rhs_qtype=forward, dlhs_grad_qtype=backward, drhs_grad_qtype=backward
    )

    @functools.wraps(jax.lax.dot_general)
    def dot_general(lhs: Array, rhs: Array, dimension_numbers: Any, *_: Any, **__: Any) -> Array:
        return dot_general_qt.dot_general_qt(lhs, rhs, dimension_numbers, settings)

    return dot_general
