r"""Look at a conversation, at its tokens, or at a packed row, in the terminal.

    python -m data_pipeline.inspect corpus.parquet --row=3
    python -m data_pipeline.inspect corpus.parquet --row=3 --tokenizer=Qwen3-8B
    python -m data_pipeline.inspect tokens --example=5 --tokenizer=Qwen3-8B
    python -m data_pipeline.inspect plan --row=12 --tokenizer=Qwen3-8B --full

PATH is a corpus (a file, a folder, or embedded), the output of tokenize, or that of plan. With
--tokenizer the text is what the model reads, and what it is trained to write is green. Characters
that a terminal would obey are shown, not sent.
"""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from absl import flags
from rich import console as rich_console
from rich import table as rich_table

from data_pipeline import chat, cli, corpus, manifest, records, shards, storage
from data_pipeline.showing import masked_text, packed_view

_ROLE_STYLES = {"system": "magenta", "user": "cyan", "assistant": "green", "tool": "yellow"}
_THINKING = re.compile(r"(<think>.*?(?:</think>|\Z))", re.DOTALL)
_SPAN_ROWS = 64  # rows of a corpus that are read to find one
_FACTS = ("source", "domain", "task", "difficulty", "reward")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """What inspect is told."""

    row: int = dataclasses.field(
        default=0, metadata=cli.flag("which row of a corpus or of a plan, from 0")
    )
    example: int = dataclasses.field(
        default=0, metadata=cli.flag("which example of a tokens folder, from 0")
    )
    full: bool = dataclasses.field(
        default=False, metadata=cli.flag("all the text of a packed row, not head and tail")
    )
    think: chat.Think = dataclasses.field(
        default="keep", metadata=cli.flag("how the conversation of a corpus is rendered")
    )
    tokens_dir: str = dataclasses.field(
        default="", metadata=cli.flag("of a plan: where its tokens are now, if they were moved")
    )

    def __post_init__(self):
        cli.require_choice("think", self.think, chat.Think)


def show(
    name: str, *, options: InspectOptions, tokenizer: str, console: rich_console.Console
) -> None:
    """Show what `name` and the options say; without a tokenizer what needs none.

    Raises:
        ValueError: there is nothing there, or no such row, or the tokenizer is not the one used.
    """
    path = storage.as_path(name)
    kind = manifest.stage_of(path) if path.is_dir() else ""
    used, other = ("example", "row") if kind == "tokenize" else ("row", "example")
    cli.require(
        getattr(options, other) == 0,
        f"--{other}={getattr(options, other)} is not a setting for {name}; give --{used}",
    )
    folder = chat.resolve_tokenizer_dir(tokenizer) if tokenizer else None
    if kind == "tokenize":
        _show_tokens(path, options.example, folder, console)
    elif kind == "plan":
        view = packed_view.open_row(path, options.row, tokens_dir=options.tokens_dir)
        decoder = _decoder(folder, view.tokens_dir)
        packed_view.show(view, decoder, full=options.full, console=console)
    else:
        _show_conversation(_conversation(name, options.row), folder, options.think, console)


def _decoder(folder: pathlib.Path | None, tokens_dir: storage.Path) -> Any:
    """The tokenizer that made the tokens; None without a folder."""
    if folder is None:
        return None
    made_with = manifest.read(tokens_dir, stage="tokenize")["inputs"]
    [digest] = manifest.digest_files([folder / "tokenizer.json"]).values()
    cli.require(
        made_with.get("tokenizer/tokenizer.json") == digest,
        f"--tokenizer={folder} is not the tokenizer that made {tokens_dir}; name that one",
    )
    return masked_text.load(folder)


def _conversation(name: str, row: int) -> records.Conversation:
    spans = corpus.split_into_spans(corpus.find_files([name]), max_rows=_SPAN_ROWS)
    num_rows = sum(span.num_rows for piece in spans for span in piece)
    packed_view.require_inside("row", row, num_rows, name)
    rows = itertools.chain.from_iterable(map(corpus.read_span, spans[row // _SPAN_ROWS]))
    found = next(itertools.islice(rows, row % _SPAN_ROWS, None))
    if found.conversation is None:
        raise ValueError(found.fault)
    return found.conversation


def _show_conversation(
    conversation: records.Conversation,
    tokenizer_dir: pathlib.Path | None,
    think: chat.Think,
    console: rich_console.Console,
) -> None:
    _title(console, conversation.location, conversation.metadata)
    if tokenizer_dir:
        example = chat.ChatTokenizer(tokenizer_dir, think=think).example(conversation)
        _show_turns(example, masked_text.load(tokenizer_dir), console)
        return
    for number, message in enumerate(conversation.messages):
        _header(console, number, message.role, f"{len(message.content):,} characters")
        masked_text.show(console, _thinking_faint(message))


def _thinking_faint(message: records.Message) -> list[masked_text.Styled]:
    if message.role != "assistant":
        return [(message.content, masked_text.PLAIN)]
    parts = _THINKING.split(message.content)  # every other one is a block of thinking
    styles = itertools.cycle((masked_text.PLAIN, masked_text.FAINT))
    return [(part, style) for part, style in zip(parts, styles, strict=False) if part]


def _show_tokens(
    folder: storage.Path,
    number: int,
    tokenizer_dir: pathlib.Path | None,
    console: rich_console.Console,
) -> None:
    index = shards.read_index(folder, columns=["shard", "position", "id", *_FACTS])
    packed_view.require_inside("example", number, len(index), str(folder))
    decoder = _decoder(tokenizer_dir, folder)
    [entry] = index.slice(number, 1).to_pylist()
    num_shards = manifest.read(folder, stage="tokenize")["counts"]["num_shards"]
    paths = [folder / shards.shard_name(shard, num_shards) for shard in range(num_shards)]
    example = shards.ShardReader(paths).read(entry["shard"], entry["position"])
    facts = {name: entry[name] for name in ("id", *_FACTS)}
    counts = {"tokens": len(example.tokens), "loss tokens": int(example.loss_mask.sum())}
    _title(console, f"{folder} example {number:,}", facts | counts)
    if decoder:
        _show_turns(example, decoder, console)
    else:
        _turn_table(example, console)


def _turns(example: records.Example) -> Iterable[tuple[int, slice, int]]:
    """Number, tokens and number of targets of each turn."""
    ends = [*example.turn_starts[1:].tolist(), len(example.tokens)]
    for number, (first, end) in enumerate(zip(example.turn_starts.tolist(), ends, strict=True)):
        yield number, slice(first, end), int(example.loss_mask[first:end].sum())


def _show_turns(example: records.Example, decoder: Any, console: rich_console.Console) -> None:
    for number, span, targets in _turns(example):
        kinds = example.loss_mask[span].astype(np.int64)  # 0 and 1: CONTEXT and TARGET
        texts = masked_text.styled(decoder, example.tokens[span], kinds)
        text = "".join(text for text, _ in texts)
        role = text.removeprefix(chat.TURN_START).partition("\n")[0]
        counts = f"{span.stop - span.start:,} tokens · {targets:,} targets"
        _header(console, number, role, f"{len(text):,} characters · {counts}")
        masked_text.show(console, texts)


def _turn_table(example: records.Example, console: rich_console.Console) -> None:
    table = rich_table.Table("turn", "by", "first token", "tokens", "targets", box=None)
    for number, span, targets in _turns(example):
        by = "assistant" if example.turn_is_assistant[number] else "other"
        counts = (span.start, span.stop - span.start, targets)
        table.add_row(str(number), by, *(f"{count:,}" for count in counts))
    console.print(table)
    console.print("--tokenizer=FOLDER shows the text", style="dim")


def _title(console: rich_console.Console, name: str, facts: Mapping[str, Any]) -> None:
    packed_view.print_line(console, name, "bold")
    told = [f"{key} {value}" for key, value in facts.items() if value not in (None, "")]
    if told:
        packed_view.print_line(console, " · ".join(told), "dim")


def _header(console: rich_console.Console, number: int, role: str, counts: str) -> None:
    style = f"bold {_ROLE_STYLES.get(role, 'blue')}"
    packed_view.print_line(console, f"── {number} {role} · {counts} ──", style)


def main(argv: list[str]) -> None:
    """Run the command."""
    cli.require(
        len(argv) == 1,
        f"give one PATH, a corpus or the output of tokenize or of plan, not {argv}",
    )
    show(
        argv[0],
        options=cli.options_from_flags(InspectOptions),
        tokenizer=flags.FLAGS.tokenizer,
        console=rich_console.Console(highlight=False),
    )


if __name__ == "__main__":
    cli.define_flags(InspectOptions)
    cli.define_tokenizer_flag()
    cli.run(main)
