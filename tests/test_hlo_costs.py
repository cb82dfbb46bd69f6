"""Costs read from compiled programs whose collectives and products are known by arithmetic."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import packed_rows
import pytest
from jax.sharding import PartitionSpec as P

from jaxterm import sharding, train_step
from jaxterm.preflight import hlo_costs, hlo_kept

BYTES = 16 * 8 * 4  # of the float32 array [16, 8] that the collectives below work on


@functools.cache
def mesh():
    axis_types = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=axis_types)


def compiled_text(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile().as_text()


def on_mesh(function):
    """`function` of whole arrays, run by each of eight devices."""
    return jax.shard_map(function, mesh=mesh(), in_specs=P(), out_specs=P(), check_vma=False)


def scanned(function, length):
    """`function` applied to its own result, so often."""
    return lambda x: jax.lax.scan(lambda x, _: (function(x), None), x, length=length)[0]


def gather(x, axis="a"):
    return jax.lax.all_gather(x[: 16 // jax.lax.axis_size(axis)], axis, tiled=True)


def scatter(x, axis="a"):
    part = jax.lax.psum_scatter(x, axis, tiled=True)
    return x + jnp.tile(part, (jax.lax.axis_size(axis), 1))


def permute(x):
    return jax.lax.ppermute(x, "a", [(i, (i + 1) % 4) for i in range(4)])


def swap(x):
    return jax.lax.all_to_all(x.reshape(4, 4, 8), "a", 0, 0).reshape(16, 8)


CASES = {
    "all-gather": (gather, 4, 3 / 4),
    "all-gather of pairs": (functools.partial(gather, axis="b"), 2, 1 / 2),
    "reduce-scatter": (scatter, 4, 3 / 4),
    "all-reduce": (lambda x: jax.lax.psum(x, "a"), 4, 2 * 3 / 4),
    "all-reduce of all": (lambda x: jax.lax.psum(x, ("a", "b")), 8, 2 * 7 / 8),
    "collective-permute": (permute, 2, 1),
    "all-to-all": (swap, 4, 3 / 4),
}


@pytest.mark.parametrize("name", CASES)
def test_a_collective_in_nested_loops(name):
    function, group_size, sent = CASES[name]
    kind = name.split(" of ")[0]
    text = compiled_text(on_mesh(scanned(scanned(function, 5), 3)), (16, 8))
    costs = hlo_costs.read(text)
    assert costs.by_kind() == {
        kind: {"count": 15, "bytes": 15 * BYTES, "wire_bytes": 15 * BYTES * sent}
    }
    (found,) = costs.collectives
    assert (found.group_size, found.times, found.bytes) == (group_size, 15, BYTES)
    assert "while/body" in found.op_name
    assert sum(shape.num_elements for shape in found.shapes) == 16 * 8


def test_largest_looks_at_one_execution():
    def function(x, y):
        return jax.lax.psum(x, "a"), jax.lax.psum(y, "b"), scanned(gather, 100)(x)

    costs = hlo_costs.read(compiled_text(on_mesh(function), (16, 8), (64, 8)))
    assert [each.bytes for each in costs.largest(2)] == [4 * BYTES, BYTES]
    assert [each.kind for each in costs.largest(9, kind="all-gather")] == ["all-gather"]


def test_rematerialised_gathers_run_again_and_transpose_to_scatters():
    """Weights cut over `a`, gathered in each layer: forward, again backward, gradients reduced."""
    num_layers = 7

    def loss(weights, x):
        def layer(x, weight):
            return jnp.tanh(x @ jax.lax.all_gather(weight, "a", tiled=True)), None

        return jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), x, weights)[0].sum()

    step = jax.shard_map(
        jax.grad(loss), mesh=mesh(), in_specs=(P(None, "a"), P()), out_specs=P(None, "a"),
        check_vma=False,
    )  # fmt: skip
    costs = hlo_costs.read(compiled_text(step, (num_layers, 8, 8), (16, 8)))
    size = num_layers * 8 * 8 * 4
    assert costs.by_kind() == {
        "all-gather": {"count": 14, "bytes": 2 * size, "wire_bytes": 2 * size * 3 / 4},
        "reduce-scatter": {"count": 7, "bytes": size, "wire_bytes": size * 3 / 4},
    }
    # Forward, again backward, and the gradients of weights and of inputs.
    assert costs.dot_flops == num_layers * 4 * 2 * 16 * 8 * 8


def dots(x, y):
    return (
        jnp.einsum("bij,bjk->bik", x, y), jnp.einsum("bij,bkj->kbi", x, x),
        jnp.einsum("bij,bik->bjk", x, x), jnp.einsum("bij,cjk->bcik", x, y),
    )  # fmt: skip


def convolution(x, kernel, **options):
    return jax.lax.conv_general_dilated(
        x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


CONVOLUTIONS = {
    "same": {"window_strides": (1, 1), "padding": "SAME"},
    "strided": {"window_strides": (3, 2), "padding": ((2, 1), (0, 3))},
    "dilated": {
        "window_strides": (2, 1), "padding": ((1, 4), (2, 2)),
        "lhs_dilation": (3, 2), "rhs_dilation": (2, 3),
    },
    "negative padding": {"window_strides": (1, 1), "padding": ((-2, 3), (0, -1))},
    "groups": {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 4},
}  # fmt: skip


def test_flops_of_dots_are_xlas_own():
    compiled = jax.jit(dots).lower(jnp.ones((3, 4, 5)), jnp.ones((3, 5, 6))).compile()
    assert hlo_costs.read(compiled.as_text()).dot_flops == compiled.cost_analysis()["flops"]


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_flops_of_convolutions_are_xlas_own(name):
    options = CONVOLUTIONS[name]
    x, kernel = jnp.ones((2, 9, 8, 4)), jnp.ones((3, 2, 4, 8))
    if name == "groups":
        kernel = jnp.ones((3, 2, 1, 8))
    compiled = jax.jit(functools.partial(convolution, **options)).lower(x, kernel).compile()
    assert hlo_costs.read(compiled.as_text()).dot_flops == compiled.cost_analysis()["flops"]


def test_flops_in_nested_loops():
    weight = np.ones((8, 8), np.float32)
    text = compiled_text(scanned(scanned(lambda x: x @ weight, 5), 3), (16, 8))
    assert hlo_costs.read(text).dot_flops == 15 * 2 * 16 * 8 * 8


def test_a_loop_that_depends_on_data_counts_once_and_is_told():
    def halve(x):
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: jax.lax.psum(x @ x, "a"), x)

    costs = hlo_costs.read(compiled_text(on_mesh(scanned(halve, 3)), (8, 8)))
    assert costs.dot_flops == 3 * 2 * 8 * 8 * 8
    assert costs.by_kind()["all-reduce"]["count"] == 3
    (loop,) = costs.unknown_loops
    assert loop.times == 3
    assert loop.op_name.endswith("while")


@pytest.mark.parametrize(
    ("start", "stop", "step", "times"),
    [(0, 5, 1, 5), (2, 9, 3, 3), (7, 7, 1, 0), (9, 2, -2, 4), (-3, 2, 1, 5)],
)
@pytest.mark.parametrize("hidden", [False, True])
def test_trip_counts_without_xlas_help(start, stop, step, times, hidden):
    """`hidden`: the bound and the step are carried through the loop, unchanged."""

    def counted(x):
        def condition(carry):
            bound = carry[2] if hidden else stop
            return carry[0] < bound if step > 0 else carry[0] > bound

        def body(carry):
            i, x, bound, by = carry
            return i + (by if hidden else step), x @ x, bound, by

        carry = (jnp.int32(start), x, jnp.int32(stop), jnp.int32(step))
        return jax.lax.while_loop(condition, body, carry)[1]

    text = compiled_text(counted, (4, 4))
    without = re.sub(r'"known_trip_count":\{"n":"\d+"\}', '"":{}', text)
    costs = hlo_costs.read(without)
    assert (costs.dot_flops, costs.unknown_loops) == (times * 2 * 4**3, ())


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_loop_that_may_end_early_counts_with_its_bound(mirrored):
    def search(x):
        def is_unfinished(carry):
            i, x = carry
            tests = (x.sum() > 1, i < 7)
            return jnp.logical_and(*(reversed(tests) if mirrored else tests))

        return jax.lax.while_loop(is_unfinished, lambda c: (c[0] + 1, c[1] @ c[1]), (0, x))[1]

    costs = hlo_costs.read(compiled_text(scanned(search, 3), (4, 4)))
    assert (costs.dot_flops, costs.unknown_loops) == (3 * 7 * 2 * 4**3, ())


def test_of_a_conditional_the_dearest_branch_counts():
    def function(which, x):
        branches = [lambda x: x, lambda x: x @ x @ x, lambda x: jax.lax.psum(x, "a") @ x]
        return jax.lax.switch(which[0].astype(jnp.int32), branches, x)

    costs = hlo_costs.read(compiled_text(on_mesh(function), (1,), (8, 8)))
    assert costs.dot_flops == 2 * 2 * 8**3
    assert not costs.collectives


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo_costs.read("module @jit_f {}")


ROWS, LENGTH = 8, 64


@functools.cache
def step_text(remat):
    """The train step of a small model on fsdp=4, tensor=2."""
    run = packed_rows.tiny_run(
        rows=ROWS, length=LENGTH, remat=remat, attention="reference", loss_chunk_tokens=16
    )
    run = packed_rows.replace_fields(
        run, model={"num_layers": 3, "embed_dim": 64, "mlp_dim": 192, "tie_embeddings": False}
    )
    grid = sharding.make_mesh({"data": 1, "fsdp": 4, "context": 1, "tensor": 2})
    placed = sharding.named_sharding(grid, "batch", "length")
    batch = {
        name: jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32, sharding=placed)
        for name in ("tokens", "positions", "segment_ids", "loss_mask")
    }
    state, step = train_step.abstract_state(run, grid, 10), train_step.jit_train_step(run, grid, 10)
    with jax.set_mesh(grid):
        return run.model, step.lower(state, batch).compile().as_text()


@pytest.mark.parametrize("remat", ["none", "full"])
def test_flops_of_the_train_step(remat):
    model, text = step_text(remat)
    tokens = ROWS * LENGTH
    attention = model.embed_dim * model.head_dim * 2 * (model.num_heads + model.num_kv_heads)
    mlp = 3 * model.embed_dim * model.mlp_dim
    pairs = 2 * 2 * LENGTH * model.num_heads * model.head_dim  # products of a token with all keys
    if remat == "none":
        layer = 6 * (attention + mlp) + 3 * pairs
    else:  # all but the last product of a layer is repeated: nothing needs its result
        layer = 8 * (attention + mlp) - 2 * mlp / 3 + 4 * pairs
    head = 6 * model.padded_vocab_size * model.embed_dim
    costs = hlo_costs.read(text)
    assert costs.dot_flops * 8 == tokens * (model.num_layers * layer + head)
    assert not costs.unknown_loops


def test_trip_counts_of_the_train_step_are_xlas_own():
    _, text = step_text("full")
    without = re.sub(r'"known_trip_count":\{"n":"\d+"\}', '"":{}', text)
    assert without != text
    assert hlo_costs.read(without) == hlo_costs.read(text)


def test_weights_are_gathered_forward_and_backward():
    model, text = step_text("full")
    shard = model.embed_dim * (
        model.head_dim * (model.num_heads + model.num_kv_heads) * 2 + 3 * model.mlp_dim
    ) // 2  # of a layer's matrices, cut over `tensor`  # fmt: skip
    gathers = [
        each
        for each in hlo_costs.read(text).collectives
        if each.kind == "all-gather" and each.times == model.num_layers
    ]
    assert sum(each.bytes for each in gathers) == 2 * shard * 4
    assert {each.group_size for each in gathers} == {4}


def test_what_the_forward_pass_keeps():
    """Fully rematerialised, a layer keeps its input alone; with `dots`, its products as well."""
    model, text = step_text("full")
    shape = (model.num_layers, ROWS // 4, LENGTH)
    (kept,) = hlo_kept.kept_stacks(text, model.num_layers)
    assert (str(kept), kept.space) == (f"f32[{','.join(map(str, (*shape, model.embed_dim)))}]", 0)
    products = [each.dims for each in hlo_kept.kept_stacks(step_text("dots")[1], model.num_layers)]
    assert products.count((*shape, model.mlp_dim // 2)) == 2  # gate and up, cut over `tensor`
    keys_and_values = (*shape, model.num_kv_heads // 2, model.head_dim)
    assert products.count(keys_and_values) == 2
    assert (*shape, model.embed_dim) in products


def test_repeated_costs_add_up():
    _, text = step_text("full")
    once = hlo_costs.read(text)
    twice = once.repeated(2)
    assert twice.dot_flops == 2 * once.dot_flops
    assert twice.collective_bytes == 2 * once.collective_bytes
    assert dataclasses.replace(twice.collectives[0], times=1) == dataclasses.replace(
        once.collectives[0], times=1
    )
