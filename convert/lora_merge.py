"""A run with LoRA as a source of whole weights: W + (alpha / rank) B A, made region by region.

In float32, whatever W is stored as: what rounds it is the export. A product by BLAS would round by
the shapes of its operands, so a region's values would depend on its bounds. Here the ranks are
added one after the other, and any two readers of a checkpoint see the same bits.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorstore as ts
from flax import traverse_util

from convert import mapping
from jaxterm import architecture, config, lora, quantization, trainable


@dataclasses.dataclass(frozen=True)
class Stored:
    """The arrays that make a leaf, by what they are: `weight`, or `codes` and `scale`; `a`, `b`."""

    name: str
    arrays: dict[str, ts.TensorStore]
    scale: float  # alpha / rank

    @property
    def is_plain(self) -> bool:
        """Whether the leaf is stored as it is."""
        return self.arrays.keys() == {"weight"}

    @property
    def dtype(self) -> np.dtype:
        """Of what is read."""
        return np.dtype(self._base.dtype.numpy_dtype if self.is_plain else np.float32)

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """What storage gives of the weight at a time."""
        whole: Any = self._base.chunk_layout.read_chunk.shape
        return (*whole[:-1], whole[-1] * self._values_of_code)

    def start_reading(self, region: mapping.Region) -> Callable[[], np.ndarray]:
        """Read a region in the background; what is returned waits for it."""
        futures = {
            part: self.arrays[part][mapping.slices(self._region_of(part, region))].read()
            for part in self.arrays
        }

        def finish() -> np.ndarray:
            return self._merge({part: each.result() for part, each in futures.items()}, region)

        return finish

    @property
    def _base(self) -> ts.TensorStore:
        return self.arrays["weight" if "weight" in self.arrays else "codes"]

    @property
    def _values_of_code(self) -> int:
        return 2 if self._base.dtype.numpy_dtype == np.uint8 else 1

    @property
    def _tile(self) -> int:
        """Values of the last dim that share a scale."""
        return self._base.shape[-1] * self._values_of_code // self.arrays["scale"].shape[-1]

    def _region_of(self, part: str, region: mapping.Region) -> mapping.Region:
        """The region of an array that a region of the weight needs."""
        if part in ("codes", "scale"):
            step = self._values_of_code if part == "codes" else self._tile
            start, stop = region[-1]
            return (*region[:-1], (start // step, -(-stop // step)))
        if part in ("a", "b"):
            cut = 1 + lora.NUM_OUT_DIMS[self.name.rpartition(".")[2]]
            rank = (0, self.arrays["b"].shape[-1])
            return (region[0], rank, *region[cut:]) if part == "a" else (*region[:cut], rank)
        return region

    def _merge(self, read: dict[str, np.ndarray], region: mapping.Region) -> np.ndarray:
        if self.is_plain:
            return read["weight"]
        if "weight" in read:
            weight = read["weight"].astype(np.float32)
        else:
            start, stop = region[-1]
            weight = quantization.dequantize_region(
                read["codes"], read["scale"], first=start, size=stop - start, tile=self._tile
            )
        if "a" in read:
            _add_product(weight, read["a"], read["b"] * np.float32(self.scale))
        return weight


@functools.cache
def arrays(
    model: architecture.ModelConfig, settings: config.LoraConfig
) -> dict[str, dict[str, tuple[str, tuple[int, ...]]]]:
    """Leaf -> what of it is stored -> name and shape of that array in a run's checkpoint."""
    abstract = trainable.abstract_params(model, config.ComputeConfig(), settings)
    flat: dict[str, Any] = dict(traverse_util.flatten_dict(abstract, sep="."))
    found: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for name, described in flat.items():
        leaf, part = name, "weight"
        if name not in mapping.TABLE:
            leaf, _, part = name.rpartition(".")
            leaf = leaf.replace(f"{trainable.LORA}.", "layers.", 1) if part in ("a", "b") else leaf
        found.setdefault(leaf, {})[part] = (name, tuple(described.shape))
    return found


def _add_product(weight: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """Add b [L, *out, r] a [L, r, *in] to the weight [L, *out, *in], in place, rank after rank."""
    num_out, num_in = b.ndim - 2, a.ndim - 2
    for layer in range(len(weight)):
        for rank in range(a.shape[1]):
            column = b[layer, ..., rank].reshape(*b.shape[1:-1], *[1] * num_in)
            row = a[layer, rank].reshape(*[1] * num_out, *a.shape[2:])
            weight[layer] += column * row
