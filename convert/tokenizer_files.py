"""The tokenizer files of a Hugging Face folder: what they say of ids, and copying them."""

import functools
import json
import operator
import pathlib
import shutil
from typing import Any

# What a folder may hold of a tokenizer and its chat template.
FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
TEMPLATES_DIR = "additional_chat_templates"

TURN_END = "<|im_end|>"  # ends every turn of Qwen3's chat template
END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """The tokenizer in a folder, as far as conversion must know it."""

    def __init__(self, folder: str | pathlib.Path):
        """Read tokenizer.json.

        Raises:
            ValueError: it is missing or broken, or has no token that ends a turn. (transformers
                makes an empty tokenizer of a folder without files, and says nothing.)
        """
        self.folder = pathlib.Path(folder)
        path = self.folder / "tokenizer.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            self._ids = _ids(values)
        except FileNotFoundError as error:
            raise ValueError(
                f"{path} is missing; give a folder that holds the model's tokenizer"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a tokenizer ({error!r}); download it again") from error
        if TURN_END not in self._ids:
            raise ValueError(
                f"{path} has no token {TURN_END}, which ends a turn; give a Qwen3 tokenizer"
            )

    @property
    def turn_end_id(self) -> int:
        """The id of `<|im_end|>`."""
        return self._ids[TURN_END]

    @property
    def end_of_text_id(self) -> int:
        """The id of `<|endoftext|>`, which also pads; of `<|im_end|>` where there is none."""
        return self._ids.get(END_OF_TEXT, self.turn_end_id)

    @functools.cached_property
    def max_id(self) -> int:
        """The largest id it can give; ids may have gaps, so it is not the number of tokens."""
        return max(self._ids.values())

    def generation_config(self) -> dict[str, Any]:
        """The least a generation_config.json must say: where to stop, what to pad with."""
        return {
            "bos_token_id": self.end_of_text_id,
            "eos_token_id": list(dict.fromkeys([self.turn_end_id, self.end_of_text_id])),
            "pad_token_id": self.end_of_text_id,
        }

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise ValueError when the model has no row for some token."""
        if self.max_id >= vocab_size:
            raise ValueError(
                f"{self.folder} has token ids up to {self.max_id}, the model's vocab_size is "
                f"{vocab_size}; give the tokenizer the model was trained with"
            )

    def copy_to(self, folder: pathlib.Path) -> None:
        """Copy every tokenizer file and chat template, byte for byte."""
        for name in FILES:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)
        if (self.folder / TEMPLATES_DIR).is_dir():
            shutil.copytree(self.folder / TEMPLATES_DIR, folder / TEMPLATES_DIR)


def _ids(values: dict[str, Any]) -> dict[str, int]:
    vocabulary = values["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pairs of token and score
        vocabulary = {token: index for index, (token, _) in enumerate(vocabulary)}
    added = {token["content"]: token["id"] for token in values["added_tokens"]}
    return {token: operator.index(number) for token, number in (vocabulary | added).items()}
