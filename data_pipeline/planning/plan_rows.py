"""The rows of a plan: a curriculum's stage packed into whole batches, and rows.arrow.

rows.arrow holds one Arrow list column: each row is the list of its pieces, and a piece is an
example, how many tokens of its prompt are repeated in front, its first token and its number of
tokens. On disk that is one array of offsets and flat arrays, so it is mapped into memory, not read.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa

from data_pipeline import storage
from data_pipeline.planning import balance, curriculum, packing, pieces

FILE = "rows.arrow"
Remainder = Literal["pad", "drop"]
_ORDERED_WINDOWS = 16  # at least so many in a pass whose order is more than a shuffle
_COLUMNS = ("example", "prompt", "first", "num_tokens")


@dataclasses.dataclass(frozen=True)
class PlanStage:
    """Where the rows of a stage stand in the plan; a stage is whole global batches."""

    name: str
    first_row: int
    num_rows: int
    first_step: int
    num_steps: int
    row_length: int  # tokens a row
    global_batch_size: int  # rows a step


@dataclasses.dataclass(frozen=True)
class StageRows:
    """The rows of one stage, whole batches of them."""

    stage: curriculum.Stage
    parts: pieces.Pieces
    global_batch_size: int
    num_shards: int
    offsets: np.ndarray  # int64 [R + 1]; row r holds pieces[offsets[r]:offsets[r + 1]]
    pieces: np.ndarray  # int64 [P]; numbers of pieces
    dropped: np.ndarray  # int64; pieces of an incomplete last batch

    @property
    def sizes(self) -> np.ndarray:
        """Pieces of each row, int64 [R]; 0 in a row that only fills a batch."""
        return np.diff(self.offsets)

    @property
    def work(self) -> np.ndarray:
        """Attention work of each row, int64 [R]: the sum of its squared segment lengths."""
        return _sums(self.parts.num_slots[self.pieces] ** 2, self.offsets)


@dataclasses.dataclass(frozen=True)
class RowTable:
    """All rows of a plan, mapped from its file: row r holds offsets[r] to offsets[r + 1]."""

    stages: tuple[PlanStage, ...]
    offsets: np.ndarray  # int32 [R + 1]
    example: np.ndarray  # int32 [P]
    prompt: np.ndarray  # int32 [P]; leading tokens of the example in front, as context
    first: np.ndarray  # int32 [P]
    num_tokens: np.ndarray  # int32 [P]; a segment takes prompt + num_tokens slots


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowSettings:
    """How a stage becomes rows."""

    window_rows: int
    max_segments: int  # of a row; 0: no limit
    global_batch_size: int
    num_shards: int  # to whose even work rows are dealt; it divides the batch
    remainder: Remainder


def pack_stage(stage: curriculum.Stage, parts: pieces.Pieces, settings: RowSettings) -> StageRows:
    """Pack each pass of a stage for itself, join them, make whole batches, deal them to shards."""
    sizes, order, windows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, int)]
    for number, examples in enumerate(stage.passes):
        sequence = parts.of(examples)
        rows = packing.pack(
            parts.num_slots[sequence],
            row_length=parts.row_length,
            window_rows=_window_rows(stage, int(parts.num_slots[sequence].sum()), parts, settings),
            max_segments=settings.max_segments,
        )
        sizes.append(np.diff(rows.offsets))
        order.append(sequence[rows.pieces])
        windows.append(rows.window + (number << 32))
    joined = np.concatenate(order)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(sizes))])
    filled = _whole_batches(len(offsets) - 1, settings)
    window = _of_rows(np.concatenate(windows), filled, padding=-1)
    order = balance.deal(
        _of_rows(_sums(parts.num_slots[joined] ** 2, offsets), filled, padding=0),
        np.maximum.accumulate(window),  # a row of padding stands in its neighbour's
        batch_size=settings.global_batch_size,
        num_shards=settings.num_shards,
    )
    _assert_order(window[order], settings.global_batch_size)
    dealt = filled[order]
    kept, chosen = _take(offsets, joined, dealt)
    return StageRows(
        stage=stage,
        parts=parts,
        global_batch_size=settings.global_batch_size,
        num_shards=settings.num_shards,
        offsets=kept,
        pieces=chosen,
        dropped=joined[offsets[int(filled.max(initial=-1)) + 1] :],
    )


def _window_rows(
    stage: curriculum.Stage, num_slots: int, parts: pieces.Pieces, settings: RowSettings
) -> int:
    """Of an ordered pass a window is a sixteenth at most, or packing would undo its order."""
    if stage.spec.order == "shuffle":
        return settings.window_rows
    return max(1, min(settings.window_rows, -(-num_slots // parts.row_length) // _ORDERED_WINDOWS))


def places(stages: Sequence[StageRows]) -> tuple[PlanStage, ...]:
    """Where each stage's rows and steps stand in the plan."""
    placed, row, step = [], 0, 0
    for rows in stages:
        num_rows = len(rows.offsets) - 1
        num_steps = num_rows // rows.global_batch_size
        placed.append(
            PlanStage(
                name=rows.stage.spec.name,
                first_row=row,
                num_rows=num_rows,
                first_step=step,
                num_steps=num_steps,
                row_length=rows.parts.row_length,
                global_batch_size=rows.global_batch_size,
            )
        )
        row, step = row + num_rows, step + num_steps
    return tuple(placed)


def _whole_batches(num_rows: int, settings: RowSettings) -> np.ndarray:
    """The rows of whole batches, in order, int64; -1 for a row of padding.

    Padding is spread over all batches of a stage: one nearly empty batch at its end would train
    few tokens at a full step's rate, and could not be dealt evenly.
    """
    size = settings.global_batch_size
    if settings.remainder == "drop":
        return np.arange(num_rows - num_rows % size)
    num_batches = -(-num_rows // size)
    padding = num_batches * size - num_rows
    ends = np.arange(num_batches + 1) * padding // max(1, num_batches)
    filled = np.full((num_batches, size), -1, np.int64)
    holds = np.arange(size) < (size - np.diff(ends))[:, None]
    filled[holds] = np.arange(num_rows)
    return filled.reshape(-1)


def _assert_order(window: np.ndarray, batch_size: int) -> None:
    """A batch holds no row of a later window than the next batch does: nothing has moved further
    than its window and the batch that two windows share."""
    by_batch = window.reshape(-1, batch_size)
    latest = by_batch.max(1, initial=-1)
    earliest = np.where(by_batch >= 0, by_batch, np.iinfo(np.int64).max).min(1)
    assert (latest[:-1] <= earliest[1:]).all(), "packing has broken the curriculum's order"


def _of_rows(values: np.ndarray, rows: np.ndarray, *, padding: int) -> np.ndarray:
    """The values of `rows`, int64; `padding` is that of row -1."""
    return np.append(values, padding)[rows]


def _take(
    offsets: np.ndarray, chosen: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and pieces of `rows`, in that order; row -1 is empty."""
    starts = np.where(rows >= 0, offsets[rows], 0)
    sizes = np.where(rows >= 0, offsets[rows + 1] - starts, 0)
    taken = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    within = np.arange(taken[-1]) - np.repeat(taken[:-1], sizes)
    return taken, chosen[np.repeat(starts, sizes) + within]


def _sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The sum of the values of each row, int64 [R]."""
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])
    return np.diff(ends[offsets])


def table_of(stages: Sequence[StageRows]) -> RowTable:
    """The rows of all stages."""
    sizes = np.concatenate([stage.sizes for stage in stages])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]).astype(np.int32)
    columns = [
        np.concatenate([getattr(stage.parts, name)[stage.pieces] for stage in stages])
        for name in _COLUMNS
    ]
    return RowTable(places(stages), offsets, *(column.astype(np.int32) for column in columns))


def write(rows: RowTable, folder: storage.Path, *, tokens_digest: str) -> str:
    """Write the rows; returns the plan's hash: of them and of the tokens, so of every batch."""
    columns = [pa.array(getattr(rows, name)) for name in _COLUMNS]
    flat = pa.StructArray.from_arrays(columns, list(_COLUMNS))
    table = pa.table({"pieces": pa.ListArray.from_arrays(pa.array(rows.offsets), flat)})
    with (
        storage.write_through(folder / FILE) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table)
    return _digest(rows, tokens_digest)


def read(
    folder: storage.Path, stages: Sequence[PlanStage], *, tokens_digest: str, plan_hash: str
) -> RowTable:
    """Map the rows of a plan.

    Raises:
        ValueError: the file is absent, damaged, or not the one with this hash.
    """
    path = folder / FILE
    try:
        with pa.memory_map(str(storage.local_copy(path))) as file:
            column = pa.ipc.open_file(file).read_all()["pieces"]
        chunk = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        arrays = [chunk.offsets.to_numpy()]
        arrays += [chunk.values.field(name).to_numpy() for name in _COLUMNS]
    except (pa.ArrowException, OSError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); remove the folder and plan again"
        ) from error
    rows = RowTable(tuple(stages), *arrays)
    if _digest(rows, tokens_digest) != plan_hash:
        raise ValueError(
            f"{path}: not the rows whose hash is in the manifest; remove the folder and plan again"
        )
    return rows


def _digest(rows: RowTable, tokens_digest: str) -> str:
    layout = json.dumps([dataclasses.asdict(stage) for stage in rows.stages])
    digest = hashlib.sha256((tokens_digest + layout).encode())
    for name in ("offsets", *_COLUMNS):
        digest.update(np.ascontiguousarray(getattr(rows, name), "<i4"))
    return digest.hexdigest()
