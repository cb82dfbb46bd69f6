"""AdamW with a warm-up and cosine schedule, clipped by the global norm, as an optax chain."""

import jax
import optax

from jaxterm import config


def make_schedule(settings: config.OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate of each step: linear from 0 to the peak, then half a cosine to the end."""
    # At least one step is left to the cosine.
    warmup_steps = min(round(settings.warmup_fraction * num_steps), num_steps - 1)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else settings.peak_lr,
        peak_value=settings.peak_lr,
        warmup_steps=warmup_steps,
        decay_steps=num_steps,
        end_value=settings.final_lr_fraction * settings.peak_lr,
    )


def make_optimizer(
    settings: config.OptimizerConfig, num_steps: int
) -> optax.GradientTransformation:
    """Clip, then AdamW (arXiv 1711.05101); weight decay on matrices alone."""
    clip = optax.clip_by_global_norm(settings.max_grad_norm)
    adamw = optax.adamw(
        make_schedule(settings, num_steps),
        b1=settings.beta1,
        b2=settings.beta2,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        mask=decay_mask,
    )
    return optax.chain(clip, adamw) if settings.max_grad_norm > 0 else adamw


def decay_mask(params: optax.Params) -> optax.Params:
    """True for the parameters that decay: all but the scales of norms."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) != "scale", params
    )
