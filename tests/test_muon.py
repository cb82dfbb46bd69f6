"""Muon against numpy's singular values, a plain loop on the checkpoint's matrices, and optax's."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import packed_rows
import pytest
from jax.sharding import PartitionSpec as P
from optax import contrib

from convert import mapping
from jaxterm import config, model, muon, optimizer, sharding, train_step

ABSTRACT = model.abstract_params(packed_rows.TINY, config.ComputeConfig())
LEAVES = mapping.leaves(packed_rows.TINY)
# The rate does not change, nothing is clipped: a step is its formula.
SETTINGS = config.OptimizerConfig(
    name="muon", schedule="wsd", peak_lr=0.01, warmup_fraction=0.0, decay_fraction=0.0,
    weight_decay=0.3, muon_momentum=0.8, max_grad_norm=0.0,
)  # fmt: skip


def random_tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) * scale, jnp.float32), ABSTRACT
    )


def by_name(tree):
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


def matrix_names():
    return [f"layers.{name.replace('/', '.')}" for name in muon.MATRICES]


def newton_schulz(matrix):
    """The post's loop, in float64."""
    if matrix.shape[0] > matrix.shape[1]:
        return newton_schulz(matrix.T).T
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 6, 17), (2, 17, 6), (1, 1, 5)])
def test_each_matrix_keeps_its_singular_vectors_and_loses_their_values(shape):
    x = (
        np.random.default_rng(0).normal(size=shape)
        * np.array([1e-4, 1, 1e4])[: len(shape), None][: shape[0], :, None]
    )
    found = np.asarray(muon.orthogonalize(jnp.asarray(x, jnp.float32)), float)
    for before, after in zip(x, found, strict=True):
        left, values, right = np.linalg.svd(before, full_matrices=False)
        inside = left.T @ after @ right.T
        kept = np.diag(inside)[values > 0.02 * values.max()]
        assert ((kept > 0.65) & (kept < 1.2)).all()
        np.testing.assert_allclose(inside, np.diag(np.diag(inside)), atol=1e-4)
        np.testing.assert_allclose(left @ inside @ right, after, atol=1e-4)  # nothing beside them


def test_no_gradient_is_no_direction():
    assert not np.asarray(muon.orthogonalize(jnp.zeros((2, 3, 4)))).any()


def test_the_matrices_of_the_blocks_are_muons_and_lie_as_the_model_says():
    """Every parameter of a block that is not a norm's scale, on the axes it is declared with."""
    mesh = sharding.make_mesh({"data": 1, "fsdp": 2, "context": 2, "tensor": 2})
    placed = by_name(model.abstract_params(packed_rows.TINY, config.ComputeConfig(), mesh))
    expected = [n for n in placed if n.startswith("layers.") and not n.endswith(".scale")]
    assert sorted(matrix_names()) == sorted(expected)
    for name, matrix in zip(matrix_names(), muon.MATRICES.values(), strict=True):
        num_in_dims = placed[name].ndim - 1 - matrix.num_out_dims
        axes = (matrix.out_axis, *[None] * (matrix.num_out_dims - 1))
        axes += (matrix.in_axis, *[None] * (num_in_dims - 1))
        assert placed[name].sharding.spec == P(None, *sharding.partition_spec(axes)), name


def test_steps_are_a_plain_loop_on_the_matrices_of_the_checkpoint():
    """Jordan's Nesterov momentum and arXiv 2502.16982's equation 4 on each [out, in] tensor."""
    params = random_tree(0)
    gradients = [random_tree(seed, scale) for seed, scale in ((1, 1.0), (2, 0.1), (3, 3.0))]
    transform = optimizer.make_optimizer(SETTINGS, len(gradients))
    update, state, ours = jax.jit(transform.update), transform.init(params), params
    for gradient in gradients:
        updates, state = update(gradient, state, ours)
        ours = optax.apply_updates(ours, updates)
    ours = by_name(ours)
    for name in matrix_names():
        for layer in range(packed_rows.TINY.num_layers):
            weight, *slopes = (
                np.asarray(by_name(tree)[name][layer], float).reshape(LEAVES[name].tensor_shape)
                for tree in (params, *gradients)
            )
            momentum = np.zeros_like(weight)
            for slope in slopes:
                momentum = 0.8 * momentum + 0.2 * slope
                direction = newton_schulz(0.8 * momentum + 0.2 * slope)
                step = 0.2 * direction * max(weight.shape) ** 0.5 + 0.3 * weight
                weight = weight - 0.01 * step
            found = np.asarray(ours[name][layer]).reshape(weight.shape)
            np.testing.assert_allclose(found, weight, rtol=0, atol=2e-5, err_msg=name)


def test_the_first_step_is_optaxs():
    """With what its interface calls dims that are summed over, and dims that come out."""
    into, out_of = (
        contrib.MuonDimensionNumbers((3,), (1, 2)),
        contrib.MuonDimensionNumbers((2, 3), 1),
    )
    plain = contrib.MuonDimensionNumbers(2, 1)
    numbers = {"attention": {"q": into, "k": into, "v": into, "o": out_of},
               "mlp": {"gate": plain, "up": plain, "down": plain}}  # fmt: skip

    def blocks(tree):
        return {p: {n: tree["layers"][p][n] for n in names} for p, names in numbers.items()}

    params, gradient = random_tree(0), random_tree(1)
    theirs = contrib.muon(
        0.01, weight_decay=0.3, consistent_rms=0.2, muon_weight_dimension_numbers=numbers
    )
    expected, _ = theirs.update(blocks(gradient), theirs.init(blocks(params)), blocks(params))
    ours = optimizer.make_optimizer(SETTINGS, 10)
    updates, _ = ours.update(gradient, ours.init(params), params)
    assert packed_rows.largest_relative_error(blocks(updates), expected) < 1e-4


def test_an_update_is_as_large_as_one_of_adamw():
    """So that a learning rate is right for both; AdamW's first steps are of size one."""
    gradient = random_tree(1)
    updates = {}
    for name in ("muon", "adamw"):
        settings = packed_rows.replace_fields(SETTINGS, name=name, weight_decay=0.0)
        transform = optimizer.make_optimizer(settings, 10)
        updates[name], _ = transform.update(gradient, transform.init(gradient), gradient)
    muons, adamws = by_name(updates["muon"]), by_name(updates["adamw"])
    for name, x in muons.items():
        if name in matrix_names():
            rms = float(jnp.sqrt((x**2).mean())) / 0.01
            assert 0.2 * 0.65 < rms < 0.2 * 1.2, name
        else:  # embedding, head and norms are AdamW's
            np.testing.assert_array_equal(x, adamws[name], err_msg=name)


@functools.cache
def train(sizes):
    """Two steps on a mesh; the state, gathered, and what it was declared as."""
    run = packed_rows.tiny_run(rows=8, length=24)
    run = packed_rows.replace_fields(run, optimizer={"name": "muon", "warmup_fraction": 0.0})
    mesh = sharding.make_mesh(
        dict(zip(sharding.AXES, sizes, strict=True)), devices=jax.devices()[: np.prod(sizes)]
    )
    abstract = train_step.abstract_state(run, mesh, 10)
    params = packed_rows.random_params(0, ABSTRACT)
    params = jax.tree.map(lambda x, at: jax.device_put(x, at.sharding), params, abstract.params)
    step = train_step.jit_train_step(run, mesh, 10)
    batch = packed_rows.random_batch(1, rows=8, length=24, longest=12)
    batch = jax.device_put(batch, sharding.named_sharding(mesh, "batch", "length"))
    with jax.set_mesh(mesh):
        state = train_step.init_state(run, mesh, params, 10)
        for _ in range(2):
            state, _ = step(state, batch)
    for leaf, declared in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert leaf.sharding.is_equivalent_to(declared.sharding, leaf.ndim)
        assert (leaf.shape, leaf.dtype) == (declared.shape, declared.dtype)
    return jax.tree.map(np.asarray, state)


@pytest.mark.parametrize("sizes", [(1, 8, 1, 1), (1, 2, 2, 2)], ids=str)
def test_a_mesh_computes_what_one_device_does(sizes):
    """Eight devices for two layers, too."""
    state, expected = train(sizes), train((1, 1, 1, 1))
    assert packed_rows.largest_relative_error(state.params, expected.params) < 1e-5


def test_devices_trade_whole_layers_and_gather_nothing():
    mesh = sharding.make_mesh({"data": 1, "fsdp": 8, "context": 1, "tensor": 1})
    at = sharding.named_sharding(mesh, None, "mlp", "embed")
    stacked = {"layers": {"mlp": {"up": jax.ShapeDtypeStruct((8, 48, 32), "float32", sharding=at)}}}
    transform = muon.make_muon(SETTINGS, lambda _: jnp.float32(0.01))
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at if x.ndim else None),
        jax.eval_shape(transform.init, stacked),
    )
    with jax.set_mesh(mesh):
        compiled = jax.jit(transform.update).lower(stacked, state, stacked).compile()
    moves = re.findall(
        r" (all-to-all|all-gather|all-reduce|collective-permute)[\w-]*\(", compiled.as_text()
    )
    assert moves == ["all-to-all"] * 2
