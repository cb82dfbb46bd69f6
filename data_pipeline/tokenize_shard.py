"""One shard of tokenize: the spans of a corpus in, a shard and its part of the index out.

It runs in a process of its own, so everything that it needs travels in a `Task`.
"""

import dataclasses
import functools
import pathlib
import queue
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline import chat, corpus, records, shards, storage

_BATCH_CHARS = 1 << 19  # of text rendered at a time; three batches live at once
_BATCH_ROWS = 256
THREADS = 1  # that a shard keeps busy: Python takes turns, so processes do better than threads

INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("shard", pa.int32()),
        ("position", pa.int32()),
        ("source", pa.string()),
        ("domain", pa.string()),
        ("task", pa.string()),
        ("difficulty", pa.string()),
        ("reward", pa.float64()),
        ("complete", pa.bool_()),
        ("num_commands", pa.int32()),
        ("num_errors", pa.int32()),
        ("num_tokens", pa.int32()),
        ("num_loss_tokens", pa.int32()),
        ("num_turns", pa.int32()),
        ("turn_starts", pa.list_(pa.int32())),  # what plan needs in order to split
        ("reply_starts", pa.list_(pa.int32())),
        ("loss_starts", pa.list_(pa.int32())),
        ("loss_ends", pa.list_(pa.int32())),
    ]
)


@dataclasses.dataclass(frozen=True)
class Task:
    """Everything that decides one shard."""

    shard: int
    num_shards: int
    spans: tuple[corpus.Span, ...]
    tokenizer_dir: pathlib.Path
    tokenizer_digest: str  # of its files
    think: chat.Think
    output_dir: storage.Path
    parts_dir: storage.Path

    @property
    def shard_path(self) -> storage.Path:
        """Where the examples go."""
        return self.output_dir / shards.shard_name(self.shard, self.num_shards)

    @property
    def part_path(self) -> storage.Path:
        """Where its rows of the index go; written last, so its presence says the shard is whole."""
        return self.parts_dir / f"part-{self.shard:05d}.parquet"

    def is_done(self) -> bool:
        """Whether the shard is whole."""
        return self.part_path.is_file() and self.shard_path.is_file()


def run(task: Task) -> int:
    """Write the shard and its part of the index; returns the number of tokens.

    Raises:
        ValueError: naming the file and the row that cannot be used.
    """
    tokenizer = _tokenizer(task.tokenizer_dir, task.think, task.tokenizer_digest)
    rows: list[dict[str, Any]] = []

    def examples() -> Iterator[records.Example]:
        for batch, encoded in _ahead(_encoded(_ahead(_rendered(task, tokenizer)), tokenizer)):
            for conversation, example in zip(batch, encoded, strict=True):
                rows.append(_index_row(task.shard, len(rows), conversation, example))
                yield example

    shards.write_shard(examples(), task.shard_path)
    with storage.write_through(task.part_path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), temporary, compression="zstd")
    return sum(row["num_tokens"] for row in rows)


@functools.lru_cache(maxsize=1)
def _tokenizer(tokenizer_dir: pathlib.Path, think: chat.Think, digest: str) -> chat.ChatTokenizer:
    """Loaded once a process; `digest` is there to load a folder whose files changed again."""
    return chat.ChatTokenizer(tokenizer_dir, think=think)


def _rendered(
    task: Task, tokenizer: chat.ChatTokenizer
) -> Iterator[tuple[list[records.Conversation], list[str]]]:
    """Batches of conversations and their texts, bounded in rows and in text."""
    batch: list[records.Conversation] = []
    texts: list[str] = []
    for conversation in corpus.read_conversations(task.spans):
        batch.append(conversation)
        texts.append(tokenizer.render(conversation))
        if len(batch) == _BATCH_ROWS or sum(map(len, texts)) >= _BATCH_CHARS:
            yield batch, texts
            batch, texts = [], []
    if batch:
        yield batch, texts


def _encoded(
    rendered: Iterator[tuple[list[records.Conversation], list[str]]], tokenizer: chat.ChatTokenizer
) -> Iterator[tuple[list[records.Conversation], list[records.Example]]]:
    for batch, texts in rendered:
        yield batch, tokenizer.encode(batch, texts)


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The items, the next one being made by a thread while the last one is used."""
    made: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def make() -> None:
        try:
            for item in items:
                made.put((item, None))
                if stop.is_set():
                    return
            made.put((None, StopIteration()))
        except BaseException as error:  # raised again below, where it is waited for
            made.put((None, error))

    threading.Thread(target=make, daemon=True).start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
        while not made.empty():  # so that the thread, if it waits, sees the stop
            made.get_nowait()


def _index_row(
    shard: int, position: int, conversation: records.Conversation, example: records.Example
) -> dict[str, Any]:
    starts, ends = example.loss_spans()
    known = ("domain", "task", "difficulty", "reward", "complete", "num_commands", "num_errors")
    return {
        "id": example.id,
        "shard": shard,
        "position": position,
        "source": example.source,
        **{name: conversation.get(name) for name in known},
        "num_tokens": len(example.tokens),
        "num_loss_tokens": int(example.loss_mask.sum()),
        "num_turns": len(example.turn_starts),
        "turn_starts": example.turn_starts,
        "reply_starts": example.turn_starts[example.turn_is_assistant == 1],
        "loss_starts": starts,
        "loss_ends": ends,
    }
