"""Curate's shard-to-shard work: a span of the corpus is judged, and later written.

It runs in processes of its own, so everything that it needs travels in a task. The reasons why a
row goes that lie in other rows are found between the two, by `verdicts`.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline import corpus, corpus_writer, records, storage
from data_pipeline.curation import (
    decontamination,
    near_duplicates,
    row_filters,
    trajectory,
    verdicts,
)

TRAIN, HELDOUT, REMOVED = corpus.TRAIN_FOLDER, "heldout", "removed"

# What a row leaves in the statistics, and behind `reward` what only curate itself needs.
STATISTICS_SCHEMA = pa.schema(
    [
        ("location", pa.string()),
        ("task", pa.string()),
        ("source", pa.string()),
        ("reason", pa.string()),
        ("num_turns", pa.int32()),
        ("num_replies", pa.int32()),
        ("num_chars", pa.int64()),
        ("num_commands", pa.int32()),
        ("num_errors", pa.int32()),
        ("num_warnings", pa.int32()),
        ("complete", pa.bool_()),
        ("reward", pa.float64()),
    ]
)
_JUDGED_SCHEMA = pa.schema(
    [
        *STATISTICS_SCHEMA,
        ("detail", pa.string()),
        ("domain", pa.string()),
        ("instruction", pa.uint64()),  # a hash of it; null: there is none
        ("edits", pa.list_(pa.string())),
        ("chain", pa.large_list(pa.uint64())),
        ("sketch", pa.large_binary()),
    ]
)
NOTHING_JUDGED = _JUDGED_SCHEMA.empty_table()
_REMOVED_SCHEMA = pa.schema(
    [
        *records.CORPUS_SCHEMA,
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("location", pa.string()),
        ("raw", pa.large_string()),  # of a bad row: what was read
    ]
)


@dataclasses.dataclass(frozen=True)
class Task:
    """A span of the corpus to judge."""

    number: int
    spans: tuple[corpus.Span, ...]
    settings: row_filters.Settings
    with_sketches: bool
    output_dir: storage.Path
    parts_dir: storage.Path

    @property
    def judged_path(self) -> storage.Path:
        """Where its verdicts go."""
        return self.parts_dir / f"judged-{self.number:05d}.parquet"

    @property
    def written_path(self) -> storage.Path:
        """An empty file whose presence says that its rows are written."""
        return self.parts_dir / f"written-{self.number:05d}"


@dataclasses.dataclass(frozen=True)
class WriteTask:
    """A span to write, now that it is known where each row goes."""

    span: Task
    reasons: tuple[str, ...]  # one a row; empty: it stays
    details: tuple[str, ...]
    is_heldout: tuple[bool, ...]


def judge(task: Task) -> int:
    """Look at each row alone and leave the verdicts; returns the number of rows."""
    rows = [_judged(row, task) for row in _rows(task)]
    with storage.write_through(task.judged_path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, _JUDGED_SCHEMA), temporary, compression="zstd")
    return len(rows)


def write(task: WriteTask) -> int:
    """Write each row to where it goes; returns the number of rows."""
    sinks: dict[str, corpus_writer.ParquetSink] = {}
    decisions = zip(_rows(task.span), task.reasons, task.details, task.is_heldout, strict=True)
    try:
        for row, reason, detail, is_heldout in decisions:
            folder = REMOVED if reason else HELDOUT if is_heldout else TRAIN
            if folder not in sinks:
                sinks[folder] = _open_sink(task.span, folder)
            sinks[folder].write(
                _removed(row, reason, detail) if reason else _kept(row, task.span.settings)
            )
    except BaseException:
        for sink in sinks.values():
            sink.abandon()
        raise
    for sink in sinks.values():
        sink.close()
    with storage.write_through(task.span.written_path) as temporary:
        temporary.touch()
    return len(task.reasons)


def _rows(task: Task) -> Iterator[corpus.Row]:
    for span in task.spans:
        yield from corpus.read_span(span, tolerant=True)


def _judged(row: corpus.Row, task: Task) -> dict[str, Any]:
    judged = row_filters.judge(row, task.settings)
    values: dict[str, Any] = {
        "location": row.location,
        "reason": judged.reason,
        "detail": judged.detail,
    }
    if row.conversation is None or judged.conversation is None:
        return values
    measures = dataclasses.asdict(trajectory.measure(row.conversation))
    del measures["last_error"]
    instruction = _hash_of_instruction(row.conversation)
    name = row.conversation.get("task") or f"instruction {instruction}"
    values |= measures | {"task": name, "instruction": instruction, "edits": judged.edits}
    values |= {name: row.conversation.get(name) or "" for name in ("source", "domain")}
    values["reward"] = row.conversation.get("reward")
    if not judged.reason:
        values["chain"] = verdicts.chain_of(judged.conversation)
        if task.with_sketches:
            values["sketch"] = near_duplicates.sketch_of(judged.conversation)
    return values


def _hash_of_instruction(conversation: records.Conversation) -> int | None:
    """Of its words, not of the whole prompt: the screen in it holds the name of a container."""
    text = decontamination.instruction_of(conversation.messages)
    words = " ".join(decontamination.split_words(text, "words")) or text.strip()
    digest = hashlib.blake2b(words.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") if words else None


def _open_sink(task: Task, folder: str) -> corpus_writer.ParquetSink:
    path = task.output_dir / folder / f"part-{task.number:05d}.parquet"
    storage.make_folder(path.parent)
    schema = _REMOVED_SCHEMA if folder == REMOVED else records.CORPUS_SCHEMA
    return corpus_writer.ParquetSink(path, schema)


def _kept(row: corpus.Row, settings: row_filters.Settings) -> dict[str, Any]:
    """The row as it is to be trained."""
    if row.conversation is None:
        raise RuntimeError(f"{row.location}: read as a bad row, after it was judged a good one")
    edited, _ = row_filters.edit(row.conversation, settings.options)
    return edited.to_row() | trajectory.measure(edited).columns()


def _removed(row: corpus.Row, reason: str, detail: str) -> dict[str, Any]:
    """The row as it was read, and why it goes."""
    values = {"reason": reason, "detail": detail, "location": row.location}
    if row.conversation is not None:
        return row.conversation.to_row() | values
    return values | {"raw": row.raw}
