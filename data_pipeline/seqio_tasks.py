"""Tokens as SeqIO Tasks and Mixtures, for those who train with T5X-style tools; and SeqIO's rates.

    from data_pipeline import seqio_tasks

    seqio_tasks.register("tokens", name="agents", tokenizer_dir="Qwen3-8B", temperature=2.0)
    data = seqio.get_mixture_or_task("agents").get_dataset(...)

makes one Task a source, `agents.SOURCE`, and the Mixture `agents` of them. By the conventions of
decoder-only models an example has `targets`, all its tokens, and `targets_loss_weights`, 1 where a
token is to be predicted; `ChatFeatureConverter` makes a decoder's features of them. A Task has the
split `train`.

Needs the extra `seqio`; only who imports this file loads TensorFlow.
"""

import importlib
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from data_pipeline import chat, manifest, shards, storage

try:
    import seqio
    import tensorflow as tf
except ImportError as error:
    raise ValueError(
        "SeqIO is not installed; it is needed for its Tasks and for a `mixture` of its rates: "
        "uv sync --extra seqio"
    ) from error

_FEATURES = ("targets", "targets_loss_weights")


class ChatVocabulary(seqio.Vocabulary):
    """A Hugging Face tokenizer as SeqIO asks for it. A reply's <|im_end|> is the end of sequence.

    SeqIO pads with id 0, which is a token here: the loss weights, not the ids, say what is padding.
    """

    def __init__(self, tokenizer_dir: pathlib.Path):
        super().__init__()
        self._dir, self._tokenizer = tokenizer_dir, chat.load(tokenizer_dir).backend_tokenizer

    @property
    def eos_id(self) -> int:
        """What ends a reply."""
        return self._tokenizer.token_to_id(chat.TURN_END)

    @property
    def unk_id(self) -> None:
        """None: a byte-level tokenizer knows every text."""
        return None

    @property
    def _base_vocab_size(self) -> int:
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def _encode(self, s: str) -> Sequence[int]:
        return self._tokenizer.encode(s, add_special_tokens=False).ids

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def _encode_tf(self, s: Any) -> Any:
        def encode(text: Any) -> Any:
            return tf.constant(self._encode(text.numpy().decode()), tf.int32)

        return tf.ensure_shape(tf.py_function(encode, [s], tf.int32), [None])

    def _decode_tf(self, ids: Any) -> Any:
        return tf.py_function(lambda each: self._decode(each.numpy()), [ids], tf.string)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChatVocabulary) and self._dir == other._dir

    def __hash__(self) -> int:
        return hash(self._dir)


class ChatFeatureConverter(seqio.LMFeatureConverter):
    """A decoder's features of ours: those of `LMFeatureConverter`, with the loss where it belongs.

    It does not pack: SeqIO's packing takes each id and weight of 0 for padding and drops it.
    `data_pipeline.plan` packs.
    """

    TASK_FEATURES = {  # noqa: RUF012 (as SeqIO declares it)
        name: seqio.FeatureConverter.FeatureSpec(dtype=tf.int32) for name in _FEATURES
    }

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        if self.pack:
            raise ValueError(
                "pack=True: SeqIO's packing drops tokens whose id or loss weight is 0; give "
                "pack=False, or train on what data_pipeline.plan packs"
            )

    def _convert_example(self, features: Mapping[str, Any]) -> dict[str, Any]:
        converted = dict(super()._convert_example(features))
        return converted | {"decoder_loss_weights": features["targets_loss_weights"]}


class _Source(seqio.FunctionDataSource):
    """The examples of one source of a folder of tokens."""

    def __init__(self, name: str, reader: shards.ShardReader, where: np.ndarray):
        """`where`: shard and position of each example, int [E, 2]."""
        self.source_name = name
        self._reader, self._where = reader, where
        super().__init__(self._dataset, splits=["train"], num_input_examples={"train": len(where)})

    def _dataset(self, split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        where = self._where
        if shuffle_files:
            where = np.random.default_rng(seed).permutation(where)

        def examples() -> Iterator[dict[str, np.ndarray]]:
            for shard, position in where:
                example = self._reader.read(int(shard), int(position))
                mask = example.loss_mask.astype(np.int32)
                yield {"targets": example.tokens, "targets_loss_weights": mask}

        signature = {name: tf.TensorSpec([None], "int32") for name in _FEATURES}
        return tf.data.Dataset.from_generator(examples, output_signature=signature)


def register(
    tokens_dir: storage.PathLike,
    *,
    name: str,
    tokenizer_dir: str | pathlib.Path,
    rates: Mapping[str, float] | None = None,
    temperature: float = 1.0,
) -> seqio.Mixture:
    """Register a Task for each source of a folder of tokens and a Mixture of them; returns it.

    Args:
        tokens_dir: what data_pipeline.tokenize wrote.
        name: of the Mixture; a Task's is NAME.SOURCE, with _ for what SeqIO allows in no name.
        tokenizer_dir: the tokenizer that made the tokens, or `embedded`.
        rates: by source; unset, they are proportional to the numbers of examples.
        temperature: of the numbers of examples n, which become n ** (1 / temperature).

    Raises:
        ValueError: the folder is not whole, or the rates are of other sources.
    """
    folder = storage.as_path(tokens_dir)
    sizes = manifest.read(folder, stage="tokenize")["counts"]["shard_bytes"]
    paths = [folder / shards.shard_name(number, len(sizes)) for number in range(len(sizes))]
    shards.check_sizes(paths, sizes)
    index = shards.read_index(folder, columns=["shard", "position", "source"])
    where = np.stack([index["shard"].to_numpy(), index["position"].to_numpy()], axis=1)
    source_of = np.array(index["source"].to_pylist())
    sources = sorted(set(source_of.tolist()))
    if rates is not None and rates.keys() != set(sources):
        raise ValueError(
            f"rates are given for {sorted(rates)}, and the sources of {folder} are {sources}; name "
            "each once (0 draws none)"
        )
    rate_of: dict[str, Any] = dict(rates or {})
    features = _features(chat.resolve_tokenizer_dir(str(tokenizer_dir)))
    reader = shards.ShardReader(paths)
    tasks = []
    for source in sources:
        task = seqio.TaskRegistry.add(
            name=f"{name}.{re.sub(r'[^\w.:#]', '_', source) or '_'}",
            source=cast(Any, _Source(source, reader, where[source_of == source])),
            output_features=features,
            preprocessors=[],
            metric_fns=[],
        )
        tasks.append((task.name, rate_of.get(source, _rate_by_examples(temperature))))
    return seqio.MixtureRegistry.add(name, tasks)


def _features(tokenizer_dir: pathlib.Path) -> dict[str, Any]:
    vocabularies = (ChatVocabulary(tokenizer_dir), seqio.PassThroughVocabulary(size=2))
    return {
        name: seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32)
        for name, vocabulary in zip(_FEATURES, vocabularies, strict=True)
    }


def _rate_by_examples(temperature: float) -> Callable[[Any], float]:
    return lambda task: seqio.mixing_rate_num_examples(task, temperature=temperature)


def mixture_rates(spec: str) -> dict[str, float]:
    """The share of each source in a SeqIO Mixture, those of nested ones multiplied; their sum is 1.

    Args:
        spec: MODULE:NAME, where importing the module registers the Mixture (or Task); or the name
            of a registered one. The source of a Task that is not of `register` is the Task's name.

    Raises:
        ValueError: no such module or Mixture, or it has no rates.
    """
    module, _, name = spec.rpartition(":")
    if spec in _registered():  # a name may hold a colon itself
        name = spec
    elif module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(
                f"mixture={spec!r}: the module {module} cannot be imported ({error}); it must be "
                "on PYTHONPATH, and installed with what it imports"
            ) from error
    if name not in _registered():
        known = ", ".join(sorted(_registered())[:20]) or "none"
        raise ValueError(
            f"mixture={spec!r}: SeqIO knows no Mixture or Task {name!r}, only {known}; give "
            "MODULE:NAME, where the module registers it"
        )
    mixture = seqio.get_mixture_or_task(name)
    if isinstance(mixture, seqio.Task):
        return {_source_of(mixture): 1.0}
    rates: dict[str, float] = {}
    for task in mixture.tasks:
        try:
            rate = mixture.get_rate(task)
        except (TypeError, AttributeError, OSError) as error:  # a rate by sizes nobody counted
            raise ValueError(
                f"mixture={spec!r}: the rate of {task.name} cannot be told ({error}); give a number"
            ) from error
        rates[_source_of(task)] = rates.get(_source_of(task), 0.0) + rate
    total = sum(rates.values())
    if not total > 0 or min(rates.values()) < 0:
        raise ValueError(f"mixture={spec!r}: rates {rates} must not be negative, nor all 0")
    return {source: rate / total for source, rate in rates.items()}


def _registered() -> set[str]:
    return {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}


def _source_of(task: seqio.Task) -> str:
    return getattr(task.source, "source_name", task.name)
