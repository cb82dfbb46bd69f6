"""The device mesh, and which logical axis of an array lies on which of its axes.

Mesh axes (communication they cause):
    data     copies of the model (all-reduce of gradients; across slices over the slow network)
    fsdp     rows of the batch; parameters cut along embed (all-gather, reduce-scatter)
    context  the length of a row (keys and values gathered); parameters cut along embed too
    tensor   heads, mlp and vocabulary (all-reduce of activations)

Parameters and activations name their dims logically; RULES alone turns names into mesh axes.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "context", "tensor")

# Logical axis -> the mesh axes it is cut over; whatever is not here is not cut.
RULES: dict[str, str | tuple[str, ...]] = {
    # parameters
    "embed": ("fsdp", "context"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    # layers of a stacked weight while each device has some whole, not its part of all (muon.py)
    "whole_layers": ("fsdp", "context"),
    # activations
    "batch": ("data", "fsdp"),
    "length": "context",
}


def make_mesh(
    sizes: dict[str, int], *, num_slices: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh with the axes of AXES, laid out so that neighbours on an axis are near each other.

    Args:
        sizes: mesh axis -> size; their product is the number of devices.
        num_slices: pods joined by the data-centre network; only `data` crosses it.
        devices: all devices of all processes unless given.
    """
    devices = jax.devices() if devices is None else devices
    shape = [sizes[axis] for axis in AXES]
    if num_slices > 1:
        within = [sizes["data"] // num_slices, *shape[1:]]
        across = [num_slices, *[1] * (len(AXES) - 1)]
        grid = mesh_utils.create_hybrid_device_mesh(
            within, across, devices=devices, allow_split_physical_axes=True
        )
    else:
        # An axis of the mesh may be a part of a row of chips: 32 x 2 on a torus of 8 x 8.
        grid = mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    # Auto: the compiler propagates shardings from the constraints below (jax 0.12's default,
    # Explicit, would want one written at every contraction over a sharded dim).
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def partition_spec(logical_axes: Sequence[str | None]) -> P:
    """The PartitionSpec of an array whose dims have these logical axes."""
    return P(*[RULES.get(axis) if axis is not None else None for axis in logical_axes])


def named_sharding(mesh: Mesh, *logical_axes: str | None) -> NamedSharding:
    """`partition_spec` on `mesh`."""
    return NamedSharding(mesh, partition_spec(logical_axes))


def constrain(x: jax.Array, *logical_axes: str | None) -> jax.Array:
    """Pin the sharding of an intermediate array; without a mesh (`jax.set_mesh`) it is `x`."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(logical_axes))


def device_at_hand() -> tuple[str, str]:
    """Platform and kind of the devices under `jax.set_mesh`, e.g. ("tpu", "TPU v5").

    Never of `jax.devices()`: a step is also compiled for devices that are not there. Without a
    mesh it is ("cpu", "").
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return ("cpu", "") if device is None else (device.platform, device.device_kind)


def num_shards(logical_axis: str) -> int:
    """Pieces that a dim with this logical axis is cut into under `jax.set_mesh`, else 1."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = RULES[logical_axis]
    names = (axes,) if isinstance(axes, str) else axes
    return 1 if mesh.empty else math.prod(mesh.shape[name] for name in names)
