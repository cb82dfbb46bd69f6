"""Rows of datasets in: Parquet and JSONL with any columns, streamed; a bad row is told, not fatal.

Reading can begin behind any row; of a Parquet file the row groups before it are then not read.
"""

import contextlib
import dataclasses
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline import storage

_READ_ROWS, _READ_BYTES = 256, 16 << 20  # of Parquet decoded at a time


@dataclasses.dataclass(frozen=True)
class DatasetRow:
    """A row, or what keeps it from being one.

    Attributes:
        resume: where reading goes on behind the row: number of the file, and of the row in it; of
            JSONL the lines count, blank ones too.
        location: "FILE row 2" or "FILE line 3".
        share: of the file that was read by then, about.
    """

    resume: tuple[int, int]
    location: str
    values: Mapping[str, Any] | None
    fault: str = ""
    share: float = 1.0


def read(paths: Sequence[storage.Path], *, start: tuple[int, int] = (0, 0)) -> Iterator[DatasetRow]:
    """The rows of some files from `start` on, good and bad."""
    for number, path in enumerate(paths):
        if number >= start[0]:
            first = start[1] if number == start[0] else 0
            reader = _read_parquet if path.name.endswith(".parquet") else _read_jsonl
            yield from reader(path, number, first)


def _read_parquet(path: storage.Path, number: int, first: int) -> Iterator[DatasetRow]:
    row = 0
    try:
        with pq.ParquetFile(storage.for_arrow(path)) as file:
            num_rows = file.metadata.num_rows
            for group in range(file.metadata.num_row_groups):
                about = file.metadata.row_group(group)
                if row + about.num_rows <= first:
                    row += about.num_rows
                    continue
                size = _READ_BYTES * about.num_rows // max(1, about.total_byte_size)
                for batch in file.iter_batches(min(_READ_ROWS, max(1, size)), row_groups=[group]):
                    skip = min(max(0, first - row), len(batch))
                    rest = batch.slice(skip)
                    yield from _rows_of(rest, path, number, row + skip, num_rows)
                    row += len(batch)
    except (pa.ArrowException, OSError) as error:
        fault = f"{path}: cannot be read from row {row} on ({error})"
        yield DatasetRow((number + 1, 0), str(path), None, fault)


def _rows_of(
    batch: pa.RecordBatch, path: storage.Path, number: int, first: int, num_rows: int
) -> Iterator[DatasetRow]:
    for i in range(len(batch)):  # one by one: a row that is no value of Python is lost alone
        location, resume = f"{path} row {first + i}", (number, first + i + 1)
        try:
            [values] = batch.slice(i, 1).to_pylist()
        except (ValueError, OverflowError) as error:
            yield DatasetRow(resume, location, None, f"{location}: cannot be read ({error})")
        else:
            yield DatasetRow(resume, location, values, share=(first + i) / num_rows)


def _read_jsonl(path: storage.Path, number: int, first: int) -> Iterator[DatasetRow]:
    line_number, size = 0, max(1, storage.size(path))
    try:
        opener = gzip.open if path.name.endswith(".gz") else contextlib.nullcontext
        with path.open("rb") as raw, opener(raw) as file:
            for line_number, line in enumerate(file, 1):
                if line_number > first and line.strip():
                    location = f"{path} line {line_number}"
                    row = _row_of(line, (number, line_number), location)
                    yield dataclasses.replace(row, share=raw.tell() / size)
    except (EOFError, OSError, zlib.error) as error:
        fault = f"{path} line {line_number + 1}: cannot be read, nor what follows it ({error})"
        yield DatasetRow((number + 1, 0), str(path), None, fault)


def _row_of(line: bytes, resume: tuple[int, int], location: str) -> DatasetRow:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        return DatasetRow(resume, location, None, f"{location}: not valid JSON ({error})")
    if not isinstance(values, dict):
        kind = type(values).__name__
        return DatasetRow(
            resume, location, None, f"{location}: a row must be an object, not {kind}"
        )
    return DatasetRow(resume, location, values)
