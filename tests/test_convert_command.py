"""`python -m convert` as a process: exit codes and messages."""

import pathlib
import subprocess
import sys

import convert_models
import numpy as np
import pytest

from convert import hf_to_orbax

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def _run(*words) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "convert", *map(str, words)]
    done = subprocess.run(command, cwd=REPOSITORY, text=True, capture_output=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    convert_models.make(root / "hf")
    hf_to_orbax.convert(root / "hf", root / "0")
    return root


def test_there_and_back_and_verified(folders, tmp_path):
    hf = folders / "hf"
    code, out, err = _run("hf-to-orbax", hf, tmp_path / "0", "--vocab_multiple=64")
    assert (code, err) == (0, "")
    assert "done in" in out
    code, out, err = _run("orbax-to-hf", tmp_path / "0", tmp_path / "hf", f"--reference={hf}")
    assert (code, err) == (0, "")
    assert convert_models.contents(tmp_path / "hf") == convert_models.contents(hf)
    code, out, err = _run("verify", tmp_path / "0", tmp_path / "hf", "--logits")
    assert (code, err) == (0, "")
    assert out.startswith(f"equal: {len(convert_models.tensors(hf))} tensors")
    assert "max abs difference 0," in out


def test_verify_ends_with_1_when_they_differ(folders, tmp_path):
    other = convert_models.make(tmp_path / "other", seed=1)
    code, out, err = _run("verify", folders / "0", other)
    assert (code, err) == (1, "")
    assert "DIFFERENT" in out
    assert "model.embed_tokens.weight" in out


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 0), (1000.0, 1)])
def test_rounding_excuses_only_as_much_as_it_explains(tmp_path, factor, expected):
    """With a head a thousand times larger, what rounding changes is another distribution."""
    wide = convert_models.make(tmp_path / "wide", dtype="float32")
    head = convert_models.tensors(wide)["lm_head.weight"] * np.float32(factor)
    convert_models.rewrite(wide / "model.safetensors", {"lm_head.weight": head})
    hf_to_orbax.convert(wide, tmp_path / "0", dtype="bfloat16")
    code, out, err = _run("verify", wide, tmp_path / "0", "--logits")
    assert (code, err) == (expected, "")
    assert "equal after rounding" in out
    assert ("logits DIFFERENT" in out) == bool(expected)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("hf-to-orbax", "{nowhere}", "{out}"), "config.json is missing"),
        (("orbax-to-hf", "{orbax}", "{out}"), "orbax-to-hf needs --reference"),
        (("verify", "{hf}", "{hf}", "--eos=fix"), "verify has no --eos"),
        (("to-gguf", "{hf}"), "to-gguf: give one of hf-to-orbax, orbax-to-hf, verify, random-hf"),
    ],
)
def test_a_users_error_is_one_line(folders, tmp_path, words, fault):
    paths = {"nowhere": tmp_path / "nowhere", "out": tmp_path / "out", "hf": folders / "hf",
             "orbax": folders / "0"}  # fmt: skip
    code, out, err = _run(*(word.format(**paths) for word in words))
    assert code == 1
    assert out == ""
    assert fault in err
    assert err.startswith("convert: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help_has_examples():
    code, out, _ = _run("--help")
    assert code == 1  # absl's exit code for --help
    assert "python -m convert hf-to-orbax ~/models/Qwen3-8B" in out
    assert "--max_shard_gb" in out
