"""The training step's laws: packing, causality, accumulation and evaluation change no number."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import packed_rows
import pytest

from jaxterm import config, loss, model, optimizer, sharding, train_step

ONE_DEVICE = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}


def one_device_mesh():
    return sharding.make_mesh(ONE_DEVICE, devices=jax.devices()[:1])


def tiny_params(run, seed=0):
    return packed_rows.random_params(seed, model.abstract_params(run.model, run.compute))


def decode(run, params, batch):
    """Hidden states, head and targets: what a loss is made of."""
    decoder = model.with_params(run.model, run.compute, params)
    hidden = decoder(batch["tokens"], batch["positions"], batch["segment_ids"])
    targets = loss.next_tokens(batch["tokens"], batch["segment_ids"], batch["loss_mask"])
    return hidden, decoder.head, targets


def token_losses(run, params, batch):
    """Cross-entropy of each position through model and loss."""
    return loss.token_losses(
        *decode(run, params, batch), vocab_size=run.model.vocab_size, chunk_tokens=8
    )


def sum_of_losses(run, params, batch):
    """What is trained: cross-entropy of the whole batch."""
    return loss.sum_of_losses(
        *decode(run, params, batch), vocab_size=run.model.vocab_size, chunk_tokens=8
    )[0]


def unpacked(batch):
    """Each segment alone at the start of a row of its own, the rest padding."""
    rows = {name: [] for name in batch}
    segment_ids = np.asarray(batch["segment_ids"])
    for b in range(len(segment_ids)):
        for segment in range(1, segment_ids[b].max() + 1):
            (at,) = np.nonzero(segment_ids[b] == segment)
            for name, x in batch.items():
                row = np.zeros(segment_ids.shape[1], np.int32)
                row[: len(at)] = 1 if name == "segment_ids" else np.asarray(x)[b, at]
                rows[name].append(row)
    return {name: jnp.asarray(np.stack(x)) for name, x in rows.items()}


@pytest.mark.parametrize("attention", ["reference", "blockwise"])
def test_packed_is_the_sum_of_unpacked(attention):
    run = packed_rows.tiny_run(rows=3, length=40, attention=attention)
    params = tiny_params(run)
    batch = packed_rows.random_batch(5, rows=3, length=40, longest=14)
    alone = unpacked(batch)
    assert len(alone["tokens"]) > 8

    @jax.jit
    def total(params, batch):
        return jax.value_and_grad(lambda p: sum_of_losses(run, p, batch))(params)

    packed_loss, packed_gradients = total(params, batch)
    # Conversation after conversation, so that nothing of one could reach another.
    parts = [
        total(params, {name: x[i : i + 1] for name, x in alone.items()})
        for i in range(len(alone["tokens"]))
    ]
    alone_loss, alone_gradients = jax.tree.map(lambda *x: np.sum(x, axis=0, dtype=float), *parts)
    assert float(packed_loss) == pytest.approx(float(alone_loss), rel=1e-6)
    assert packed_rows.largest_relative_error(packed_gradients, alone_gradients) < 5e-6


@pytest.mark.parametrize("attention", ["reference", "blockwise"])
def test_gradients_reach_the_past_of_a_segment_and_nothing_else(attention):
    length = 20
    run = packed_rows.tiny_run(rows=1, length=length, attention=attention)
    params = tiny_params(run)
    segment_ids = np.array([[1] * 7 + [2] * 1 + [3] * 9 + [0] * 3], np.int32)
    batch = {
        # Every token occurs once: the gradient of its embedding is that of its place.
        "tokens": jnp.arange(length)[None] + 40,
        "positions": jnp.asarray(packed_rows.positions_in_segments(segment_ids)),
        "segment_ids": jnp.asarray(segment_ids),
        "loss_mask": jnp.ones((1, length), jnp.int32),
    }

    @jax.jit
    def of_embedding(params):
        return jax.jacrev(lambda table: token_losses(run, params | {"embedding": table}, batch)[0])(
            params["embedding"]
        )

    reached = np.abs(np.asarray(of_embedding(params))).sum(-1) > 0  # [position, vocabulary]
    assert not reached[:, :40].any()
    expected = np.zeros((length, length), bool)
    for t in range(length - 1):
        if segment_ids[0, t] == segment_ids[0, t + 1] > 0:
            expected[t, : t + 1] = segment_ids[0, : t + 1] == segment_ids[0, t]
    np.testing.assert_array_equal(reached[:, 40 : 40 + length], expected)


def state_after(run, batches, *, num_steps=10):
    """The state and the metrics after a step on each batch, on one device."""
    mesh = one_device_mesh()
    placed = model.abstract_params(run.model, run.compute, mesh)
    params = jax.tree.map(lambda x, at: jax.device_put(x, at.sharding), tiny_params(run), placed)
    step = train_step.jit_train_step(run, mesh, num_steps)
    with jax.set_mesh(mesh):
        state = train_step.init_state(run, mesh, params, num_steps)
        state, metrics = step(state, batches[0])
        with packed_rows.at_most_compiles(0):  # one compile, whatever the number of steps
            for batch in batches[1:]:
                state, metrics = step(state, batch)
    return state, metrics


@functools.cache
def two_steps(micro_batches):
    run = packed_rows.tiny_run(rows=8, length=24, micro_batches=micro_batches)
    batches = [packed_rows.random_batch(seed, rows=8, length=24, longest=12) for seed in (1, 2)]
    return state_after(run, batches)


@functools.cache
def params_after_one_step():
    run = packed_rows.tiny_run(rows=8, length=24)
    batch = packed_rows.random_batch(1, rows=8, length=24, longest=12)
    return state_after(run, [batch])[0].params


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_micro_batches_change_nothing(micro_batches):
    batch = packed_rows.random_batch(1, rows=8, length=24, longest=12)
    counts = np.asarray(batch["loss_mask"]).reshape(-1, micro_batches, 24).sum((0, 2))
    assert len(set(counts.tolist())) > 1  # unequal shares of the loss tokens
    (state, metrics), (expected, expected_metrics) = two_steps(micro_batches), two_steps(1)
    for name, value in expected_metrics.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=2e-6), name
    error = packed_rows.largest_relative_error(state.params, expected.params)
    assert error < 2e-6
    moments = [packed_rows.moments(x.optimizer) for x in (state, expected)]
    assert packed_rows.largest_relative_error(moments[0].mu, moments[1].mu) < 5e-6


def test_metrics_are_those_of_the_batch():
    run = packed_rows.tiny_run(rows=8, length=24)
    batch = packed_rows.random_batch(2, rows=8, length=24, longest=12)
    state, metrics = two_steps(1)
    losses = token_losses(run, params_after_one_step(), batch)
    targets = loss.next_tokens(batch["tokens"], batch["segment_ids"], batch["loss_mask"])
    counted = int((targets != loss.IGNORED).sum())
    assert metrics["loss_tokens"] == counted
    assert metrics["tokens"] == int((batch["segment_ids"] > 0).sum())
    assert float(metrics["loss"]) == pytest.approx(float(losses.sum()) / counted, rel=1e-5)
    schedule = optimizer.make_schedule(run.optimizer, 10)
    assert float(metrics["learning_rate"]) == pytest.approx(float(schedule(1)))
    squares = sum(float((np.asarray(x, float) ** 2).sum()) for x in jax.tree.leaves(state.params))
    assert float(metrics["param_norm"]) == pytest.approx(squares**0.5, rel=1e-5)
    segment_ids = np.asarray(batch["segment_ids"])
    lengths = [
        int((row == segment).sum()) for row in segment_ids for segment in range(1, row.max() + 1)
    ]
    assert metrics["attention_pairs"] == sum(n * (n + 1) // 2 for n in lengths)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_bfloat16_runs_and_keeps_the_dtypes_of_the_state(micro_batches):
    run = packed_rows.tiny_run(
        rows=4, length=16, micro_batches=micro_batches,
        param_dtype="bfloat16", compute_dtype="bfloat16",
    )  # fmt: skip
    batch = packed_rows.random_batch(1, rows=4, length=16, longest=8)
    state, metrics = state_after(run, [batch, batch])
    assert np.isfinite(metrics["loss"])
    assert np.isfinite(metrics["grad_norm"])
    abstract = train_step.abstract_state(run, one_device_mesh(), 10)
    found, declared = ([x.dtype for x in jax.tree.leaves(s)] for s in (state, abstract))
    assert found == declared


def test_batch_without_loss_tokens_has_loss_zero_and_moves_nothing_but_decay():
    run = packed_rows.tiny_run(rows=2, length=16)
    run = packed_rows.replace_fields(run, optimizer={"weight_decay": 0.0, "warmup_fraction": 0.0})
    batch = packed_rows.random_batch(1, rows=2, length=16, longest=8)
    batch["loss_mask"] = jnp.zeros_like(batch["loss_mask"])
    state, metrics = state_after(run, [batch])
    assert metrics["loss"] == 0
    assert metrics["grad_norm"] == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, tiny_params(run))


def test_eval_sums_are_those_of_plain_loops():
    run = packed_rows.tiny_run(rows=4, length=24)
    params = tiny_params(run)
    batch = packed_rows.random_batch(3, rows=4, length=24, longest=9)
    rng = np.random.default_rng(0)
    # A segment is of one group, as a conversation is of one source.
    group_of = rng.integers(0, 3, (4, 25))
    groups = np.take_along_axis(group_of, np.asarray(batch["segment_ids"]), axis=1)
    eval_step = jax.jit(train_step.make_eval_step(run, 4))
    sums, counts = eval_step(params, batch, jnp.asarray(groups, jnp.int32))
    losses = np.asarray(token_losses(run, params, batch), float)
    targets = loss.next_tokens(batch["tokens"], batch["segment_ids"], batch["loss_mask"])
    expected_sums, expected_counts = np.zeros(4), np.zeros(4)
    for place in np.ndindex(losses.shape):
        if targets[place] != loss.IGNORED:
            expected_sums[groups[place]] += losses[place]
            expected_counts[groups[place]] += 1
    np.testing.assert_allclose(sums, expected_sums, rtol=1e-6)
    np.testing.assert_array_equal(counts, expected_counts)


def test_loss_falls_on_a_repeated_batch():
    run = packed_rows.tiny_run(rows=4, length=24)
    run = packed_rows.replace_fields(run, optimizer={"epsilon": 1e-8})
    batch = packed_rows.random_batch(1, rows=4, length=24, longest=12)
    _, first = state_after(run, [batch], num_steps=20)
    _, last = state_after(run, [batch] * 20, num_steps=20)
    assert float(last["loss"]) < 0.5 * float(first["loss"])


def test_settings_of_the_paper_are_the_defaults():
    """Section 5.1: AdamW 0.9, 0.95, weight decay 1e-4, clip 1.0, 2e-5 with 10 % warm-up, cosine."""
    settings = config.OptimizerConfig()
    assert (settings.beta1, settings.beta2, settings.weight_decay) == (0.9, 0.95, 1e-4)
    assert (settings.peak_lr, settings.warmup_fraction, settings.max_grad_norm) == (2e-5, 0.1, 1)
