"""What weights are read from: a Hugging Face folder and a checkpoint look the same from here."""

import pathlib
from collections.abc import Callable
from typing import Protocol

import numpy as np

from convert import mapping
from jaxterm import architecture

# The size of the parts in which weights are read and written: small against any memory, large
# against the cost of a request.
CHUNK_BYTES = 16 * 2**20

# The most that is held of a parameter whose chunks must be put together to long runs: a bfloat16
# tensor of any published size's layer (32b: 250 MiB), so that it is written from end to end.
REGION_BYTES = 256 * 2**20


class Source(Protocol):
    """Weights that can be read region by region."""

    path: pathlib.Path
    model: architecture.ModelConfig

    def dtype(self, leaf: mapping.Leaf) -> np.dtype:
        """The dtype that `read` returns for this leaf."""
        ...

    def chunk_shape(self, leaf: mapping.Leaf) -> tuple[int, ...]:
        """What storage gives at a time: the chunks of this shape, which tile the leaf."""
        ...

    def read(self, leaf: mapping.Leaf, region: mapping.Region) -> np.ndarray:
        """A region of the leaf, padding rows of the vocabulary not counted."""
        ...


def region_shape(leaf: mapping.Leaf, dtype: np.dtype, *sources: Source) -> tuple[int, ...]:
    """The regions to read a leaf in: whole chunks of the sources, in long runs in the tensors.

    Args:
        leaf: of every one of the sources.
        dtype: of the arrays that will be held.
        *sources: the largest chunk counts; where one's is no multiple of another's, a chunk at the
            edge of two regions is read twice.
    """
    chunks = [opened.chunk_shape(leaf) for opened in sources]
    largest = tuple(max(sizes) for sizes in zip(*chunks, strict=True))
    return mapping.region_shape(
        leaf.shape, largest, dtype, run_bytes=CHUNK_BYTES, max_bytes=REGION_BYTES
    )


class ByteCounter:
    """Tells a listener how many bytes of how many are done."""

    def __init__(self, total: int, listener: Callable[[int, int], None] | None):
        self._total = total
        self._done = 0
        self._listener = listener

    def add(self, num_bytes: int) -> None:
        """Count `num_bytes` more."""
        self._done += num_bytes
        if self._listener is not None:
            self._listener(self._done, self._total)
