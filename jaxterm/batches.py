"""Batches of a plan as arrays on the mesh; every process reads the rows that its devices hold."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from data_pipeline import loader
from jaxterm import sharding, train_step


def iterate(
    plan: loader.Plan, mesh: jax.sharding.Mesh, *, first_step: int, num_workers: int = 0
) -> Iterator[tuple[train_step.Batch, dict[str, np.ndarray]]]:
    """The batches of steps `first_step`, first_step + 1, ... to the plan's end.

    Yields:
        The global batch on the mesh, and this process's rows of it as numpy arrays.
    """

    def rows_of(size: int) -> list[int]:
        return rows_of_process(mesh, size)

    local_batches = loader.make_loader(
        plan, start_step=first_step, rows_of=rows_of, num_workers=num_workers
    )
    for step, local in enumerate(local_batches, first_step):
        size = plan.stage_of_step(step).global_batch_size
        yield place(local, rows_of(size), mesh, size), local


def rows_of_process(mesh: jax.sharding.Mesh, global_batch_size: int) -> list[int]:
    """Which rows of a global batch the devices of this process hold, ascending."""
    placed = sharding.named_sharding(mesh, "batch")
    indices: Any = placed.addressable_devices_indices_map((global_batch_size,))
    rows = {row for (cut,) in indices.values() for row in range(global_batch_size)[cut]}
    return sorted(rows)


def place(
    local: Mapping[str, np.ndarray],
    rows: list[int],
    mesh: jax.sharding.Mesh,
    global_batch_size: int,
) -> dict[str, Int[Array, "B T"]]:
    """Global arrays on the mesh from this process's rows of them.

    Args:
        local: int32 [len(rows), T] arrays by name.
        rows: their indices in the global batch, ascending.
        mesh: rows lie along data and fsdp, positions along context.
        global_batch_size: B.
    """
    index_of = {row: index for index, row in enumerate(rows)}
    placed = sharding.named_sharding(mesh, "batch", "length")

    def put(values: np.ndarray) -> Array:
        def shard(index: Any) -> np.ndarray:
            wanted = [index_of[row] for row in range(global_batch_size)[index[0]]]
            return values[wanted, index[1]]

        shape = (global_batch_size, values.shape[1])
        return jax.make_array_from_callback(shape, placed, shard)

    return {name: put(values) for name, values in local.items()}
