"""The schedule and AdamW against their formulas and torch's."""

import importlib.util
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import packed_rows
import pytest

from jaxterm import config, model, optimizer

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs the dependency group `oracle`"
)


def cosine_with_warmup(step, peak, warmup_steps, num_steps, final):
    """The rate of a step, by hand."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    done = (step - warmup_steps) / (num_steps - warmup_steps)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * min(done, 1)))


@pytest.mark.parametrize(
    ("warmup_fraction", "num_steps", "final_fraction"),
    [(0.1, 200, 0.0), (0.1, 37, 0.1), (0.0, 10, 0.0), (0.5, 3, 0.0), (0.1, 1, 0.0)],
)
def test_schedule_is_the_formula(warmup_fraction, num_steps, final_fraction):
    settings = config.OptimizerConfig(
        peak_lr=2e-5, warmup_fraction=warmup_fraction, final_lr_fraction=final_fraction
    )
    schedule = optimizer.make_schedule(settings, num_steps)
    warmup_steps = round(warmup_fraction * num_steps)
    for step in range(num_steps + 1):
        expected = cosine_with_warmup(step, 2e-5, warmup_steps, num_steps, final_fraction * 2e-5)
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5, abs=1e-11)


def warmup_stable_decay(step, peak, warmup_steps, decay_steps, num_steps, final):
    """The rate of a step, by hand."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    left = num_steps - step
    if left >= decay_steps:
        return peak
    return final + (peak - final) * left / decay_steps


@pytest.mark.parametrize(
    ("warmup_fraction", "decay_fraction", "num_steps", "final_fraction"),
    [(0.1, 0.1, 200, 0.0), (0.1, 0.2, 37, 0.1), (0.0, 0.5, 10, 0.0), (0.5, 0.5, 3, 0.0),
     (0.2, 0.0, 10, 0.0), (0.0, 1.0, 10, 0.2), (0.0, 0.0, 4, 0.0), (0.0, 0.1, 1, 0.0)],
)  # fmt: skip
def test_wsd_is_the_formula(warmup_fraction, decay_fraction, num_steps, final_fraction):
    settings = config.OptimizerConfig(
        schedule="wsd", peak_lr=2e-5, warmup_fraction=warmup_fraction,
        decay_fraction=decay_fraction, final_lr_fraction=final_fraction,
    )  # fmt: skip
    schedule = optimizer.make_schedule(settings, num_steps)
    warmup_steps = round(warmup_fraction * num_steps)
    decay_steps = min(round(decay_fraction * num_steps), num_steps - warmup_steps)
    for step in range(num_steps + 1):
        expected = warmup_stable_decay(
            step, 2e-5, warmup_steps, decay_steps, num_steps, final_fraction * 2e-5
        )
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5, abs=1e-11)
        assert float(jax.jit(schedule)(step)) == pytest.approx(expected, rel=1e-5, abs=1e-11)


@pytest.mark.parametrize(("warmup_fraction", "num_steps"), [(1.0, 10), (0.9, 3), (0.6, 1)])
def test_schedule_that_is_nearly_all_warm_up(warmup_fraction, num_steps):
    settings = config.OptimizerConfig(peak_lr=1.0, warmup_fraction=warmup_fraction)
    schedule = optimizer.make_schedule(settings, num_steps)
    rates = [float(schedule(step)) for step in range(num_steps)]
    assert all(0 <= a <= b <= 1 for a, b in itertools.pairwise(rates))


@pytest.mark.oracle
@needs_torch
def test_schedule_is_that_of_transformers():
    import torch
    import transformers

    settings = config.OptimizerConfig(peak_lr=3e-4, warmup_fraction=0.1)
    schedule = optimizer.make_schedule(settings, 50)
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    scheduler = transformers.get_cosine_schedule_with_warmup(theirs, 5, 50)
    for step in range(50):
        # float32's rounding of 1 + cos: relative to the peak, not to what is left near the end.
        assert float(schedule(step)) == pytest.approx(scheduler.get_last_lr()[0], abs=3e-4 * 2e-7)
        theirs.step()
        scheduler.step()


def random_tree(rng, scale):
    return {
        "matrix": jnp.asarray(rng.normal(size=(5, 7)) * scale, "float32"),
        "norm": {"scale": jnp.asarray(rng.normal(size=(7,)) * scale, "float32")},
    }


def drive(settings, params, gradients):
    transform = optimizer.make_optimizer(settings, len(gradients))
    state = transform.init(params)
    for gradient in gradients:
        updates, state = transform.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.oracle
@needs_torch
@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_steps_are_those_of_torch(max_grad_norm):
    import torch

    settings = config.OptimizerConfig(
        peak_lr=1e-2, warmup_fraction=0.0, weight_decay=0.3, max_grad_norm=max_grad_norm
    )
    rng = np.random.default_rng(0)
    params = random_tree(rng, 1.0)
    # Norms on both sides of the clip.
    gradients = [random_tree(rng, scale) for scale in (1.0, 0.01, 3.0, 0.1, 1e-3)]
    matrix, scale = (
        torch.nn.Parameter(torch.from_numpy(np.array(x)))
        for x in (params["matrix"], params["norm"]["scale"])
    )
    theirs = torch.optim.AdamW(
        [{"params": [matrix]}, {"params": [scale], "weight_decay": 0.0}],
        lr=1.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.3,
    )  # fmt: skip
    for step, gradient in enumerate(gradients):
        matrix.grad, scale.grad = (
            torch.from_numpy(np.array(x)) for x in (gradient["matrix"], gradient["norm"]["scale"])
        )
        if max_grad_norm:
            torch.nn.utils.clip_grad_norm_([matrix, scale], max_grad_norm)
        for group in theirs.param_groups:
            group["lr"] = cosine_with_warmup(step, 1e-2, 0, len(gradients), 0.0)
        theirs.step()
    ours = drive(settings, params, gradients)
    np.testing.assert_allclose(ours["matrix"], matrix.detach().numpy(), rtol=0, atol=2e-6)
    np.testing.assert_allclose(ours["norm"]["scale"], scale.detach().numpy(), rtol=0, atol=2e-6)


def test_steps_are_those_of_the_paper():
    """arXiv 1711.05101 (algorithm 2) in float64 numpy, gradients clipped by their global norm."""
    settings = config.OptimizerConfig(peak_lr=1e-2, warmup_fraction=0.0, weight_decay=0.3)
    rng = np.random.default_rng(1)
    params = random_tree(rng, 1.0)
    gradients = [random_tree(rng, scale) for scale in (1.0, 0.01, 3.0)]
    flat = {
        "matrix": np.array(params["matrix"], float),
        "scale": np.array(params["norm"]["scale"], float),
    }
    m = v = {name: 0.0 for name in flat}
    for t, gradient in enumerate(gradients):
        g = {"matrix": gradient["matrix"], "scale": gradient["norm"]["scale"]}
        g = {name: np.array(x, float) for name, x in g.items()}
        norm = math.sqrt(sum((x**2).sum() for x in g.values()))
        rate = cosine_with_warmup(t, 1e-2, 0, 3, 0.0)
        m = {name: 0.9 * m[name] + 0.1 * x / max(norm, 1) for name, x in g.items()}
        v = {name: 0.95 * v[name] + 0.05 * (x / max(norm, 1)) ** 2 for name, x in g.items()}
        for name, decay in (("matrix", 0.3), ("scale", 0.0)):
            direction = (
                m[name] / (1 - 0.9 ** (t + 1)) / (np.sqrt(v[name] / (1 - 0.95 ** (t + 1))) + 1e-8)
            )
            flat[name] = flat[name] - rate * (direction + decay * flat[name])
    ours = drive(settings, params, gradients)
    np.testing.assert_allclose(ours["matrix"], flat["matrix"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(ours["norm"]["scale"], flat["scale"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_steps_by_default_are_optax_adamw_bit_for_bit(max_grad_norm):
    settings = config.OptimizerConfig(weight_decay=0.3, max_grad_norm=max_grad_norm)
    rng = np.random.default_rng(2)
    params = random_tree(rng, 1.0)
    adamw = optax.adamw(
        optimizer.make_schedule(settings, 4), b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.3,
        mask={"matrix": True, "norm": {"scale": False}},
    )  # fmt: skip
    theirs = optax.chain(optax.clip_by_global_norm(1.0), adamw) if max_grad_norm else adamw
    ours = optimizer.make_optimizer(settings, 4)
    states = [ours.init(params), theirs.init(params)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])  # so are checkpoints
    for _ in range(4):
        gradient = random_tree(rng, 1.0)
        (updates, states[0]), (expected, states[1]) = (
            jax.jit(transform.update)(gradient, state, params)
            for transform, state in zip((ours, theirs), states, strict=True)
        )
        jax.tree.map(np.testing.assert_array_equal, (updates, states[0]), (expected, states[1]))


def test_everything_but_the_scales_of_norms_decays():
    mask = optimizer.decay_mask(model.abstract_params(packed_rows.TINY, config.ComputeConfig()))
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): decays
        for path, decays in jax.tree.leaves_with_path(mask)
    }
    spared = sorted(name for name, decays in leaves.items() if not decays)
    assert spared == [
        "final_norm/scale", "layers/attention/k_norm/scale", "layers/attention/q_norm/scale",
        "layers/attention_norm/scale", "layers/mlp_norm/scale",
    ]  # fmt: skip
    assert len(leaves) == 14
