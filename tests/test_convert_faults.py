"""Bad input: one error that names every fault, and nothing left behind."""

import dataclasses
import json
import pathlib

import convert_models
import ml_dtypes
import numpy as np
import pytest

from convert import hf_metadata, hf_to_orbax, orbax_source, orbax_to_hf, staging, tokenizer_files
from jaxterm import checkpoint

NORM = "model.norm.weight"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def hf(tmp_path) -> pathlib.Path:
    return convert_models.make(tmp_path / "hf", max_shard_gb=convert_models.SMALL_SHARD_GB)


@pytest.fixture
def single(tmp_path) -> pathlib.Path:
    return convert_models.make(tmp_path / "hf")


@pytest.fixture
def orbax(tmp_path, single) -> pathlib.Path:
    hf_to_orbax.convert(single, tmp_path / "orbax")
    return tmp_path / "orbax"


def _refused(hf, fault: str, **options) -> str:
    """Import must fail with this fault and leave nothing."""
    output = hf.parent / "refused"
    with pytest.raises(ValueError, match=fault) as error:
        hf_to_orbax.convert(hf, output, **options)
    assert not output.exists()
    assert not convert_models.leftovers(hf.parent)
    return str(error.value)


def _export_refused(orbax, reference, fault: str, **options) -> None:
    output = orbax.parent / "refused"
    with pytest.raises(ValueError, match=fault):
        orbax_to_hf.convert(orbax, output, reference=reference, **options)
    assert not output.exists()
    assert not convert_models.leftovers(orbax.parent)


def test_truncated_shard(hf):
    file = convert_models.shards(hf)[1]
    file.write_bytes(file.read_bytes()[:-100])
    message = _refused(hf, f"{file.name} has .* bytes, its header describes .* it is cut off")
    assert "is missing" not in message  # its tensors are not missing as well


def test_missing_shard_file(hf):
    convert_models.shards(hf)[0].unlink()
    _refused(hf, r"model-00001-of-0000\d\.safetensors is missing")


def test_missing_tensor(single):
    convert_models.rewrite(single / "model.safetensors", {NORM: None})
    _refused(single, "model.norm.weight is missing")


def test_extra_tensor(single):
    extra = np.zeros(3, ml_dtypes.bfloat16)
    convert_models.rewrite(single / "model.safetensors", {"model.vision.weight": extra})
    _refused(single, "model.vision.weight is unexpected")


def test_wrong_shape(single):
    short = np.zeros(63, ml_dtypes.bfloat16)
    convert_models.rewrite(single / "model.safetensors", {NORM: short})
    _refused(single, r"model.norm.weight is \(63,\), should be \(64,\)")


def test_wrong_vocabulary(single):
    convert_models.edit_json(single / "config.json", vocab_size=2600)
    _refused(single, r"embed_tokens.weight is \(2570, 64\), should be \(2600, 64\)")


def test_dtype_that_differs_from_the_others(single):
    wide = np.ones(64, np.float32)
    convert_models.rewrite(single / "model.safetensors", {NORM: wide})
    _refused(single, "model.norm.weight: dtype F32, but BF16 elsewhere")
    hf_to_orbax.convert(single, single.parent / "cast", dtype="float32")  # the way out it names


def test_dtype_that_is_not_supported(single):
    quantised = np.ones(64, np.int8)
    convert_models.rewrite(single / "model.safetensors", {NORM: quantised})
    _refused(single, "model.norm.weight: dtype I8 is not supported", dtype="float32")


def test_all_faults_are_named_at_once(single):
    changes = {NORM: None, "extra": np.zeros(1, np.float16), "lm_head.weight": np.zeros((2, 2))}
    convert_models.rewrite(single / "model.safetensors", changes)
    message = _refused(single, "does not hold the model its config.json describes")
    for fault in (
        "model.norm.weight is missing",
        "extra is unexpected",
        "lm_head.weight is (2, 2), should be (2570, 64)",
        "extra: dtype F16 is not supported",
        "lm_head.weight: dtype F64 is not supported",
    ):
        assert fault in message


def test_tensor_that_the_index_does_not_name(hf):
    index = json.loads((hf / INDEX).read_text())
    file = index["weight_map"].pop(NORM)
    (hf / INDEX).write_text(json.dumps(index))
    _refused(hf, f"{file} holds {NORM}, which {INDEX} does not name")


def test_tensor_that_only_the_index_names(hf):
    index = json.loads((hf / INDEX).read_text())
    file = hf / index["weight_map"][NORM]
    convert_models.rewrite(file, {NORM: None})
    _refused(hf, f"{INDEX} says that {file.name} holds {NORM}, which it does not")


@pytest.mark.parametrize("name", ["../hf/x.safetensors", "/etc/passwd", "a\\b", ".."])
def test_index_that_points_outside_its_folder(hf, name):
    index = json.loads((hf / INDEX).read_text())
    index["weight_map"][NORM] = name
    (hf / INDEX).write_text(json.dumps(index))
    _refused(hf, "which is not a plain file name")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_broken_index(hf, text):
    (hf / INDEX).write_text(text)
    _refused(hf, "is not an index of safetensors")


def test_folder_without_weights(single):
    (single / "model.safetensors").rename(single / "pytorch_model.bin")
    _refused(single, "holds neither model.safetensors nor model.safetensors.index.json")


def test_folder_without_config(single):
    (single / "config.json").unlink()
    _refused(single, "config.json is missing")


def test_tied_head_that_differs(tmp_path):
    hf = convert_models.make(tmp_path / "hf", convert_models.MODELS["tied"])
    head = convert_models.tensors(hf)["model.embed_tokens.weight"].copy()
    head[-1, -1] += 1
    convert_models.rewrite(hf / "model.safetensors", {"lm_head.weight": head})
    _refused(hf, "lm_head.weight differs from model.embed_tokens.weight")


def test_output_that_exists_is_replaced_only_when_told(single, orbax):
    before = (orbax / "config" / "config.json").stat().st_ino
    with pytest.raises(ValueError, match="orbax exists; give another folder, or --overwrite"):
        hf_to_orbax.convert(single, orbax)
    assert (orbax / "config" / "config.json").stat().st_ino == before
    hf_to_orbax.convert(single, orbax, overwrite=True)
    assert (orbax / "config" / "config.json").stat().st_ino != before
    orbax_source.OrbaxSource(orbax)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_never_replaced(tmp_path, single, orbax, overwrite):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="precious exists"):
        hf_to_orbax.convert(single, tmp_path / "precious", overwrite=overwrite)
    with pytest.raises(ValueError, match="precious exists"):
        orbax_to_hf.convert(orbax, tmp_path / "precious", reference=single, overwrite=overwrite)
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "x"


def test_an_empty_folder_may_be_the_output(tmp_path, single):
    (tmp_path / "empty").mkdir()
    hf_to_orbax.convert(single, tmp_path / "empty")
    orbax_source.OrbaxSource(tmp_path / "empty")


def test_what_a_kill_left_is_cleared(tmp_path):
    (tmp_path / ".out.convert-partial" / "junk").mkdir(parents=True)
    (tmp_path / ".out.convert-replaced").mkdir()  # the kill fell between the last two renames
    (tmp_path / ".out.convert-replaced" / "model").write_text("old")
    with staging.new_folder(
        tmp_path / "out", overwrite=True, is_replaceable=lambda folder: True
    ) as new:
        assert (tmp_path / "out" / "model").read_text() == "old"
        new.mkdir()
        (new / "model").write_text("new")
    assert (tmp_path / "out" / "model").read_text() == "new"
    assert not convert_models.leftovers(tmp_path)


def test_a_full_disk_is_noticed_before_the_work():
    with pytest.raises(ValueError, match=r"here/x needs 1000000000\.0 GB, its disk has"):
        staging.check_space(pathlib.Path("here/x"), 10**18)


def test_damaged_checkpoint(tmp_path, single, orbax):
    files = sorted((orbax / "params").rglob("d/*"), key=lambda file: file.stat().st_size)
    files[-1].write_bytes(files[-1].read_bytes()[:-1000])
    _export_refused(orbax, single, "orbax/params: .* cannot be read, its files are damaged")


def test_checkpoint_of_another_model(orbax, single):
    path = orbax / "config" / "config.json"
    values = json.loads(path.read_text())
    values["model"] |= {"mlp_dim": 97, "tie_embeddings": True}
    path.write_text(json.dumps(values))
    _export_refused(
        orbax,
        single,
        r"does not hold the model.*output is unexpected.*mlp.* should be \(3, 97, 64\)",
    )


def test_folder_that_is_no_checkpoint(tmp_path, single):
    (tmp_path / "empty").mkdir()
    _export_refused(tmp_path / "empty", single, "holds no complete checkpoint")


def test_reference_of_another_model(tmp_path, orbax):
    other = dataclasses.replace(convert_models.UNTIED, num_layers=4)
    reference = convert_models.make(tmp_path / "other", other)
    _export_refused(
        orbax, reference, "describes another model: num_layers is 4, the checkpoint's is 3"
    )


def test_reference_without_tokenizer(orbax, single):
    (single / "tokenizer.json").unlink()
    _export_refused(orbax, single, "tokenizer.json is missing")


def test_tokenizer_with_more_tokens_than_the_model(tmp_path):
    small = dataclasses.replace(convert_models.UNTIED, vocab_size=2559)
    with pytest.raises(ValueError, match="token ids up to 2559, the model's vocab_size is 2559"):
        convert_models.make(tmp_path / "hf", small)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_tokenizer_files_is_no_tokenizer(tmp_path):
    """transformers takes one, and its empty tokenizer has fewer tokens than any model."""
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing; give a folder that holds"):
        tokenizer_files.Tokenizer(tmp_path)


def test_the_largest_id_counts_and_not_the_number_of_tokens(tmp_path):
    values = json.loads((convert_models.TOKENIZER / "tokenizer.json").read_text())
    values["added_tokens"].append({"content": "<|far|>", "id": 5000})
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    tokenizer = tokenizer_files.Tokenizer(tmp_path)
    tokenizer.check_vocabulary(5001)
    with pytest.raises(ValueError, match="token ids up to 5000, the model's vocab_size is 5000"):
        tokenizer.check_vocabulary(5000)


@pytest.mark.parametrize("number", ["7", None, 1.5])
def test_token_ids_that_are_no_numbers(tmp_path, number):
    values = json.loads((convert_models.TOKENIZER / "tokenizer.json").read_text())
    values["added_tokens"].append({"content": "<|x|>", "id": number})
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        tokenizer_files.Tokenizer(tmp_path)


def test_eos_of_a_base_model(orbax, single):
    """A Base model's files stop at <|endoftext|>, which no trained turn ends with."""
    convert_models.edit_json(single / "config.json", eos_token_id=2534)
    convert_models.edit_json(single / "generation_config.json", eos_token_id=2534)
    _export_refused(
        orbax,
        single,
        "config.json has eos_token_id=2534, .*generation_config.json has eos_token_id=2534, "
        r"without 2536 \(<\|im_end\|>\).*--eos=fix",
    )
    output = orbax.parent / "fixed"
    orbax_to_hf.convert(orbax, output, reference=single, eos="fix")
    written = {
        name: json.loads((output / name).read_text())["eos_token_id"]
        for name in (hf_metadata.CONFIG, hf_metadata.GENERATION_CONFIG)
    }
    assert written == {"config.json": 2536, "generation_config.json": [2536, 2534]}


def test_eos_wrong_in_one_file_only(orbax, single):
    convert_models.edit_json(single / "generation_config.json", eos_token_id=None)
    _export_refused(orbax, single, "generation_config.json has eos_token_id=None, without 2536")


def test_generation_config_is_made_when_absent(orbax, single):
    before = (single / "generation_config.json").read_bytes()
    (single / "generation_config.json").unlink()
    orbax_to_hf.convert(orbax, orbax.parent / "out", reference=single)
    assert (orbax.parent / "out" / "generation_config.json").read_bytes() == before


def test_real_tokenizer_ids(shared_data):
    tokenizer = tokenizer_files.Tokenizer(shared_data / "qwen3-tokenizer")
    assert (tokenizer.turn_end_id, tokenizer.end_of_text_id) == (151645, 151643)
    tokenizer.check_vocabulary(151936)
    with pytest.raises(ValueError, match="vocab_size is 151668"):
        tokenizer.check_vocabulary(151668)


def test_unknown_dtype(single, orbax):
    _refused(single, "--dtype=float16 must be one of bfloat16, float32", dtype="float16")
    _export_refused(orbax, single, "--dtype=int8 must be one of", dtype="int8")
    _export_refused(orbax, single, "--eos=ignore must be one of", eos="ignore")


def test_incomplete_checkpoint_config(orbax, single):
    (orbax / "config" / checkpoint.CONFIG_FILE).write_text("{")
    _export_refused(orbax, single, "is missing, not JSON or without a model")
