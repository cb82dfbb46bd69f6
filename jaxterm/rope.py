"""Rotary position embedding (arXiv 2104.09864), with Qwen3's split halves, and its scalings.

Legend: B batch, T tokens, N heads, H head dim.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxterm import architecture


def rotation(
    positions: Int[Array, "B T"], model: architecture.ModelConfig
) -> tuple[Float[Array, "B T 1 half"], Float[Array, "B T 1 half"]]:
    """Cosine and sine of every position's angles, in float32.

    float32 whatever the model computes in: bfloat16 rounds position 257 to 256.
    """
    by_pair = jnp.asarray(frequencies(model)).reshape(1, 1, 1, -1)
    angles = positions[:, :, None, None].astype(jnp.float32) * by_pair
    scale = attention_factor(model.rope_scaling)
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(
    x: Float[Array, "B T N H"],
    cos: Float[Array, "B T 1 half"],
    sin: Float[Array, "B T 1 half"],
) -> Float[Array, "B T N H"]:
    """Turn the pairs (x[i], x[i + H/2]) by their angles."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def frequencies(model: architecture.ModelConfig) -> np.ndarray:
    """Radians a position for each of the H/2 pairs, float32, after the config's scaling."""
    pairs = np.arange(0, model.head_dim, 2, dtype=np.float32) / model.head_dim
    base = 1.0 / (np.float32(model.rope_theta) ** pairs)
    scaling = model.rope_scaling
    if scaling.kind == "linear":
        return base / np.float32(scaling.factor)
    if scaling.kind == "yarn":
        stretched = _stretched_share(model)
        return (base * (1 - stretched) + base / scaling.factor * stretched).astype(np.float32)
    return base


def attention_factor(scaling: architecture.RopeScaling) -> float:
    """What queries and keys are multiplied by: YaRN's temperature (arXiv 2309.00071, eq. 22)."""
    if scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0


def _stretched_share(model: architecture.ModelConfig) -> np.ndarray:
    """YaRN's ramp over the pairs: 0 for fast ones, kept as they are, to 1 for slow ones."""
    scaling = model.rope_scaling

    def pair_with(rotations: float) -> float:
        """The (fractional) pair that turns this many times in the original context."""
        wavelength = scaling.original_max_positions / (rotations * 2 * math.pi)
        return model.head_dim * math.log(wavelength) / (2 * math.log(model.rope_theta))

    low = max(math.floor(pair_with(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_with(scaling.beta_slow)), model.head_dim - 1)
    width = max(high - low, 0.001)
    index = np.arange(model.head_dim // 2, dtype=np.float32)
    return np.clip((index - low) / width, 0, 1)
