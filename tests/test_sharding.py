"""Meshes and the rules from logical axes to theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxterm import architecture, config, model, sharding

SIZES = {"data": 1, "fsdp": 2, "context": 2, "tensor": 2}


def test_mesh_has_all_axes_in_order():
    mesh = sharding.make_mesh(SIZES)
    assert dict(mesh.shape) == SIZES
    assert mesh.axis_names == sharding.AXES
    assert len({device.id for device in mesh.devices.flat}) == 8


def test_logical_axes_become_mesh_axes():
    assert sharding.partition_spec(("batch", "length", None)) == P(
        ("data", "fsdp"), "context", None
    )
    assert sharding.partition_spec(("mlp", "embed")) == P("tensor", ("fsdp", "context"))


def test_without_a_mesh_nothing_is_pinned_and_every_axis_is_one():
    x = jnp.ones((4, 4))
    assert sharding.constrain(x, "batch", "length") is x
    assert [sharding.num_shards(axis) for axis in ("batch", "length", "vocab")] == [1, 1, 1]
    with jax.set_mesh(sharding.make_mesh(SIZES)):
        assert [sharding.num_shards(axis) for axis in ("batch", "length", "vocab")] == [2, 2, 2]
        assert sharding.num_shards("embed") == 4


@pytest.mark.parametrize("size", architecture.QWEN3)
def test_no_parameter_uses_a_mesh_axis_twice_and_all_matrices_are_cut_over_all(size):
    mesh = sharding.make_mesh(SIZES)
    params = model.abstract_params(architecture.QWEN3[size], config.ComputeConfig(), mesh)
    for path, leaf in jax.tree.leaves_with_path(params):
        shard = leaf.sharding.shard_shape(leaf.shape)
        parts = np.prod(leaf.shape) // np.prod(shard)
        is_scale = jax.tree_util.keystr(path).endswith("['scale']")
        assert parts == (1 if is_scale else 8), path
