"""Safetensors files: headers read and written, tensors read and written in parts.

The safetensors library reads and writes whole tensors and whole files; converting a model that
does not fit in memory needs parts of tensors, by pread and pwrite, so that no page of a file is
ever mapped. The format is 8 bytes of header size, a JSON header, the tensors' bytes.
"""

import dataclasses
import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from convert import mapping

# Safetensors' name of a dtype that can be converted -> numpy's.
DTYPES = {"BF16": np.dtype(ml_dtypes.bfloat16), "F32": np.dtype(np.float32)}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# What transformers writes: the tensors were torch's.
FILE_METADATA = {"format": "pt"}

_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit


def dtype_named(name: str) -> np.dtype:
    """The dtype of a config's name for it, `bfloat16` or `float32`."""
    found = {dtype.name: dtype for dtype in DTYPES.values()}
    if name not in found:
        raise ValueError(f"--dtype={name} must be one of {', '.join(sorted(found))}")
    return found[name]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where the bytes of a tensor lie."""

    path: pathlib.Path
    dtype: str  # safetensors' name
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file


def read_header(path: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        ValueError: not a safetensors file, or one that was cut off.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if size < 8 or header_size > min(size - 8, _MAX_HEADER_BYTES):
            raise ValueError(
                f"{path} is cut off in its header, or not a safetensors file ({size} bytes); "
                "download or copy it again"
            )
        header = file.read(header_size)
    try:
        values = json.loads(header)
        entries = {name: value for name, value in values.items() if name != "__metadata__"}
        start = 8 + header_size
        tensors = {name: _tensor(path, start, value) for name, value in entries.items()}
        end = start + _data_bytes(entries)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} has a broken header ({error!r}); download it again") from error
    if size != end:
        raise ValueError(
            f"{path} has {size} bytes, its header describes {end}: "
            f"{'it is cut off' if size < end else 'something was added'}; download it again"
        )
    return tensors


def read(tensor: Tensor, view_shape: tuple[int, ...], region: mapping.Region) -> np.ndarray:
    """The part of a tensor that `region` names in it when it is seen as `view_shape`."""
    result = np.empty(mapping.extent(region), DTYPES[tensor.dtype])
    data = result.reshape(-1).view(np.uint8)
    done = 0
    file = os.open(tensor.path, os.O_RDONLY)
    try:
        for offset, num_bytes in _runs(view_shape, region, result.itemsize):
            part = memoryview(data[done : done + num_bytes])
            _read_exactly(file, part, tensor.offset + offset, tensor.path)
            done += num_bytes
    finally:
        os.close(file)
    return result


def write(
    tensor: Tensor, view_shape: tuple[int, ...], region: mapping.Region, array: np.ndarray
) -> None:
    """Write `array` where `region` lies in the tensor; the inverse of `read`."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    done = 0
    file = os.open(tensor.path, os.O_WRONLY)
    try:
        for offset, num_bytes in _runs(view_shape, region, array.itemsize):
            _write_exactly(file, memoryview(data[done : done + num_bytes]), tensor.offset + offset)
            done += num_bytes
    finally:
        os.close(file)


def create_file(
    path: pathlib.Path, shapes: Mapping[str, tuple[int, ...]], dtype: str
) -> dict[str, Tensor]:
    """Make a file of full size with header and without values, byte for byte as safetensors would.

    Args:
        path: the file.
        shapes: tensor name -> shape.
        dtype: safetensors' name of the dtype of all of them.
    """
    header: dict[str, Any] = {"__metadata__": FILE_METADATA}
    end = 0
    for name in sorted(shapes):  # the order of the safetensors library where dtypes are the same
        start, end = end, end + math.prod(shapes[name]) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shapes[name]), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return read_header(path)


def _data_bytes(entries: Mapping[str, Any]) -> int:
    end = 0
    for first, last in sorted(tuple(value["data_offsets"]) for value in entries.values()):
        if first != end:
            raise ValueError(f"tensors overlap or leave a hole at byte {end}")
        end = last
    return end


def _tensor(path: pathlib.Path, start: int, value: Mapping[str, Any]) -> Tensor:
    first, last = value["data_offsets"]
    shape = tuple(value["shape"])
    itemsize = DTYPES[value["dtype"]].itemsize if value["dtype"] in DTYPES else None
    if not 0 <= first <= last or (itemsize and last - first != math.prod(shape) * itemsize):
        raise ValueError(f"offsets {first}..{last} do not fit {value['dtype']} {shape}")
    return Tensor(path, value["dtype"], shape, start + first)


def _runs(
    shape: tuple[int, ...], region: mapping.Region, itemsize: int
) -> Iterator[tuple[int, int]]:
    """The unbroken runs of bytes that a region of an array of `shape` consists of."""
    dim = len(shape) - 1  # the last dim that the region does not fill
    while dim > 0 and region[dim] == (0, shape[dim]):
        dim -= 1
    strides = [math.prod(shape[i + 1 :]) * itemsize for i in range(len(shape))]
    start, stop = region[dim]
    outer = [range(first, last) for first, last in region[:dim]]
    for index in itertools.product(*outer):
        offset = sum(i * stride for i, stride in zip((*index, start), strides, strict=False))
        yield offset, (stop - start) * strides[dim]


def _read_exactly(file: int, into: memoryview, offset: int, path: pathlib.Path) -> None:
    while into:
        num_bytes = os.preadv(file, [into], offset)
        if not num_bytes:
            raise ValueError(f"{path} ended while it was read; is it still being written?")
        into, offset = into[num_bytes:], offset + num_bytes


def _write_exactly(file: int, data: memoryview, offset: int) -> None:
    while data:
        num_bytes = os.pwrite(file, data, offset)
        data, offset = data[num_bytes:], offset + num_bytes
