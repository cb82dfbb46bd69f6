"""The rows of a plan: packing a curriculum's stage into whole batches, and rows.arrow.

rows.arrow holds one Arrow list column: each row is the list of its pieces, and a piece is an
example, its first token and its number of tokens. On disk that is one array of offsets and three
flat arrays, so it is mapped into memory, not read.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa

from data_pipeline import curriculum, packing, pieces

FILE = "rows.arrow"
Remainder = Literal["pad", "drop"]
_COLUMNS = ("example", "first", "num_tokens")


@dataclasses.dataclass(frozen=True)
class StageRows:
    """The rows of one stage, whole batches of them."""

    name: str
    offsets: np.ndarray  # int64 [R + 1]; row r holds pieces[offsets[r]:offsets[r + 1]]
    pieces: np.ndarray  # int64 [P]; numbers of pieces
    dropped: np.ndarray  # int64; pieces of an incomplete last batch
    examples: np.ndarray  # int64; those that the stage passes over
    num_passes: int

    @property
    def sizes(self) -> np.ndarray:
        """Pieces of each row, int64 [R]; 0 in a row that only fills the last batch."""
        return np.diff(self.offsets)


@dataclasses.dataclass(frozen=True)
class RowTable:
    """All rows of a plan, mapped from its file: row r holds offsets[r] to offsets[r + 1]."""

    offsets: np.ndarray  # int32 [R + 1]
    example: np.ndarray  # int32 [P]
    first: np.ndarray  # int32 [P]
    num_tokens: np.ndarray  # int32 [P]


def pack_stage(
    stage: curriculum.Stage,
    parts: pieces.Pieces,
    *,
    row_length: int,
    window_rows: int,
    global_batch_size: int,
    remainder: Remainder,
) -> StageRows:
    """Pack each pass of a stage for itself, join them, and make whole batches of the rows."""
    sizes, order = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for examples in stage.passes:
        sequence = parts.of(examples)
        rows = packing.pack(
            parts.num_tokens[sequence], row_length=row_length, window_rows=window_rows
        )
        sizes.append(np.diff(rows.offsets))
        order.append(sequence[rows.pieces])
    num_pieces, joined = np.concatenate(sizes), np.concatenate(order)
    over = len(num_pieces) % global_batch_size
    if remainder == "drop":
        num_pieces = num_pieces[: len(num_pieces) - over]
    elif over:
        num_pieces = np.pad(num_pieces, (0, global_batch_size - over))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(num_pieces)])
    kept = int(offsets[-1])
    return StageRows(
        name=stage.name,
        offsets=offsets,
        pieces=joined[:kept],
        dropped=joined[kept:],
        examples=stage.passes[0],
        num_passes=len(stage.passes),
    )


def write(
    stages: Sequence[StageRows], parts: pieces.Pieces, folder: pathlib.Path, *, settings_digest: str
) -> str:
    """Write the rows of all stages; returns the plan's hash: of them and of the settings."""
    sizes = np.concatenate([stage.sizes for stage in stages])
    chosen = np.concatenate([stage.pieces for stage in stages])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]).astype(np.int32)
    columns = [getattr(parts, name)[chosen].astype(np.int32) for name in _COLUMNS]
    flat = pa.StructArray.from_arrays([pa.array(column) for column in columns], list(_COLUMNS))
    table = pa.table({"pieces": pa.ListArray.from_arrays(pa.array(offsets), flat)})
    temporary = folder / (FILE + ".tmp")
    with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    temporary.replace(folder / FILE)
    return _digest([offsets, *columns], settings_digest)


def read(folder: pathlib.Path, *, settings_digest: str, plan_hash: str) -> RowTable:
    """Map the rows of a plan.

    Raises:
        ValueError: the file is absent, damaged, or not the one with this hash.
    """
    path = folder / FILE
    try:
        with pa.memory_map(str(path)) as file:
            column = pa.ipc.open_file(file).read_all()["pieces"]
        chunk = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        arrays = [chunk.offsets.to_numpy()]
        arrays += [chunk.values.field(name).to_numpy() for name in _COLUMNS]
    except (pa.ArrowException, OSError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); remove the folder and plan again"
        ) from error
    if _digest(arrays, settings_digest) != plan_hash:
        raise ValueError(
            f"{path}: not the rows whose hash is in the manifest; remove the folder and plan again"
        )
    return RowTable(*arrays)


def _digest(arrays: Sequence[np.ndarray], settings_digest: str) -> str:
    digest = hashlib.sha256(settings_digest.encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array, "<i4"))
    return digest.hexdigest()
