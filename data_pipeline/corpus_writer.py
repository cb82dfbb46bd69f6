"""Corpus files out: Parquet in small row groups, put in its place when it is whole."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline import records, storage

_WRITE_ROWS = 128  # rows of a written row group; small, so that a worker reads only its own
_WRITE_BYTES = 64 << 20  # or when the text of a row group reaches this


class ParquetSink:
    """Writes rows to a temporary file; `close` puts it in its place."""

    def __init__(self, path: storage.Path, schema: pa.Schema = records.CORPUS_SCHEMA):
        self.path, self.num_rows = path, 0
        self._schema, self._rows, self._bytes = schema, [], 0
        self._temporary = storage.temporary_of(path)
        self._writer = pq.ParquetWriter(self._temporary, schema, compression="zstd")

    def write(self, row: dict[str, Any]) -> None:
        """Add one row; columns of the schema that it lacks are null."""
        self._rows.append(row)
        self._bytes += sum(len(m["content"]) for m in row.get("conversations") or ())
        self.num_rows += 1
        if len(self._rows) == _WRITE_ROWS or self._bytes >= _WRITE_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows, self._bytes = [], 0

    def close(self) -> None:
        """Finish the file and put it in its place."""
        self._flush()
        self._writer.close()
        storage.put(self._temporary, self.path)

    def abandon(self) -> None:
        """Drop what was written."""
        self._writer.close()
        self._temporary.unlink(missing_ok=True)


def write_parquet(conversations: Iterable[records.Conversation], path: storage.Path) -> int:
    """Write a corpus file, atomically; returns the number of rows."""
    sink = ParquetSink(path)
    try:
        for conversation in conversations:
            sink.write(conversation.to_row())
    except BaseException:
        sink.abandon()
        raise
    sink.close()
    return sink.num_rows
