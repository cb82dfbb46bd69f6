"""Tokens through the real SeqIO: its datasets hold our examples, our rates are its rates."""

import sys

import numpy as np
import pytest
from conversations import dialogue, random_rows, write_jsonl

from data_pipeline import shards, tokenize

seqio = pytest.importorskip("seqio", reason="needs the extra `seqio`")

from data_pipeline import embedded, seqio_tasks  # noqa: E402

NUM = 30  # examples: 10 of `a b/c`, 10 of `d`, 10 of `a b!c`
SOURCES = ("a b/c", "d", "e!")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    rows = random_rows(seed=1, num=NUM, sources=SOURCES)
    rows += [dialogue("hi", "! ! !!!", source="d", task=f"more {i}") for i in range(10)]
    file = write_jsonl(folder / "a.jsonl", rows)
    options = tokenize.TokenizeOptions(shard_examples=7)
    return tokenize.tokenize(
        [str(file)], tokenizer_dir="embedded", output_dir=folder / "tokens", options=options
    )


@pytest.fixture(scope="module")
def mixture(tokens):
    return seqio_tasks.register(tokens, name="agents", tokenizer_dir="embedded")


def examples_of(tokens, source):
    paths = sorted(tokens.glob("*.array_record"))
    reader = shards.ShardReader(paths)
    for row in shards.read_index(tokens).to_pylist():
        if row["source"] == source:
            yield reader.read(row["shard"], row["position"])


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("source", SOURCES)
def test_a_task_is_the_examples_of_its_source(mixture, tokens, source, shuffle):
    [task] = [task for task in mixture.tasks if task.source.source_name == source]
    dataset = task.get_dataset(None, "train", shuffle=shuffle, seed=3, num_epochs=1)
    found = [
        (each["targets"], each["targets_loss_weights"]) for each in dataset.as_numpy_iterator()
    ]
    expected = [(each.tokens, each.loss_mask) for each in examples_of(tokens, source)]
    if shuffle:
        assert any(len(a[0]) != len(b[0]) for a, b in zip(found, expected, strict=True))
        found, expected = (sorted(each, key=lambda p: p[0].tolist()) for each in (found, expected))
    for each, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(each, other)
    assert task.num_input_examples("train") == len(expected)


def test_the_converter_keeps_the_mask_and_each_token(mixture, tokens):
    [task] = [task for task in mixture.tasks if task.source.source_name == "d"]
    length = 700
    dataset = seqio.get_dataset(
        task.name,
        {"targets": length, "targets_loss_weights": length},
        dataset_split="train",
        shuffle=False,
        num_epochs=1,
        feature_converter=seqio_tasks.ChatFeatureConverter(pack=False),
    )
    num_zero = 0
    for each, example in zip(dataset.as_numpy_iterator(), examples_of(tokens, "d"), strict=True):
        padding = (0, max(0, length - len(example.tokens)))
        targets, weights = (
            np.pad(values[:length], padding) for values in (example.tokens, example.loss_mask)
        )
        np.testing.assert_array_equal(each["decoder_target_tokens"], targets)
        np.testing.assert_array_equal(each["decoder_loss_weights"], weights)
        np.testing.assert_array_equal(each["decoder_input_tokens"], [0, *targets[:-1]])
        num_zero += (example.tokens == 0).sum()
    assert num_zero  # the id that SeqIO takes for padding
    with pytest.raises(ValueError, match=r"pack=True: SeqIO's packing drops"):
        seqio_tasks.ChatFeatureConverter(pack=True)


def test_a_mixture_draws_by_its_rates(mixture):
    dataset = mixture.get_dataset(None, "train", shuffle=False, seed=0, num_epochs=1)
    assert len(list(dataset.as_numpy_iterator())) > 0
    assert seqio_tasks.mixture_rates("agents") == {"a b/c": 0.25, "d": 0.5, "e!": 0.25}


def test_rates_are_seqios(tokens, mixture):
    warm = seqio_tasks.register(tokens, name="warm", tokenizer_dir="embedded", temperature=2.0)
    total = sum(seqio.mixing_rate_num_examples(task, temperature=2.0) for task in warm.tasks)
    for task in warm.tasks:
        rate = seqio.mixing_rate_num_examples(task, temperature=2.0) / total
        assert seqio_tasks.mixture_rates("warm")[task.source.source_name] == pytest.approx(rate)
    given = {"a b/c": 1.0, "d": 0.0, "e!": 3.0}
    seqio_tasks.register(tokens, name="given", tokenizer_dir="embedded", rates=given)
    assert seqio_tasks.mixture_rates("given") == {"a b/c": 0.25, "d": 0.0, "e!": 0.75}
    seqio.MixtureRegistry.add("nested", [("given", 1), ("agents", 3), ("agents.d", 4)])
    found = seqio_tasks.mixture_rates("nested")
    assert found == {"a b/c": 2 / 16, "d": 11 / 16, "e!": 3 / 16}  # a mean, weighted by hand
    nested = seqio.MixtureRegistry.get("nested")
    for task in mixture.tasks:
        share = sum(
            nested.get_rate(other) for other in nested.tasks
            if other.source.source_name == task.source.source_name
        )  # fmt: skip
        assert found[task.source.source_name] == pytest.approx(share / nested.total_rate)
    assert seqio_tasks.mixture_rates("agents.d") == {"d": 1.0}


def test_a_module_registers_its_mixture(mixture, tmp_path, monkeypatch):
    (tmp_path / "my_mixtures.py").write_text(
        "import seqio\n"
        "source = seqio.FunctionDataSource(lambda split, shuffle_files: None, ['train'])\n"
        "feature = {'targets': seqio.Feature(seqio.PassThroughVocabulary(2))}\n"
        "for name in ('x', 'y'):\n"
        "    seqio.TaskRegistry.add(name, source, feature)\n"
        "seqio.MixtureRegistry.add('mine', [('x', 1), ('y', 4)])\n"
        "seqio.MixtureRegistry.add('unknown', [('x', seqio.mixing_rate_num_examples)])\n"
        "seqio.MixtureRegistry.add('nothing', [('x', 0), ('y', 0)])\n"
    )
    with pytest.raises(ValueError, match=r"the module my_mixtures cannot be imported"):
        seqio_tasks.mixture_rates("my_mixtures:mine")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert seqio_tasks.mixture_rates("my_mixtures:mine") == {"x": 0.2, "y": 0.8}
    with pytest.raises(ValueError, match=r"no Mixture or Task 'yours', only .*mine"):
        seqio_tasks.mixture_rates("my_mixtures:yours")
    with pytest.raises(ValueError, match=r"the rate of x cannot be told .* give a number"):
        seqio_tasks.mixture_rates("unknown")
    with pytest.raises(ValueError, match=r"must not be negative, nor all 0"):
        seqio_tasks.mixture_rates("nothing")


def test_faults_are_named(tokens, tmp_path):
    with pytest.raises(ValueError, match=r"rates are given for \['d'\], and the sources of"):
        seqio_tasks.register(tokens, name="z", tokenizer_dir="embedded", rates={"d": 1.0})
    with pytest.raises(ValueError, match="is not there"):
        seqio_tasks.register(tmp_path, name="z", tokenizer_dir="embedded")


def test_the_vocabulary_is_the_tokenizer():
    vocabulary = seqio_tasks.ChatVocabulary(embedded.tokenizer_dir())
    text = "<|im_start|>user\nnaïve 日本語 \U0001f600<|im_end|>"
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert vocabulary.encode_tf(text).numpy().tolist() == list(ids)
    assert vocabulary.decode_tf(vocabulary.encode_tf(text)).numpy().decode() == text
    assert ids[-1] == vocabulary.eos_id and max(ids) < vocabulary.vocab_size
    assert vocabulary == seqio_tasks.ChatVocabulary(embedded.tokenizer_dir())


def test_without_seqio_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "data_pipeline.seqio_tasks")
    monkeypatch.setitem(sys.modules, "seqio", None)
    with pytest.raises(ValueError, match=r"SeqIO is not installed.* uv sync --extra seqio"):
        import data_pipeline.seqio_tasks  # noqa: F401
