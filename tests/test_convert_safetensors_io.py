import itertools

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from convert import safetensors_io

SHAPE = (6, 4, 5)
# Every range that begins or ends at a border, and one that does neither, in each dim.
REGIONS = list(itertools.product(*[((0, n), (0, n - 1), (1, n), (2, 3)) for n in SHAPE]))


@pytest.fixture
def values():
    return np.arange(120, dtype=np.float32).reshape(SHAPE)


@pytest.fixture
def file(tmp_path, values):
    path = tmp_path / "x.safetensors"
    tensors = {"b.10": values.reshape(24, 5), "b.9": values[0, 0], "a": values.astype(np.float16)}
    safetensors_numpy.save_file(tensors, path)
    return path


def test_any_region_reads_as_numpy_slices_it(file, values):
    tensor = safetensors_io.read_header(file)["b.10"]
    assert tensor.shape == (24, 5)
    for region in REGIONS:
        expected = values[tuple(slice(*cut) for cut in region)]
        np.testing.assert_array_equal(safetensors_io.read(tensor, SHAPE, region), expected)


def test_any_region_is_written_as_numpy_assigns_it(file, values):
    tensor = safetensors_io.read_header(file)["b.10"]
    expected = values.copy()
    for number, region in enumerate(REGIONS):
        cut = tuple(slice(*part) for part in region)
        expected[cut] = -expected[cut] + number
        safetensors_io.write(tensor, SHAPE, region, expected[cut])
        loaded = safetensors_numpy.load_file(file)
        np.testing.assert_array_equal(loaded["b.10"].reshape(SHAPE), expected)
    np.testing.assert_array_equal(loaded["b.9"], values[0, 0])  # its neighbour in the file


@pytest.mark.parametrize("dtype", safetensors_io.DTYPE_NAMES, ids=str)
def test_created_files_are_those_of_the_safetensors_library(tmp_path, dtype):
    shapes = {"model.layers.2.b": (3,), "model.layers.10.b": (2, 3), "z": (1, 1), "A": (4, 4)}
    safetensors_numpy.save_file(
        {name: np.zeros(shape, dtype) for name, shape in shapes.items()},
        tmp_path / "theirs",
        metadata={"format": "pt"},
    )
    safetensors_io.create_file(
        tmp_path / "ours", shapes, safetensors_io.DTYPE_NAMES[np.dtype(dtype)]
    )
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_bfloat16_keeps_its_bits(tmp_path):
    bits = np.arange(2**16, dtype=np.uint16)  # every value there is, NaNs included
    path = tmp_path / "x.safetensors"
    safetensors_numpy.save_file({"x": bits.view(ml_dtypes.bfloat16)}, path)
    read = safetensors_io.read(safetensors_io.read_header(path)["x"], (2**16,), ((0, 2**16),))
    np.testing.assert_array_equal(read.view(np.uint16), bits)


@pytest.mark.parametrize(
    ("num_bytes", "fault"),
    [(5, "cut off in its header"), (40, "in its header"), (-1, "is cut off")],
)
def test_truncated_files_are_refused(file, num_bytes, fault):
    data = file.read_bytes()
    file.write_bytes(data[:num_bytes])
    with pytest.raises(ValueError, match=fault):
        safetensors_io.read_header(file)


def test_longer_files_are_refused(file):
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(ValueError, match="something was added"):
        safetensors_io.read_header(file)


@pytest.mark.parametrize(
    "header",
    [
        b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',  # offsets do not fit the shape
        b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',  # a hole
        b'{"x":{"dtype":"F32","shape":[1]}}',
        b'["x"]',
        b"version https://git-lfs",
    ],
)
def test_broken_headers_are_refused(tmp_path, header):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match="broken header"):
        safetensors_io.read_header(path)
