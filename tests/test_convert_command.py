"""`python -m convert` as a process: exit codes, messages, and what a kill or a full disk leaves."""

import dataclasses
import pathlib
import resource
import signal
import subprocess
import sys
import time

import convert_models
import pytest

from convert import hf_to_orbax, verify

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def _start(*words, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "convert", *map(str, words)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        **options,
    )  # fmt: skip


def _run(*words, **options) -> tuple[int, str, str]:
    process = _start(*words, **options)
    out, err = process.communicate()
    return process.returncode, out, err


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


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("hf-to-orbax", "{nowhere}", "{out}"), "config.json is missing"),
        (("hf-to-orbax", "{hf}", "{orbax}"), "exists; give another folder"),
        (("orbax-to-hf", "{orbax}", "{out}"), "orbax-to-hf needs --reference"),
        (("verify", "{hf}", "{hf}", "--eos=fix"), "verify has no --eos"),
        (("hf-to-orbax", "{hf}"), "usage: python -m convert hf-to-orbax HF_DIR CHECKPOINT_DIR"),
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


@pytest.mark.parametrize(
    "words", [("hf-to-orbax", "hf"), ("orbax-to-hf", "0", "--reference={folders}/hf")]
)
def test_a_write_that_fails_leaves_nothing(folders, tmp_path, words):
    """A limit on the size of a file makes the operating system refuse a write half-way."""
    command, given, *options = (word.format(folders=folders) for word in words)
    code, _, err = _run(
        command, folders / given, tmp_path / "out", *options,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    assert code == 1
    assert err.startswith("convert: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", [("hf-to-orbax", "hf"), ("orbax-to-hf", "0", "--reference={root}/hf")]
)
def test_a_kill_leaves_nothing_under_the_final_name(tmp_path, words):
    big = dataclasses.replace(convert_models.UNTIED, num_layers=4, embed_dim=1024, mlp_dim=3072)
    convert_models.make(tmp_path / "hf", big, dtype="float32")
    hf_to_orbax.convert(tmp_path / "hf", tmp_path / "0")
    command, given, *options = (word.format(root=tmp_path) for word in words)
    options += ["--dtype=float32"]
    process = _start(command, tmp_path / given, tmp_path / "out", *options)
    while not (tmp_path / ".out.convert-partial").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    assert not (tmp_path / "out").exists()
    assert convert_models.leftovers(tmp_path) == [".out.convert-partial"]
    code, _, err = _run(command, tmp_path / given, tmp_path / "out", *options)
    assert (code, err) == (0, "")
    assert not convert_models.leftovers(tmp_path)
    assert verify.compare(tmp_path / given, tmp_path / "out").is_equal


def test_random_folder_of_a_published_size_needs_its_flags(tmp_path):
    code, _, err = _run("random-hf", tmp_path / "out", "--size=0.6b")
    assert code == 1
    assert "random-hf needs --tokenizer" in err


def test_help_has_examples():
    code, out, _ = _run("--help")
    assert code == 1  # absl's exit code for --help
    assert "python -m convert hf-to-orbax ~/models/Qwen3-8B" in out
    assert "--max_shard_gb" in out
