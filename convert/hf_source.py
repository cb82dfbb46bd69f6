"""A Hugging Face folder as a source of weights: every fault it has is found before any is read."""

import json
import pathlib
from typing import Any

import numpy as np

from convert import mapping, safetensors_io, source
from jaxterm import architecture

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class HfSource:
    """The weights of a Hugging Face folder (`source.Source`)."""

    def __init__(self, folder: str | pathlib.Path, *, dtype: np.dtype | None = None):
        """Open the folder and check all of it but the values.

        Args:
            folder: with config.json and the safetensors.
            dtype: cast what is read to this; None keeps the dtype, which must be one for all.

        Raises:
            ValueError: listing all that is missing, unexpected, misshaped, of another dtype, or
                cut off.
        """
        self.path = pathlib.Path(folder)
        self.model = architecture.from_hf_folder(self.path)
        self._tensors, unreadable, faults = _find_tensors(self.path)
        faults += _compare(self._tensors, unreadable, self.model)
        faults += _check_dtypes(self._tensors, dtype)
        if faults:
            raise ValueError(
                f"{self.path} does not hold the model its config.json describes: "
                + "; ".join(faults)
                + "; download or copy it again"
            )
        stored = {tensor.dtype for tensor in self._tensors.values()}
        self._dtype = dtype or safetensors_io.DTYPES[stored.pop()]
        self.has_tied_head = self.model.tie_embeddings and mapping.TIED_HEAD in self._tensors
        if self.has_tied_head:
            self._check_tied_head()

    def dtype(self, leaf: mapping.Leaf) -> np.dtype:
        """The dtype of every leaf."""
        del leaf
        return self._dtype

    def chunk_shape(self, leaf: mapping.Leaf) -> tuple[int, ...]:
        """A single value: files can be read from anywhere to anywhere."""
        return (1,) * len(leaf.shape)

    def read(self, leaf: mapping.Leaf, region: mapping.Region) -> np.ndarray:
        """A region of the leaf, stacked from its tensors."""
        result = np.empty(mapping.extent(region), self._dtype)
        for name, index, part in leaf.pieces(region):
            result[index] = safetensors_io.read(self._tensors[name], leaf.layer_shape, part)
        return result

    def _check_tied_head(self) -> None:
        leaf = mapping.leaves(self.model)[mapping.EMBEDDING]
        head, embedding = (self._tensors[name] for name in (mapping.TIED_HEAD, *leaf.tensor_names))
        for region in mapping.grid(leaf.shape, source.region_shape(leaf, self._dtype, self)):
            left = safetensors_io.read(head, leaf.shape, region)
            right = safetensors_io.read(embedding, leaf.shape, region)
            if left.dtype != right.dtype or left.tobytes() != right.tobytes():
                raise ValueError(
                    f"{self.path}: {mapping.TIED_HEAD} differs from {leaf.tensor_names[0]}, but "
                    "config.json says tie_word_embeddings=true; set it to false if the head was "
                    "trained apart, or remove the tensor"
                )


def is_model_folder(folder: pathlib.Path) -> bool:
    """Whether a folder holds a model with safetensors."""
    weights = (folder / SINGLE_FILE, folder / INDEX_FILE)
    return (folder / "config.json").is_file() and any(file.is_file() for file in weights)


def writes_tied_head(folder: pathlib.Path) -> bool:
    """Whether a folder's files name the head although a tied model needs none.

    Only names are looked at; a folder without weights, or with broken ones, does not.
    """
    try:
        if (folder / SINGLE_FILE).exists():
            return mapping.TIED_HEAD in safetensors_io.read_header(folder / SINGLE_FILE)
        return mapping.TIED_HEAD in _read_index(folder / INDEX_FILE)
    except (ValueError, OSError):
        return False


def _find_tensors(
    folder: pathlib.Path,
) -> tuple[dict[str, safetensors_io.Tensor], set[str], list[str]]:
    """The tensors of all files, the names that lie in unreadable ones, and the faults."""
    if (folder / SINGLE_FILE).exists():
        return safetensors_io.read_header(folder / SINGLE_FILE), set(), []
    if not (folder / INDEX_FILE).exists():
        raise ValueError(
            f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}; only safetensors are read: "
            "download them, or save the model again with transformers"
        )
    weight_map = _read_index(folder / INDEX_FILE)
    tensors: dict[str, safetensors_io.Tensor] = {}
    unreadable: set[str] = set()
    faults: list[str] = []
    for file in sorted(set(weight_map.values())):
        try:
            found = _read_shard(folder, file)
        except ValueError as error:
            faults.append(str(error))
            unreadable |= {name for name, at in weight_map.items() if at == file}
            continue
        faults += _compare_with_index(file, found, weight_map)
        tensors |= found
    return tensors, unreadable, faults


def _read_shard(folder: pathlib.Path, file: str) -> dict[str, safetensors_io.Tensor]:
    if pathlib.PurePath(file).name != file or file == ".." or "\\" in file:
        raise ValueError(f"{INDEX_FILE} names {file!r}, which is not a plain file name")
    if not (folder / file).is_file():
        raise ValueError(f"{folder / file} is missing")
    return safetensors_io.read_header(folder / file)


def _read_index(path: pathlib.Path) -> dict[str, str]:
    try:
        values: Any = json.loads(path.read_text())
        return {str(name): str(file) for name, file in values["weight_map"].items()}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not an index of safetensors ({error!r}); download it again"
        ) from error


def _compare_with_index(
    file: str, found: dict[str, safetensors_io.Tensor], weight_map: dict[str, str]
) -> list[str]:
    promised = {name for name, at in weight_map.items() if at == file}
    faults = [
        f"{INDEX_FILE} says that {file} holds {name}, which it does not"
        for name in sorted(promised - found.keys())
    ]
    return faults + [
        f"{file} holds {name}, which {INDEX_FILE} does not name"
        for name in sorted(found.keys() - promised)
    ]


def _compare(
    tensors: dict[str, safetensors_io.Tensor],
    unreadable: set[str],
    of_model: architecture.ModelConfig,
) -> list[str]:
    wanted = mapping.tensors(of_model)
    optional = dict(wanted)
    if of_model.tie_embeddings:
        optional[mapping.TIED_HEAD] = (of_model.vocab_size, of_model.embed_dim)
    missing = [name for name in wanted if name not in tensors and name not in unreadable]
    faults = [f"{name} is missing" for name in missing]
    faults += [f"{name} is unexpected" for name in sorted(tensors.keys() - optional.keys())]
    return faults + [
        f"{name} is {tensors[name].shape}, should be {shape}"
        for name, shape in optional.items()
        if name in tensors and tensors[name].shape != shape
    ]


def _check_dtypes(tensors: dict[str, safetensors_io.Tensor], target: np.dtype | None) -> list[str]:
    names: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(tensor.dtype, []).append(name)
    faults = [
        f"{', '.join(names[dtype])}: dtype {dtype} is not supported, only BF16 and F32"
        for dtype in sorted(names.keys() - safetensors_io.DTYPES.keys())
    ]
    if target is not None or len(names) < 2:
        return faults
    usual = max(names, key=lambda dtype: len(names[dtype]))
    return faults + [
        f"{', '.join(names[dtype])}: dtype {dtype}, but {usual} elsewhere (--dtype casts all)"
        for dtype in sorted(names.keys() & safetensors_io.DTYPES.keys() - {usual})
    ]
