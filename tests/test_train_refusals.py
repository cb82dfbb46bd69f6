"""What a run refuses, before any work where it can: settings, corpora, starts, losses."""

import dataclasses
import importlib.util
import json
import pathlib
import re

import numpy as np
import pytest
import safetensors.numpy
from small_train import ROOT, losses, train

from convert import random_hf
from data_pipeline import embedded
from jaxterm import architecture, config
from jaxterm import train as train_command


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


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
    result = train(tmp_path / "run", "--config.max_steps=12", "--config.optimizer.peak_lr=1e30",
                   check=False)  # fmt: skip
    assert result.returncode == 1
    assert re.search(r"error: step \d+: (loss|grad_norm) is (nan|inf)", result.stderr)
    assert not (tmp_path / "run" / "hf").exists()
    assert all(np.isfinite(loss) for loss in losses(tmp_path / "run").values())
