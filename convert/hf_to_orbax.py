"""Hugging Face folder -> CHECKPOINT_DIR, a few megabytes at a time."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from convert import hf_source, mapping, orbax_stream, safetensors_io, source, staging
from jaxterm import checkpoint


def convert(
    hf_dir: str | pathlib.Path,
    checkpoint_dir: str | pathlib.Path,
    *,
    dtype: str | None = None,
    vocab_multiple: int = 1,
    overwrite: bool = False,
    on_bytes: Callable[[int, int], None] | None = None,
) -> hf_source.HfSource:
    """Write the weights of `hf_dir` as an Orbax checkpoint.

    Args:
        hf_dir: config.json and safetensors.
        checkpoint_dir: is made; a failure leaves nothing there.
        dtype: what the weights become, `bfloat16` or `float32`; None keeps what they are.
        vocab_multiple: the embedding's rows are padded with zeros to a multiple of this.
        overwrite: replace a checkpoint that is there.
        on_bytes: called with (bytes written, bytes in all) as it goes on.

    Returns:
        What was read.

    Raises:
        ValueError: listing every fault of the folder; or `checkpoint_dir` exists.
    """
    final = pathlib.Path(checkpoint_dir)
    staging.check_free(final, overwrite=overwrite, is_replaceable=_is_checkpoint)
    opened = hf_source.HfSource(
        hf_dir, dtype=None if dtype is None else safetensors_io.dtype_named(dtype)
    )
    to_model = dataclasses.replace(opened.model, vocab_multiple=vocab_multiple)
    leaves = mapping.leaves(to_model)
    total = sum(int(np.prod(leaf.padded_shape)) * opened.dtype(leaf).itemsize
                for leaf in leaves.values())  # fmt: skip
    staging.check_space(final, total)
    count = source.ByteCounter(total, on_bytes)
    streamed = {name: _streamed(opened, leaf, count) for name, leaf in leaves.items()}
    with staging.new_folder(final, overwrite=overwrite, is_replaceable=_is_checkpoint) as folder:
        orbax_stream.save(folder, streamed, checkpoint.config_values(to_model, None))
    return opened


def _streamed(
    opened: hf_source.HfSource, leaf: mapping.Leaf, count: source.ByteCounter
) -> orbax_stream.StreamedLeaf:
    def read(region: mapping.Region) -> np.ndarray:
        data = _with_padding(opened, leaf, region)
        count.add(data.nbytes)
        return data

    return orbax_stream.StreamedLeaf(leaf.padded_shape, opened.dtype(leaf), read)


def _with_padding(
    opened: hf_source.HfSource, leaf: mapping.Leaf, region: mapping.Region
) -> np.ndarray:
    """A region of the padded leaf: zeros below its last row."""
    (start, stop), *rest = region
    end = leaf.shape[0]
    if stop <= end:
        return opened.read(leaf, region)
    result = np.zeros(mapping.extent(region), opened.dtype(leaf))
    if start < end:
        result[: end - start] = opened.read(leaf, ((start, end), *rest))
    return result


def _is_checkpoint(folder: pathlib.Path) -> bool:
    return (folder / "params").is_dir() and (folder / "config").is_dir()
