"""The shapes of every intermediate array of a traced function."""

from collections.abc import Iterator
from typing import Any

import jax


def intermediate_shapes(function: Any, *args: Any) -> set[tuple[int, ...]]:
    """Shapes of all values in the jaxpr of `function`, and in the jaxprs inside it."""
    return set(_shapes(jax.make_jaxpr(function)(*args).jaxpr))


def _shapes(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    for equation in jaxpr.eqns:
        for variable in (*equation.invars, *equation.outvars):
            yield tuple(getattr(variable.aval, "shape", ()))
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from _shapes(getattr(value, "jaxpr", value))


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")
