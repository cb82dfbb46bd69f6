"""Tiny decoders and batches of packed rows that several test files build on."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxterm import architecture, config

TINY = architecture.ModelConfig(
    vocab_size=99, num_layers=2, embed_dim=32, mlp_dim=48, num_heads=4, num_kv_heads=2,
    head_dim=16, vocab_multiple=4,
)  # fmt: skip


def tiny_run(*, rows: int, length: int, micro_batches: int = 1, **compute) -> config.TrainConfig:
    """A run of TINY in float32, in tiles and chunks of 8 tokens."""
    defaults = {"compute_dtype": "float32", "attention_block": 8, "loss_chunk_tokens": 8}
    return config.TrainConfig(
        model=TINY,
        compute=config.ComputeConfig(**(defaults | compute)),
        data=config.DataConfig(row_length=length, global_batch_size=rows),
        # Adam divides by the root of the second moment: a large epsilon keeps rounding small.
        optimizer=config.OptimizerConfig(
            peak_lr=1e-2, epsilon=1e-3, num_micro_batches=micro_batches
        ),
    )


def replace_fields(settings, **values):
    """The settings with other values; `section={...}` changes fields of a section."""
    changed = {
        name: dataclasses.replace(getattr(settings, name), **value)
        if isinstance(value, dict)
        else value
        for name, value in values.items()
    }
    return dataclasses.replace(settings, **changed)


def random_segment_ids(
    rng: np.random.Generator, *, rows: int, length: int, longest: int
) -> np.ndarray:
    """Rows of segments of 1 to `longest` tokens; a third of the rows end in padding."""
    result = np.zeros((rows, length), np.int32)
    for row in result:
        used = length if rng.random() < 2 / 3 else rng.integers(0, length)
        start, segment = 0, 1
        while start < used:
            stop = min(start + int(rng.integers(1, longest + 1)), used)
            row[start:stop] = segment
            start, segment = stop, segment + 1
    return result


def positions_in_segments(segment_ids: np.ndarray) -> np.ndarray:
    """0, 1, ... from the start of each segment."""
    positions = np.zeros_like(segment_ids)
    for row, ids in zip(positions, segment_ids, strict=True):
        for t in range(1, len(ids)):
            row[t] = row[t - 1] + 1 if ids[t] == ids[t - 1] else 0
    return positions


def random_batch(
    seed: int, *, rows: int, length: int, longest: int, vocab_size: int = TINY.vocab_size
) -> dict[str, jnp.ndarray]:
    """A batch of packed rows with random tokens, about half of them loss tokens."""
    rng = np.random.default_rng(seed)
    segment_ids = random_segment_ids(rng, rows=rows, length=length, longest=longest)
    real = segment_ids > 0
    batch = {
        "tokens": np.where(real, rng.integers(0, vocab_size, segment_ids.shape), 0),
        "positions": positions_in_segments(segment_ids),
        "segment_ids": segment_ids,
        "loss_mask": np.where(real, rng.integers(0, 2, segment_ids.shape), 0),
    }
    return {name: jnp.asarray(x, jnp.int32) for name, x in batch.items()}


def random_params(seed: int, abstract: dict) -> dict:
    """Parameters with these shapes, larger than fresh ones so that every gradient is felt."""
    rng = np.random.default_rng(seed)

    def leaf(name, described):
        if isinstance(described, dict):
            return {key: leaf(key, value) for key, value in described.items()}
        values = rng.uniform(-0.3, 0.3, described.shape) + (name == "scale")
        return jnp.asarray(values, described.dtype)

    return leaf("", abstract)


def largest_relative_error(actual: dict, expected: dict) -> float:
    """Over all leaves: the largest difference, relative to the largest value of its leaf."""

    def error(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return np.abs(a - b).max() / max(np.abs(b).max(), 1e-12)

    return max(jax.tree.leaves(jax.tree.map(error, actual, expected)))


def moments(state):
    """Adam's part of an optax state: `mu` is (1 - beta1) times the gradient after one step."""

    def has_moments(x):
        return hasattr(x, "mu")

    return next(x for x in jax.tree.leaves(state, is_leaf=has_moments) if has_moments(x))


_compiles = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration_s, **_: _compiles.append(event)
)


@contextlib.contextmanager
def at_most_compiles(number: int):
    """Fails when XLA compiles more often than this in the block."""
    before = len(_compiles)
    yield
    events = [event for event in _compiles[before:] if event.endswith("backend_compile_duration")]
    assert len(events) <= number, f"compiled {len(events)} times"
