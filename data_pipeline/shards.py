"""Examples on disk: ArrayRecord shards with random access."""

import pathlib
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from array_record.python import array_record_module  # type: ignore[attr-defined]

from data_pipeline import records

_WRITER_OPTIONS = "group_size:1,zstd:3"  # each record can be read alone
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # as its documentation asks for


def shard_name(shard: int, num_shards: int) -> str:
    """The file name of a shard."""
    return f"shard-{shard:05d}-of-{num_shards:05d}.array_record"


def write_shard(examples: Iterable[records.Example], path: pathlib.Path) -> None:
    """Write a shard, atomically."""
    temporary = path.with_name(path.name + ".tmp")
    writer = array_record_module.ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
    try:
        for example in examples:
            writer.write(records.example_to_bytes(example))
        writer.close()
    except BaseException:
        if writer.is_open():
            writer.close()
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)


class ShardReader:
    """Random access to the examples of a folder of shards; opens a shard when it is first asked."""

    def __init__(self, paths: Sequence[pathlib.Path]):
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
                "damaged: remove the folder and run data_pipeline.tokenize again"
            ) from error

    def _reader(self, shard: int) -> Any:
        with self._lock:
            if shard not in self._readers:
                path = self._paths[shard]
                if not path.is_file():
                    raise ValueError("no such file")
                self._readers[shard] = array_record_module.ArrayRecordReader(
                    str(path), _READER_OPTIONS
                )
            return self._readers[shard]
