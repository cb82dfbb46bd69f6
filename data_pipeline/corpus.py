"""Corpus files in: Parquet and JSONL of conversations, streamed row by row.

A corpus is named by files (.parquet, .jsonl, .jsonl.gz), by folders of them, or by the word
`embedded`, the sessions that this project ships. A folder that data_pipeline.curate wrote stands
for its train/ alone: what it held out and removed is never read with the rest.

A file that is damaged is an error, or, for who reads it `tolerant`, a row with a fault where the
damage is, between the rows that can be read.
"""

import contextlib
import dataclasses
import gzip
import json
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline import manifest, records, storage

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz")
TRAIN_FOLDER = "train"  # of the folders that curate writes, the one to train on
# Of Parquet decoded at a time: bounds memory, whatever a row group holds.
_READ_ROWS, _READ_BYTES = 64, 32 << 20


@dataclasses.dataclass(frozen=True)
class Row:
    """A row as it was read: a conversation, or the fault that keeps it from being one."""

    location: str
    conversation: records.Conversation | None
    fault: str = ""  # begins with the location
    raw: str = ""  # of a row with a fault: the line of JSONL, or the row of Parquet as JSON
    is_damage: bool = False  # it stands for what the file holds here and cannot be read


@dataclasses.dataclass(frozen=True)
class Span:
    """Consecutive rows of one file."""

    path: storage.Path
    first_row: int  # rows of Parquet, or lines of JSONL that are not blank
    num_rows: int
    first_byte: int = 0  # of JSONL: where the line of `first_row` starts
    first_line: int = 1  # of JSONL: the number of that line
    fault: str = ""  # the file cannot be read on from here: why


def find_files(corpus: Sequence[str]) -> list[storage.Path]:
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


def _refuse_repeats(paths: Sequence[storage.Path]) -> None:
    first_named: dict[storage.Path, storage.Path] = {}
    for path in paths:
        first = first_named.setdefault(path.resolve(), path)
        if first is not path:
            also = f", also named {first}" if first != path else ""
            raise ValueError(f"{path}: this file{also} is in the corpus twice; name it once")


def _files_of(name: str) -> list[storage.Path]:
    if name == "embedded":
        from data_pipeline import embedded

        return [pathlib.Path(embedded.sessions_path())]
    path = storage.as_path(name)
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


def _files_under(folder: storage.Path) -> list[storage.Path]:
    if manifest.stage_of(folder) == "curate":
        return _files_under(folder / TRAIN_FOLDER)
    found: list[storage.Path] = []
    for path, kind in storage.entries(folder):
        if path.name.startswith("."):  # a cache, or what a stage is about to replace
            continue
        if kind == "folder":
            found += _files_under(path)
        elif kind == "file" and path.name.endswith(SUFFIXES):
            found.append(path)
    return found


def read_rows(path: storage.Path) -> Iterator[Row]:
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


def split_into_spans(
    paths: Sequence[storage.Path], *, max_rows: int, tolerant: bool = False
) -> list[list[Span]]:
    """Cut the rows of `paths`, in order, into lists of spans of `max_rows` rows each.

    Raises:
        ValueError: a file cannot be read; a `tolerant` caller gets a span with the fault instead.
    """
    pieces: list[list[Span]] = []
    room = 0
    for path in paths:
        cut = _cut_parquet if path.name.endswith(".parquet") else _cut_jsonl
        for span in cut(path, room, max_rows):
            if span.fault and not tolerant:
                raise ValueError(span.fault)
            if room == 0:
                pieces.append([])
                room = max_rows
            pieces[-1].append(span)
            room -= span.num_rows
    return pieces


def read_span(span: Span, *, tolerant: bool = False) -> Iterator[Row]:
    """The rows of a span, good and bad.

    Raises:
        ValueError: the file itself cannot be read; a `tolerant` caller gets a row that says so.
    """
    reader = _read_parquet if span.path.name.endswith(".parquet") else _read_jsonl
    found = iter([(str(span.path), _Damage(span.fault))]) if span.fault else reader(span)
    for location, value in found:
        if isinstance(value, _Damage):
            if not tolerant:
                raise ValueError(value.fault)
            yield Row(location, None, value.fault, is_damage=True)
        elif isinstance(value, _NoJson):
            yield Row(location, None, f"{location}: {value.fault}", value.line)
        else:
            try:
                yield Row(location, records.conversation_from_row(value, location=location))
            except ValueError as error:
                yield Row(location, None, str(error), json.dumps(value, default=str))


@dataclasses.dataclass(frozen=True)
class _Damage:
    """Comes from a reader instead of rows that cannot be read."""

    fault: str


@dataclasses.dataclass(frozen=True)
class _NoJson:
    """Comes from a reader instead of the row of a line."""

    line: str
    fault: str


def _cut_parquet(path: storage.Path, room: int, max_rows: int) -> Iterator[Span]:
    try:
        with _open_parquet(path) as file:
            num_rows = file.metadata.num_rows
    except ValueError as error:
        yield Span(path, 0, 0, fault=str(error))
        return
    first = 0
    while first < num_rows:
        num = min(room or max_rows, num_rows - first)
        yield Span(path, first, num)
        first, room = first + num, 0


def _open_parquet(path: storage.Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(storage.for_arrow(path))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({error})") from error
    if "conversations" not in file.schema_arrow.names:
        names = file.schema_arrow.names
        file.close()
        raise ValueError(f"{path}: no column `conversations`; it has {names}")
    return file


def _read_parquet(span: Span) -> Iterator[tuple[str, Any]]:
    end = span.first_row + span.num_rows
    with _open_parquet(span.path) as file:
        first = 0  # of the group
        for group in range(file.metadata.num_row_groups):
            num = file.metadata.row_group(group).num_rows
            low, high = max(span.first_row, first), min(end, first + num)
            if low < high:
                yield from _read_group(file, span.path, group, first, low, high)
            first += num


def _read_group(
    file: pq.ParquetFile, path: storage.Path, group: int, first: int, low: int, high: int
) -> Iterator[tuple[str, Any]]:
    """The rows of [low, high) of a group whose first row is `first`."""
    row = first
    try:
        for batch in file.iter_batches(_rows_at_a_time(file, group), row_groups=[group]):
            begin, end = max(low, row), min(high, row + len(batch))
            if begin < end:
                yield from _rows_of(batch.slice(begin - row, end - begin), path, begin)
            row += len(batch)
            if row >= high:
                return
    except (pa.ArrowException, OSError) as error:
        begin = max(low, row)
        rows = f"rows {begin} to {high - 1} cannot be read"
        yield f"{path} row {begin}", _Damage(f"{path}: damaged after row {row}, {rows} ({error})")


def _rows_at_a_time(file: pq.ParquetFile, group: int) -> int:
    about = file.metadata.row_group(group)
    return max(1, min(_READ_ROWS, _READ_BYTES * about.num_rows // max(1, about.total_byte_size)))


def _rows_of(batch: pa.RecordBatch, path: storage.Path, first: int) -> Iterator[tuple[str, Any]]:
    """The rows of a batch; one that is no value of Python (bytes that are not UTF-8, a time in the
    year 40000) is lost alone."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        rows = [_row_of(batch.slice(i, 1), f"{path} row {first + i}") for i in range(len(batch))]
    yield from ((f"{path} row {i}", row) for i, row in enumerate(rows, first))


def _row_of(batch: pa.RecordBatch, location: str) -> Any:
    try:
        return batch.to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return _Damage(f"{location}: cannot be read ({error})")


def _lines(span: Span) -> Iterator[tuple[int, int, bytes | _Damage]]:
    """Line number, first byte and text of each line from the span's first on."""
    line, number, byte = b"", span.first_line, span.first_byte
    opener = gzip.open if span.path.name.endswith(".gz") else contextlib.nullcontext
    try:
        with span.path.open("rb") as raw, opener(raw) as file:
            file.seek(byte)
            for line in file:
                yield number, byte, line
                number, byte = number + 1, byte + len(line)
    except (EOFError, OSError, zlib.error) as error:
        fault = f"{span.path} line {number}: cannot be read, nor what follows it ({error})"
        yield number, byte, _Damage(fault)


def _cut_jsonl(path: storage.Path, room: int, max_rows: int) -> Iterator[Span]:
    whole, fault = Span(path, 0, 0), ""
    first, num, at = 0, 0, (0, 1)  # `at`: byte and line where the span begins
    for number, byte, line in _lines(whole):
        if isinstance(line, _Damage):
            fault = line.fault
            break
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
    if fault:
        yield Span(path, first + num, 0, fault=fault)


def _read_jsonl(span: Span) -> Iterator[tuple[str, Any]]:
    num_rows = 0
    for number, _, line in _lines(span):
        if num_rows == span.num_rows:
            return
        location = f"{span.path} line {number}"
        if isinstance(line, _Damage):
            yield location, line
        elif line.strip():
            num_rows += 1
            yield location, _json_of(line)


def _json_of(line: bytes) -> Any:
    try:
        return json.loads(line.rstrip())
    except json.JSONDecodeError as error:  # its own line number would be within the line
        fault = f"not valid JSON ({error.msg}, column {error.colno})"
    except (ValueError, RecursionError) as error:
        fault = f"not valid JSON ({error})"
    return _NoJson(line.rstrip(b"\r\n").decode(errors="backslashreplace"), fault)
