"""Train the small tokenizer: byte-level BPE with Qwen3's text splitting, added tokens and template.

    python -m data_pipeline.recorder.train_tokenizer --corpus=sessions.parquet --output=DIR

The same corpus and size give the same files.  The chat template is the embedded one.
"""

import itertools
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import tokenizers
from absl import flags
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from data_pipeline import chat, cli, corpus, embedded

_CORPUS = flags.DEFINE_string("corpus", "", "File of sessions, folder of them, or embedded.")
_OUTPUT = flags.DEFINE_string("output", "", "Folder for the tokenizer's files.")
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 2560, "Entries in all, added tokens included.")

# How Qwen3 cuts text before merging: contractions; a word with at most one leading sign or blank;
# single digits; runs of signs with the line ends after them; line ends; blanks.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"\p{N}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
)
# Qwen3's added tokens that it does not call special; they follow those that it does.
PLAIN_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    *(f"<|fim_{name}|>" for name in ("prefix", "middle", "suffix", "pad")),
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
_NUM_ADDED = len(chat.QWEN3_SPECIAL_TOKENS) + len(PLAIN_TOKENS)
_TEMPLATE = "chat_template.jinja"
_SPAN_ROWS = 10_000


def read_texts(name: str) -> Iterator[str]:
    """Every message's text, in the files' order.

    Args:
        name: a file, a folder or `embedded`, as `corpus` takes them.

    Raises:
        ValueError: no such corpus, a bad row, or no row at all.
    """
    spans = corpus.split_into_spans(corpus.find_files([name]), max_rows=_SPAN_ROWS)
    cli.require(bool(spans), f"--corpus={name} is empty; record one with data_pipeline.recorder")
    for conversation in corpus.read_conversations(itertools.chain.from_iterable(spans)):
        for message in conversation.messages:
            yield message.content


def train(texts: Iterator[str], *, vocab_size: int) -> tokenizers.Tokenizer:
    """Train the BPE and append the added tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(tokenizers.Regex("|".join(_PIECES)), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - _NUM_ADDED,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([_added(token) for token in chat.QWEN3_SPECIAL_TOKENS])
    tokenizer.add_tokens([_added(token) for token in PLAIN_TOKENS])
    return tokenizer


def _added(token: str) -> tokenizers.AddedToken:
    special = token in chat.QWEN3_SPECIAL_TOKENS
    return tokenizers.AddedToken(token, normalized=False, special=special)


def config(*, max_length: int = 32_768) -> dict:
    """What transformers needs to know beside tokenizer.json."""
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }


def write(tokenizer: tokenizers.Tokenizer, folder: pathlib.Path) -> None:
    """Write the tokenizer, its configuration and the chat template, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    template = embedded.tokenizer_dir() / _TEMPLATE
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as name:
        partial = pathlib.Path(name)
        tokenizer.save(str(partial / "tokenizer.json"))
        (partial / "tokenizer_config.json").write_text(json.dumps(config(), indent=2) + "\n")
        shutil.copyfile(template, partial / _TEMPLATE)
        for path in sorted(partial.iterdir()):
            os.replace(path, folder / path.name)


def main(argv: list[str]) -> None:
    """Train and write."""
    cli.require(not argv, f"unexpected {' '.join(argv)}: every setting is a --flag, see --help")
    cli.require(bool(_CORPUS.value), "--corpus is not set; name a file, a folder, or embedded")
    folder, vocab_size = cli.output_dir(), _VOCAB_SIZE.value
    cli.require(
        vocab_size >= 256 + _NUM_ADDED,
        f"--vocab_size={vocab_size} must be at least {256 + _NUM_ADDED}: the bytes and "
        f"{_NUM_ADDED} added tokens",
    )
    cli.require(
        folder.is_dir() or not folder.exists(), f"--output={folder} is a file; name a folder"
    )
    cli.require(isinstance(folder, pathlib.Path), f"--output={folder} must be a local folder")
    tokenizer = train(read_texts(_CORPUS.value), vocab_size=vocab_size)
    write(tokenizer, pathlib.Path(folder))
    print(f"{folder}: {tokenizer.get_vocab_size():,} entries")


if __name__ == "__main__":
    cli.run(main)
