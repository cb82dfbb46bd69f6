"""Random bfloat16 weights that are the same in every process, without any framework."""

import concurrent.futures
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def of_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The bits of a bfloat16 tensor: scales of one, else +-(2^-6 to 2^-5), always the same ones."""
    if len(shape) == 1:
        return np.full(shape, 0x3F80, np.uint16)
    random = np.random.default_rng(zlib.crc32(name.encode())).bytes(2 * int(np.prod(shape)))
    bits = np.frombuffer(bytearray(random), np.uint16).reshape(shape)
    bits &= 0x807F  # sign and mantissa
    bits |= 0x3C80
    return bits


def of_tensors(shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Hugging Face's name of a tensor -> its bits."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return dict(zip(shapes, pool.map(of_tensor, shapes, shapes.values()), strict=True))
