"""Products of 8-bit numbers beside plain ones: near them, and as good to train with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import packed_rows
import pytest

from jaxterm import model, product, sharding, train_step

FORMATS = ["int8", "fp8"]
PRODUCTS = [("BTD,NHD->BTNH", (4, 6, 64), (2, 8, 64)), ("BTNH,DNH->BTD", (4, 6, 2, 8), (64, 2, 8))]


def random(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def by_hand(x, contracted):
    """int8 as one computes it on paper: of each row that is summed over, its largest is 127.5."""
    scale = np.abs(x).max(contracted, keepdims=True) / 127.5
    return np.minimum(np.round(x / scale), 127), scale


def test_int8_is_the_product_of_the_rounded_numbers():
    # A row's largest lies on the edge between two codes: where it is positive there is but one.
    x, weight = (np.asarray(random(seed, (6, 64)).at[:, 0].set(4.0)) for seed in (0, 1))
    (x8, of_x), (w8, of_w) = (by_hand(each, 1) for each in (x, weight))
    expected = (x8 @ w8.T) * of_x * of_w.T
    actual = product.product("TD,FD->TF", jnp.asarray(x), jnp.asarray(weight), quantization="int8")
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize(("subscripts", "of_x", "of_weight"), PRODUCTS)
def test_all_three_products_are_near_the_plain_ones(quantization, subscripts, of_x, of_weight):
    x, weight = random(0, of_x), random(1, of_weight)
    results = []
    for kind in (quantization, "none"):
        multiply = functools.partial(product.product, subscripts, quantization=kind)
        y, gradients = jax.vjp(multiply, x, weight)
        results.append((y, *gradients(random(2, y.shape))))
    for actual, expected in zip(*results, strict=True):
        error = float(jnp.linalg.norm(actual - expected) / jnp.linalg.norm(expected))
        # Rounding is seen, and is small: 3 bits of e4m3 and 2 of e5m2, against 7.
        assert 1e-4 < error < (0.02 if quantization == "int8" else 0.1)


@pytest.mark.parametrize("quantization", FORMATS)
def test_the_operands_of_a_product_are_in_8_bits(quantization):
    x, weight = random(0, (4, 64)), random(1, (8, 64))
    text = str(jax.make_jaxpr(jax.grad(
        lambda x, w: product.product("TD,FD->TF", x, w, quantization=quantization).sum(), (0, 1)
    ))(x, weight))  # fmt: skip
    names = {"int8": ("i8[4,64]", "i8[8,64]"), "fp8": ("f8_e4m3fn[4,64]", "f8_e4m3fn[8,64]")}
    for name in names[quantization]:
        assert name in text
    assert {"int8": "i8[4,8]", "fp8": "f8_e5m2[4,8]"}[quantization] in text  # the gradient


@functools.cache
def losses_of(quantization, rank=0, mlp_chunks=1):
    run = packed_rows.tiny_run(
        rows=4, length=24, quantization=quantization, mlp_chunks=mlp_chunks, remat="dots"
    )
    run = packed_rows.replace_fields(
        run, optimizer={"epsilon": 1e-8, "warmup_fraction": 0.0}, lora={"rank": rank}
    )
    mesh = sharding.make_mesh(
        {"data": 1, "fsdp": 2, "context": 1, "tensor": 2}, devices=jax.devices()[:4]
    )
    placed = model.abstract_params(run.model, run.compute, mesh)
    params = jax.tree.map(
        lambda x, at: jax.device_put(x, at.sharding), packed_rows.random_params(0, placed), placed
    )
    batch = packed_rows.random_batch(1, rows=4, length=24, longest=12)
    step, losses = train_step.jit_train_step(run, mesh, 20), []
    with jax.set_mesh(mesh):
        state = train_step.init_state(run, mesh, params, 20)
        for _ in range(20):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    return losses


@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize(("rank", "mlp_chunks"), [(0, 1), (4, 3)])
def test_a_model_trains_as_with_plain_products(quantization, rank, mlp_chunks):
    plain, found = losses_of("none", rank, mlp_chunks), losses_of(quantization, rank, mlp_chunks)
    assert found[0] != plain[0]
    assert found[0] == pytest.approx(plain[0], rel=0.02)
    fallen = plain[0] - plain[-1]
    assert fallen > 0.3
    assert found[0] - found[-1] > 0.9 * fallen
