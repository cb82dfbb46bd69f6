"""An Orbax checkpoint as a source of weights, read in chunks as it was written.

That of a run with LoRA gives merged weights (convert/lora_merge.py).
"""

import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from convert import lora_merge, mapping, safetensors_io
from jaxterm import checkpoint


class OrbaxSource:
    """The weights of a CHECKPOINT_DIR (`source.Source`).

    A chunk is the least that can be read: what one device wrote, unless the writer cut it smaller.
    """

    def __init__(self, folder: str | pathlib.Path):
        """Open every array of the checkpoint.

        Raises:
            ValueError: no checkpoint, or listing all that is missing, unexpected or misshaped.
        """
        self.path = pathlib.Path(str(checkpoint.find_step_dir(folder)))
        self.model = checkpoint.load_model_config(self.path)
        params = (self.path / "params").resolve()
        lora = checkpoint.load_lora_config(self.path)
        parts = lora_merge.arrays(self.model, lora)
        wanted = {name: shape for each in parts.values() for name, shape in each.values()}
        faults = _faults(_stored(params), wanted)
        if faults:
            raise ValueError(
                f"{params} does not hold the model that {self.path / 'config'} describes: "
                + "; ".join(faults)
                + "; take another checkpoint, or convert the Hugging Face folder again"
            )
        arrays = _open_arrays(params, list(wanted))
        self._leaves = {
            leaf: lora_merge.Stored(
                leaf, {part: arrays[name] for part, (name, _) in each.items()},
                scale=lora.alpha / max(lora.rank, 1),
            )
            for leaf, each in parts.items()
        }  # fmt: skip

    def dtype(self, leaf: mapping.Leaf) -> np.dtype:
        """The dtype the leaf is stored in; float32 where it is made of several arrays."""
        return self._leaves[leaf.name].dtype

    def chunk_shape(self, leaf: mapping.Leaf) -> tuple[int, ...]:
        """The chunks in storage."""
        chunks = self._leaves[leaf.name].chunk_shape
        return tuple(min(chunk, dim) for chunk, dim in zip(chunks, leaf.shape, strict=True))

    def read(self, leaf: mapping.Leaf, region: mapping.Region) -> np.ndarray:
        """A region of the leaf; ValueError where the checkpoint's files are damaged."""
        return self.start_reading(leaf, region)()

    def start_reading(self, leaf: mapping.Leaf, region: mapping.Region) -> Callable[[], np.ndarray]:
        """`read` in the background; what is returned waits for it."""
        read = self._leaves[leaf.name].start_reading(region)

        def finish() -> np.ndarray:
            try:
                return read()
            except (ValueError, OSError) as error:
                raise ValueError(
                    f"{self.path / 'params'}: {leaf.name} cannot be read, its files are damaged "
                    f"({error}); take another checkpoint, or convert again"
                ) from error

        return finish

    def chunk_bytes(self, leaf: mapping.Leaf) -> int:
        """Memory that a chunk takes."""
        return math.prod(self.chunk_shape(leaf)) * self.dtype(leaf).itemsize


def _stored(params: pathlib.Path) -> dict[str, Any]:
    """Name -> what Orbax knows of the array."""
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.metadata(params).item_metadata
    if tree is None:
        raise ValueError(f"{params} is not an Orbax checkpoint of arrays")
    leaves = jax.tree_util.tree_leaves_with_path(dict(tree))
    return {".".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def _faults(stored: dict[str, Any], wanted: dict[str, tuple[int, ...]]) -> list[str]:
    faults = [f"{name} is missing" for name in wanted if name not in stored]
    faults += [f"{name} is unexpected" for name in sorted(stored.keys() - wanted.keys())]
    for name in wanted.keys() & stored.keys():
        shape, dtype = tuple(stored[name].shape), np.dtype(stored[name].dtype)
        if shape != wanted[name]:
            faults.append(f"{name} is {shape}, should be {wanted[name]}")
        if dtype not in safetensors_io.DTYPE_NAMES and not name.endswith(".codes"):
            faults.append(f"{name} is {dtype}, only bfloat16 and float32 are supported")
    return faults


def _open_arrays(params: pathlib.Path, names: list[str]) -> dict[str, ts.TensorStore]:
    """The stored arrays, opened with Orbax's own specs."""
    context = ocp.type_handlers.get_ts_context()
    metadata = json.loads((params / "_METADATA").read_text())
    arrays = {}
    for name in names:
        info = ocp.type_handlers.ParamInfo(
            name=name,
            parent_dir=epath.Path(params),
            use_zarr3=bool(metadata.get("use_zarr3")),
            ts_context=context,
        )
        spec = ocp.type_handlers.get_json_tspec_read(info, use_ocdbt=_uses_ocdbt(params))
        arrays[name] = ts.open(ts.Spec(spec), open=True, context=context).result()
    return arrays


def _uses_ocdbt(params: pathlib.Path) -> bool:
    return (params / "manifest.ocdbt").exists()
