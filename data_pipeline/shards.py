"""Examples on disk: ArrayRecord shards with random access, and the index of them."""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python import array_record_module  # type: ignore[attr-defined]

from data_pipeline import records, storage

INDEX_FILE = "index.parquet"  # one row an example

_WAY_OUT = "remove the folder and run data_pipeline.tokenize again"
_WRITER_OPTIONS = "group_size:1,zstd:3"  # each record can be read alone
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # as its documentation asks for


def shard_name(shard: int, num_shards: int) -> str:
    """The file name of a shard."""
    return f"shard-{shard:05d}-of-{num_shards:05d}.array_record"


def write_shard(examples: Iterable[records.Example], path: storage.Path) -> None:
    """Write a shard, atomically.

    Raises:
        OSError: it cannot be written; the disk is full, say.
    """
    with storage.write_through(path) as temporary:
        writer = array_record_module.ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
        try:
            for example in examples:
                record = records.example_to_bytes(example)
                with _os_errors(path):
                    writer.write(record)
            with _os_errors(path):
                writer.close()
        except BaseException:
            if writer.is_open():
                with contextlib.suppress(RuntimeError):
                    writer.close()
            raise


@contextlib.contextmanager
def _os_errors(path: storage.Path) -> Iterator[None]:
    """ArrayRecord tells of a disk that refuses by a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"{path}: cannot be written ({error})") from error


def check_sizes(paths: Sequence[storage.Path], sizes: Sequence[int]) -> None:
    """See that the shards are as long as they were when they were written, without reading them.

    Raises:
        ValueError: naming those that are not.
    """
    if len(sizes) != len(paths):
        raise ValueError(
            f"{paths[0].parent}: {len(paths)} shards, and its manifest has the sizes of "
            f"{len(sizes)}; {_WAY_OUT}"
        )
    found = storage.sizes(paths)
    faults = [
        f"{path} is absent" if now is None else f"{path} holds {now:,} bytes, not {then:,}"
        for path, now, then in zip(paths, found, sizes, strict=True)
        if now != then
    ]
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"{'; '.join(faults[:3])}{more}; {_WAY_OUT}")


def read_index(folder: storage.Path, *, columns: Sequence[str] | None = None) -> pa.Table:
    """The index of a folder of shards.

    Raises:
        ValueError: it is absent or damaged.
    """
    path = folder / INDEX_FILE
    try:
        return pq.read_table(storage.for_arrow(path), columns=list(columns) if columns else None)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); {_WAY_OUT}") from error


class ShardReader:
    """Random access to the examples of a folder of shards; opens a shard when it is first asked."""

    def __init__(self, paths: Sequence[storage.Path]):
        self._paths = tuple(paths)
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self._paths}  # open files do not travel to other processes

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["paths"])

    def read(self, shard: int, position: int) -> records.Example:
        """The example at `position` of a shard.

        Raises:
            ValueError: naming the file and the record, where either is damaged.
        """
        path = self._paths[shard]
        try:
            [record] = self._reader(shard).read([position])
            return records.example_from_bytes(record)
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise ValueError(
                f"{path} record {position}: cannot be read ({error}); the shard is truncated or "
                f"damaged: {_WAY_OUT}"
            ) from error

    def _reader(self, shard: int) -> Any:
        with self._lock:
            if shard not in self._readers:
                path = self._paths[shard]
                if not path.is_file():
                    raise ValueError("no such file")
                self._readers[shard] = array_record_module.ArrayRecordReader(
                    str(storage.local_copy(path)), _READER_OPTIONS
                )
            return self._readers[shard]
