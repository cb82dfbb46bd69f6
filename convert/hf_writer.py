"""The weights' files of a Hugging Face folder, made at full size first and filled in any order."""

import json
import math
import pathlib

import huggingface_hub
import numpy as np

from convert import hf_source, mapping, safetensors_io
from jaxterm import architecture


class HfWriter:
    """model.safetensors, or shards and their index, cut as transformers cuts them."""

    def __init__(
        self,
        folder: pathlib.Path,
        of_model: architecture.ModelConfig,
        *,
        dtype: np.dtype,
        max_shard_gb: float,
        with_tied_head: bool = False,
    ):
        """Make the files with their headers.

        Args:
            folder: exists.
            of_model: says which tensors there are.
            dtype: of all tensors.
            max_shard_gb: a shard's tensors have at most so many 10**9 bytes, or are a single one.
            with_tied_head: write a tied model's embedding a second time as its head.
        """
        self._dtype = dtype
        self._tied_head = mapping.TIED_HEAD if with_tied_head else None
        shapes = mapping.tensors(of_model)
        if with_tied_head:
            shapes[mapping.TIED_HEAD] = (of_model.vocab_size, of_model.embed_dim)
        split = huggingface_hub.split_state_dict_into_shards_factory(
            shapes,
            get_storage_size=lambda shape: math.prod(shape) * dtype.itemsize,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=round(max_shard_gb * 10**9),
        )
        self._tensors: dict[str, safetensors_io.Tensor] = {}
        for file, names in split.filename_to_tensors.items():
            self._tensors |= safetensors_io.create_file(
                folder / file,
                {name: shapes[name] for name in names},
                safetensors_io.DTYPE_NAMES[dtype],
            )
        if split.is_sharded:
            metadata = {"total_parameters": of_model.num_params(), **split.metadata}
            index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (folder / hf_source.INDEX_FILE).write_text(text)

    def write(self, leaf: mapping.Leaf, region: mapping.Region, array: np.ndarray) -> None:
        """Write a region of a leaf into its tensors, cast to the files' dtype."""
        for name, index, part in leaf.pieces(region):
            data = array[index].astype(self._dtype, copy=False)
            safetensors_io.write(self._tensors[name], leaf.layer_shape, part, data)
            if leaf.name == mapping.EMBEDDING and self._tied_head:
                safetensors_io.write(self._tensors[self._tied_head], leaf.layer_shape, part, data)
