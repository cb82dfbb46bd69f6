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


class Source(Protocol):
    """Weights that can be read region by region."""

    path: pathlib.Path
    model: architecture.ModelConfig

    def dtype(self, leaf: mapping.Leaf) -> np.dtype:
        """The dtype that `read` returns for this leaf."""
        ...

    def chunk_shape(self, leaf: mapping.Leaf) -> tuple[int, ...]:
        """The shape of the regions that are cheap to read; they tile the leaf."""
        ...

    def read(self, leaf: mapping.Leaf, region: mapping.Region) -> np.ndarray:
        """A region of the leaf, padding rows of the vocabulary not counted."""
        ...


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
