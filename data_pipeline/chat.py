"""Conversation -> tokens and loss mask, by the model's own chat template.

A conversation is rendered once and tokenised once, so its tokens are those of
`apply_chat_template(tokenize=True)`; the mask is found from where its tokens lie in that text.
Targets are what the model writes: every assistant turn from behind `<|im_start|>assistant` and its
newline through `<|im_end|>`, but for those that the row's `untrained_turns` names; nothing else.

    <|im_start|> user \n hi <|im_end|> \n <|im_start|> assistant \n hello <|im_end|> \n
         0        0   0  0      0      0       0           0      0   1       1      0

Qwen3's template drops the `<think>` block of every assistant turn but those behind the last user
message, and in a terminal session every observation is a user message. `think="keep"`, the default,
shows the template such a block under other names, and so keeps it as the template itself would
write it were that turn the last; `think="strip_history"` leaves the template to its ways.
"""

import json
import logging
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import jinja2
import numpy as np

from data_pipeline import records

Think = Literal["keep", "strip_history"]

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
_TURN = re.compile(re.escape(TURN_START) + r"(\w+)\n")

# What a byte-level tokenizer writes behind the start of a reply, before it: a character for a byte.
_HEADER = "assistantĊ"

# Stand-ins for <think> and </think> that no template looks for (a private use plane of Unicode).
_OPEN, _CLOSE = "\U000f7e11", "\U000f7e12"

QWEN3_SPECIAL_TOKENS = (
    "<|endoftext|>", TURN_START, TURN_END, "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip

_LONG_CHARS = 1 << 20

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt",
)  # fmt: skip


def resolve_tokenizer_dir(name: str) -> pathlib.Path:
    """The folder of a tokenizer; `embedded` is the one that this project ships.

    Raises:
        ValueError: no such folder, or it holds no tokenizer.json.
    """
    if name == "embedded":
        from data_pipeline import embedded

        return pathlib.Path(embedded.tokenizer_dir())
    if not name:
        raise ValueError("--tokenizer is not set; name a Hugging Face folder, or embedded")
    if not (pathlib.Path(name) / "tokenizer.json").is_file():
        raise ValueError(f"--tokenizer={name} must be a Hugging Face folder with tokenizer.json")
    return pathlib.Path(name)


def tokenizer_files(tokenizer_dir: pathlib.Path) -> list[pathlib.Path]:
    """The files that decide what the tokenizer and its template do."""
    return [tokenizer_dir / name for name in TOKENIZER_FILES if (tokenizer_dir / name).is_file()]


def special_tokens_of(tokenizer_dir: pathlib.Path) -> tuple[str, ...]:
    """The tokens that may not stand inside a message, read from a tokenizer's file alone.

    They are those that it flags as special, and the turn tokens, flagged or not.
    """
    path = tokenizer_dir / "tokenizer.json"
    try:
        added = json.loads(path.read_text("utf-8"))["added_tokens"]
        flagged = [token["content"] for token in added if token["special"]]
        return tuple(dict.fromkeys([*flagged, TURN_START, TURN_END]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a tokenizer file ({error!r})") from error


def special_token_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of `tokens` in a text; without tokens, nothing."""
    return re.compile("|".join(re.escape(token) for token in sorted(tokens)) or "(?!)")


class ChatTokenizer:
    """A model's tokenizer and chat template, as one way from conversations to examples."""

    def __init__(self, tokenizer_dir: pathlib.Path, *, think: Think = "keep"):
        """Load the tokenizer.

        Raises:
            ValueError: it cannot be loaded, has no chat template, or lacks the turn tokens.
        """
        self.think = think
        self._tokenizer = load(tokenizer_dir)
        self._backend = self._tokenizer.backend_tokenizer
        if not self._tokenizer.chat_template:
            raise ValueError(f"--tokenizer={tokenizer_dir} has no chat template")
        ids = [self._backend.token_to_id(token) for token in (TURN_START, TURN_END)]
        if None in ids:
            raise ValueError(
                f"--tokenizer={tokenizer_dir} lacks {TURN_START} or {TURN_END}: only ChatML "
                "tokenizers such as Qwen3's are supported"
            )
        self._start_id, self._end_id = ids
        # Settings that may be stored in tokenizer.json; apply_chat_template does not obey them.
        self._backend.no_padding()
        self._backend.no_truncation()
        self._special = special_token_pattern(special_tokens_of(tokenizer_dir))
        header = self._backend.encode(f"{TURN_START}assistant\n", add_special_tokens=False)
        self._are_tokens_bytes = "".join(header.tokens[1:]) == _HEADER

    def render(self, conversation: records.Conversation) -> str:
        """The text that is tokenised.

        Raises:
            ValueError: the conversation has no assistant turn, holds a special token inside a
                message (which would forge a turn), or the template refuses it.
        """
        self._check(conversation)
        messages = [{"role": m.role, "content": m.content} for m in conversation.messages]
        if self.think == "keep":
            _shield(messages)
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False)
        except jinja2.TemplateError as error:
            raise ValueError(f"{conversation.location}: the chat template: {error}") from error
        return text.replace(_OPEN, "<think>").replace(_CLOSE, "</think>")

    def encode(
        self, conversations: Sequence[records.Conversation], texts: Sequence[str]
    ) -> list[records.Example]:
        """The examples of conversations whose rendered texts are `texts`.

        Raises:
            ValueError: naming a conversation whose turns are not found again in its tokens.
        """
        if not self._are_tokens_bytes:
            encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
            pairs = zip(conversations, texts, encodings, strict=True)
            return [
                self._example(conversation, text, np.array(encoding.ids, np.int32), encoding)
                for conversation, text, encoding in pairs
            ]
        pairs = zip(conversations, texts, self._ids(texts), strict=True)
        return [self._example(*each) for each in pairs]

    def _ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text.

        What the library makes of a text takes a hundred times its size, so long ones are encoded
        some turns at a time: no token reaches over the special token that begins a turn.
        """
        short = [text for text in texts if len(text) <= _LONG_CHARS]
        # The fast call finds no character offsets, which takes a quarter of the time.
        encodings = iter(self._backend.encode_batch_fast(short, add_special_tokens=False))
        found = []
        for text in texts:
            if len(text) <= _LONG_CHARS:
                found.append(np.array(next(encodings).ids, np.int32))
            else:
                parts = (
                    self._backend.encode_batch_fast([part], add_special_tokens=False)[0].ids
                    for part in _by_turns(text, _LONG_CHARS)
                )
                found.append(np.concatenate([np.array(ids, np.int32) for ids in parts]))
        return found

    def example(self, conversation: records.Conversation) -> records.Example:
        """Render and encode one conversation."""
        return self.encode([conversation], [self.render(conversation)])[0]

    def _check(self, conversation: records.Conversation) -> None:
        if all(message.role != "assistant" for message in conversation.messages):
            raise ValueError(
                f"{conversation.location}: no assistant turn, so nothing to learn from; remove the "
                "row, or let data_pipeline.curate do it"
            )
        for number, message in enumerate(conversation.messages):
            if found := self._special.search(message.content):
                raise ValueError(
                    f"{conversation.location}: turn {number} holds the special token "
                    f"{found.group()}, which would forge a turn; data_pipeline.curate removes "
                    "such rows"
                )
            if _OPEN in message.content or _CLOSE in message.content:
                raise ValueError(
                    f"{conversation.location}: turn {number} holds U+F7E11 or U+F7E12, private "
                    "characters that stand for the tags of thinking here; remove the row"
                )

    def _example(
        self,
        conversation: records.Conversation,
        text: str,
        tokens: np.ndarray,
        encoding: Any = None,  # where characters are needed
    ) -> records.Example:
        turns = list(_TURN.finditer(text))
        starts = np.flatnonzero(tokens == self._start_id).astype(np.int32)
        ends = np.flatnonzero(tokens == self._end_id)
        is_assistant = np.array([turn.group(1) == "assistant" for turn in turns], np.uint8)
        num_assistant = sum(m.role == "assistant" for m in conversation.messages)
        are_turns = len(turns) == len(starts) == len(ends) and (
            (starts < ends).all() and (ends[:-1] < starts[1:]).all()
        )
        if not are_turns or is_assistant.sum() != num_assistant:
            raise ValueError(
                f"{conversation.location}: the chat template does not write one {TURN_START} and "
                f"then one {TURN_END} for each turn; give the model's own template"
            )
        mask = np.zeros(len(tokens), np.uint8)
        untrained = conversation.get("untrained_turns") or ()
        replies = zip(conversation.replies, np.flatnonzero(is_assistant), strict=True)
        for turn in (turn for number, turn in replies if number not in untrained):
            first = self._first_target(encoding, tokens, starts[turn], turns[turn].end())
            mask[first : ends[turn] + 1] = 1
        try:
            return records.Example(
                tokens=tokens,
                loss_mask=mask,
                turn_starts=starts,
                turn_is_assistant=is_assistant,
                id=conversation.digests()[-1].hex(),
                source=conversation.get("source") or "",
            )
        except ValueError as error:
            raise ValueError(f"{conversation.location}: {error}") from error

    def _first_target(self, encoding: Any, tokens: np.ndarray, start: int, char: int) -> int:
        """The first token behind a reply's header, which begins at token `start`.

        A reply that begins with a newline has it merged into the newline of the header; that token
        starts in the header, which the model is given, so it is not a target.
        """
        if not self._are_tokens_bytes:  # `char` is the reply's first, which some token covers
            token = encoding.char_to_token(char)
            return token if encoding.token_to_chars(token)[0] >= char else token + 1
        token, num_bytes = start + 1, 0
        while num_bytes < len(_HEADER):
            num_bytes += len(self._backend.id_to_token(int(tokens[token])))
            token += 1
        return token


def _by_turns(text: str, max_chars: int) -> Iterator[str]:
    """Cut a text at turns, into parts of about `max_chars`; a turn stays whole."""
    first = 0
    while first < len(text):
        end = text.rfind(TURN_START, first + 1, first + max_chars)
        if end < 0:
            end = text.find(TURN_START, first + max_chars)
        end = end if end > 0 else len(text)
        yield text[first:end]
        first = end


def load(tokenizer_dir: pathlib.Path) -> Any:
    """The Hugging Face tokenizer of a folder; ValueError where it cannot be used.

    Read by the class of all tokenizers that have a tokenizer.json: AutoTokenizer would find the
    same, but imports torch where that is installed, half a gigabyte in each process.
    """
    # transformers tells on every import that torch is absent, which it may be.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    import transformers

    try:
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tokenizer_dir)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"--tokenizer={tokenizer_dir} cannot be loaded: {error}") from error
    return tokenizer


def _shield(messages: list[dict[str, str]]) -> None:
    """Hide from the template, in place, the thinking that it would drop."""
    queries = [i for i, message in enumerate(messages) if _is_query(message)]
    last = len(messages) - 1
    for i, message in enumerate(messages):
        kept_by_template = i == last and queries and queries[0] < last
        if message["role"] == "assistant" and not kept_by_template:
            message["content"] = _shielded(message["content"])


def _is_query(message: dict[str, str]) -> bool:
    """Whether the template takes a turn for a user's question, not for the answer of a tool."""
    content = message["content"]
    is_answer = content.startswith("<tool_response>") and content.endswith("</tool_response>")
    return message["role"] == "user" and not is_answer


def _shielded(content: str) -> str:
    if "</think>" not in content:
        return content
    # As the template takes a reply apart, and as it writes the last one.
    thinking = content.split("</think>")[0].rstrip("\n").split("<think>")[-1].strip("\n")
    reply = content.split("</think>")[-1].lstrip("\n")
    return f"{_OPEN}\n{thinking}\n{_CLOSE}\n\n{reply}"
