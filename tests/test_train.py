"""The training command, whole: real folders, real signals, real kills, as a user runs it."""

import json
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy
from small_train import ROOT, command, exported, losses, train

from jaxterm import metrics


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pathlib.Path:
    """A run of twelve steps that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    result = train(workdir, "--config.max_steps=12")
    (workdir.parent / "stdout").write_text(result.stdout)
    return workdir


def begin(workdir: pathlib.Path) -> subprocess.Popen:
    """The run of `whole`, not waited for."""
    return subprocess.Popen(
        command(workdir, "--config.max_steps=12"), cwd=ROOT,
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def wait_for_step(workdir: pathlib.Path, step: int, process: subprocess.Popen) -> None:
    for _ in range(3000):
        if losses(workdir).keys() >= {step}:
            return
        assert process.poll() is None, "the run ended before it was disturbed"
        time.sleep(0.1)
    raise AssertionError(f"no step {step} in five minutes")


def test_a_run_leaves_what_it_promises(whole):
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["steps"] == 12
    assert summary["heldout_loss"] < summary["heldout_loss_before"]
    assert summary["train_loss"] == losses(whole)[12]
    assert pathlib.Path(summary["heldout_corpus"]).is_dir()
    assert summary["hf_dir"] == str(whole / "hf")
    assert summary["config"] == json.loads((whole / "config.json").read_text())
    for name in ("hf/config.json", "hf/generation_config.json", "hf/tokenizer.json",
                 "hf/model.safetensors", "loss.png", "metrics.jsonl"):  # fmt: skip
        assert (whole / name).stat().st_size > 0, name
    table = (whole.parent / "stdout").read_text()
    assert f"{summary['heldout_loss']:.4f}" in table
    assert str(whole / "hf") in table


def test_metrics_have_what_the_issue_names(whole):
    (record,) = [r for r in metrics.read_records(whole, "train") if r["step"] == 12]
    for name in ("loss", "grad_norm", "param_norm", "learning_rate", "tokens_per_s",
                 "loss_tokens_per_s", "padding_share"):  # fmt: skip
        assert np.isfinite(record[name]), name
    assert "mfu" not in record  # the peak of a CPU is not known


def test_the_model_card_is_one_that_the_hub_reads(whole):
    card = huggingface_hub.ModelCard.load(whole / "hf" / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    summary = json.loads((whole / "summary.json").read_text())
    assert f"{summary['heldout_loss']:.4f}" in card.text
    assert summary["plan_hash"] in card.text


def test_the_same_command_again_changes_nothing(whole):
    before = {path: path.stat().st_mtime_ns for path in (whole / "hf").iterdir()}
    result = train(whole, "--config.max_steps=12")
    assert {path: path.stat().st_mtime_ns for path in (whole / "hf").iterdir()} == before
    assert "Held-out loss" in result.stdout


@pytest.mark.slow
def test_stopped_and_resumed_is_bit_for_bit_the_same(whole, tmp_path):
    """SIGTERM after some step: it saves, says so with its exit code, and goes on from there."""
    workdir = tmp_path / "run"
    process = begin(workdir)
    wait_for_step(workdir, 1, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 75
    train(workdir, "--config.max_steps=12")
    assert losses(workdir) == losses(whole)
    for name, values in exported(whole).items():
        np.testing.assert_array_equal(exported(workdir)[name], values)


def test_killed_and_resumed_is_bit_for_bit_the_same(whole, tmp_path):
    """SIGKILL in the middle: the last complete checkpoint is the one it goes on from."""
    workdir = tmp_path / "run"
    process = begin(workdir)
    wait_for_step(workdir, 3, process)
    process.kill()
    process.wait()
    assert not (workdir / "hf").exists()
    train(workdir, "--config.max_steps=12")
    assert losses(workdir) == losses(whole)
    for name, values in exported(whole).items():
        np.testing.assert_array_equal(exported(workdir)[name], values)


def copy_without_its_end(whole: pathlib.Path, workdir: pathlib.Path) -> pathlib.Path:
    """The run as it was after its last checkpoint but one."""
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / "checkpoints" / "12")
    shutil.rmtree(workdir / "hf")
    (workdir / "summary.json").unlink()
    return workdir


def test_killed_behind_the_last_checkpoint_lacks_no_report(whole, tmp_path):
    """What a saved step reports is on disk before it: the summary of a resumed run is whole."""
    workdir = tmp_path / "run"
    process = begin(workdir)
    while not (workdir / "checkpoints" / "12").exists():
        assert process.poll() is None, "the run ended before it was disturbed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    train(workdir, "--config.max_steps=12")
    summaries = [json.loads((run / "summary.json").read_text()) for run in (whole, workdir)]
    for name in ("heldout_loss", "heldout_loss_before", "train_loss", "steps"):
        assert summaries[0][name] == summaries[1][name], name


def test_goes_on_with_other_devices_and_micro_batches(whole, tmp_path):
    workdir = copy_without_its_end(whole, tmp_path / "run")
    train(workdir, "--config.max_steps=12", "--config.mesh.num_cpu_devices=1",
          "--config.optimizer.num_micro_batches=2")  # fmt: skip
    resumed, undisturbed = losses(workdir), losses(whole)
    assert resumed.keys() == undisturbed.keys()
    for step, value in undisturbed.items():
        assert resumed[step] == pytest.approx(value, rel=1e-5)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (whole, workdir)]
    assert summaries[1]["heldout_loss"] == pytest.approx(summaries[0]["heldout_loss"], rel=1e-5)


def test_an_export_of_another_step_is_made_again(whole, tmp_path):
    workdir = copy_without_its_end(whole, tmp_path / "run")
    shutil.copytree(whole / "hf", workdir / "hf")
    stale = exported(workdir)
    stale = {name: np.zeros_like(values) for name, values in stale.items()}
    safetensors.numpy.save_file(stale, workdir / "hf" / "model.safetensors", {"format": "pt"})
    (workdir / "export.json").write_text('{"step": "10"}')
    train(workdir, "--config.max_steps=12")
    for name, values in exported(whole).items():
        np.testing.assert_array_equal(exported(workdir)[name], values)


@pytest.mark.slow
def test_the_readmes_commands_of_the_stages(whole, tmp_path):
    """As they stand there, on this run instead of a 14B one."""
    blocks = re.findall(r"```sh\n(.*?)\n```", (ROOT / "README.md").read_text(), re.S)
    (block,) = [block for block in blocks if "convert verify" in block]
    here = {
        "sessions.jsonl": f"{whole}/data/corpus/heldout",
        "sessions.parquet --sessions=360": f"{tmp_path}/sessions.parquet --sessions=8",
        "/models/Qwen3-14B": f"{whole}/hf",
        "runs/14b": str(whole),
        "my-model": f"{tmp_path}/my-model",
        "checkpoints/start": f"{tmp_path}/start",
        "=prepared": f"={tmp_path}/prepared",
        "inspect prepared": f"inspect {tmp_path}/prepared",
        "evaluate --config=configs/tiny.py": " ".join(
            ["evaluate", *command(whole, "--config.max_steps=12")[3:]]
        ),
    }
    for line in block.splitlines():
        for name, path in here.items():
            line = line.replace(name, path)
        runner, *arguments = shlex.split(line.removeprefix("uv run "))
        assert runner == "python"
        subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)
    assert (
        exported(whole).keys()
        == safetensors.numpy.load_file(tmp_path / "my-model" / "model.safetensors").keys()
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--config.data.epochs=7", r"epochs=2\.0, now 7.*another --workdir"),
        ("--config.optimizer.peak_lr=1e-4", r"optimizer\.peak_lr is 0\.003 there, now 0\.0001"),
        ("--config.max_steps=3", r"config\.max_steps is 12 there, now 3"),
        ("--config.optimizer.max_grad_norm=0", r"optimizer\.max_grad_norm is 1\.0 there, now 0"),
        ("--config.seed=1", r"start.hf was made from another start"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(whole, option, message):
    def contents():
        return {path: path.read_bytes() for path in files if path.is_file()}

    files = [whole / "config.json", whole / "summary.json", *(whole / "hf").iterdir()]
    before = contents()
    result = train(whole, "--config.max_steps=12", option, check=False)
    assert result.returncode == 1
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.stderr
    assert contents() == before
