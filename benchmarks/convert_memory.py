"""Peak memory and time of the conversions, both directions, and whether nothing changed.

    python benchmarks/convert_memory.py --size=0.6b [--size=8b] [--dtype=bfloat16] [--dir=/tmp]

Makes a random folder of a published Qwen3's shape, then runs `python -m convert` in a process of
its own for each direction, so that Python's and jax's own memory and start-up count. Then the same
weights as a run leaves them, float32 and cut along their rows over eight devices (of the CPU), are
exported and verified. Peak memory is that process's `ru_maxrss`: the largest resident set, mapped
files (the libraries) included; the weights are never mapped, so the kernel's page cache is not in
it. Needs 6 times the bfloat16 model's size on the disk of --dir, and leaves nothing there; saving
as a run does holds the model in float32 (not measured; --norun leaves that part out).
"""

import filecmp
import importlib.metadata
import multiprocessing
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import jax
import rich.console
import rich.table
from absl import app, flags

from jaxterm import architecture, checkpoint, config, model, sharding

_SIZE = flags.DEFINE_multi_enum("size", ["0.6b"], list(architecture.QWEN3), "published sizes")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "of the weights")
_RUN = flags.DEFINE_bool("run", True, "also a run's checkpoint, sharded over eight devices")
_DIR = flags.DEFINE_string("dir", None, "where the folders are made; the system's default if none")

_REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
_TOKENIZER = _REPOSITORY / "data_pipeline" / "embedded" / "tokenizer"


def _convert(*arguments: str) -> tuple[float, float, float]:
    """Run a command of convert: (peak memory in GiB, wall seconds, processor seconds)."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "convert", *arguments], cwd=_REPOSITORY)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"convert {arguments} ended with exit code {process.returncode}")
    kib_of_maxrss = 1 if sys.platform != "darwin" else 1 / 1024  # Linux counts KiB, macOS bytes
    return (
        usage.ru_maxrss * kib_of_maxrss / 2**20,
        time.monotonic() - start,
        usage.ru_utime + usage.ru_stime,
    )


def _save_as_a_run_does(step_dir: pathlib.Path, workdir: pathlib.Path) -> None:
    """In a process of its own: the checkpoint of a run on eight devices that starts from this."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    run = config.TrainConfig(model=checkpoint.load_model_config(step_dir))
    mesh = sharding.make_mesh({"data": 1, "fsdp": 8, "context": 1, "tensor": 1})
    abstract = model.abstract_params(run.model, run.compute, mesh)
    params = checkpoint.load_params(step_dir, abstract)
    with checkpoint.Checkpointer(workdir / "checkpoints", keep=1) as saver:
        progress = checkpoint.Progress(step=1, plan_hash="none", seed=0)
        saver.save(params, {"count": jax.numpy.zeros(1)}, progress, run)


def _as_a_run_saves(step_dir: pathlib.Path, workdir: pathlib.Path) -> pathlib.Path:
    process = multiprocessing.get_context("spawn").Process(
        target=_save_as_a_run_does, args=(step_dir, workdir)
    )
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"saving as a run does ended with exit code {process.exitcode}")
    return workdir


def _is_identical(first: pathlib.Path, second: pathlib.Path) -> bool:
    names = sorted(file.name for file in first.iterdir())
    same, _, _ = filecmp.cmpfiles(first, second, names, shallow=False)
    return same == names == sorted(file.name for file in second.iterdir())


def _measure(size: str, work: pathlib.Path, table: rich.table.Table) -> None:
    first, step_dir, second = work / "hf", work / "checkpoint", work / "hf-again"
    dtype = f"--dtype={_DTYPE.value}"
    rows = {
        "random-hf": _convert(
            "random-hf", str(first), f"--size={size}", f"--tokenizer={_TOKENIZER}", dtype
        ),
        "hf-to-orbax": _convert("hf-to-orbax", str(first), str(step_dir)),
        "orbax-to-hf": _convert(
            "orbax-to-hf", str(step_dir), str(second), f"--reference={first}", dtype
        ),
    }
    identical = {"orbax-to-hf": _is_identical(first, second)}
    if _RUN.value:
        workdir, third = _as_a_run_saves(step_dir, work / "run"), work / "hf-of-run"
        rows["orbax-to-hf (run)"] = _convert(
            "orbax-to-hf", str(workdir), str(third), f"--reference={first}", dtype
        )
        identical["orbax-to-hf (run)"] = _is_identical(first, third)
        rows["verify (run)"] = _convert("verify", str(workdir), str(first))
    num_bytes = sum(file.stat().st_size for file in first.glob("*.safetensors"))
    for command, (peak_gib, wall_s, processor_s) in rows.items():
        table.add_row(
            f"{size} ({num_bytes / 1e9:.1f} GB)", command, f"{peak_gib:.2f}", f"{wall_s:.1f}",
            f"{processor_s:.1f}", f"{num_bytes / 1e6 / wall_s:.0f}",
            {True: "yes", False: "NO", None: ""}[identical.get(command)],
        )  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Measure every size; exit code 1 when a round trip changed a byte."""
    del argv
    table = rich.table.Table(
        "model", "command", "peak GiB", "wall s", "CPU s", "MB/s", "identical",
        title="convert: peak memory (ru_maxrss) and time, start-up included",
    )  # fmt: skip
    for size in _SIZE.value:
        with tempfile.TemporaryDirectory(dir=_DIR.value, prefix="convert-memory-") as work:
            _measure(size, pathlib.Path(work), table)
    versions = (
        f"{name} {importlib.metadata.version(name)}"
        for name in ("jax", "orbax-checkpoint", "tensorstore", "numpy")
    )
    console = rich.console.Console(width=100)
    console.print(table)
    console.print(
        f"Python {platform.python_version()}, {', '.join(versions)}; {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}",
        highlight=False,
    )
    return int("NO" in str(list(table.columns[-1].cells)))


if __name__ == "__main__":
    app.run(main)
