"""Train the small tokenizer: byte-level BPE with Qwen3's text splitting, added tokens and template.

    python -m data_pipeline.recorder.train_tokenizer --corpus=sessions.parquet --output=DIR

The same corpus and size give the same files.  The chat template is the embedded one.
"""

import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator

import pyarrow.parquet as pq
import tokenizers
from absl import app, flags
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from data_pipeline import embedded

_CORPUS = flags.DEFINE_string("corpus", None, "Parquet file of sessions.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the tokenizer's files.", required=True)
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
# Qwen3's added tokens in its order; the first 14 are the ones its tokenizer calls special.
_VISION = ("object_ref", "box", "quad", "vision")
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|{name}_{end}|>" for name in _VISION for end in ("start", "end")),
    *(f"<|{name}_pad|>" for name in ("vision", "image", "video")),
)
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
_TEMPLATE = "chat_template.jinja"


def read_texts(corpus: pathlib.Path) -> Iterator[str]:
    """Every message's text, in the file's order."""
    for row in pq.read_table(corpus, columns=["conversations"]).to_pylist():
        for message in row["conversations"]:
            yield message["content"]


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
        vocab_size=vocab_size - len(SPECIAL_TOKENS) - len(PLAIN_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([_added(token) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([_added(token) for token in PLAIN_TOKENS])
    return tokenizer


def _added(token: str) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(token, normalized=False, special=token in SPECIAL_TOKENS)


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
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; every setting is a --flag")
    corpus, folder = pathlib.Path(_CORPUS.value), pathlib.Path(_OUTPUT.value)
    num_added = len(SPECIAL_TOKENS) + len(PLAIN_TOKENS)
    if _VOCAB_SIZE.value < 256 + num_added:
        sys.exit(f"error: --vocab_size={_VOCAB_SIZE.value} must be at least {256 + num_added}")
    if not corpus.is_file():
        sys.exit(f"error: --corpus={corpus} is not a file; record one with data_pipeline.recorder")
    tokenizer = train(read_texts(corpus), vocab_size=_VOCAB_SIZE.value)
    write(tokenizer, folder)
    print(f"{folder}: {tokenizer.get_vocab_size():,} entries")


if __name__ == "__main__":
    app.run(main)
