"""One step of training and one of evaluation: pure functions of state and batch.

A batch is a dict of int32 [B, T] arrays: tokens, positions, segment_ids, loss_mask. Gradients and
losses are sums over loss tokens divided by the number of loss tokens of the whole global batch, so
that micro-batches, hosts and shards change nothing but rounding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxterm import (
    compiler_options,
    config,
    context_parallel,
    loss,
    model,
    moments,
    optimizer,
    sharding,
    trainable,
)

Batch = dict[str, Int[Array, "B T"]]
Metrics = dict[str, Float[Array, ""]]


class TrainState(NamedTuple):
    """What a step changes."""

    params: model.Params  # all of them, of which jaxterm/trainable.py says what is trained
    optimizer: Any  # optax's state, of what is trained
    step: Any  # steps done, an int32 scalar


def init_state(
    run: config.TrainConfig, mesh: jax.sharding.Mesh, params: model.Params, num_steps: int
) -> TrainState:
    """The state before the first step; the moments lie as their parameters do.

    Args:
        run: with config.lora the state has adapters too, and the model's weights as it wants them.
        mesh: where the state lies.
        params: the model's, in full.
        num_steps: of the whole run.
    """
    abstract = abstract_state(run, mesh, num_steps)
    transform = optimizer.make_optimizer(run.optimizer, num_steps)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.optimizer)
    params = trainable.init_params(run, mesh, params)
    state = jax.jit(transform.init, out_shardings=shardings)(trainable.trained(params))
    return TrainState(params, state, jax.device_put(jnp.int32(0), abstract.step.sharding))


def abstract_state(run: config.TrainConfig, mesh: jax.sharding.Mesh, num_steps: int) -> TrainState:
    """Shapes, dtypes and shardings of the state, for restoring it and for compiling without it."""
    params = trainable.abstract_params(run.model, run.compute, run.lora, mesh)
    transform = optimizer.make_optimizer(run.optimizer, num_steps)
    replicated = sharding.named_sharding(mesh)
    trained = trainable.trained(params)
    state = moments.abstract_state(transform, trained, run.optimizer, replicated)
    return TrainState(params, state, jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated))


def make_train_step(
    run: config.TrainConfig, num_steps: int
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The function (state, batch) -> (next state, metrics of this step)."""
    transform = optimizer.make_optimizer(run.optimizer, num_steps)
    schedule = optimizer.make_schedule(run.optimizer, num_steps)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        total = num_loss_tokens(batch)
        mean_loss, grads = _accumulate(run, state.params, batch, total)
        with jax.named_scope("optimizer"):
            trained: Any = trainable.trained(state.params)
            updates, next_state = transform.update(grads, state.optimizer, trained)
            trained = optax.apply_updates(trained, updates)
        metrics = {
            "loss": mean_loss,
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(trained),
            "learning_rate": schedule(state.step),
            "loss_tokens": total,
            "tokens": (batch["segment_ids"] > 0).sum(),
            # A token at position p of its segment meets p + 1 keys.
            "attention_pairs": jnp.where(
                batch["segment_ids"] > 0, batch["positions"].astype(jnp.float32) + 1, 0
            ).sum(),
        }
        metrics = {name: value.astype(jnp.float32) for name, value in metrics.items()}
        params = trainable.with_trained(state.params, trained)
        return TrainState(params, next_state, state.step + 1), metrics

    return train_step


def make_eval_step(
    run: config.TrainConfig, num_groups: int
) -> Callable[[model.Params, Batch, Int[Array, "B T"]], tuple[Array, Array]]:
    """The function (params, batch, group of each token) -> (sums of losses, loss tokens), [groups].

    The group of a loss is that of the token predicted from, which is of the same segment.
    """

    def eval_step(params: model.Params, batch: Batch, groups: Int[Array, "B T"]):
        hidden, head, targets = _decode(run, params, batch)
        with jax.named_scope("loss"):
            losses = loss.token_losses(hidden, head, targets, **_loss_sizes(run))
        counted = targets != loss.IGNORED
        groups = context_parallel.balance(groups)
        one_hot = jax.nn.one_hot(groups, num_groups) * counted[..., None]
        # Not a product of matrices, which a TPU would round to bfloat16.
        return (losses[..., None] * one_hot).sum((0, 1)), one_hot.sum((0, 1))

    return eval_step


def num_loss_tokens(batch: Batch) -> Int[Array, ""]:
    """Targets in the global batch, at least 1 so that a batch without any divides by something."""
    targets = loss.next_tokens(batch["tokens"], batch["segment_ids"], batch["loss_mask"])
    return jnp.maximum((targets != loss.IGNORED).sum(), 1)


def _decode(
    run: config.TrainConfig, params: model.Params, batch: Batch
) -> tuple[Float[Array, "B T D"], Float[Array, "V D"], Int[Array, "B T"]]:
    """Hidden states, the head that makes logits of them, and the targets.

    All in the order of tokens in which the shards of the length have even work.
    """
    targets = loss.next_tokens(batch["tokens"], batch["segment_ids"], batch["loss_mask"])
    tokens, positions, segment_ids, targets = (
        sharding.constrain(context_parallel.balance(x), "batch", "length")
        for x in (batch["tokens"], batch["positions"], batch["segment_ids"], targets)
    )
    base, adapters = trainable.parts(params, run.lora)
    decoder = model.with_params(run.model, run.compute, base)
    return decoder(tokens, positions, segment_ids, adapters), decoder.head, targets


def _loss_sizes(run: config.TrainConfig) -> dict[str, int]:
    return {
        "vocab_size": run.model.vocab_size,
        "chunk_tokens": run.compute.loss_chunk_tokens,
    }


def _accumulate(
    run: config.TrainConfig, params: model.Params, batch: Batch, total: Int[Array, ""]
) -> tuple[Float[Array, ""], model.Params]:
    """Loss of the global batch and gradients of what is trained.

    Micro-batch after micro-batch, summed in float32.
    """
    trained = trainable.trained(params)
    is_whole = trained is params

    def share_of_loss(used: model.Params, part: Batch) -> Float[Array, ""]:
        hidden, head, targets = _decode(run, trainable.with_trained(params, used), part)
        with jax.named_scope("loss"):
            sum_of_losses, _ = loss.sum_of_losses(
                hidden, head, targets, trains_head=is_whole, **_loss_sizes(run)
            )
            return sum_of_losses / total

    used = trained
    if is_whole:
        # The gradients of the blocks come in the compute dtype: that is what their products are,
        # and half of what a float32 copy of them would take.
        dtype = jnp.dtype(run.compute.compute_dtype)
        used = params | {"layers": jax.tree.map(lambda p: p.astype(dtype), params["layers"])}

    def add(carry, part: Batch):
        part = {name: sharding.constrain(x, "batch", "length") for name, x in part.items()}
        result = jax.value_and_grad(share_of_loss)(used, part)
        return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), carry, result), None

    num_parts = run.optimizer.num_micro_batches
    if num_parts == 1:
        mean_loss, grads = jax.value_and_grad(share_of_loss)(used, batch)
    else:
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), (jnp.float32(0), trained))
        parts = {name: _deal(x, num_parts) for name, x in batch.items()}
        mean_loss, grads = jax.lax.scan(add, zeros, parts)[0]
    # In the dtype of the parameters: the optimizer's state takes it over.
    return mean_loss, jax.tree.map(lambda grad, p: grad.astype(p.dtype), grads, trained)


def _deal(x: Int[Array, "B T"], num_parts: int) -> Int[Array, "parts rows T"]:
    """Rows dealt to micro-batches like cards: each device's rows stay on it."""
    return x.reshape(-1, num_parts, x.shape[1]).swapaxes(0, 1)


def jit_train_step(run: config.TrainConfig, mesh: jax.sharding.Mesh, num_steps: int) -> Any:
    """`make_train_step`, compiled once, on first use; the state it is given is used up.

    The next state lies as the first one does. Were that left to the compiler, the second step
    would be another program, and a resumed run would not repeat what the first one computed.
    """
    abstract = abstract_state(run, mesh, num_steps)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(
        make_train_step(run, num_steps),
        donate_argnums=0,
        out_shardings=(shardings, sharding.named_sharding(mesh)),
        compiler_options=compiler_options.for_mesh(mesh),
    )
