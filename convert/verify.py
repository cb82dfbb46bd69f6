"""Whether two folders hold the same weights: tensor by tensor, reading a few megabytes at a time.

Each is a Hugging Face folder or a CHECKPOINT_DIR. Tensors of one dtype must be equal bit for bit;
where the dtypes differ, the wider one must round to the narrower one, bit for bit.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable

import numpy as np

from convert import hf_source, mapping, orbax_source, source
from jaxterm import architecture


@dataclasses.dataclass
class LeafReport:
    """How the tensors of one parameter compare."""

    name: str
    dtypes: tuple[str, str]
    differing: dict[str, int] = dataclasses.field(default_factory=dict)  # tensor -> values
    max_abs: float = 0.0
    max_rel: float = 0.0  # of the larger of the two values


@dataclasses.dataclass(frozen=True)
class Report:
    """How two folders compare."""

    names: tuple[str, str]
    settings: tuple[str, ...]  # the architecture's settings that differ, with both values
    leaves: tuple[LeafReport, ...]  # of the parameters that both have in one shape
    num_tensors: int
    num_bytes: int  # of the first of the two

    @property
    def is_equal(self) -> bool:
        """Same architecture, and same values (after rounding, where the dtypes differ)."""
        return not self.settings and not any(leaf.differing for leaf in self.leaves)

    @property
    def is_rounded(self) -> bool:
        """Whether the dtypes differ anywhere."""
        return any(leaf.dtypes[0] != leaf.dtypes[1] for leaf in self.leaves)


def open_source(folder: str | pathlib.Path) -> source.Source:
    """A Hugging Face folder or a CHECKPOINT_DIR, whichever it is.

    Raises:
        ValueError: it is neither, or faulty.
    """
    path = pathlib.Path(folder)
    if (path / "config.json").is_file():
        return hf_source.HfSource(path)
    return orbax_source.OrbaxSource(path)


def compare(
    a: str | pathlib.Path,
    b: str | pathlib.Path,
    *,
    on_bytes: Callable[[int, int], None] | None = None,
) -> Report:
    """Compare the weights of two folders; `on_bytes` is told (bytes compared, bytes in all).

    Raises:
        ValueError: one of them is not a model, or faulty.
    """
    first, second = open_source(a), open_source(b)
    leaves, others = mapping.leaves(first.model), mapping.leaves(second.model)
    common = [leaf for name, leaf in leaves.items()
              if name in others and others[name].shape == leaf.shape]  # fmt: skip
    total = sum(int(np.prod(leaf.shape)) * first.dtype(leaf).itemsize for leaf in common)
    count = source.ByteCounter(total, on_bytes)
    return Report(
        names=(str(a), str(b)),
        settings=_differing_settings(first.model, second.model),
        leaves=tuple(_compare_leaf(first, second, leaf, count) for leaf in common),
        num_tensors=sum(len(leaf.tensor_names) for leaf in common),
        num_bytes=total,
    )


def _differing_settings(
    a: architecture.ModelConfig, b: architecture.ModelConfig
) -> tuple[str, ...]:
    names = [field.name for field in dataclasses.fields(a) if field.name != "vocab_multiple"]
    return tuple(
        f"{name}: {getattr(a, name)} and {getattr(b, name)}"
        for name in names
        if getattr(a, name) != getattr(b, name)
    )


def _compare_leaf(
    a: source.Source, b: source.Source, leaf: mapping.Leaf, count: source.ByteCounter
) -> LeafReport:
    dtypes = a.dtype(leaf), b.dtype(leaf)
    report = LeafReport(leaf.name, (dtypes[0].name, dtypes[1].name))
    # A region that is whole chunks of both sides, so that neither reads a chunk twice.
    chunk = tuple(map(max, a.chunk_shape(leaf), b.chunk_shape(leaf)))
    for region in mapping.grid(leaf.shape, chunk):
        left, right = a.read(leaf, region), b.read(leaf, region)
        if left.dtype != right.dtype or left.tobytes() != right.tobytes():
            for name, index, _ in leaf.pieces(region):
                _compare_values(report, name, left[index], right[index])
        count.add(left.nbytes)
    return report


def _compare_values(report: LeafReport, name: str, left: np.ndarray, right: np.ndarray) -> None:
    narrower = min(left.dtype, right.dtype, key=lambda dtype: dtype.itemsize)
    bits = np.dtype(f"u{narrower.itemsize}")
    rounded = [np.ascontiguousarray(side.astype(narrower)).view(bits) for side in (left, right)]
    num_differing = int(np.count_nonzero(rounded[0] != rounded[1]))
    if num_differing:
        report.differing[name] = report.differing.get(name, 0) + num_differing
    if not num_differing and left.dtype == right.dtype:
        return
    a, b = left.astype(np.float32), right.astype(np.float32)
    with np.errstate(invalid="ignore"):  # of infinities
        difference = np.abs(a - b)
        scale = np.maximum(np.abs(a), np.abs(b))
        relative = difference / np.where(scale == 0, np.float32(1), scale)
    report.max_abs = float(np.maximum(report.max_abs, difference.max()))  # NaN stays NaN
    report.max_rel = float(np.maximum(report.max_rel, relative.max()))


def differing_tensors(report: Report) -> list[tuple[str, int]]:
    """(tensor, number of values that differ), in the model's order."""
    return list(itertools.chain.from_iterable(leaf.differing.items() for leaf in report.leaves))
