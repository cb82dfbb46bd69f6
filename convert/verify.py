"""Whether two folders hold the same weights: parameter by parameter, region by region.

Each is a Hugging Face folder or a CHECKPOINT_DIR. Tensors of one dtype must be equal bit for bit;
where the dtypes differ, the wider one must round to the narrower one, bit for bit. A region is the
whole rows of a tensor's chunks, of `source.REGION_BYTES` at most on either side.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable

import numpy as np

from convert import hf_source, mapping, orbax_source, source
from jaxterm import architecture, checkpoint


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
    if hf_source.is_model_folder(path):  # a run's workdir has a config.json as well
        return hf_source.HfSource(path)
    try:
        step_dir = checkpoint.find_step_dir(path)
    except ValueError as error:
        raise ValueError(
            f"{path} is not a Hugging Face folder (config.json and {hf_source.SINGLE_FILE} or "
            f"{hf_source.INDEX_FILE}), and as a checkpoint: {error}"
        ) from error
    return orbax_source.OrbaxSource(str(step_dir))


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
    wider = max(dtypes, key=lambda dtype: dtype.itemsize)
    for region in mapping.grid(leaf.shape, source.region_shape(leaf, wider, a, b)):
        left, right = a.read(leaf, region), b.read(leaf, region)
        _compare_region(report, leaf, region, left, right)
        count.add(left.nbytes)
        del left, right  # before the next are read
    return report


def _compare_region(
    report: LeafReport,
    leaf: mapping.Leaf,
    region: mapping.Region,
    left: np.ndarray,
    right: np.ndarray,
) -> None:
    """Compare part by part: what is computed of a part is several times its size."""
    chunk = mapping.chunk_shape(left.shape, left.dtype, source.CHUNK_BYTES)
    for index, part in mapping.parts(region, chunk):
        a, b = left[index], right[index]
        if a.dtype != b.dtype or a.tobytes() != b.tobytes():
            for name, of_tensor, _ in leaf.pieces(part):
                _compare_values(report, name, a[of_tensor], b[of_tensor])


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
