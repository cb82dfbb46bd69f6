"""Whether two folders compute the same: the logits of one batch of random tokens, on the CPU."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from convert import mapping, source, verify
from jaxterm import config, model

_BATCH = (2, 64)  # rows, tokens

# Rounding float32 weights to bfloat16 moves a token's distribution by far less than this (nats);
# a model that is another one by far more.
MAX_ROUNDING_KL = 1e-2


@dataclasses.dataclass(frozen=True)
class LogitsReport:
    """How the logits of two models compare."""

    max_abs: float
    max_kl: float  # nats; of the first model's distribution of a token against the second's
    mean_kl: float

    @property
    def is_equal(self) -> bool:
        """No difference at all."""
        return self.max_abs == 0.0

    @property
    def is_close(self) -> bool:
        """No more difference than rounding the weights makes; NaN is more."""
        return self.max_kl <= MAX_ROUNDING_KL


def compare(a: str | pathlib.Path, b: str | pathlib.Path, *, seed: int = 0) -> LogitsReport:
    """Run both models in float32 on the same tokens, one after the other.

    Either must fit in memory. The tokens are below both vocabulary sizes.

    Raises:
        ValueError: one of them is not a model, or their vocabularies differ.
    """
    sources = [verify.open_source(folder) for folder in (a, b)]
    sizes = [opened.model.vocab_size for opened in sources]
    if sizes[0] != sizes[1]:
        raise ValueError(f"{a} has {sizes[0]} tokens, {b} has {sizes[1]}: no logits to compare")
    tokens = np.random.default_rng(seed).integers(0, sizes[0], _BATCH, np.int32)
    first, second = (logits_of(opened, tokens) for opened in sources)
    kl = jnp.sum(jnp.exp(first[1]) * (first[1] - second[1]), axis=-1)
    return LogitsReport(
        max_abs=float(jnp.abs(first[0] - second[0]).max()),
        max_kl=float(kl.max()),
        mean_kl=float(kl.mean()),
    )


def logits_of(opened: source.Source, tokens: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Logits and their log softmax, [B, T, V] each."""
    compute = config.ComputeConfig(compute_dtype="float32", remat="none")
    architecture = dataclasses.replace(opened.model, vocab_multiple=1)
    leaves = {
        name: jnp.asarray(_read_whole(opened, leaf))
        for name, leaf in mapping.leaves(architecture).items()
    }
    decoder = model.with_params(architecture, compute, mapping.to_tree(leaves))
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    hidden = decoder(jnp.asarray(tokens), jnp.asarray(positions), jnp.ones_like(tokens))
    logits = jnp.einsum("BTD,VD->BTV", hidden, decoder.head, preferred_element_type=jnp.float32)
    return logits, jax.nn.log_softmax(logits)


def _read_whole(opened: source.Source, leaf: mapping.Leaf) -> np.ndarray:
    result = np.empty(leaf.shape, opened.dtype(leaf))
    for region in mapping.grid(leaf.shape, source.region_shape(leaf, opened.dtype(leaf), opened)):
        result[mapping.slices(region)] = opened.read(leaf, region)
    return result
