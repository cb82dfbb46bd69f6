"""The schedule of the learning rate, and the optax chain that makes updates of gradients."""

import jax
import optax

from jaxterm import config, moments, muon


def make_schedule(settings: config.OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate of each step: linear from 0 to the peak, then as `settings.schedule` says."""
    # At least one step is left to what comes after.
    warmup_steps = min(round(settings.warmup_fraction * num_steps), num_steps - 1)
    if settings.schedule == "wsd":
        return _warmup_stable_decay(settings, warmup_steps, num_steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else settings.peak_lr,
        peak_value=settings.peak_lr,
        warmup_steps=warmup_steps,
        decay_steps=num_steps,
        end_value=settings.final_lr_fraction * settings.peak_lr,
    )


def _warmup_stable_decay(
    settings: config.OptimizerConfig, warmup_steps: int, num_steps: int
) -> optax.Schedule:
    """Up, level, down (arXiv 2404.06395), each a straight line.

    That paper goes down exponentially; a line does as well (arXiv 2405.18392) and ends where told.
    """
    decay_steps = min(round(settings.decay_fraction * num_steps), num_steps - warmup_steps)
    peak, final = settings.peak_lr, settings.final_lr_fraction * settings.peak_lr
    stable = optax.constant_schedule(peak)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warmup_steps) if warmup_steps else stable,
            stable,
            optax.linear_schedule(peak, final, decay_steps) if decay_steps else stable,
        ],
        [warmup_steps, num_steps - decay_steps],
    )


def make_optimizer(
    settings: config.OptimizerConfig, num_steps: int
) -> optax.GradientTransformation:
    """Clip, then AdamW; or Muon for the matrices of the blocks and AdamW for all else.

    The state's moments are kept as jaxterm/moments.py says.
    """
    learning_rate = make_schedule(settings, num_steps)
    transform = _make_adamw(settings, learning_rate)
    if settings.name == "muon":
        transform = optax.partition(
            {"muon": muon.make_muon(settings, learning_rate), "adamw": transform}, _optimizer_names
        )
    if settings.max_grad_norm > 0:
        transform = optax.chain(optax.clip_by_global_norm(settings.max_grad_norm), transform)
    return moments.kept(transform, settings)


def _make_adamw(
    settings: config.OptimizerConfig, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101); weight decay on matrices alone."""
    return optax.adamw(
        learning_rate,
        b1=settings.beta1,
        b2=settings.beta2,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        mask=decay_mask,
    )


def decay_mask(params: optax.Params) -> optax.Params:
    """True for the parameters that decay: all but the scales of norms."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) != "scale", params
    )


def _optimizer_names(params: optax.Params) -> optax.Params:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "muon" if muon.is_matrix_of_a_block(path) else "adamw", params
    )
