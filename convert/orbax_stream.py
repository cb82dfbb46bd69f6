"""Saving parameters with Orbax that are never whole in memory.

Orbax takes a tree of leaves and asks the handler of a leaf's type to write it. The leaves here
are `StreamedLeaf`s, which make their values region by region; their handler writes each region
into the very array that Orbax would have written whole. Names, metadata and the commit are Orbax's
own, so whatever reads Orbax checkpoints reads these.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint import future

from convert import mapping, source
from jaxterm import checkpoint

# Regions on their way to disk at one time: one a core is compressed while the next is read.
_MAX_PENDING = 2


@dataclasses.dataclass(frozen=True)
class StreamedLeaf:
    """An array that is made region by region."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[mapping.Region], np.ndarray]  # called for every region once, in order


def save(
    folder: pathlib.Path, leaves: Mapping[str, StreamedLeaf], config_values: Mapping[str, Any]
) -> None:
    """Write a CHECKPOINT_DIR (jaxterm/checkpoint.py): params/ and config/config.json.

    Args:
        folder: must not exist.
        leaves: by dotted name.
        config_values: what config.json is to hold.
    """
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, ocp.type_handlers.ArrayHandler()),  # no leaf is one; Orbax asks for it
        (StreamedLeaf, _StreamHandler()),
    )
    # The calling process writes alone: in a run of several, the others are not here to meet it.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix="convert",
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        params=ocp.PyTreeCheckpointHandler(
            type_handler_registry=registry, multiprocessing_options=alone
        ),
        config=ocp.JsonCheckpointHandler(checkpoint.CONFIG_FILE, multiprocessing_options=alone),
    )
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        checkpointer.save(
            folder.resolve(),
            args=ocp.args.Composite(
                params=ocp.args.PyTreeSave(mapping.to_tree(dict(leaves))),
                config=ocp.args.JsonSave(dict(config_values)),
            ),
        )


class _StreamHandler(ocp.type_handlers.NumpyHandler):
    """Writes `StreamedLeaf`s where and as Orbax writes a numpy array."""

    async def serialize(
        self,
        values: Sequence[Any],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.type_handlers.SaveArgs] | None = None,
    ) -> Sequence[future.Future]:
        """Start writing; the future's result waits for it."""
        del args
        writing = future.CommitFutureAwaitingContractedSignals(
            _write_all(values, infos), name="stream_type_handler"
        )
        return [writing]


async def _write_all(
    values: Sequence[StreamedLeaf], infos: Sequence[ocp.type_handlers.ParamInfo]
) -> None:
    for value, info in zip(values, infos, strict=True):
        await info.await_path_creation()
        await _write(value, info)


async def _write(value: StreamedLeaf, info: ocp.type_handlers.ParamInfo) -> None:
    chunk = mapping.chunk_shape(value.shape, value.dtype, source.CHUNK_BYTES)
    spec = ocp.type_handlers.get_json_tspec_write(
        info, use_ocdbt=True, global_shape=value.shape, local_shape=chunk, dtype=value.dtype,
        process_index=0,
    )  # fmt: skip
    array = await ts.open(ts.Spec(spec), create=True, open=True, context=info.ts_context)
    pending: collections.deque[ts.WriteFutures] = collections.deque()
    for region in mapping.grid(value.shape, chunk):
        data = value.read(region)
        if len(pending) == _MAX_PENDING:
            await _finish(pending.popleft(), info)
        pending.append(
            array[mapping.slices(region)].write(data, can_reference_source_data_indefinitely=True)
        )
        del data
    while pending:
        await _finish(pending.popleft(), info)


async def _finish(writing: ts.WriteFutures, info: ocp.type_handlers.ParamInfo) -> None:
    try:
        await writing
    except (ValueError, OSError) as error:
        raise OSError(
            f"{info.name} cannot be written ({error}); is the disk full, or a quota reached?"
        ) from error
