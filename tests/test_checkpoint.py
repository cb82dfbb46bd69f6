"""Checkpoints: what is saved comes back bit for bit, and wrong ones are named."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxterm import architecture, checkpoint, config, model, sharding, train_step

MODEL = architecture.ModelConfig(
    vocab_size=64, num_layers=2, embed_dim=16, mlp_dim=32, num_heads=4, num_kv_heads=2, head_dim=8
)
RUN = config.TrainConfig(
    model=MODEL,
    compute=config.ComputeConfig(compute_dtype="float32"),
    data=config.DataConfig(row_length=16, global_batch_size=8),
)
NUM_STEPS = 10


def mesh_of(**sizes: int) -> jax.sharding.Mesh:
    full = {axis: sizes.get(axis, 1) for axis in sharding.AXES}
    count = int(np.prod(list(full.values())))
    return sharding.make_mesh(full, devices=jax.devices()[:count])


def trained_state(mesh: jax.sharding.Mesh) -> train_step.TrainState:
    """A state after one real step, so that no moment is zero."""
    tokens = jax.random.randint(jax.random.key(0), (8, 16), 0, 64)
    ones = jnp.ones_like(tokens)
    positions = jnp.broadcast_to(jnp.arange(16), (8, 16))
    batch = {"tokens": tokens, "positions": positions, "segment_ids": ones, "loss_mask": ones}
    params = model.init_params(MODEL, RUN.compute, mesh, seed=0)
    with jax.set_mesh(mesh):
        state = train_step.init_state(RUN, mesh, params, NUM_STEPS)
        return jax.jit(train_step.make_train_step(RUN, NUM_STEPS))(state, batch)[0]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    state = trained_state(mesh_of(fsdp=8))
    checkpoints = checkpoint.Checkpointer(folder, keep=2)
    for step in (1, 2, 3):
        done = checkpoint.Progress(step=step, plan_hash="abc", seed=7)
        checkpoints.save(state.params, state.optimizer, done, RUN)
    checkpoints.close()
    return folder, state


def assert_same(left, right):
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), left, right
    )


@pytest.mark.parametrize(
    "sizes", [{"fsdp": 8}, {"fsdp": 2, "tensor": 2, "context": 2}, {"fsdp": 1}]
)
def test_everything_comes_back_on_any_mesh(saved, sizes):
    folder, state = saved
    mesh = mesh_of(**sizes)
    abstract = train_step.abstract_state(RUN, mesh, NUM_STEPS)
    checkpoints = checkpoint.Checkpointer(folder, keep=2)
    params, moments, done = checkpoints.restore(3, abstract.params, abstract.optimizer)
    checkpoints.close()
    assert done == checkpoint.Progress(step=3, plan_hash="abc", seed=7)
    assert_same(params, state.params)
    assert_same(moments, state.optimizer)
    wanted = jax.tree.map(lambda leaf: leaf.sharding, abstract.params)
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == wanted


def test_the_last_ones_are_kept_and_the_newest_is_found(saved):
    folder, _ = saved
    assert sorted(child.name for child in folder.iterdir()) == ["2", "3"]
    assert checkpoint.find_step_dir(folder) == folder / "3"
    assert checkpoint.find_step_dir(folder.parent) == folder / "3"
    assert checkpoint.find_step_dir(folder / "2") == folder / "2"


def test_the_resolved_settings_lie_beside_the_arrays(saved):
    folder, _ = saved
    values = json.loads((folder / "3" / "config" / "config.json").read_text())
    assert config.from_config_dict(values["run"]) == RUN
    assert checkpoint.load_model_config(folder / "3") == MODEL


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_settings_that_are_broken_are_named(tmp_path, text):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config/config\.json is missing, not JSON or without"):
        checkpoint.load_model_config(tmp_path)


def test_params_load_alone_and_in_another_dtype(saved):
    folder, state = saved
    compute = config.ComputeConfig(param_dtype="bfloat16")
    loaded = checkpoint.load_params(
        folder / "3", model.abstract_params(MODEL, compute, mesh_of(fsdp=2))
    )
    assert_same(loaded, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.params))


def test_a_checkpoint_of_another_model_is_refused_with_all_its_faults(saved):
    folder, _ = saved
    other = architecture.ModelConfig(
        vocab_size=64, num_layers=3, embed_dim=16, mlp_dim=32, num_heads=4, num_kv_heads=2,
        head_dim=8, tie_embeddings=True,
    )  # fmt: skip
    abstract = model.abstract_params(other, RUN.compute, mesh_of())
    with pytest.raises(ValueError, match=r"output.*is not a parameter.*q.*the model wants"):
        checkpoint.load_params(folder / "3", abstract)


def test_no_checkpoint_says_what_to_give(tmp_path):
    with pytest.raises(ValueError, match="no complete checkpoint: give a folder"):
        checkpoint.find_step_dir(tmp_path)


def test_an_unfinished_step_is_not_a_checkpoint(saved, tmp_path):
    """Orbax writes into a folder of another name and renames it when all is there."""
    (tmp_path / "4.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    with pytest.raises(ValueError, match="no complete checkpoint"):
        checkpoint.find_step_dir(tmp_path)
