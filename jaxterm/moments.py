"""How an optimizer's moments are kept between two steps: in which dtype, and in which memory.

Whatever they are kept as, a step computes with them in float32 on the device.

In the host's memory they cost the device nothing while gradients are computed. A step then copies
each leaf to the device, and back: as many bytes each way as they have, over the link to the host.
The compiler sends ahead as many leaves as the memory left free can hold, at the least about four
arrays (libtpu 0.0.50): an update alone takes no less than without this, the rest of a step does.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxterm import config

# Where a leaf is in a tree, as jax.tree_util has it.
Path = tuple[Any, ...]

# What jax calls the host's memory that a device reads by itself (a CPU backend has it too).
HOST_MEMORY = "pinned_host"


def kept(
    transform: optax.GradientTransformation, settings: config.OptimizerConfig
) -> optax.GradientTransformation:
    """`transform` with moments in `moment_dtype`, and in `state_memory` between its updates.

    The state has the structure of `transform`'s. Gradients and parameters are made float32 first.
    With float32 everywhere and the device's memory this is `transform` itself.
    """
    dtype, on_host = jnp.dtype(settings.moment_dtype), settings.state_memory == "host"

    def load(_: Path, moment: jax.Array) -> jax.Array:
        if on_host:
            moment = jax.device_put(moment, jax.memory.Space.Device)
        return moment.astype(jnp.float32)

    def store(_: Path, moment: jax.Array) -> jax.Array:
        moment = moment.astype(dtype)
        return jax.device_put(moment, jax.memory.Space.Host) if on_host else moment

    def init(params: optax.Params) -> optax.OptState:
        return map_moments(store, transform.init(params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is not None:
            params = optax.tree.cast(params, jnp.float32)
        updates = optax.tree.cast(updates, jnp.float32)
        updates, state = transform.update(updates, map_moments(load, state), params)
        return updates, map_moments(store, state)

    return optax.GradientTransformation(init, update)


def abstract_state(
    transform: optax.GradientTransformation,
    params: optax.Params,
    settings: config.OptimizerConfig,
    replicated: jax.sharding.NamedSharding,
) -> optax.OptState:
    """Shapes, dtypes and shardings of `transform`'s state for `params`, abstract ones.

    A moment is cut as its parameter is; counters lie whole on every device (`replicated`).
    """
    parameters = dict(jax.tree.leaves_with_path(params))

    def describe(leaf: Any, at: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at)

    def as_parameter(path: Path, moment: Any) -> jax.ShapeDtypeStruct:
        at = parameters[path].sharding
        on_host = settings.state_memory == "host"
        return describe(moment, at.with_memory_kind(HOST_MEMORY) if on_host else at)

    return map_moments(
        as_parameter,
        jax.eval_shape(transform.init, params),
        others=lambda leaf: describe(leaf, replicated),
    )


def map_moments(
    function: Callable[[Path, Any], Any],
    state: optax.OptState,
    *,
    others: Callable[[Any], Any] = lambda leaf: leaf,
) -> optax.OptState:
    """`state` with `function` done to each moment, and `others` to every other leaf.

    `function` is given the path of the moment's parameter among the parameters, and the moment.
    Optax keeps moments in trees like that of the parameters, a nested dict, in fields of its own.
    """

    def on_leaf(path: Path, leaf: Any) -> Any:
        inner = itertools.takewhile(lambda key: isinstance(key, jax.tree_util.DictKey), path[::-1])
        of_parameter = tuple(inner)[::-1]
        return function(of_parameter, leaf) if of_parameter else others(leaf)

    return jax.tree_util.tree_map_with_path(on_leaf, state)
