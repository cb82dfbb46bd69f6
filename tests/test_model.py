"""The decoder against transformers' Qwen3 in torch, and its parameters against published facts."""

import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import packed_rows
import pytest
import qwen3_oracle

from jaxterm import architecture, config, loss, model, sharding

HAS_TORCH = importlib.util.find_spec("torch") is not None
GOLDEN = "qwen3_torch.json"
COMPUTE = config.ComputeConfig(compute_dtype="float32", attention_block=32, loss_chunk_tokens=32)

# Every way to compute meets torch in one variant; the others take the defaults.
WAYS = {"tied": {"remat": "dots"}, "wide_heads": {"remat": "none"},
        "linear": {"attention": "reference", "scan_layers": False}}  # fmt: skip


@functools.cache
def torch_results(variant):
    return qwen3_oracle.torch_results(variant)


@functools.cache
def our_results(variant):
    """What `qwen3_oracle.torch_results` holds, by our code."""
    shape = architecture.from_hf_json(qwen3_oracle.hf_values(variant), variant)
    compute = packed_rows.replace_fields(COMPUTE, **WAYS.get(variant, {}))
    params = qwen3_oracle.params_from_hf(qwen3_oracle.weights(variant), shape)
    tokens, loss_mask = (jnp.asarray(x) for x in qwen3_oracle.inputs(variant))
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    segment_ids = jnp.ones_like(tokens)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_and_logits(params):
        decoder = model.with_params(shape, compute, params)
        hidden = decoder(tokens, positions, segment_ids)
        targets = loss.next_tokens(tokens, segment_ids, loss_mask)
        total, count = loss.sum_of_losses(
            hidden, decoder.head, targets, vocab_size=shape.vocab_size, chunk_tokens=32
        )
        logits = jnp.einsum("BTD,VD->BTV", hidden, decoder.head)
        return total / count, logits

    (mean_loss, logits), gradients = jax.jit(loss_and_logits)(params)
    return {"logits": np.asarray(logits), "loss": float(mean_loss),
            "gradients": gradients_as_hf(gradients, shape, variant)}  # fmt: skip


def gradients_as_hf(gradients, shape, variant):
    """Our gradients under Hugging Face's names: the transposed linear map of params_from_hf."""
    zeros = {
        name: np.zeros(dims, np.float32)
        for name, dims in qwen3_oracle.hf_shapes(qwen3_oracle.hf_values(variant)).items()
    }
    _, transpose = jax.vjp(lambda x: qwen3_oracle.params_from_hf(x, shape), zeros)
    return {name: np.asarray(x) for name, x in transpose(gradients)[0].items()}


@pytest.mark.oracle
@pytest.mark.skipif(not HAS_TORCH, reason="needs the dependency group `oracle`")
@pytest.mark.parametrize("variant", qwen3_oracle.VARIANTS)
def test_logits_and_gradients_are_those_of_torch(variant):
    ours, theirs = our_results(variant), torch_results(variant)
    np.testing.assert_allclose(ours["logits"], theirs["logits"], rtol=0, atol=2e-5)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
    assert sorted(ours["gradients"]) == sorted(theirs["gradients"])
    for name, expected in theirs["gradients"].items():
        np.testing.assert_allclose(ours["gradients"][name], expected, rtol=0,
                                   atol=2e-5 * np.abs(expected).max(), err_msg=name)  # fmt: skip


@pytest.mark.oracle
@pytest.mark.skipif(not HAS_TORCH, reason="needs the dependency group `oracle`")
def test_golden_is_what_torch_computes(update_goldens, goldens):
    lines = {}
    for variant in qwen3_oracle.VARIANTS:
        lines |= qwen3_oracle.summary(variant, torch_results(variant))
    if update_goldens:
        (goldens / GOLDEN).write_text(qwen3_oracle.to_json(lines))
    stored = json.loads((goldens / GOLDEN).read_text())
    assert sorted(stored) == sorted(lines)
    for name, values in stored.items():
        np.testing.assert_allclose(lines[name], values, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("variant", qwen3_oracle.VARIANTS)
def test_logits_and_gradients_are_the_golden_ones(variant, goldens):
    stored = json.loads((goldens / GOLDEN).read_text())
    lines = qwen3_oracle.summary(variant, our_results(variant))
    assert sorted(lines) == sorted(name for name in stored if name.split()[0] == variant)
    for name, values in lines.items():
        # A gradient's line begins with its norm: values are judged by the size of the whole.
        atol = 2e-5 * np.abs(stored[name]).max()
        np.testing.assert_allclose(values, stored[name], rtol=0, atol=atol, err_msg=name)


def test_bfloat16_computes_the_same_within_its_precision():
    shape = packed_rows.TINY
    batch = packed_rows.random_batch(0, rows=2, length=24, longest=24)
    params = packed_rows.random_params(0, model.abstract_params(shape, COMPUTE))
    names = ("tokens", "positions", "segment_ids")

    def hidden(dtype):
        compute = packed_rows.replace_fields(COMPUTE, compute_dtype=dtype)
        return model.with_params(shape, compute, params)(*(batch[name] for name in names))

    exact, rounded = hidden("float32"), hidden("bfloat16")
    assert rounded.dtype == jnp.bfloat16
    # Some ten roundings of eps / 2 each, on values of order one after the last norm.
    error = jnp.abs(exact - rounded.astype(jnp.float32))[batch["segment_ids"] > 0]
    assert float(error.mean()) < 10 * float(jnp.finfo(jnp.bfloat16).eps) / 2


def test_model_leaves_nothing_behind_between_traces():
    shape = packed_rows.TINY
    batch = packed_rows.random_batch(0, rows=1, length=16, longest=16)
    params = packed_rows.random_params(0, model.abstract_params(shape, COMPUTE))

    def total(params):
        decoder = model.with_params(shape, COMPUTE, params)
        return decoder(batch["tokens"], batch["positions"], batch["segment_ids"]).sum()

    with jax.checking_leaks():
        first = jax.jit(total)(params)
    doubled = jax.tree.map(lambda x: 2 * x, params)
    assert float(jax.jit(lambda p: total(p))(doubled)) != float(first)
    assert float(jax.jit(lambda p: total(p))(params)) == float(first)


def test_fresh_parameters_have_qwen3s_spread():
    compute = config.ComputeConfig()
    shape = packed_rows.TINY
    state = model.nnx.state(model.make_model(shape, compute, 3), model.nnx.Param)
    params = model.nnx.to_pure_dict(state)
    flat = {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(params)}
    for name, x in flat.items():
        if "scale" in name:
            assert (x == 1).all(), name
        else:
            assert float(x.std()) == pytest.approx(0.02, rel=0.1), name
            assert abs(float(x.mean())) < 0.02 / 10, name
    layers = flat["['layers']['mlp']['gate']"]
    assert not np.allclose(layers[0], layers[1])


def test_initial_parameters_do_not_depend_on_the_mesh():
    compute = config.ComputeConfig()
    results = []
    for sizes in ({"data": 1, "fsdp": 1, "context": 1, "tensor": 1},
                  {"data": 1, "fsdp": 2, "context": 2, "tensor": 2}):  # fmt: skip
        num_devices = int(np.prod(list(sizes.values())))
        mesh = sharding.make_mesh(sizes, devices=jax.devices()[:num_devices])
        results.append(model.init_params(packed_rows.TINY, compute, mesh, 7))
    jax.tree.map(np.testing.assert_array_equal, *results)


def described(shape, compute, mesh):
    """A line for every parameter: path, shape, dtype, PartitionSpec."""
    lines = []
    leaves = jax.tree.leaves_with_path(model.abstract_params(shape, compute, mesh))
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        lines.append(f"{name}  {leaf.shape}  {leaf.dtype}  {leaf.sharding.spec}")
    return "\n".join(sorted(lines)) + "\n"


@pytest.mark.parametrize("size", ["8b", "14b", "32b"])
def test_parameters_are_the_golden_ones(size, expect_golden):
    mesh = sharding.make_mesh({"data": 1, "fsdp": 2, "context": 2, "tensor": 2})
    text = described(architecture.QWEN3[size], config.ComputeConfig(), mesh)
    expect_golden(f"params_{size}.txt", text)


@pytest.mark.parametrize("size", architecture.QWEN3)
def test_number_of_parameters_is_that_of_the_shapes(size):
    shape = architecture.QWEN3[size]
    leaves = jax.tree.leaves(model.abstract_params(shape, config.ComputeConfig()))
    assert sum(int(np.prod(leaf.shape)) for leaf in leaves) == shape.num_params()


def test_padded_vocabulary_is_in_the_shapes_alone():
    shape = packed_rows.TINY
    params = model.abstract_params(shape, config.ComputeConfig())
    assert params["embedding"].shape == params["output"].shape == (100, 32)
    padding = 2 * (shape.padded_vocab_size - shape.vocab_size) * shape.embed_dim
    total = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    assert total == shape.num_params() + padding
