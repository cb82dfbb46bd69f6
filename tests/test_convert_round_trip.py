import dataclasses
import json

import convert_models
import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import qwen3_oracle
from safetensors import numpy as safetensors_numpy

from convert import hf_to_orbax, mapping, orbax_source, orbax_to_hf, source
from jaxterm import architecture, checkpoint, config, model, sharding


def _abstract(folder, dtype):
    of_model = checkpoint.load_model_config(folder)
    return model.abstract_params(of_model, config.ComputeConfig(param_dtype=dtype))


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 10 kB, so that tiny arrays are cut in layers and within them."""
    monkeypatch.setattr(source, "CHUNK_BYTES", 10_000)


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [*((variant, "bfloat16") for variant in convert_models.MODELS), ("untied", "float32")],
)
def test_every_file_survives_byte_for_byte(tmp_path, variant, dtype, small_chunks):
    of_model = convert_models.MODELS[variant]
    shard_gb = convert_models.SMALL_SHARD_GB
    hf = convert_models.make(tmp_path / "hf", of_model, dtype=dtype, max_shard_gb=shard_gb)
    assert len(convert_models.shards(hf)) > 2
    hf_to_orbax.convert(hf, tmp_path / "orbax", vocab_multiple=64)
    orbax_to_hf.convert(
        tmp_path / "orbax", tmp_path / "again", reference=hf, dtype=dtype, max_shard_gb=shard_gb
    )
    assert convert_models.contents(tmp_path / "again") == convert_models.contents(hf)
    assert not convert_models.leftovers(tmp_path)


def test_parameters_are_those_stacked_by_hand(tmp_path, small_chunks):
    hf = convert_models.make(tmp_path / "hf", dtype="float32")
    hf_to_orbax.convert(hf, tmp_path / "0", vocab_multiple=64)
    abstract = _abstract(tmp_path / "0", "float32")
    loaded = checkpoint.load_params(tmp_path / "0", abstract)
    assert loaded["embedding"].shape == (2624, 64)
    assert not loaded["embedding"][2570:].any()
    for name in ("embedding", "output"):
        loaded[name] = loaded[name][:2570]
    expected = qwen3_oracle.params_from_hf(convert_models.tensors(hf), convert_models.UNTIED)
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_all_of_orbax_reads_it(tmp_path):
    hf = convert_models.make(tmp_path / "hf")
    hf_to_orbax.convert(hf, tmp_path / "run" / "7")
    abstract = _abstract(tmp_path / "run" / "7", "bfloat16")
    handlers = {"params": ocp.StandardCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(tmp_path / "run", item_handlers=handlers) as manager:
        assert manager.latest_step() == 7
        managed = manager.restore(
            7, args=ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
        )
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "run" / "7" / "params")
    jax.tree.map(np.testing.assert_array_equal, managed.params, restored)
    np.testing.assert_array_equal(
        restored["final_norm"]["scale"], convert_models.tensors(hf)["model.norm.weight"]
    )


def test_it_restores_onto_a_mesh(tmp_path, small_chunks):
    hf = convert_models.make(tmp_path / "hf")
    hf_to_orbax.convert(hf, tmp_path / "0", vocab_multiple=64)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 2, "context": 2, "tensor": 2})
    of_model = checkpoint.load_model_config(tmp_path / "0")
    compute = config.ComputeConfig(param_dtype="bfloat16")
    placed = checkpoint.load_params(tmp_path / "0", model.abstract_params(of_model, compute, mesh))
    whole = checkpoint.load_params(tmp_path / "0", _abstract(tmp_path / "0", "bfloat16"))
    assert len(placed["layers"]["mlp"]["gate"].addressable_shards) == 8
    jax.tree.map(np.testing.assert_array_equal, placed, whole)


def test_a_runs_sharded_float32_checkpoint_is_exported_rounded(tmp_path):
    of_model = dataclasses.replace(convert_models.UNTIED, vocab_multiple=128)
    run = config.TrainConfig(model=of_model)
    mesh = sharding.make_mesh({"data": 1, "fsdp": 2, "context": 2, "tensor": 2})
    params = model.init_params(of_model, run.compute, mesh, seed=1)
    saver = checkpoint.Checkpointer(tmp_path / "workdir" / "checkpoints", keep=1)
    progress = checkpoint.Progress(step=3, plan_hash="x", seed=1)
    saver.save(params, {"count": np.zeros(1)}, progress, run)
    saver.close()
    chunks = orbax_source.OrbaxSource(tmp_path / "workdir")
    leaf = mapping.leaves(of_model)["layers.mlp.gate"]
    assert chunks.chunk_shape(leaf) == (1, 48, 16)  # cut within rows: the hardest to put together
    hf = convert_models.make(tmp_path / "hf")
    orbax_to_hf.convert(tmp_path / "workdir", tmp_path / "out", reference=hf)
    values = jax.tree.map(np.asarray, params)
    for name in ("embedding", "output"):
        values[name] = values[name][:2570]
    exported = convert_models.tensors(tmp_path / "out")
    expected = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), values)
    found = qwen3_oracle.params_from_hf(exported, convert_models.UNTIED)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_dtype_casts_on_import(tmp_path):
    hf = convert_models.make(tmp_path / "hf", dtype="float32")
    hf_to_orbax.convert(hf, tmp_path / "0", dtype="bfloat16")
    orbax_to_hf.convert(tmp_path / "0", tmp_path / "out", reference=hf)
    wanted = convert_models.tensors(hf)
    for name, tensor in convert_models.tensors(tmp_path / "out").items():
        np.testing.assert_array_equal(tensor, wanted[name].astype(ml_dtypes.bfloat16))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_tied_head_that_is_there_stays_there(tmp_path):
    """Qwen3-0.6B's published file holds lm_head.weight although it is tied."""
    hf = convert_models.make(tmp_path / "hf", convert_models.MODELS["tied"])
    embedding = convert_models.tensors(hf)["model.embed_tokens.weight"]
    convert_models.rewrite(hf / "model.safetensors", {"lm_head.weight": embedding})
    assert hf_to_orbax.convert(hf, tmp_path / "0").has_tied_head
    orbax_to_hf.convert(tmp_path / "0", tmp_path / "again", reference=hf)
    assert convert_models.contents(tmp_path / "again") == convert_models.contents(hf)


def test_config_json_says_rope_as_trained(tmp_path):
    stretched = convert_models.make(tmp_path / "yarn", convert_models.MODELS["yarn"])
    hf_to_orbax.convert(stretched, tmp_path / "0")
    reference = convert_models.make(tmp_path / "reference")
    values = json.loads((reference / "config.json").read_text())
    del values["rope_parameters"]  # the hub's older form
    values |= {"rope_theta": 1e6, "rope_scaling": None, "torch_dtype": values.pop("dtype")}
    values["use_cache"] = False  # a setting that is not the architecture's
    (reference / "config.json").write_text(json.dumps(values))
    orbax_to_hf.convert(tmp_path / "0", tmp_path / "out", reference=reference)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert architecture.from_hf_folder(tmp_path / "out") == convert_models.MODELS["yarn"]
    assert written["rope_scaling"]["rope_type"] == "yarn"
    assert written["use_cache"] is False
    assert "rope_parameters" not in written
    assert "dtype" not in written


@pytest.mark.oracle
@pytest.mark.parametrize("variant", ["untied", "tied", "wide_heads", "yarn"])
def test_a_folder_of_transformers_survives_byte_for_byte(tmp_path, variant, small_chunks):
    pytest.importorskip("torch")
    import torch
    import transformers

    of_model = convert_models.MODELS[variant]
    values = architecture.to_hf_json(of_model) | {"eos_token_id": 2536, "pad_token_id": 2534}
    values.pop("model_type")
    torch.manual_seed(0)
    theirs = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**values)).bfloat16()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    transformers.AutoTokenizer.from_pretrained(convert_models.TOKENIZER).save_pretrained(
        tmp_path / "hf"
    )
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="200KB")
    hf_to_orbax.convert(tmp_path / "hf", tmp_path / "0", vocab_multiple=64)
    orbax_to_hf.convert(
        tmp_path / "0", tmp_path / "again", reference=tmp_path / "hf", max_shard_gb=0.0002
    )
    assert len(convert_models.shards(tmp_path / "again")) > 2
    assert convert_models.contents(tmp_path / "again") == convert_models.contents(tmp_path / "hf")
    loaded, report = transformers.Qwen3ForCausalLM.from_pretrained(
        tmp_path / "again", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for mine, their in zip(loaded.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, their)


@pytest.mark.oracle
def test_transformers_loads_a_random_folder(tmp_path):
    pytest.importorskip("torch")
    import transformers

    hf = convert_models.make(tmp_path / "hf", convert_models.MODELS["tied"], seed=3)
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(hf, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert loaded.generation_config.eos_token_id == [2536, 2534]
    assert loaded.model.norm.weight.min() == loaded.model.norm.weight.max() == 1
    assert abs(loaded.model.embed_tokens.weight.float().std() - 0.02) < 1e-3


def test_random_folders_depend_on_the_seed_alone(tmp_path):
    first = convert_models.make(tmp_path / "a", seed=5)
    again = convert_models.make(tmp_path / "b", seed=5)
    other = convert_models.make(tmp_path / "c", seed=6)
    assert convert_models.contents(first) == convert_models.contents(again)
    assert convert_models.contents(first) != convert_models.contents(other)
    values = safetensors_numpy.load_file(first / "model.safetensors")
    matrices = [x.astype(np.float32) for name, x in values.items() if x.ndim > 1]
    assert abs(np.concatenate([x.ravel() for x in matrices]).std() - 0.02) < 1e-3
    rows = {x.tobytes() for matrix in matrices for x in matrix}
    assert len(rows) == sum(map(len, matrices))  # no stretch of random numbers twice
