"""The evaluate command on a real run's folder: what the run said of itself at its end."""

import dataclasses
import re

import conversations
import packed_rows
import pytest

from jaxterm import config, evaluate, heldout, metrics
from jaxterm import train as train_command


@pytest.fixture(scope="module")
def run_and_workdir(tmp_path_factory):
    """A run of two steps of a very small model, with held-out sessions of two sources."""
    folder = tmp_path_factory.mktemp("evaluate")
    rows = conversations.random_rows(0, 40, sources=("a", "b"))
    corpus = conversations.write_jsonl(folder / "corpus.jsonl", rows)
    run = config.TrainConfig(
        model=dataclasses.replace(packed_rows.TINY, vocab_size=2560),
        max_steps=2,
        start=config.StartConfig(random=True),
        compute=config.ComputeConfig(compute_dtype="float32", attention_block=64),
        mesh=config.MeshConfig(data=-1, fsdp=1),
        data=config.DataConfig(
            corpus=(str(corpus),), row_length=512, global_batch_size=8, heldout_fraction=0.25
        ),
        optimizer=config.OptimizerConfig(peak_lr=1e-2, warmup_fraction=0.0),
        export=config.ExportConfig(enabled=False),
    )
    assert train_command.main(run, folder / "run") == 0
    return run, folder / "run"


def test_the_newest_checkpoint_has_the_loss_that_the_run_ended_with(run_and_workdir, capsys):
    run, workdir = run_and_workdir
    evaluate.main(run, workdir)
    table = capsys.readouterr().out
    assert "run after step 2" in " ".join(table.split()), table
    shown = {source: float(mean) for source, mean in re.findall(r"(\w+) +│ +(\d+\.\d+)", table)}
    before, after = metrics.read_records(workdir, "heldout")
    assert shown.keys() == {heldout.ALL, "a", "b"}
    for source, mean in shown.items():
        assert mean == pytest.approx(after[source], abs=1e-6)
        assert mean < before[source]


def test_a_folder_without_a_checkpoint_is_refused(run_and_workdir, tmp_path):
    run, _ = run_and_workdir
    with pytest.raises(ValueError, match=r"holds no complete checkpoint.*--workdir"):
        evaluate.main(run, tmp_path)
    assert not list(tmp_path.iterdir())
