"""Checkpoints of a run on many devices: read in long runs, a tensor at a time at most."""

import dataclasses
import math
import os

import convert_models
import jax
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from orbax.checkpoint._src.arrays import subchunking

from convert import hf_to_orbax, mapping, orbax_source, orbax_to_hf, source, verify
from jaxterm import architecture, checkpoint, config, model, sharding

BF16 = np.dtype(ml_dtypes.bfloat16)
F32 = np.dtype(np.float32)


def stored_chunks(size: str, **mesh_sizes: int) -> dict[str, tuple[int, ...]]:
    """The chunks in which Orbax stores a published model's parameters on such a mesh."""
    sizes = {axis: mesh_sizes.get(axis, 1) for axis in sharding.AXES}
    mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
    one = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), devices=jax.devices()[:1])
    params = model.abstract_params(architecture.QWEN3[size], config.ComputeConfig(), one)

    def chunk(leaf: jax.ShapeDtypeStruct, args) -> tuple[int, ...]:
        on_mesh = jax.sharding.NamedSharding(mesh, leaf.sharding.spec)
        return subchunking.choose_chunk_shape(
            leaf.shape, on_mesh.shard_shape(leaf.shape), leaf.dtype, args.chunk_byte_size,
            shard_axes=args.shard_axes,
        )  # fmt: skip

    chunks = jax.tree.map(chunk, params, checkpoint.params_save_args(params))
    return traverse_util.flatten_dict(chunks, sep=".")


def num_runs(leaf: mapping.Leaf, region: tuple[int, ...]) -> int:
    """Unbroken runs in which a leaf is written when it is cut into such regions."""
    cut = [dim for dim, size in enumerate(leaf.shape) if region[dim] < size]
    dim = max(cut, default=0)
    runs = math.prod(leaf.shape[:dim]) * math.ceil(leaf.shape[dim] / region[dim])
    return max(runs, len(leaf.tensor_names))


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ("8b", {"fsdp": 32}),
        ("14b", {"fsdp": 32}),
        ("32b", {"fsdp": 128}),
        ("14b", {"fsdp": 8, "context": 4}),
        ("32b", {"fsdp": 16, "context": 2, "tensor": 4}),
    ],
)
@pytest.mark.parametrize(
    ("dtype", "most_runs"), [(BF16, 3e6), (F32, 12e6)], ids=["export", "verify"]
)
def test_published_models_are_read_in_long_runs(size, sizes, dtype, most_runs):
    chunks = stored_chunks(size, **sizes)
    total = 0
    for name, leaf in mapping.leaves(architecture.QWEN3[size]).items():
        region = mapping.region_shape(
            leaf.shape, chunks[name], dtype,
            run_bytes=source.CHUNK_BYTES, max_bytes=source.REGION_BYTES,
        )  # fmt: skip
        for part, chunk, dim in zip(region, chunks[name], leaf.shape, strict=True):
            assert part % chunk == 0 or part == dim  # no chunk is read twice
        assert math.prod(region) * dtype.itemsize <= source.REGION_BYTES
        if leaf.is_stacked and dtype == BF16:
            assert region[-1] == leaf.shape[-1]  # whole rows
        total += num_runs(leaf, region)
    assert total < most_runs  # cut by Orbax alone and not put together: hundreds of millions


@pytest.fixture
def run(tmp_path):
    """A step of a run on eight devices, and the Hugging Face folder of the same weights."""
    of_model = dataclasses.replace(convert_models.UNTIED, embed_dim=256, vocab_multiple=8)
    hf = convert_models.make(tmp_path / "hf", of_model)
    hf_to_orbax.convert(hf, tmp_path / "start", vocab_multiple=8)
    run = config.TrainConfig(model=of_model)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 8, "context": 1, "tensor": 1})
    abstract = model.abstract_params(of_model, run.compute, mesh)
    params = checkpoint.load_params(tmp_path / "start", abstract)
    with checkpoint.Checkpointer(tmp_path / "workdir" / "checkpoints", keep=1) as saver:
        progress = checkpoint.Progress(step=3, plan_hash="x", seed=1)
        saver.save(params, {"count": np.zeros(1)}, progress, run)
    return tmp_path


def test_a_chunk_is_of_one_layer(run):
    opened = orbax_source.OrbaxSource(run / "workdir")
    leaves = mapping.leaves(opened.model)
    assert opened.chunk_shape(leaves["layers.mlp.gate"]) == (1, 96, 32)
    assert opened.chunk_shape(leaves["layers.mlp.down"]) == (1, 32, 96)
    assert opened.chunk_shape(leaves["layers.attention.q"]) == (1, 4, 16, 32)
    assert opened.chunk_shape(leaves["embedding"]) == (2570, 32)


@pytest.mark.parametrize("max_bytes", [2**28, 300_000, 1])
def test_a_sharded_checkpoint_is_exported_byte_for_byte(run, monkeypatch, max_bytes):
    monkeypatch.setattr(source, "REGION_BYTES", max_bytes)
    written = []
    pwrite = os.pwrite

    def counted(file, data, offset):
        written.append(len(data))
        return pwrite(file, data, offset)

    monkeypatch.setattr(os, "pwrite", counted)
    orbax_to_hf.convert(run / "workdir", run / "out", reference=run / "hf")
    assert convert_models.contents(run / "out") == convert_models.contents(run / "hf")
    tensors = convert_models.tensors(run / "hf")
    if max_bytes == 2**28:
        assert len(written) == len(tensors)  # one run each
    if max_bytes == 1:  # chunk by chunk, as it would be without regions
        assert len(written) > 50 * len(tensors)


@pytest.mark.parametrize("max_bytes", [2**28, 300_000, 1])
def test_a_sharded_checkpoint_is_verified_and_a_bit_is_found(run, monkeypatch, max_bytes):
    monkeypatch.setattr(source, "REGION_BYTES", max_bytes)
    monkeypatch.setattr(source, "CHUNK_BYTES", 10_000)
    for a, b in ((run / "workdir", run / "hf"), (run / "start", run / "workdir")):
        report = verify.compare(a, b)
        assert report.is_equal
        assert report.is_rounded
    name = "model.layers.1.mlp.up_proj.weight"
    changed = convert_models.tensors(run / "hf")[name]
    changed.view(np.uint16)[95, 63] ^= 1
    convert_models.rewrite(run / "hf" / "model.safetensors", {name: changed})
    report = verify.compare(run / "workdir", run / "hf")
    assert verify.differing_tensors(report) == [(name, 1)]


def test_what_verify_holds_is_bounded(run, monkeypatch):
    """The larger side decides, whatever the chunks of the other."""
    monkeypatch.setattr(source, "REGION_BYTES", 200_000)
    sizes = []

    def recorded(opened):
        read = opened.read

        def inner(leaf, region):
            array = read(leaf, region)
            sizes.append(array.nbytes)
            return array

        return inner

    opened = {folder: verify.open_source(run / folder) for folder in ("workdir", "hf")}
    for one in opened.values():
        monkeypatch.setattr(one, "read", recorded(one))
    monkeypatch.setattr(verify, "open_source", opened.get)
    assert verify.compare("workdir", "hf").is_equal
    assert max(sizes) <= 2570 * 32 * 4  # a chunk of the embedding, the least that can be read


def test_regions_are_whole_chunks_in_the_order_of_memory():
    shape, chunk = (3, 96, 256), (1, 96, 32)
    for run_bytes, max_bytes, expected in (
        (10**6, 10**6, (3, 96, 256)),
        (49_152, 10**6, (1, 96, 256)),
        (1, 10**6, (1, 96, 32)),
        (10**6, 20_000, (1, 96, 96)),
        (10**6, 1, (1, 96, 32)),
    ):
        region = mapping.region_shape(shape, chunk, BF16, run_bytes=run_bytes, max_bytes=max_bytes)
        assert region == expected
    whole = np.arange(3 * 96 * 256).reshape(shape)
    for region in mapping.grid(shape, (2, 96, 96)):
        array = whole[mapping.slices(region)]
        for index, part in mapping.parts(region, chunk):
            np.testing.assert_array_equal(array[index], whole[mapping.slices(part)])
