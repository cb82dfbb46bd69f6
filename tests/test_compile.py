"""The preflight: what every published config costs on its pod, and one of them compiled in full."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import make_preflight_goldens as goldens_maker
import pytest

from jaxterm import architecture, config
from jaxterm.preflight import analysis, chips, compiled_step

ROOT = pathlib.Path(__file__).resolve().parents[1]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: uv sync --extra tpu"
)


def compile_command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "jaxterm.compile", *arguments],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def known():
    return json.loads(goldens_maker.PATH.read_text())


def test_every_pod_of_a_config_was_compiled_with_the_settings_it_has_now(known):
    """Otherwise: uv run --extra tpu python tests/make_preflight_goldens.py."""
    published = {name: (run, pod) for name, run, pod in goldens_maker.published()}
    assert known.keys() == published.keys()
    for name, (run, pod) in published.items():
        assert goldens_maker.was_compiled_for(known[name]["settings"], run), name
        assert known[name]["topology"] == pod


def test_every_published_config_fits_its_pod_with_room(known):
    for name, found in known.items():
        assert found["fits"], name
        assert found["peak_bytes"] <= 0.95 * found["capacity_bytes"], name
        assert sum(found["memory"].values()) == found["peak_bytes"], name
        assert found["collective_bytes"] == sum(
            kind["bytes"] for kind in found["collectives"].values()
        )
        # 6N counts norms' scales too, which are no products: a little below 1 is nothing twice.
        assert 0.9999 <= found["recompute_share"] < 1.4, name
    recommended = known["14b v5p:2x4x4"]
    assert recommended["recompute_share"] <= 1.12
    assert recommended["peak_bytes"] <= 0.9 * recommended["capacity_bytes"]


@needs_libtpu
@pytest.mark.slow
def test_a_published_config_compiles_to_its_golden(known, tmp_path):
    done = compile_command(
        "--config=configs/14b.py:v5p:2x4x4", "--topology=v5p:2x4x4", f"--output={tmp_path}"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "report.json").read_text())
    golden = known["14b v5p:2x4x4"]
    assert found["peak_bytes"] == pytest.approx(golden["peak_bytes"], rel=0.02)
    assert found["collective_bytes"] == pytest.approx(golden["collective_bytes"], rel=0.02)
    assert found["step_flops"] == pytest.approx(golden["step_flops"], rel=0.01)
    # No gradient of a weight is reduced at full size: what is all-reduced are those of keys and
    # values, between the two devices of a row, and norms' scales.
    keys_bytes = 40 * 8 * 32_768 * 8 * 128 * 2  # layers, micro-batches, tokens, heads, bfloat16
    assert found["collectives"]["all-reduce"]["bytes"] < 2 * keys_bytes + 0.2e9
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"peak +\d+\.\d\d", done.stdout)
    assert "MFU" in done.stdout and "estimate" in done.stdout


@needs_libtpu
@pytest.mark.slow
def test_on_64_chips_no_gradient_of_a_weight_is_all_reduced(tmp_path):
    """Of a matrix in a block that is: the head is gathered by what libtpu calls an all-reduce."""
    embed_dim, mlp_dim, vocab_size = 1024, 4096, 2560
    done = compile_command(
        "--config=configs/tiny.py", "--topology=v5p:4x4x4", f"--output={tmp_path}",
        f"--config.model.embed_dim={embed_dim}", f"--config.model.mlp_dim={mlp_dim}",
        "--config.mesh.data=1", "--config.mesh.fsdp=64", "--config.data.global_batch_size=64",
        "--config.compute.compute_dtype=bfloat16",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    collectives = json.loads((tmp_path / "report.json").read_text())["collectives"]
    head_bytes, gradient_bytes = 4 * vocab_size * embed_dim, 2 * mlp_dim * embed_dim
    assert collectives["all-reduce"]["bytes"] < head_bytes + gradient_bytes / 2
    assert collectives["collective-permute"]["bytes"] > 3 * 3 * 3 * gradient_bytes  # as rings


def small_preflight(**compute):
    """Of 12 small layers with rows of 8,192 tokens, one on each of four devices."""
    run = config.TrainConfig(
        model=dataclasses.replace(architecture.QWEN3["0.6b"], num_layers=12, vocab_size=4096),
        compute=config.ComputeConfig(compute_dtype="bfloat16", **compute),
        data=config.DataConfig(row_length=8192, global_batch_size=4),
    )
    with jax.numpy_rank_promotion("allow"):  # tokamax promotes
        return analysis.analyse(compiled_step.compile_step(run, "v5p:2x2x1"))


@needs_libtpu
@pytest.mark.slow
def test_what_waits_on_the_host_is_not_counted_on_the_device():
    products_bytes = 2 * 12 * 8192 * 3072 * 2  # gate and up of each layer, bfloat16
    some = small_preflight(remat="projections")
    moved = small_preflight(remat="projections", remat_offload=("gate", "up"))
    assert moved.host_bytes == products_bytes and some.host_bytes == 0
    assert moved.host_transfer_bytes == 2 * products_bytes
    assert moved.memory["activations"] == some.memory["activations"]
    # Slices on their way stay: of two layers, forth and back.
    assert some.peak_bytes < moved.peak_bytes < some.peak_bytes + products_bytes / 12 * 4
    assert moved.recompute_share < some.recompute_share


@needs_libtpu
@pytest.mark.slow
def test_a_step_that_does_not_fit_says_so():
    done = compile_command(
        "--config=configs/14b.py", "--topology=v5e:4x4", "--config.data.global_batch_size=16",
        "--config.optimizer.num_micro_batches=1",
    )  # fmt: skip
    assert done.returncode == 1
    assert re.search(r"does not fit: .*exceeds available HBM", done.stdout, re.S)


def test_topologies_are_listed_and_unknown_ones_named():
    done = compile_command("--topology=list")
    assert done.returncode == 0
    for name in chips.CHIPS:
        assert name in done.stdout
    done = compile_command("--config=configs/8b.py", "--topology=v3:2x2")
    assert done.returncode == 1
    assert "error: --topology=v3:2x2: the generation must be one of v5e, v5p" in done.stderr
    done = compile_command("--config=configs/8b.py:v9", "--topology=v5e:8x8")
    assert done.returncode != 0
    assert "settings are known for v5e:8x8, v5p:2x2x4, v6e:4x4" in done.stderr


@needs_libtpu
def test_a_pod_that_is_not_there_leaves_no_trace_in_the_environment():
    """Programs started afterwards would take its variables for a pod to join."""
    before = dict(os.environ)
    assert [len(chips.devices_of(pod)) for pod in ("v5p:2x2x2", "v5e:4x4")] == [8, 16]
    with pytest.raises(ValueError, match="v5e:5x7: libtpu knows no such topology"):
        chips.devices_of("v5e:5x7")
    assert dict(os.environ) == before


@needs_libtpu
@pytest.mark.slow
def test_a_search_ranks_what_fits_and_goes_on_where_it_stopped(tmp_path):
    arguments = (
        "--config=configs/tiny.py", "--topology=v5e:2x2", "--config.data.global_batch_size=4",
        "--search", f"--output={tmp_path}",
    )  # fmt: skip
    done = compile_command(*arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "use: --config.mesh.fsdp=" in done.stdout
    results = sorted(tmp_path.glob("*.json"))
    before = {path: path.stat().st_mtime_ns for path in results}
    assert results and compile_command(*arguments).stdout.count("use: ") == 1
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*.json"))} == before
