"""Corpus files in and out: Parquet and JSONL of conversations, streamed row by row.

A corpus is named by files (.parquet, .jsonl, .jsonl.gz), by folders of them, or by the word
`embedded`, the sessions that this project ships. A folder that data_pipeline.curate wrote stands
for its train.parquet alone: what it held out and removed is never read with the rest.
"""

import dataclasses
import gzip
import json
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline import manifest, records

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz")
TRAIN_FILE = "train.parquet"  # of the files that curate writes, the one to train on
_READ_ROWS = 64  # rows of Parquet decoded at a time: bounds memory, whatever a row group holds
_WRITE_ROWS = 128  # rows of a written row group; small, so that a worker reads only its own
_WRITE_BYTES = 64 << 20  # or when the text of a row group reaches this


@dataclasses.dataclass(frozen=True)
class Row:
    """A row as it was read: a conversation, or the fault that keeps it from being one."""

    location: str
    conversation: records.Conversation | None
    fault: str = ""  # begins with the location


@dataclasses.dataclass(frozen=True)
class Span:
    """Consecutive rows of one file."""

    path: pathlib.Path
    first_row: int  # rows of Parquet, or lines of JSONL that are not blank
    num_rows: int
    first_byte: int = 0  # of JSONL: where the line of `first_row` starts
    first_line: int = 1  # of JSONL: the number of that line


def find_files(corpus: Sequence[str]) -> list[pathlib.Path]:
    """The files that `corpus` names; folders give their files, sorted, but for hidden ones.

    Raises:
        ValueError: nothing is named, something named is absent or of another kind, a folder holds
            no corpus file or is unfinished, or a file is named twice.
    """
    if not corpus:
        raise ValueError(
            "no CORPUS given; name Parquet or JSONL files, folders of them, or embedded"
        )
    found = [path for name in corpus for path in _files_of(name)]
    _refuse_repeats(found)
    return found


def _refuse_repeats(paths: Sequence[pathlib.Path]) -> None:
    first_named: dict[pathlib.Path, pathlib.Path] = {}
    for path in paths:
        first = first_named.setdefault(path.resolve(), path)
        if first is not path:
            also = f", also named {first}" if first != path else ""
            raise ValueError(f"{path}: this file{also} is in the corpus twice; name it once")


def _files_of(name: str) -> list[pathlib.Path]:
    if name == "embedded":
        from data_pipeline import embedded

        return [pathlib.Path(embedded.sessions_path())]
    path = pathlib.Path(name)
    if path.is_dir():
        found = _files_under(path)
        if not found:
            raise ValueError(f"{path}: this folder holds no file ending in {', '.join(SUFFIXES)}")
        return found
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder")
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path}: a corpus file must end in {', '.join(SUFFIXES)}")
    return [path]


def _files_under(folder: pathlib.Path) -> list[pathlib.Path]:
    if manifest.stage_of(folder) == "curate":
        return [folder / TRAIN_FILE]
    found: list[pathlib.Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):  # a cache, or what a stage is about to replace
            continue
        if path.is_dir() and not path.is_symlink():
            found += _files_under(path)
        elif path.is_file() and path.name.endswith(SUFFIXES):
            found.append(path)
    return found


def read_rows(path: pathlib.Path) -> Iterator[Row]:
    """All rows of a file, good and bad.

    Raises:
        ValueError: the file itself cannot be read, or has no column `conversations`.
    """
    yield from read_span(Span(path, 0, num_rows=1 << 62))


def read_conversations(spans: Iterable[Span]) -> Iterator[records.Conversation]:
    """The conversations of some spans; a bad row is an error.

    Raises:
        ValueError: naming the file and the row.
    """
    for span in spans:
        for row in read_span(span):
            if row.conversation is None:
                raise ValueError(row.fault)
            yield row.conversation


def split_into_spans(paths: Sequence[pathlib.Path], *, max_rows: int) -> list[list[Span]]:
    """Cut the rows of `paths`, in order, into lists of spans of `max_rows` rows each.

    Raises:
        ValueError: a file cannot be read.
    """
    pieces: list[list[Span]] = []
    room = 0
    for path in paths:
        cut = _cut_parquet if path.name.endswith(".parquet") else _cut_jsonl
        for span in cut(path, room, max_rows):
            if room == 0:
                pieces.append([])
                room = max_rows
            pieces[-1].append(span)
            room -= span.num_rows
    return pieces


def read_span(span: Span) -> Iterator[Row]:
    """The rows of a span, good and bad.

    Raises:
        ValueError: the file itself cannot be read.
    """
    reader = _read_parquet if span.path.name.endswith(".parquet") else _read_jsonl
    for location, value in reader(span):
        if isinstance(value, ValueError):
            yield Row(location, None, f"{location}: {value}")
            continue
        try:
            yield Row(location, records.conversation_from_row(value, location=location))
        except ValueError as error:
            yield Row(location, None, str(error))


def _cut_parquet(path: pathlib.Path, room: int, max_rows: int) -> Iterator[Span]:
    with _open_parquet(path) as file:
        num_rows = file.metadata.num_rows
    first = 0
    while first < num_rows:
        num = min(room or max_rows, num_rows - first)
        yield Span(path, first, num)
        first, room = first + num, 0


def _open_parquet(path: pathlib.Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({error})") from error
    if "conversations" not in file.schema_arrow.names:
        names = file.schema_arrow.names
        file.close()
        raise ValueError(f"{path}: no column `conversations`; it has {names}")
    return file


def _read_parquet(span: Span) -> Iterator[tuple[str, Any]]:
    with _open_parquet(span.path) as file:
        groups, row = [], 0
        start = None  # the row where the first group that is read begins
        for group in range(file.metadata.num_row_groups):
            num = file.metadata.row_group(group).num_rows
            if row < span.first_row + span.num_rows and row + num > span.first_row:
                groups.append(group)
                start = row if start is None else start
            row += num
        row = start or 0
        try:
            for batch in file.iter_batches(_READ_ROWS, row_groups=groups):
                low = max(span.first_row - row, 0)
                high = min(span.first_row + span.num_rows - row, len(batch))
                if low < high:
                    for i, values in enumerate(batch.slice(low, high - low).to_pylist(), row + low):
                        yield f"{span.path} row {i}", values
                row += len(batch)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{span.path}: damaged after row {row} ({error})") from error


def _lines(span: Span) -> Iterator[tuple[int, int, bytes]]:
    """Line number, first byte and text of each line from the span's first on."""
    line, number, byte = b"", span.first_line, span.first_byte
    opener = gzip.open if span.path.name.endswith(".gz") else open
    try:
        with opener(span.path, "rb") as file:
            file.seek(byte)
            for line in file:
                yield number, byte, line
                number, byte = number + 1, byte + len(line)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{span.path} line {number}: cannot be read ({error})") from error


def _cut_jsonl(path: pathlib.Path, room: int, max_rows: int) -> Iterator[Span]:
    whole = Span(path, 0, 0)
    first, num, at = 0, 0, (0, 1)  # `at`: byte and line where the span begins
    for number, byte, line in _lines(whole):
        if not line.strip():
            continue
        if num == (room or max_rows):
            yield Span(path, first, num, *at)
            first, num, room = first + num, 0, 0
        if num == 0:
            at = (byte, number)
        num += 1
    if num:
        yield Span(path, first, num, *at)


def _read_jsonl(span: Span) -> Iterator[tuple[str, Any]]:
    num_rows = 0
    for number, _, line in _lines(span):
        if num_rows == span.num_rows:
            return
        if line.strip():
            num_rows += 1
            try:
                value = json.loads(line.rstrip())
            except json.JSONDecodeError as error:  # its own line number would be within the line
                value = ValueError(f"not valid JSON ({error.msg}, column {error.colno})")
            except (ValueError, RecursionError) as error:
                value = ValueError(f"not valid JSON ({error})")
            yield f"{span.path} line {number}", value


class ParquetSink:
    """Writes rows to a temporary sibling of `path`; `close` puts the file in its place."""

    def __init__(self, path: pathlib.Path, schema: pa.Schema = records.CORPUS_SCHEMA):
        self.path, self.num_rows = path, 0
        self._schema, self._rows, self._bytes = schema, [], 0
        self._temporary = path.with_name(path.name + ".tmp")
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
        self._temporary.replace(self.path)

    def abandon(self) -> None:
        """Drop what was written."""
        self._writer.close()
        self._temporary.unlink(missing_ok=True)


def write_parquet(conversations: Iterable[records.Conversation], path: pathlib.Path) -> int:
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
