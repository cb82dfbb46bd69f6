"""Which rows a process reads, and that what lands on the mesh is the plan's batch."""

import jax
import numpy as np
import pytest

from jaxterm import batches, sharding


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 8, "fsdp": 1, "context": 1, "tensor": 1},
        {"data": 2, "fsdp": 2, "context": 2, "tensor": 1},
        {"data": 1, "fsdp": 2, "context": 2, "tensor": 2},
        {"data": 1, "fsdp": 1, "context": 8, "tensor": 1},
    ],
)
def test_placed_batches_are_the_rows_read(sizes):
    mesh = sharding.make_mesh(sizes)
    rows = batches.rows_of_process(mesh, 8)
    assert rows == list(range(8))  # one process holds them all
    values = np.random.default_rng(0).integers(0, 100, (8, 32)).astype(np.int32)
    placed = batches.place({"tokens": values}, rows, mesh, 8)["tokens"]
    np.testing.assert_array_equal(np.asarray(placed), values)
    shard = placed.addressable_shards[0]
    rows_a_device = 8 // (sizes["data"] * sizes["fsdp"])
    assert shard.data.shape == (rows_a_device, 32 // sizes["context"])
    assert placed.sharding.is_equivalent_to(
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp"), "context")), 2
    )
