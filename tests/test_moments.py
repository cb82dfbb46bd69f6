"""Moments in another dtype or memory: what is kept, where it lies, and that it trains the same."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
import packed_rows
import pytest
from jax.experimental import topologies

from jaxterm import architecture, checkpoint, model, optimizer, sharding, train_step

ROWS, LENGTH, NUM_STEPS = 8, 24, 20

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the extra `tpu`"
)


def run_with(**settings):
    run = packed_rows.tiny_run(rows=ROWS, length=LENGTH)
    return packed_rows.replace_fields(run, optimizer=settings)


def moments_and_others(state):
    """Leaves of optax's state, by what they are: of a parameter's shape, or counters."""
    leaves = jax.tree.leaves(state.optimizer)
    return [x for x in leaves if x.ndim], [x for x in leaves if not x.ndim]


@functools.cache
def mesh():
    return sharding.make_mesh({"data": 1, "fsdp": 4, "context": 1, "tensor": 2})


@functools.cache
def train(num_steps, **settings):
    """The first and the last state on eight devices, and the loss of each step."""
    run = run_with(**settings)
    abstract = train_step.abstract_state(run, mesh(), NUM_STEPS)
    params = packed_rows.random_params(0, model.abstract_params(run.model, run.compute))
    params = jax.tree.map(lambda x, at: jax.device_put(x, at.sharding), params, abstract.params)
    batch = packed_rows.random_batch(1, rows=ROWS, length=LENGTH, longest=12)
    batch = jax.device_put(batch, sharding.named_sharding(mesh(), "batch", "length"))
    step = train_step.jit_train_step(run, mesh(), NUM_STEPS)
    losses = []
    with jax.set_mesh(mesh()):
        state = train_step.init_state(run, mesh(), params, NUM_STEPS)
        assert_lies_as(state, abstract)
        for number in range(num_steps):
            with packed_rows.at_most_compiles(0 if number else 1):
                state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    assert_lies_as(state, abstract)
    return state, losses


def assert_lies_as(state, abstract):
    for leaf, declared in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert leaf.sharding.is_equivalent_to(declared.sharding, leaf.ndim)
        assert leaf.sharding.memory_kind == declared.sharding.memory_kind
        assert (leaf.shape, leaf.dtype) == (declared.shape, declared.dtype)


def assert_same(left, right):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)),
                 left, right)  # fmt: skip


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_moments_have_their_dtype_and_counters_theirs(name, dtype, param_dtype):
    run = packed_rows.replace_fields(
        run_with(name=name, moment_dtype=dtype), compute={"param_dtype": param_dtype}
    )
    state = train_step.abstract_state(run, mesh(), NUM_STEPS)
    moments, counters = moments_and_others(state)
    assert {x.dtype for x in moments} == {jnp.dtype(dtype)}
    assert {x.dtype for x in counters} == {jnp.dtype("int32")}
    per_weight = {"adamw": 2, "muon": 1}[name]
    assert sum(x.size for x in moments) == sum(
        x.size * (per_weight if path[0].key == "layers" and path[-1].key != "scale" else 2)
        for path, x in jax.tree.leaves_with_path(state.params)
    )


def test_bfloat16_moments_are_optax_adamw_rounded_between_its_steps():
    """Nothing but what is kept is rounded: each update is that of float32."""
    settings = run_with(
        moment_dtype="bfloat16", weight_decay=0.3, max_grad_norm=0.0, warmup_fraction=0.0
    ).optimizer
    rng = np.random.default_rng(0)
    params = {"matrix": jnp.asarray(rng.normal(size=(5, 7)), "float32")}
    ours = optimizer.make_optimizer(settings, 5)
    theirs = optax.adamw(
        optimizer.make_schedule(settings, 5), 0.9, 0.95, eps=1e-3, weight_decay=0.3
    )
    state, their_state = ours.init(params), theirs.init(params)
    for _ in range(5):
        gradient = {"matrix": jnp.asarray(rng.normal(size=(5, 7)), "float32")}
        updates, state = ours.update(gradient, state, params)
        expected, their_state = theirs.update(gradient, their_state, params)
        assert_same(updates, expected)
        their_state = jax.tree.map(
            lambda x: x.astype(jnp.bfloat16).astype(jnp.float32) if x.ndim else x, their_state
        )


def test_bfloat16_parameters_are_updated_in_float32():
    """With moments in float32 an update is that of the same gradients in float32."""
    settings = run_with(warmup_fraction=0.0).optimizer
    transform = optimizer.make_optimizer(settings, 5)
    rng = np.random.default_rng(0)
    params, gradient = (
        {"matrix": jnp.asarray(rng.normal(size=(5, 7)), jnp.bfloat16)} for _ in range(2)
    )
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (params, gradient))
    updates, state = transform.update(gradient, transform.init(params), params)
    assert_same((updates, state), transform.update(wide[1], transform.init(wide[0]), wide[0]))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_bfloat16_moments_train_nearly_the_same(name):
    _, losses = train(NUM_STEPS, name=name, moment_dtype="bfloat16")
    _, expected = train(NUM_STEPS, name=name)
    assert expected[-1] < 0.6 * expected[0]
    np.testing.assert_allclose(losses, expected, rtol=0.01)


@pytest.mark.parametrize(("name", "dtype"), [("adamw", "float32"), ("muon", "bfloat16")])
def test_moments_in_the_hosts_memory_change_nothing(name, dtype):
    settings = {"name": name, "moment_dtype": dtype}
    state, losses = train(3, **settings, state_memory="host")
    expected, expected_losses = train(3, **settings)
    assert losses == expected_losses
    assert_same(state, expected)
    moments, counters = moments_and_others(state)
    assert {x.sharding.memory_kind for x in moments} == {"pinned_host"}
    on_device = jax.tree.leaves(expected)
    assert {x.sharding.memory_kind for x in [*counters, *on_device]} == {"device"}


@pytest.mark.parametrize("was", ["device", "host"])
@pytest.mark.parametrize("now", ["device", "host"])
def test_a_checkpoint_comes_back_into_either_memory(was, now, tmp_path):
    settings = {"name": "muon", "moment_dtype": "bfloat16"}
    state, _ = train(3, **settings, state_memory=was)
    done = checkpoint.Progress(step=3, plan_hash="abc", seed=7)
    abstract = train_step.abstract_state(run_with(**settings, state_memory=now), mesh(), NUM_STEPS)
    with checkpoint.Checkpointer(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state.params, state.optimizer, done, run_with(**settings))
    with checkpoint.Checkpointer(tmp_path, keep=1) as checkpoints:
        params, moments, _ = checkpoints.restore(3, abstract.params, abstract.optimizer)
    assert_same((params, moments), (state.params, state.optimizer))
    assert_lies_as(train_step.TrainState(params, moments, state.step), abstract)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_tpu_has_the_memory_of_the_moments_for_itself(name, monkeypatch):
    """Compiled for eight chips: what leaves the device is in the host's memory, to the byte."""
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    pod = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
    mesh = sharding.make_mesh(
        {"data": 1, "fsdp": 8, "context": 1, "tensor": 1}, devices=pod.devices
    )
    at = sharding.named_sharding(mesh, "batch", "length")
    shape = jax.ShapeDtypeStruct((8, 128), jnp.int32, sharding=at)
    batch = dict.fromkeys(("tokens", "positions", "segment_ids", "loss_mask"), shape)
    of_model = architecture.ModelConfig(
        vocab_size=1024, num_layers=8, embed_dim=1024, mlp_dim=1024, num_heads=8, num_kv_heads=8,
        head_dim=128,
    )  # fmt: skip
    found = {}
    for memory in ("device", "host"):
        run = packed_rows.replace_fields(
            run_with(name=name, state_memory=memory), model=of_model, data={"row_length": 128},
            compute={"attention": "reference"},
        )  # fmt: skip
        state = train_step.abstract_state(run, mesh, NUM_STEPS)
        step = train_step.jit_train_step(run, mesh, NUM_STEPS)
        with jax.set_mesh(mesh):
            lowered = step.lower(state, batch)
        found[memory] = lowered.compile().memory_analysis()
    moments, _ = moments_and_others(state)
    num_bytes = sum(np.prod(x.sharding.shard_shape(x.shape)) * 4 for x in moments)
    saved = found["device"].argument_size_in_bytes - found["host"].argument_size_in_bytes
    assert saved == found["host"].host_argument_size_in_bytes
    assert (
        saved == found["host"].host_output_size_in_bytes == found["host"].host_alias_size_in_bytes
    )
    # Small scales are padded to a tile.
    assert num_bytes <= saved < 1.01 * num_bytes
