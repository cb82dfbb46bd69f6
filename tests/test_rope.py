"""Rotary positions against complex numbers in float64 and the laws of a rotation."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import packed_rows
import pytest

from jaxterm import architecture, rope

MODEL = packed_rows.TINY
LINEAR = architecture.RopeScaling(kind="linear", factor=4.0)
YARN = architecture.RopeScaling(kind="yarn", factor=4.0, original_max_positions=32_768)


def with_scaling(scaling, **fields):
    return dataclasses.replace(MODEL, rope_scaling=scaling, **fields)


def test_rotation_is_multiplication_by_a_complex_number():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, MODEL.head_dim)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4], [0, 257, 1000, 30_000, 40_959]], np.int32)
    turned = rope.rotate(jnp.asarray(x), *rope.rotation(jnp.asarray(positions), MODEL))
    half = MODEL.head_dim // 2
    angle = np.asarray(MODEL.rope_theta ** -(np.arange(half) / half))
    turn = np.exp(1j * positions[:, :, None, None] * angle)
    expected = (x[..., :half] + 1j * x[..., half:]) * turn
    expected = np.concatenate([expected.real, expected.imag], axis=-1)
    # Angles are float32: position 40,959 has an ulp of 2^-8 of a radian's 40,959 / 2^24.
    np.testing.assert_allclose(turned[0], expected[0], rtol=0, atol=2e-6)
    np.testing.assert_allclose(turned[1], expected[1], rtol=0, atol=40_960 * 2.0**-23 * 2)


def test_products_depend_on_distance_alone():
    rng = np.random.default_rng(1)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, MODEL.head_dim)), "float32") for _ in range(2))

    def product(query_at, key_at):
        at = [rope.rotation(jnp.array([[p]]), MODEL) for p in (query_at, key_at)]
        return float((rope.rotate(q, *at[0]) * rope.rotate(k, *at[1])).sum())

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
    assert product(7, 3) != pytest.approx(product(7, 4), abs=1e-2)


def test_bfloat16_input_keeps_float32_angles():
    positions = jnp.array([[256, 257]])
    x = jnp.ones((1, 2, 1, MODEL.head_dim), jnp.bfloat16)
    turned = rope.rotate(x, *rope.rotation(positions, MODEL))
    assert turned.dtype == jnp.bfloat16
    assert not jnp.array_equal(turned[0, 0], turned[0, 1])


def test_linear_scaling_divides_positions():
    positions = jnp.array([[0, 4, 40, 400]])
    scaled = rope.rotation(positions, with_scaling(LINEAR))
    plain = rope.rotation(positions // 4, MODEL)
    for ours, theirs in zip(scaled, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=3e-5)


def test_yarn_keeps_fast_pairs_and_divides_slow_ones():
    model = with_scaling(YARN, head_dim=128)
    base, scaled = (
        rope.frequencies(dataclasses.replace(MODEL, head_dim=128)),
        rope.frequencies(model),
    )
    rotations = 32_768 * base / (2 * math.pi)
    ratio = base / scaled
    np.testing.assert_allclose(ratio[rotations > 40], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[rotations < 0.8], 4, rtol=1e-6)
    assert (np.diff(ratio) >= -1e-6).all()
    between = (rotations < 25) & (rotations > 1.3)
    assert between.any()
    assert ((ratio[between] > 1) & (ratio[between] < 4)).all()


def test_attention_factor():
    assert rope.attention_factor(architecture.RopeScaling()) == 1.0
    assert rope.attention_factor(LINEAR) == 1.0
    assert rope.attention_factor(YARN) == pytest.approx(0.1 * math.log(4) + 1)
    explicit = dataclasses.replace(YARN, attention_factor=1.5)
    assert rope.attention_factor(explicit) == 1.5
    assert rope.attention_factor(dataclasses.replace(YARN, factor=1.0)) == 1.0
