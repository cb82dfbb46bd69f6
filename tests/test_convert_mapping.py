import math

import convert_models
import numpy as np
import pytest
import qwen3_oracle

from convert import mapping
from jaxterm import architecture


@pytest.mark.parametrize("variant", qwen3_oracle.VARIANTS)
def test_tensors_are_those_written_down_by_hand(variant):
    values = qwen3_oracle.hf_values(variant)
    model = architecture.from_hf_json(values, variant)
    assert mapping.tensors(model) == qwen3_oracle.hf_shapes(values)


@pytest.mark.oracle
@pytest.mark.parametrize("size", architecture.QWEN3)
def test_tensors_are_those_of_transformers_in_its_order(size):
    torch = pytest.importorskip("torch")
    import transformers

    model = architecture.QWEN3[size]
    values = architecture.to_hf_json(model)
    values.pop("model_type")
    with torch.device("meta"):
        reference = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**values))
    expected = {name: tuple(tensor.shape) for name, tensor in reference.state_dict().items()}
    if model.tie_embeddings:
        assert expected.pop(mapping.TIED_HEAD) == (model.vocab_size, model.embed_dim)
    assert list(mapping.tensors(model).items()) == list(expected.items())


@pytest.mark.parametrize("size", architecture.QWEN3)
def test_leaves_hold_every_parameter_once(size):
    model = architecture.QWEN3[size]
    leaves = mapping.leaves(model).values()
    assert sum(math.prod(leaf.shape) for leaf in leaves) == model.num_params()
    names = [name for leaf in leaves for name in leaf.tensor_names]
    assert sorted(names) == sorted(mapping.tensors(model))


@pytest.mark.parametrize("max_bytes", [2, 100, 4_096, 10**6])
@pytest.mark.parametrize("shape", [(7,), (5, 3), (3, 4, 16, 10), (1000, 64)])
def test_chunks_fit_are_contiguous_and_tile_the_array(shape, max_bytes):
    dtype = np.dtype(np.uint16)
    chunk = mapping.chunk_shape(shape, dtype, max_bytes)
    assert math.prod(chunk) * dtype.itemsize <= max_bytes
    seen = np.zeros(shape, np.int32)
    order = np.arange(math.prod(shape)).reshape(shape)
    for region in mapping.grid(shape, chunk):
        part = order[mapping.slices(region)].reshape(-1)
        assert (np.diff(part) == 1).all()
        seen[mapping.slices(region)] += 1
    assert (seen == 1).all()


def test_pieces_of_a_region_are_regions_of_its_tensors():
    leaf = mapping.leaves(convert_models.UNTIED)["layers.attention.q"]
    region = ((1, 3), (0, 4), (2, 5), (0, 64))
    assert list(leaf.pieces(region)) == [
        ("model.layers.1.self_attn.q_proj.weight", 0, region[1:]),
        ("model.layers.2.self_attn.q_proj.weight", 1, region[1:]),
    ]
