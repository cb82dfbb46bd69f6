"""The promises of a plan on a tenth of a corpus with the paper's lengths (nothing is timed)."""

import json
import pathlib
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_pipeline import plan, shards
from data_pipeline.planning import curriculum, packing, pieces, plan_rows, stage_specs

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import synthetic_index  # noqa: E402


@pytest.fixture(scope="module")
def index():
    return synthetic_index.make(seed=5, scale=0.1)


def test_the_lengths_are_those_published(index):
    lengths, sources = index["num_tokens"].to_numpy(), np.array(index["source"].to_pylist())
    for subset in synthetic_index.SUBSETS:
        own = lengths[sources == subset.name]
        assert own.mean() == pytest.approx(subset.mean, rel=0.01)
        for share, tokens in subset.quantiles[:-1]:
            assert np.quantile(own, share) == pytest.approx(tokens, rel=0.02)


def test_fill_rows_balance_and_loss(index, tmp_path):
    pq.write_table(index, tmp_path / shards.INDEX_FILE)
    made = {"stage": "tokenize", "inputs": {}, "options": {}, "counts": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(made))
    options = plan.PlanOptions(epochs=1.0, pictures=False)
    plan.make_plan(tmp_path, output_dir=tmp_path / "plan", options=options)
    report = json.loads((tmp_path / "plan" / "report.json").read_text())
    assert report["fill"] >= 0.995
    assert report["imbalance_max"] <= 1.05 < report["imbalance_random_max"]
    assert report["loss_tokens_lost"]["total"] == 0
    parts = pieces.make_pieces(index, row_length=32_768, overlong="split")
    offline = packing.best_fit_decreasing(parts.num_slots, 32_768).max() + 1
    assert report["rows"] <= 1.005 * offline


def test_truncation_loses_what_was_published(index):
    """20.7% of the reply tokens in over-long adapter examples (paper.md 5.1, Marin)."""
    parts = pieces.make_pieces(index, row_length=32_768, overlong="truncate")
    is_long = parts.overlong & (np.array(index["source"].to_pylist()) == "adapters")
    lost = parts.lost[is_long, 1].sum() / index["num_loss_tokens"].to_numpy()[is_long].sum()
    assert 0.17 < lost < 0.24


@pytest.mark.parametrize("max_segments", [0, 2])
def test_broken_order_is_noticed(index, max_segments, monkeypatch):
    lengths = index["num_tokens"].to_numpy().astype(np.int64)[:3000]
    parts = pieces.make_pieces(index.slice(0, 3000), row_length=32_768, overlong="split")
    stage = curriculum.Stage(stage_specs.StageSpec(name="s"), (np.arange(len(lengths)),))
    settings = plan_rows.RowSettings(
        window_rows=64, max_segments=max_segments, global_batch_size=16, num_shards=4,
        remainder="pad",
    )  # fmt: skip
    plan_rows.pack_stage(stage, parts, settings)
    monkeypatch.setattr(
        plan_rows.balance,
        "deal",
        lambda work, window, **_: np.random.default_rng(0).permutation(len(work)),
    )
    with pytest.raises(AssertionError, match="broken the curriculum's order"):
        plan_rows.pack_stage(stage, parts, settings)
