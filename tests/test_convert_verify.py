import dataclasses

import convert_models
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from convert import hf_to_orbax, orbax_to_hf, source, verify, verify_logits

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def pair(tmp_path):
    """Two folders with the same weights, the second to be changed."""
    return convert_models.make(tmp_path / "a"), convert_models.make(tmp_path / "b")


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(source, "CHUNK_BYTES", 10_000)


def test_a_conversion_is_equal_in_any_pairing(tmp_path, small_chunks):
    hf = convert_models.make(tmp_path / "hf")
    hf_to_orbax.convert(hf, tmp_path / "0", vocab_multiple=64)
    orbax_to_hf.convert(tmp_path / "0", tmp_path / "out", reference=hf)
    folders = [hf, tmp_path / "0", tmp_path / "out"]
    for a in folders:
        for b in folders:
            report = verify.compare(a, b)
            assert report.is_equal
            assert not report.is_rounded
            assert report.num_tensors == len(convert_models.tensors(hf))


def test_one_bit_is_found_and_named(pair, small_chunks):
    a, b = pair
    changed = convert_models.tensors(b)[UP]
    changed.view(np.uint16)[95, 63] ^= 1
    convert_models.rewrite(b / "model.safetensors", {UP: changed})
    report = verify.compare(a, b)
    assert not report.is_equal
    assert verify.differing_tensors(report) == [(UP, 1)]
    step = abs(float(changed[95, 63]) - float(convert_models.tensors(a)[UP][95, 63]))
    assert [leaf.max_abs for leaf in report.leaves if leaf.max_abs] == [step]


@pytest.mark.parametrize(("left", "right"), [(0.0, -0.0), (1.0, np.nan), (np.inf, 1.0)])
def test_values_are_compared_by_their_bits(pair, left, right):
    for folder, value in zip(pair, (left, right), strict=True):
        scale = np.ones(64, ml_dtypes.bfloat16)
        scale[7] = value
        convert_models.rewrite(folder / "model.safetensors", {"model.norm.weight": scale})
    assert verify.differing_tensors(verify.compare(*pair)) == [("model.norm.weight", 1)]
    assert verify.compare(pair[0], pair[0]).is_equal


def test_rounding_is_told_from_a_difference(tmp_path):
    wide = convert_models.make(tmp_path / "wide", dtype="float32")
    hf_to_orbax.convert(wide, tmp_path / "0", dtype="bfloat16")
    for report in (verify.compare(wide, tmp_path / "0"), verify.compare(tmp_path / "0", wide)):
        assert report.is_equal
        assert report.is_rounded
        assert 0 < max(leaf.max_rel for leaf in report.leaves) <= 2**-8  # half a unit of bfloat16
    changed = convert_models.tensors(wide)[UP]
    changed[0, 0] *= 1.01
    convert_models.rewrite(wide / "model.safetensors", {UP: changed})
    report = verify.compare(wide, tmp_path / "0")
    assert not report.is_equal
    assert verify.differing_tensors(report) == [(UP, 1)]


def test_settings_that_no_tensor_shows_are_compared(tmp_path):
    plain = convert_models.make(tmp_path / "plain")
    stretched = convert_models.make(tmp_path / "yarn", convert_models.MODELS["yarn"])
    report = verify.compare(plain, stretched)
    assert not report.is_equal
    assert [setting.split(":")[0] for setting in report.settings] == ["rope_scaling"]
    assert not verify.differing_tensors(report)


def test_other_shapes_are_a_difference_not_an_error(tmp_path):
    small = convert_models.make(tmp_path / "small")
    large = convert_models.make(
        tmp_path / "large", dataclasses.replace(convert_models.UNTIED, mlp_dim=128, num_layers=4)
    )
    report = verify.compare(small, large)
    assert not report.is_equal
    assert report.settings == ("num_layers: 3 and 4", "mlp_dim: 96 and 128")
    assert {leaf.name for leaf in report.leaves} == {"embedding", "final_norm.scale", "output"}


def test_a_folder_that_is_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"not a Hugging Face folder.*no complete checkpoint"):
        verify.compare(tmp_path, tmp_path)
    (tmp_path / "config.json").write_text("{}")  # neither makes a config.json a model
    with pytest.raises(ValueError, match=r"not a Hugging Face folder.*no complete checkpoint"):
        verify.compare(tmp_path, tmp_path)


def test_a_runs_folders_all_mean_its_newest_step(tmp_path):
    """As a run leaves them: its own config.json in the workdir, the export in hf/."""
    workdir = tmp_path / "run"
    hf = convert_models.make(workdir / "hf")
    hf_to_orbax.convert(
        convert_models.make(tmp_path / "old", seed=1), workdir / "checkpoints" / "9"
    )
    hf_to_orbax.convert(hf, workdir / "checkpoints" / "10")
    (workdir / "config.json").write_text('{"model": {"vocab_size": 2570}}')
    for folder in (workdir, workdir / "checkpoints", workdir / "checkpoints" / "10"):
        assert verify.open_source(folder).path == workdir / "checkpoints" / "10"
        assert verify.compare(folder, hf).is_equal
        assert verify_logits.compare(folder, hf).is_equal
    assert not verify.compare(workdir / "checkpoints" / "9", hf).is_equal


def test_logits_show_what_tensors_do_not(tmp_path):
    plain = convert_models.make(tmp_path / "plain")
    stretched = convert_models.make(tmp_path / "linear", convert_models.MODELS["linear"])
    hf_to_orbax.convert(plain, tmp_path / "0", vocab_multiple=64)
    same = verify_logits.compare(plain, tmp_path / "0")
    assert same.is_equal
    assert same.max_kl == 0
    other = verify_logits.compare(plain, stretched)
    assert other.max_abs > 0
    assert other.max_kl >= other.mean_kl > 0


@pytest.mark.oracle
def test_logits_are_those_of_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    hf = convert_models.make(tmp_path / "hf", dtype="float32")
    theirs = transformers.Qwen3ForCausalLM.from_pretrained(hf, dtype=torch.float32)
    tokens = np.random.default_rng(0).integers(0, 2570, (2, 64))
    expected = theirs(torch.from_numpy(tokens)).logits.detach().numpy()
    hf_to_orbax.convert(hf, tmp_path / "0", vocab_multiple=64)
    logits, log_probabilities = verify_logits.logits_of(
        verify.open_source(tmp_path / "0"), tokens.astype(np.int32)
    )
    assert jnp.abs(logits - expected).max() <= 1e-4
    assert jnp.abs(jnp.exp(log_probabilities).sum(-1) - 1).max() <= 1e-5


def test_different_vocabularies_have_no_common_logits(tmp_path):
    a = convert_models.make(tmp_path / "a")
    larger = dataclasses.replace(convert_models.UNTIED, vocab_size=2600)
    b = convert_models.make(tmp_path / "b", larger)
    with pytest.raises(ValueError, match=r"2570 tokens, .* 2600"):
        verify_logits.compare(a, b)
