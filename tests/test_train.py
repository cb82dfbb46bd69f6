"""The training command, whole: real folders, real signals, real kills, as a user runs it.

The runs are those of configs/tiny.py cut down to a few steps of a smaller model.
"""

import dataclasses
import importlib.util
import json
import os
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

from convert import random_hf
from data_pipeline import embedded
from jaxterm import architecture, config, metrics
from jaxterm import train as train_command

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMALL = (
    "--config.model.embed_dim=32", "--config.model.mlp_dim=64", "--config.model.num_layers=2",
    "--config.model.num_heads=2", "--config.model.num_kv_heads=1", "--config.model.head_dim=16",
    "--config.data.row_length=2048", "--config.data.global_batch_size=2",
    "--config.log.checkpoint_every_steps=2", "--config.log.eval_every_steps=0",
)  # fmt: skip


def command(workdir: pathlib.Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "jaxterm.train", "--config=configs/tiny.py",
            f"--workdir={workdir}", *SMALL, *options]  # fmt: skip


def train(workdir: pathlib.Path, *options: str, check: bool = True, **environment: str):
    result = subprocess.run(
        command(workdir, *options), cwd=ROOT, env=os.environ | environment,
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert not check or result.returncode == 0, result.stderr
    return result


def begin(workdir: pathlib.Path) -> subprocess.Popen:
    """The run of `whole`, not waited for."""
    return subprocess.Popen(
        command(workdir, "--config.max_steps=12"), cwd=ROOT,
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def losses(workdir: pathlib.Path) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in metrics.read_records(workdir, "train")}


def exported(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(workdir / "hf" / "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pathlib.Path:
    """A run of twelve steps that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    result = train(workdir, "--config.max_steps=12")
    (workdir.parent / "stdout").write_text(result.stdout)
    return workdir


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


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
    result = train(tmp_path / "run", "--config.max_steps=12", "--config.optimizer.peak_lr=1e30",
                   check=False)  # fmt: skip
    assert result.returncode == 1
    assert re.search(r"error: step \d+: (loss|grad_norm) is (nan|inf)", result.stderr)
    assert not (tmp_path / "run" / "hf").exists()
    assert all(np.isfinite(loss) for loss in losses(tmp_path / "run").values())


def wait_for_step(workdir: pathlib.Path, step: int, process: subprocess.Popen) -> None:
    for _ in range(3000):
        if losses(workdir).keys() >= {step}:
            return
        assert process.poll() is None, "the run ended before it was disturbed"
        time.sleep(0.1)
    raise AssertionError(f"no step {step} in five minutes")


def small_settings(**data) -> config.TrainConfig:
    """configs/tiny.py with other data settings."""
    spec = importlib.util.spec_from_file_location("tiny", ROOT / "configs" / "tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    run = config.from_config_dict(module.get_config())
    return dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, global_batch_size=8, **data),
        optimizer=dataclasses.replace(run.optimizer, num_micro_batches=1),
    )


def jsonl(path: pathlib.Path, *lines: str) -> tuple[str, ...]:
    path.write_text("".join(line + "\n" for line in lines))
    return (str(path),)


USER = '{"role": "user", "content": "list the files"}'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), r"corpus\.jsonl"),
        (("{not json",), r"corpus\.jsonl.*line 1"),
        ((f'{{"conversations": [{USER}]}}',), r"corpus\.jsonl.*assistant"),
        (('{"messages": []}',), r"corpus\.jsonl.*conversations"),
    ],
)
def test_a_bad_corpus_is_named_and_nothing_is_left(tmp_path, lines, message):
    corpus = jsonl(tmp_path / "corpus.jsonl", *lines)
    with pytest.raises(ValueError, match=message):
        train_command.main(small_settings(corpus=corpus), tmp_path / "run")
    assert not (tmp_path / "run" / "data").exists()
    assert not (tmp_path / "run" / "hf").exists()


def test_a_start_of_another_model_is_refused(tmp_path):
    run = small_settings()
    random_hf.make_random_hf_folder(run.model, embedded.tokenizer_dir(), tmp_path / "hf")
    other = dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, num_layers=2, rope_theta=5e6),
        start=config.StartConfig(hf_dir=str(tmp_path / "hf")),
    )
    with pytest.raises(ValueError, match=r"num_layers is 3 there and 2 .*rope_theta is 1000000"):
        train_command.main(other, tmp_path / "run")


def test_a_start_that_knows_scaled_positions_is_not_trained_without(tmp_path):
    run = small_settings()
    scaling = architecture.RopeScaling(kind="linear", factor=2.0)
    scaled = dataclasses.replace(run.model, rope_scaling=scaling, max_positions=81_920)
    random_hf.make_random_hf_folder(scaled, embedded.tokenizer_dir(), tmp_path / "hf")
    run = dataclasses.replace(run, start=config.StartConfig(hf_dir=str(tmp_path / "hf")))
    with pytest.raises(ValueError, match=r"rope_scaling is .*linear.*max_positions is 81920"):
        train_command.main(run, tmp_path / "run")


def edit_json(path: pathlib.Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def cut_weights(folder: pathlib.Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_tensor(folder: pathlib.Path) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})


def end_elsewhere(folder: pathlib.Path) -> None:
    edit_json(folder / "generation_config.json", eos_token_id=[0])


def drop_tokenizer(folder: pathlib.Path) -> None:
    (folder / "tokenizer.json").unlink()


def shrink_vocabulary(folder: pathlib.Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"][-1]["id"] = 99_999
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_weights, r"model\.safetensors"),
        (drop_tensor, r"model\.layers\.1\.mlp\.up_proj\.weight"),
        (end_elsewhere, r"could not be exported.*eos_token_id=\[0\].*config\.export\.eos"),
        (drop_tokenizer, r"tokenizer\.json is missing"),
        (shrink_vocabulary, r"token ids up to 99999, the model's vocab_size is 2560"),
    ],
)
def test_a_bad_start_is_found_before_any_work(tmp_path, spoil, message):
    run = small_settings()
    random_hf.make_random_hf_folder(
        run.model, embedded.tokenizer_dir(), tmp_path / "hf", dtype="float32"
    )
    spoil(tmp_path / "hf")
    run = dataclasses.replace(run, start=config.StartConfig(hf_dir=str(tmp_path / "hf")))
    with pytest.raises(ValueError, match=message):
        train_command.main(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_needs_one_start_and_one_source_of_data(tmp_path):
    run = small_settings()
    with pytest.raises(ValueError, match=r"set --config\.start\.hf_dir"):
        train_command.main(dataclasses.replace(run, start=config.StartConfig()), tmp_path / "run")
    with pytest.raises(ValueError, match=r"config\.data\.prepared_dir='': set one of the two"):
        train_command.main(small_settings(corpus=()), tmp_path / "run")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--config.data.global_batch_size=3", r"global_batch_size.*=3 must be a multiple of"),
        ("--config.data.row_lenght=77", r"row_length"),
    ],
)
def test_the_command_ends_with_one_clear_line(option, message, tmp_path):
    result = train(tmp_path / "run", option, check=False, JAX_NUM_CPU_DEVICES="8")
    assert result.returncode != 0
    assert re.search(message, result.stderr), result.stderr
    assert not (tmp_path / "run").exists()
    assert [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "Traceback" not in result.stderr
