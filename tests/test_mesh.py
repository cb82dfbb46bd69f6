"""Every mesh of eight devices computes what one does, and leaves the state where declared."""

import functools
import re

import jax
import numpy as np
import packed_rows
import pytest

from jaxterm import config, context_parallel, loss, model, sharding, train_step

ROWS, LENGTH, NUM_STEPS = 16, 32, 10
AXES = ("data", "fsdp", "context", "tensor")
COLLECTIVE = re.compile(r" = .*\b(all-reduce|reduce-scatter|all-gather|all-to-all)\b\S*\(")

MESHES = [(8, 1, 1, 1), (1, 8, 1, 1), (1, 1, 8, 1), (1, 4, 1, 2), (2, 2, 2, 1), (1, 2, 2, 2)]


@functools.cache
def train(sizes, micro_batches=1):
    """Two steps on a mesh: per step metrics, Adam's moments and parameters, all gathered."""
    run = packed_rows.tiny_run(rows=ROWS, length=LENGTH, micro_batches=micro_batches)
    # Unclipped, the first moment after the first step is (1 - beta1) times the gradient.
    run = packed_rows.replace_fields(run, optimizer={"max_grad_norm": 0.0, "warmup_fraction": 0.0})
    named = config.validate_on_devices(
        packed_rows.replace_fields(run, mesh=dict(zip(AXES, sizes, strict=True))),
        int(np.prod(sizes)),
    )
    mesh = sharding.make_mesh(named, devices=jax.devices()[: int(np.prod(sizes))])
    abstract = train_step.abstract_state(run, mesh, NUM_STEPS)
    params = jax.tree.map(
        lambda x, at: jax.device_put(x, at.sharding),
        packed_rows.random_params(0, model.abstract_params(run.model, run.compute)),
        abstract.params,
    )
    step = train_step.jit_train_step(run, mesh, NUM_STEPS)
    placed = sharding.named_sharding(mesh, "batch", "length")
    records = []
    with jax.set_mesh(mesh):
        state = train_step.init_state(run, mesh, params, NUM_STEPS)
        for seed in (11, 12):
            batch = packed_rows.random_batch(seed, rows=ROWS, length=LENGTH, longest=20)
            batch = jax.device_put(batch, placed)
            with packed_rows.at_most_compiles(1 if not records else 0):
                state, metrics = step(state, batch)
            for leaf, declared in zip(
                jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True
            ):
                assert leaf.sharding.is_equivalent_to(declared.sharding, leaf.ndim)
                assert (leaf.shape, leaf.dtype) == (declared.shape, declared.dtype)
            mu = packed_rows.moments(state.optimizer).mu
            records.append(jax.tree.map(np.asarray, (metrics, mu, state.params)))
    return records


@pytest.fixture(autouse=True)
def many_pieces(monkeypatch):
    """Rows so short would be cut into two pieces a shard, long ones are into more."""
    monkeypatch.setattr(context_parallel, "SHORTEST_PIECE", LENGTH // 16)


@pytest.mark.parametrize("sizes", MESHES, ids=lambda sizes: "x".join(map(str, sizes)))
def test_every_mesh_computes_what_one_device_does(sizes):
    records, expected = train(sizes), train((1, 1, 1, 1))
    for (metrics, moments, params), (metrics_1, moments_1, params_1) in zip(
        records, expected, strict=True
    ):
        for name, value in metrics_1.items():
            assert metrics[name] == pytest.approx(value, rel=1e-6), name
        assert packed_rows.largest_relative_error(moments, moments_1) < 1e-5
        assert packed_rows.largest_relative_error(params, params_1) < 1e-5


def test_micro_batches_on_a_mesh_compute_what_one_device_does():
    records, expected = train((1, 2, 2, 2), micro_batches=4), train((1, 1, 1, 1))
    assert packed_rows.largest_relative_error(records[1][1], expected[1][1]) < 1e-5
    assert packed_rows.largest_relative_error(records[1][2], expected[1][2]) < 1e-5


def test_segments_cross_the_borders_of_the_shards():
    """Else the test above would not see a shard that forgets its neighbours."""
    batch = packed_rows.random_batch(11, rows=ROWS, length=LENGTH, longest=20)
    ids = np.asarray(batch["segment_ids"])
    for border in range(4, LENGTH, 4):
        assert (ids[:, border] == ids[:, border - 1])[ids[:, border] > 0].any()


def test_eval_on_a_mesh_is_that_of_one_device():
    run = packed_rows.tiny_run(rows=ROWS, length=LENGTH)
    batch = packed_rows.random_batch(3, rows=ROWS, length=LENGTH, longest=20)
    groups = batch["segment_ids"] % 3
    params = packed_rows.random_params(0, model.abstract_params(run.model, run.compute))
    eval_step = train_step.make_eval_step(run, 3)
    expected = jax.jit(eval_step)(params, batch, groups)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 2, "context": 2, "tensor": 2})
    placed = model.abstract_params(run.model, run.compute, mesh)
    params = jax.tree.map(lambda x, at: jax.device_put(x, at.sharding), params, placed)
    with jax.set_mesh(mesh):
        sums, counts = jax.jit(eval_step)(params, batch, groups)
    np.testing.assert_allclose(sums, expected[0], rtol=2e-6)
    np.testing.assert_array_equal(counts, expected[1])


def collectives(compiled_text):
    """(whether in a loop, its line) of every collective of a compiled program."""
    lines = [line for line in compiled_text.splitlines() if COLLECTIVE.search(line)]
    return [("/while/body" in line, line) for line in lines]


def test_the_head_crosses_devices_once_and_nothing_does_chunk_after_chunk():
    """Else shards would wait for each other, and the head's gradient be sent with every chunk."""
    rows, length, dim, vocab = 8, 64, 16, 136
    sizes = {"data": 1, "fsdp": 4, "context": 2, "tensor": 1}
    mesh = sharding.make_mesh(sizes)

    def total(hidden, head, targets):
        return loss.sum_of_losses(hidden, head, targets, vocab_size=vocab, chunk_tokens=8)[0]

    def described(shape, dtype, *axes):
        placed = sharding.named_sharding(mesh, *axes)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)

    with jax.set_mesh(mesh):
        gradient = jax.jit(
            jax.value_and_grad(total, (0, 1)),
            out_shardings=(
                sharding.named_sharding(mesh),
                (
                    sharding.named_sharding(mesh, "batch", "length", None),
                    sharding.named_sharding(mesh, "vocab", "embed"),
                ),
            ),
        )
        compiled = gradient.lower(
            described((rows, length, dim), "float32", "batch", "length", None),
            described((vocab, dim), "float32", "vocab", "embed"),
            described((rows, length), "int32", "batch", "length"),
        ).compile()
    found = collectives(compiled.as_text())
    of_head = [(in_loop, line) for in_loop, line in found if str(vocab) in line.split(" = ")[1]]
    assert len(of_head) >= 2  # the head is gathered, its gradient reduced
    assert not [line for in_loop, line in found if in_loop]
