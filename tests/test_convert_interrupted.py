"""What `python -m convert` leaves when it is killed, or when a write fails half-way."""

import dataclasses
import pathlib
import signal
import subprocess
import sys
import time

import convert_models
import pytest

from convert import hf_to_orbax, orbax_to_hf, verify

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
BIG = dataclasses.replace(convert_models.UNTIED, num_layers=4, embed_dim=1024, mlp_dim=3072)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """hf/ and 0/ of one model, 260 MB: large enough to be met in the middle."""
    root = tmp_path_factory.mktemp("models")
    convert_models.make(root / "hf", BIG, dtype="float32")
    hf_to_orbax.convert(root / "hf", root / "0")
    return root


def _words(direction: str, models: pathlib.Path, output: pathlib.Path) -> list[str]:
    options = ["--dtype=float32"]
    if direction == "orbax-to-hf":
        options.append(f"--reference={models / 'hf'}")
    given = models / ("hf" if direction == "hf-to-orbax" else "0")
    return [sys.executable, "-m", "convert", direction, str(given), str(output), *options]


@pytest.mark.parametrize("direction", ["hf-to-orbax", "orbax-to-hf"])
def test_a_write_that_fails_leaves_nothing(models, tmp_path, direction):
    """A limit on the size of a file makes the operating system refuse a write."""
    limited = ["bash", "-c", 'ulimit -f 2000 && exec "$@"', "limited"]
    command = [*limited, *_words(direction, models, tmp_path / "out")]
    done = subprocess.run(command, cwd=REPOSITORY, text=True, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("convert: ")
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("direction", ["hf-to-orbax", "orbax-to-hf"])
def test_a_kill_leaves_nothing_under_the_final_name(models, tmp_path, direction):
    output = tmp_path / "out"
    command = _words(direction, models, output)
    with subprocess.Popen(command, cwd=REPOSITORY) as process:
        while not (tmp_path / ".out.convert-partial").exists():
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not output.exists()
    assert convert_models.leftovers(tmp_path) == [".out.convert-partial"]
    if direction == "hf-to-orbax":
        hf_to_orbax.convert(models / "hf", output)
    else:
        orbax_to_hf.convert(models / "0", output, reference=models / "hf", dtype="float32")
    assert not convert_models.leftovers(tmp_path)
    assert verify.compare(models / "hf", output).is_equal
