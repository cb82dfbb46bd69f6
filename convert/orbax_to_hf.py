"""CHECKPOINT_DIR -> Hugging Face folder, region by region.

A chunk of the checkpoint is read once. What hf-to-orbax wrote lies in memory's order, so a chunk of
16 MiB is a region. In a run's checkpoint a chunk is the columns that one device held: chunks are
put together to whole rows, else a tensor would be written in runs of a few bytes. Memory is that
of one tensor of a layer, `source.REGION_BYTES` at most.
"""

import collections
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from convert import (
    hf_metadata,
    hf_source,
    hf_writer,
    mapping,
    orbax_source,
    safetensors_io,
    source,
    staging,
    tokenizer_files,
)

# Chunks that are read ahead: as many as fit in this, so that disk and cores do not wait.
_READ_AHEAD_BYTES = 4 * source.CHUNK_BYTES


def convert(
    checkpoint_dir: str | pathlib.Path,
    hf_dir: str | pathlib.Path,
    *,
    reference: str | pathlib.Path,
    dtype: str = "bfloat16",
    max_shard_gb: float = 5.0,
    eos: str = "refuse",
    overwrite: bool = False,
    on_bytes: Callable[[int, int], None] | None = None,
) -> orbax_source.OrbaxSource:
    """Write a checkpoint's weights as a Hugging Face folder that transformers loads.

    Args:
        checkpoint_dir: a step's folder, or a run's workdir, of which the newest step is taken.
        hf_dir: is made; a failure leaves nothing there.
        reference: the Hugging Face folder that training started from: tokenizer, chat template,
            and the settings that training does not change.
        dtype: of the weights that are written, `bfloat16` or `float32`.
        max_shard_gb: of one safetensors file, in 10**9 bytes.
        eos: `refuse` or `fix`: what to do when the reference's eos ids lack the token that ends
            trained turns.
        overwrite: replace a model folder that is there.
        on_bytes: called with (bytes written, bytes in all) as it goes on.

    Returns:
        What was read.

    Raises:
        ValueError: naming every fault of the checkpoint or the reference; or `hf_dir` exists.
    """
    final, reference = pathlib.Path(hf_dir), pathlib.Path(reference)
    staging.check_free(final, overwrite=overwrite, is_replaceable=hf_source.is_model_folder)
    as_numpy = safetensors_io.dtype_named(dtype)
    tokenizer = tokenizer_files.Tokenizer(reference)
    opened = orbax_source.OrbaxSource(checkpoint_dir)
    texts = hf_metadata.files(reference, opened.model, tokenizer, dtype=dtype, eos=eos)
    with_tied_head = opened.model.tie_embeddings and hf_source.writes_tied_head(reference)
    total = opened.model.num_params() * as_numpy.itemsize
    staging.check_space(final, total)
    count = source.ByteCounter(total, on_bytes)
    with staging.new_folder(
        final, overwrite=overwrite, is_replaceable=hf_source.is_model_folder
    ) as folder:
        folder.mkdir()
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        tokenizer.copy_to(folder)
        writer = hf_writer.HfWriter(
            folder, opened.model, dtype=as_numpy, max_shard_gb=max_shard_gb,
            with_tied_head=with_tied_head,
        )  # fmt: skip
        for leaf in mapping.leaves(opened.model).values():
            _copy(opened, leaf, writer, as_numpy, count)
    return opened


def _copy(
    opened: orbax_source.OrbaxSource,
    leaf: mapping.Leaf,
    writer: hf_writer.HfWriter,
    dtype: np.dtype,
    count: source.ByteCounter,
) -> None:
    """Put every region of a leaf together from its chunks, in the files' dtype, and write it."""
    shape = source.region_shape(leaf, dtype, opened)
    chunk_shape = opened.chunk_shape(leaf)
    chunks = _chunks(opened, leaf, shape)
    for region in mapping.grid(leaf.shape, shape):
        array = np.empty(mapping.extent(region), dtype)
        for index, _ in mapping.parts(region, chunk_shape):
            array[index] = next(chunks)
        writer.write(leaf, region, array)
        count.add(array.nbytes)
        del array  # before the next is made


def _chunks(
    opened: orbax_source.OrbaxSource, leaf: mapping.Leaf, region_shape: tuple[int, ...]
) -> Iterator[np.ndarray]:
    """The chunks of one region after the other, some of them read ahead."""
    ahead = _READ_AHEAD_BYTES // opened.chunk_bytes(leaf)
    reading: collections.deque[Callable[[], np.ndarray]] = collections.deque()
    for region in mapping.grid(leaf.shape, region_shape):
        for _, chunk in mapping.parts(region, opened.chunk_shape(leaf)):
            reading.append(opened.start_reading(leaf, chunk))
            if len(reading) > ahead:
                yield reading.popleft()()
    while reading:
        yield reading.popleft()()
