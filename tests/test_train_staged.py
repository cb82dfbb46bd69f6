"""A run over stages of different shapes: it trains, and resumes over the border."""

import json
import shutil

import numpy as np
import pytest
from small_train import losses, train

from jaxterm import metrics

pytestmark = pytest.mark.slow

STAGES = """
[[stage]]
name = "short"
row_length = 512
global_batch_size = 4
tokens = 6_000

[[stage]]
name = "long"
tokens = 16_000
order = "easy_to_hard"
replay = 0.1
"""


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("staged")
    (folder / "stages.toml").write_text(STAGES)
    options = (
        "--config.data.curriculum=staged", f"--config.data.stages={folder / 'stages.toml'}",
        "--config.log.checkpoint_every_steps=1", "--config.log.keep_checkpoints=99",
        "--config.log.metrics_every_steps=1", "--config.export.enabled=False",
    )  # fmt: skip
    train(folder / "run", *options)
    return folder, options


def test_every_step_has_the_shape_of_its_stage(staged):
    folder, _ = staged
    report = json.loads((folder / "run" / "data" / "plan" / "report.json").read_text())
    short, long = report["stages"]
    records = metrics.read_records(folder / "run", "train")
    positions = [record["tokens"] / (1 - record["padding_share"]) for record in records]
    expected = [4 * 512] * short["steps"] + [2 * 2048] * long["steps"]
    np.testing.assert_allclose(positions, expected)
    assert min(short["steps"], long["steps"]) >= 2


def test_resuming_before_the_border_gives_the_same_losses(staged, tmp_path):
    folder, options = staged
    shutil.copytree(folder / "run", tmp_path / "run")
    report = json.loads((folder / "run" / "data" / "plan" / "report.json").read_text())
    border = report["stages"][1]["first_step"]
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) >= border:
            shutil.rmtree(path)
    train(tmp_path / "run", *options)
    expected, found = losses(folder / "run"), losses(tmp_path / "run")
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-6)


@pytest.mark.parametrize("setting", ["global_batch_size = 3", "row_length = 65536"])
def test_a_stage_that_does_not_fit_the_run_is_named(staged, tmp_path, setting):
    (tmp_path / "odd.toml").write_text(f"[[stage]]\nname = 'odd'\n{setting}\n")
    options = (*staged[1], f"--config.data.stages={tmp_path / 'odd.toml'}")
    result = train(tmp_path / "run", *options, check=False)
    assert result.returncode == 1
    assert f"stage 'odd' has {setting.replace(' ', '')}" in result.stderr
