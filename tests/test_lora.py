"""LoRA and QLoRA: what is trained, what is not, and that the export is the model that was trained.

The oracle is a plain model with merged weights, made here: W + (alpha / rank) B A.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import packed_rows
import pytest
import qwix
from flax import traverse_util

from convert import mapping, orbax_source
from jaxterm import (
    checkpoint,
    config,
    lora,
    loss,
    model,
    quantization,
    resume,
    sharding,
    train_step,
    trainable,
)

NUM_STEPS = 6
BATCH = packed_rows.random_batch(1, rows=8, length=24, longest=12)


def lora_run(*, micro_batches=1, compute=(), **settings):
    run = packed_rows.tiny_run(rows=8, length=24, micro_batches=micro_batches, **dict(compute))
    settings = {"rank": 4, "alpha": 12.0} | settings
    return packed_rows.replace_fields(
        run, lora=settings, optimizer={"weight_decay": 0.0, "warmup_fraction": 0.0}
    )


def mesh_of(**sizes):
    sizes = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1} | sizes
    return sharding.make_mesh(sizes, devices=jax.devices()[: int(np.prod(list(sizes.values())))])


def plain_params(run):
    """Of the model, larger than fresh ones."""
    return packed_rows.random_params(0, model.abstract_params(run.model, run.compute))


def first_state(run, mesh):
    placed = model.abstract_params(run.model, run.compute, mesh)
    # Copies: a step uses up what it is given.
    params = jax.tree.map(
        lambda x, at: jax.device_put(jnp.copy(x), at.sharding), plain_params(run), placed
    )
    with jax.set_mesh(mesh):
        return train_step.init_state(run, mesh, params, NUM_STEPS)


def trained_state(run, *, steps=NUM_STEPS, **mesh_sizes):
    mesh = mesh_of(**mesh_sizes)
    state = first_state(run, mesh)
    step = train_step.jit_train_step(run, mesh, NUM_STEPS)
    losses = []
    with jax.set_mesh(mesh):
        for _ in range(steps):
            state, metrics = step(state, BATCH)
            losses.append(float(metrics["loss"]))
    return state, losses


@functools.cache
def trained(**settings):
    run = lora_run(**settings)
    return run, *trained_state(run)


def flat(tree):
    return {path: np.asarray(x) for path, x in traverse_util.flatten_dict(tree).items()}


def whole_weight(path, stored):
    """A weight of the frozen model in float32, by qwix's own reading of its codes."""
    if path in stored:
        return np.asarray(stored[path], np.float32)
    codes, scale = stored[*path, "codes"], stored[*path, "scale"]
    qtype = jnp.int8
    if codes.dtype == np.uint8:
        codes = np.stack([codes % 16, codes // 16], -1).reshape(*codes.shape[:-1], -1)
        codes, qtype = jnp.asarray(codes, jnp.uint4), "nf4"
    array = qwix.QArray(jnp.asarray(codes), jnp.asarray(scale), qtype=qtype)
    return np.asarray(qwix.dequantize(array), np.float32)


def merged(params, settings):
    """The parameters of the plain model that computes what the adapted one does."""
    stored, result = flat(params), {}
    for path in mapping.TABLE:
        path = tuple(path.split("."))
        if path[0] == "output" and path not in stored:
            continue
        weight = whole_weight(path, stored)
        if ("lora", *path[1:], "a") in stored:
            a, b = (stored["lora", *path[1:], part].astype(np.float64) for part in "ab")
            layers, rank = a.shape[:2]
            product = b.reshape(layers, -1, rank) @ a.reshape(layers, rank, -1)
            weight = weight + settings.alpha / settings.rank * product.reshape(weight.shape)
        result[path] = jnp.asarray(weight, jnp.float32)
    return traverse_util.unflatten_dict(result)


def logits(run, params):
    base, adapters = trainable.parts(params, run.lora)
    decoder = model.with_params(run.model, run.compute, base)
    hidden = decoder(BATCH["tokens"], BATCH["positions"], BATCH["segment_ids"], adapters)
    return np.asarray(jnp.einsum("BTD,VD->BTV", hidden, decoder.head))


def plain(run):
    return packed_rows.replace_fields(run, lora=config.LoraConfig())


def test_the_first_step_sees_the_frozen_model():
    run = lora_run()
    state = first_state(run, mesh_of())
    np.testing.assert_array_equal(logits(run, state.params), logits(plain(run), plain_params(run)))


@pytest.mark.parametrize(
    "settings",
    [{}, {"weights": ("q", "v")}, {"weights": ("down",)}, {"base_dtype": "int8"},
     {"base_dtype": "nf4"}],
    ids=lambda settings: "-".join(map(str, settings.values())) or "all",
)  # fmt: skip
def test_the_trained_model_is_the_plain_one_with_merged_weights(settings):
    run, state, losses = trained(**settings)
    assert losses[-1] < losses[0]
    expected = logits(plain(run), merged(state.params, run.lora))
    actual = logits(run, state.params)
    assert np.abs(actual - expected).max() < 1e-5 * max(1, np.abs(expected).max())
    before = logits(plain(run), merged(first_state(run, mesh_of()).params, run.lora))
    assert np.abs(actual - before).max() > 1e-2  # the adapters do something


def test_the_frozen_model_keeps_every_bit_and_adapters_alone_move():
    run, state, _ = trained()
    before, after = flat(first_state(run, mesh_of()).params), flat(state.params)
    frozen = flat(plain_params(run))
    assert before.keys() == after.keys()
    for path, value in after.items():
        if path[0] == "lora":
            assert (value != before[path]).any(), path
        else:
            assert value.tobytes() == frozen[path].tobytes(), path


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("mlp_chunks", [1, 3])
def test_gradients_are_those_of_the_merged_formula(micro_batches, mlp_chunks):
    """Adam's first moment after one step more is (1 - beta1) times the gradient."""
    compute = {"mlp_chunks": mlp_chunks}
    run = lora_run(micro_batches=micro_batches, compute=tuple(compute.items()))
    run = packed_rows.replace_fields(run, optimizer={"max_grad_norm": 0.0})
    rng = np.random.default_rng(0)
    state = first_state(run, mesh_of())
    adapters = jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(-0.2, 0.2, x.shape), jnp.float32), state.params["lora"]
    )
    base = plain_params(run)
    targets = loss.next_tokens(BATCH["tokens"], BATCH["segment_ids"], BATCH["loss_mask"])

    def loss_of(adapters):
        weights = dict(traverse_util.flatten_dict(base))
        for (module, name, part), a in traverse_util.flatten_dict(adapters).items():
            if part == "a":
                b = adapters[module][name]["b"]
                layers, rank = a.shape[:2]
                product = b.reshape(layers, -1, rank) @ a.reshape(layers, rank, -1)
                weight = weights["layers", module, name]
                weights["layers", module, name] = weight + 3.0 * product.reshape(weight.shape)
        decoder = model.with_params(run.model, run.compute, traverse_util.unflatten_dict(weights))
        hidden = decoder(BATCH["tokens"], BATCH["positions"], BATCH["segment_ids"])
        losses = loss.token_losses(
            hidden, decoder.head, targets, vocab_size=run.model.vocab_size, chunk_tokens=8
        )
        return losses.sum() / (targets != loss.IGNORED).sum()

    expected = jax.jit(jax.grad(loss_of))(adapters)
    mesh = mesh_of()
    state = state._replace(params=state.params | {"lora": jax.tree.map(jnp.copy, adapters)})
    with jax.set_mesh(mesh):
        state, metrics = train_step.jit_train_step(run, mesh, NUM_STEPS)(state, BATCH)
    actual = jax.tree.map(lambda x: x / (1 - run.optimizer.beta1),
                          packed_rows.moments(state.optimizer).mu)  # fmt: skip
    assert packed_rows.largest_relative_error(actual, expected) < 2e-5
    assert float(metrics["loss"]) == pytest.approx(float(loss_of(adapters)), rel=1e-5)


def test_there_are_moments_and_gradients_of_adapters_alone():
    run = lora_run()
    abstract = train_step.abstract_state(run, mesh_of(), NUM_STEPS)

    def num_bytes(tree):
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    adapters = num_bytes(abstract.params["lora"])
    assert num_bytes(abstract.optimizer) - 2 * adapters < 64  # counters
    # No weight's shape comes out of a product in the backward pass: gradients would be such.
    state, batch = abstract, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), BATCH)
    jaxpr = jax.make_jaxpr(train_step.make_train_step(run, NUM_STEPS))(state, batch)
    text = str(jaxpr)
    shape = run.model
    for dims in ((shape.mlp_dim, shape.embed_dim), (shape.embed_dim, shape.mlp_dim),
                 (shape.num_heads, shape.head_dim, shape.embed_dim),
                 (shape.padded_vocab_size, shape.embed_dim),
                 (shape.embed_dim, shape.padded_vocab_size)):  # fmt: skip
        made = f"f32[{','.join(map(str, dims))}] = dot_general"
        assert made not in text, made
    whole = jax.make_jaxpr(train_step.make_train_step(plain(run), NUM_STEPS))(
        train_step.abstract_state(plain(run), mesh_of(), NUM_STEPS), batch
    )
    assert f"f32[{shape.embed_dim},{shape.mlp_dim}] = dot_general" in str(whole)  # it would be seen


@pytest.mark.parametrize("base_dtype", ["param", "int8", "nf4"])
def test_a_mesh_changes_nothing_but_rounding(base_dtype):
    run, expected, _ = trained(base_dtype=base_dtype)
    state, _ = trained_state(run, fsdp=2, tensor=2)
    declared = train_step.abstract_state(run, mesh_of(fsdp=2, tensor=2), NUM_STEPS)
    for found, leaf in zip(*map(jax.tree.leaves, (state.params, declared.params)), strict=True):
        assert found.sharding == leaf.sharding
        assert found.dtype == leaf.dtype
    error = packed_rows.largest_relative_error(state.params["lora"], expected.params["lora"])
    assert error < 1e-4
    cut = state.params["lora"]["mlp"]
    assert cut["gate"]["a"].sharding.shard_shape((2, 4, 32)) == (2, 4, 16)  # embed over fsdp
    assert cut["gate"]["b"].sharding.shard_shape((2, 48, 4)) == (2, 24, 4)  # mlp over tensor
    assert cut["down"]["a"].sharding.shard_shape((2, 4, 48)) == (2, 4, 24)
    assert cut["down"]["b"].sharding.shard_shape((2, 32, 4)) == (2, 16, 4)


@pytest.mark.parametrize("base_dtype", ["param", "int8", "nf4"])
def test_blocks_without_a_scan_train_the_same_adapters(base_dtype):
    _, expected, losses = trained(base_dtype=base_dtype)
    found, found_losses = trained_state(
        lora_run(base_dtype=base_dtype, compute={"scan_layers": False})
    )
    np.testing.assert_allclose(found_losses, losses, rtol=1e-5)
    error = packed_rows.largest_relative_error(found.params["lora"], expected.params["lora"])
    assert error < 1e-4


@pytest.mark.parametrize(("base_dtype", "bound"), [("int8", 0.51 / 127), ("nf4", 0.16)])
def test_codes_are_near_their_weight_and_read_as_qwix_reads_them(base_dtype, bound):
    """Half a step of int8, or half of NF4's widest gap (0.304), times the tile's largest value."""
    weight = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 128)), jnp.float32)
    stored = jax.jit(quantization.quantize, static_argnums=1)(weight, base_dtype)
    described = quantization.describe(weight.shape, base_dtype)
    assert {part: (x.shape, x.dtype) for part, x in stored.items()} == {
        part: (x.shape, x.dtype) for part, x in described.items()
    }
    read = np.asarray(quantization.dequantize(quantization.Quantized(**stored)))
    arrays = {("w", part): np.asarray(x) for part, x in stored.items()}
    np.testing.assert_array_equal(read, whole_weight(("w",), arrays))
    tile = 64 if base_dtype == "nf4" else 128
    tiles = np.asarray(weight).reshape(2, 3, -1, tile)
    error = np.abs(read.reshape(tiles.shape) - tiles)
    assert (error <= bound * np.abs(tiles).max(-1, keepdims=True)).all()
    codes_per_byte = 2 if base_dtype == "nf4" else 1
    for first, size in ((0, 128), (3, 5), (64, 64), (61, 7)):
        codes = arrays["w", "codes"][
            ..., first // codes_per_byte : -(-(first + size) // codes_per_byte)
        ]
        scale = arrays["w", "scale"][..., first // tile : -(-(first + size) // tile)]
        part = quantization.dequantize_region(codes, scale, first=first, size=size, tile=tile)
        np.testing.assert_array_equal(part, read[..., first : first + size])


@pytest.mark.parametrize("base_dtype", ["param", "int8", "nf4"])
def test_a_checkpoint_is_restored_bit_for_bit_and_read_as_merged_weights(tmp_path, base_dtype):
    run, state, _ = trained(base_dtype=base_dtype)
    done = checkpoint.Progress(step=NUM_STEPS, plan_hash="abc", seed=run.seed)
    mesh = mesh_of()
    abstract = train_step.abstract_state(run, mesh, NUM_STEPS)
    with checkpoint.Checkpointer(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state.params, state.optimizer, done, run)
        checkpoints.wait()
        params, moments, _ = checkpoints.restore(NUM_STEPS, abstract.params, abstract.optimizer)
    for found, expected in ((params, state.params), (moments, state.optimizer)):
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    opened = orbax_source.OrbaxSource(tmp_path)
    expected = flat(merged(state.params, run.lora))
    for name, leaf in mapping.leaves(run.model).items():
        region = tuple((0, size) for size in leaf.shape)
        whole = opened.read(leaf, region)
        assert whole.dtype == opened.dtype(leaf) == np.float32
        wanted = expected[tuple(name.split("."))][: leaf.shape[0]]
        np.testing.assert_allclose(whole, wanted, rtol=0, atol=1e-6)
        # Any part is the same part of the whole, to the bit: an export is verified by other parts.
        part = tuple((size // 3, size - size // 4) for size in leaf.shape)
        np.testing.assert_array_equal(opened.read(leaf, part), whole[mapping.slices(part)])


def test_lora_settings_are_the_run(tmp_path):
    run = lora_run()
    done = checkpoint.Progress(step=3, plan_hash="abc", seed=42)
    with checkpoint.Checkpointer(tmp_path, keep=1) as checkpoints:
        checkpoints.save({"x": jnp.ones(2)}, {"y": jnp.ones(2)}, done, run)
    resume.refuse_changes(run, tmp_path / "3", "abc")
    for change in ({"rank": 8}, {"alpha": 1.0}, {"weights": ("q",)}, {"base_dtype": "int8"}):
        changed = packed_rows.replace_fields(run, lora=change)
        with pytest.raises(ValueError, match=rf"config\.lora\.{next(iter(change))} is "):
            resume.refuse_changes(changed, tmp_path / "3", "abc")
    path = tmp_path / "3" / "config" / checkpoint.CONFIG_FILE
    values = json.loads(path.read_text())
    del values["run"]["lora"]  # from before there was LoRA
    path.write_text(json.dumps(values))
    resume.refuse_changes(plain(run), tmp_path / "3", "abc")
    with pytest.raises(ValueError, match=r"config\.lora\.rank is 0 there, now 4"):
        resume.refuse_changes(run, tmp_path / "3", "abc")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rank": -1}, "must not be negative"), ({"rank": 2, "alpha": 0.0}, "must be positive"),
     ({"rank": 2, "weights": ("q", "x")}, "weights=x"), ({"rank": 2, "weights": ()}, "at least"),
     ({"base_dtype": "nf4"}, "trains nothing")],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        config.LoraConfig(**settings)


def test_muon_is_refused():
    with pytest.raises(ValueError, match=r"config\.optimizer\.name='muon' is for whole weights"):
        packed_rows.replace_fields(lora_run(), optimizer={"name": "muon"})


def test_the_adapters_of_a_weight_have_its_dims():
    weight = (2, 32, 4, 16)
    assert lora.shapes("o", weight, 8) == {"a": (2, 8, 4, 16), "b": (2, 32, 8)}
    axes = lora.axes("o", (None, "embed", "heads", None))
    assert axes == {"a": (None, None, "heads", None), "b": (None, "embed", None)}
