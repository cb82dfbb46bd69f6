"""The loss against a float64 loop and the naive form with all logits."""

import functools

import jax
import jax.numpy as jnp
import jaxpr_shapes
import numpy as np
import packed_rows
import pytest

from jaxterm import loss

VOCAB, PADDED_VOCAB, DIM = 29, 32, 12


def random_inputs(seed, *, rows=3, length=20, dtype="float32"):
    """Hidden states, a head of PADDED_VOCAB rows, targets of which about half are IGNORED."""
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(rows, length, DIM)), dtype)
    head = jnp.asarray(rng.normal(size=(PADDED_VOCAB, DIM)), "float32")
    targets = rng.integers(0, VOCAB, (rows, length))
    targets = np.where(rng.random((rows, length)) < 0.5, targets, loss.IGNORED)
    return hidden, head, jnp.asarray(targets, jnp.int32)


def cross_entropy_by_loops(hidden, head, targets):
    hidden, head = np.asarray(hidden, np.float64), np.asarray(head, np.float64)[:VOCAB]
    result = np.zeros(targets.shape)
    for place in np.ndindex(targets.shape):
        if targets[place] != loss.IGNORED:
            logits = head @ hidden[place]
            result[place] = np.log(np.exp(logits).sum()) - logits[targets[place]]
    return result


def naive_sum(hidden, head, targets):
    log_probabilities = jax.nn.log_softmax(jnp.einsum("BTD,VD->BTV", hidden, head[:VOCAB]))
    at_target = jnp.take_along_axis(log_probabilities, jnp.maximum(targets, 0)[..., None], -1)
    return -jnp.where(targets == loss.IGNORED, 0, at_target[..., 0]).sum()


token_losses = functools.partial(loss.token_losses, vocab_size=VOCAB)


def total(hidden, head, targets, chunk_tokens):
    return loss.sum_of_losses(hidden, head, targets, vocab_size=VOCAB, chunk_tokens=chunk_tokens)[0]


@pytest.mark.parametrize("chunk_tokens", [1, 4, 7, 20, 1000])
def test_sum_and_count_are_those_of_plain_loops(chunk_tokens):
    hidden, head, targets = random_inputs(6)
    value, count = loss.sum_of_losses(
        hidden, head, targets, vocab_size=VOCAB, chunk_tokens=chunk_tokens
    )
    differentiated, _ = jax.value_and_grad(total)(hidden, head, targets, chunk_tokens)
    expected = cross_entropy_by_loops(hidden, head, targets)
    np.testing.assert_allclose([value, differentiated], expected.sum(), rtol=1e-6)
    assert int(count) == (expected != 0).sum()


@pytest.mark.parametrize("chunk_tokens", [1, 4, 7, 20, 1000])
def test_losses_are_those_of_plain_loops(chunk_tokens):
    inputs = random_inputs(0)
    losses = token_losses(*inputs, chunk_tokens=chunk_tokens)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, cross_entropy_by_loops(*inputs), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("chunk_tokens", [1, 4, 7, 20, 1000])
def test_gradients_are_those_of_the_naive_form(chunk_tokens):
    hidden, head, targets = random_inputs(1)
    # A factor after the sum, as the number of loss tokens is, reaches both gradients.
    ours = jax.grad(lambda *x: 0.3 * total(*x, targets, chunk_tokens), (0, 1))(hidden, head)
    expected = jax.grad(lambda *x: 0.3 * naive_sum(*x, targets), (0, 1))(hidden, head)
    for actual, wanted in zip(ours, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=2e-6 * float(jnp.abs(wanted).max()))
    ignored = np.asarray(targets) == loss.IGNORED
    assert not np.asarray(ours[0])[ignored].any()
    assert np.asarray(ours[0])[~ignored].any(axis=-1).all()
    assert not np.asarray(ours[1])[VOCAB:].any()


@pytest.mark.parametrize("rows", [1, 3])
def test_tokens_without_a_target_are_never_multiplied(rows):
    """A not-a-number that met a product, with a zero too, would be in the head's gradient."""
    hidden, head, _ = random_inputs(8, rows=rows)
    targets = np.full(hidden.shape[:2], loss.IGNORED)
    for row in targets:  # as many in each row as two chunks hold
        row[np.random.default_rng(1).permutation(row.size)[:8]] = range(8)
    is_ignored = (targets == loss.IGNORED)[..., None]
    unread = jnp.where(is_ignored, jnp.nan, hidden)
    grad = jax.grad(lambda *x: total(*x, jnp.asarray(targets), 4), (0, 1))
    assert is_ignored.any()
    for actual, wanted in zip(grad(unread, head), grad(hidden, head), strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_without_any_target_all_is_zero():
    hidden, head, targets = random_inputs(9)
    none = jnp.full_like(targets, loss.IGNORED)
    value, grads = jax.value_and_grad(lambda *x: total(*x, none, 4), (0, 1))(hidden, head)
    assert value == 0
    assert not any(np.asarray(grad).any() for grad in grads)


def test_bfloat16_gradients_are_the_exact_ones_within_their_precision():
    """The head's gradient is summed over chunks in float32: many chunks lose nothing."""
    hidden, head, targets = random_inputs(7, rows=4, length=256, dtype="bfloat16")
    exact = hidden.astype(jnp.float32), head.astype(jnp.bfloat16).astype(jnp.float32)
    ours = jax.grad(lambda *x: total(*x, targets, 2), (0, 1))(hidden, head)
    expected = jax.grad(naive_sum, (0, 1))(*exact, targets)
    assert [x.dtype for x in ours] == [jnp.bfloat16, jnp.float32]
    eps = float(jnp.finfo(jnp.bfloat16).eps)
    for actual, wanted in zip(ours, expected, strict=True):
        error = jnp.abs(actual.astype(jnp.float32) - wanted).max() / jnp.abs(wanted).max()
        assert float(error) < 2 * eps


def test_padding_of_the_vocabulary_gets_no_probability():
    hidden, head, targets = random_inputs(2)
    huge = head.at[VOCAB:].set(100.0 * jnp.sign(hidden[0, 0]))
    np.testing.assert_array_equal(
        token_losses(hidden, head, targets, chunk_tokens=5),
        token_losses(hidden, huge, targets, chunk_tokens=5),
    )


def test_huge_logits_stay_finite():
    hidden, head, targets = random_inputs(3)
    losses, gradient = jax.value_and_grad(lambda x: total(x, head, targets, 5))(hidden * 1e4)
    assert np.isfinite(losses)
    assert np.isfinite(gradient).all()


def test_bfloat16_hidden_states_keep_float32_losses():
    hidden, head, targets = random_inputs(4, dtype="bfloat16")
    losses = token_losses(hidden, head, targets, chunk_tokens=5)
    assert losses.dtype == jnp.float32
    rounded_head = head.astype(jnp.bfloat16)
    expected = cross_entropy_by_loops(hidden, rounded_head.astype(jnp.float32), targets)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [16, 17])
def test_all_logits_never_exist(length):
    rows, chunk = 2, 4
    hidden, head, targets = random_inputs(5, rows=rows, length=length)

    shapes = jaxpr_shapes.intermediate_shapes(
        jax.grad(lambda *x: total(*x, targets, chunk), (0, 1)), hidden, head
    ) | jaxpr_shapes.intermediate_shapes(
        lambda *x: token_losses(*x, targets, chunk_tokens=chunk), hidden, head
    )
    with_vocab = [np.prod(shape) for shape in shapes if PADDED_VOCAB in shape]
    assert max(with_vocab) <= max(rows * chunk, DIM) * PADDED_VOCAB
    naive = jaxpr_shapes.intermediate_shapes(
        jax.grad(lambda *x: naive_sum(*x, targets)), hidden, head
    )
    assert (rows, length, VOCAB) in naive  # the check sees what it looks for


def test_next_tokens_of_the_docstring():
    targets = loss.next_tokens(
        jnp.array([[10, 11, 20, 21, 30, 40, 0]]),
        jnp.array([[1, 1, 1, 1, 2, 2, 0]]),
        jnp.array([[0, 0, 1, 1, 0, 1, 0]]),
    )
    assert targets.tolist() == [[-1, 20, 21, -1, 40, -1, -1]]


@pytest.mark.parametrize("seed", range(4))
def test_targets_are_those_of_plain_loops(seed):
    batch = packed_rows.random_batch(seed, rows=4, length=30, longest=6)
    tokens, segment_ids, loss_mask = (
        np.asarray(batch[name]) for name in ("tokens", "segment_ids", "loss_mask")
    )
    expected = np.full(tokens.shape, loss.IGNORED)
    for b, t in np.ndindex(tokens.shape[0], tokens.shape[1] - 1):
        if segment_ids[b, t] == segment_ids[b, t + 1] > 0 and loss_mask[b, t + 1]:
            expected[b, t] = tokens[b, t + 1]
    targets = loss.next_tokens(batch["tokens"], batch["segment_ids"], batch["loss_mask"])
    np.testing.assert_array_equal(targets, expected)


def test_last_token_of_a_full_row_has_no_target():
    """A row's end must not take the first token of the row as its next one."""
    ones = jnp.ones((1, 4), jnp.int32)
    assert loss.next_tokens(ones * 5, ones, ones).tolist() == [[5, 5, 5, -1]]
