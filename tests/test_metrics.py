"""The figures a run reports of itself, against plain arithmetic and a brute-force count."""

import json
import sys
import types

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from jaxterm import architecture, metrics

MODEL = architecture.QWEN3["8b"]


def test_peak_is_that_of_the_longest_matching_kind():
    assert metrics.peak_flops("TPU v5p chip") == 459e12
    assert metrics.peak_flops("TPU v5 lite") == 197e12
    assert metrics.peak_flops("NVIDIA H200") == 989e12
    assert metrics.peak_flops("cpu") == 0


def test_step_flops_are_six_a_parameter_and_token_without_the_lookup():
    matrices, attention = metrics.step_flops(MODEL, num_tokens=10, attention_pairs=0)
    lookup = MODEL.vocab_size * MODEL.embed_dim
    assert matrices == 6 * 10 * (8_190_735_360 - lookup)
    assert attention == 0
    frozen, _ = metrics.step_flops(MODEL, num_tokens=10, attention_pairs=0, is_frozen=True)
    assert frozen == 4 * 10 * (8_190_735_360 - lookup)  # two products of three


def test_attention_flops_of_a_full_row_agree_with_published_arithmetic():
    """8B at a full 32k document: 29.0 GFLOP of attention a token (12 L N H T / 2)."""
    length = 32_768
    pairs = length * (length + 1) / 2
    _, attention = metrics.step_flops(MODEL, num_tokens=length, attention_pairs=pairs)
    assert attention / length / 1e9 == pytest.approx(29.0, abs=0.05)


RATES = {"seconds": 2.0, "num_tokens": 300, "num_loss_tokens": 100, "num_positions": 400}


def test_throughput_counts_padding_and_knows_no_mfu_on_a_cpu():
    rates = metrics.throughput(MODEL, **RATES, attention_pairs=1.0)
    assert rates["tokens_per_s"] == 150
    assert rates["loss_tokens_per_s"] == 50
    assert rates["padding_share"] == pytest.approx(0.25)
    assert not {"mfu", "mfu_attention"} & rates.keys()


def test_mfu_is_a_share_of_the_peak_of_all_devices(monkeypatch):
    """8B, full rows of 32k at 6 x 7.568e9 and 29.0e9 FLOP a token, on eight devices."""
    monkeypatch.setattr(metrics, "peak_flops", lambda kind: 459e12)
    length = 32_768
    rates = metrics.throughput(
        MODEL,
        **RATES | {"num_tokens": length, "num_loss_tokens": length},
        attention_pairs=length * (length + 1) / 2,
    )
    per_token = 8 * 459e12 * 2.0 / length
    assert rates["mfu"] == pytest.approx(6 * 7.568405504e9 / per_token, rel=1e-9)
    assert rates["mfu_attention"] == pytest.approx((45.4104e9 + 29.0e9) / per_token, rel=1e-3)


def test_the_head_counts_for_trained_tokens(monkeypatch):
    """8B: 6 x 151,936 x 4,096 FLOPs of the head for each of 100 tokens of 300."""
    monkeypatch.setattr(metrics, "peak_flops", lambda kind: 1e12)
    rates = metrics.throughput(MODEL, **RATES, attention_pairs=0)
    untrained = (rates["mfu"] - rates["mfu_attention"]) * 8 * 1e12 * 2.0
    assert untrained == pytest.approx(200 * 6 * 151_936 * 4_096, rel=1e-9)


def test_a_resumed_run_forgets_records_after_its_checkpoint(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, first_step=0)
    for step in range(1, 6):
        writer.write(step, "train", {"loss": float(step)})
    writer.close()
    with (tmp_path / metrics.FILE_NAME).open("a") as file:
        file.write('{"step": 6, "kind": "train", "lo')  # killed while writing
    writer = metrics.MetricsWriter(tmp_path, first_step=3)
    writer.write(4, "train", {"loss": 40.0})
    writer.close()
    records = metrics.read_records(tmp_path, "train")
    assert [(r["step"], r["loss"]) for r in records] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_records_are_also_tensorboard_events(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, first_step=0)
    writer.write(7, "train", {"loss": 1.5})
    writer.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    scalars = [
        (event.step, value.tag, value.simple_value)
        for event in _events(file.read_bytes())
        for value in event.summary.value
    ]
    assert scalars == [(7, "train/loss", 1.5)]
    assert json.loads((tmp_path / metrics.FILE_NAME).read_text())["loss"] == 1.5


def test_wandb_gets_every_record_and_a_resumed_run_goes_on_in_its_run(tmp_path, monkeypatch):
    calls = []

    def init(**arguments):
        calls.append(("init", arguments))
        return types.SimpleNamespace(
            log=lambda values, step: calls.append(("log", values, step)),
            finish=lambda: calls.append(("finish",)),
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for step in (1, 2):
        writer = metrics.MetricsWriter(
            tmp_path, first_step=step - 1, wandb_project="terminal", settings={"seed": 42}
        )
        writer.write(step, "train", {"loss": 1.5, "tokens_per_s": 10.0})
        writer.close()
    first, second = calls[:3], calls[3:]
    assert first[0] == second[0]
    assert first[0][1] | {"id": ""} == {
        "project": "terminal", "dir": str(tmp_path), "config": {"seed": 42}, "id": "",
        "resume": "allow",
    }  # fmt: skip
    assert first[0][1]["id"]
    for step, made in ((1, first), (2, second)):
        assert made[1:] == [
            ("log", {"train/loss": 1.5, "train/tokens_per_s": 10.0}, step),
            ("finish",),
        ]


def test_missing_wandb_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises ImportError
    with pytest.raises(ValueError, match="uv sync --extra wandb"):
        metrics.MetricsWriter(tmp_path, first_step=0, wandb_project="terminal")


def _events(data: bytes):
    """TFRecord framing: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    at = 0
    while at < len(data):
        size = int(np.frombuffer(data[at : at + 8], "<u8")[0])
        event = event_pb2.Event()
        event.ParseFromString(data[at + 12 : at + 12 + size])
        yield event
        at += size + 16
