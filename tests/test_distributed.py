"""Several processes are one run: real processes, joined by jax.distributed over localhost."""

import os
import re
import socket
import subprocess
import sys

import numpy as np
import pytest
from small_train import ROOT, command, exported, losses, train

OPTIONS = (
    "--config.max_steps=4",
    "--config.data.global_batch_size=8",
    "--config.data.row_length=1024",
    "--config.mesh.fsdp=4",
    "--config.mesh.context=2",
)


def start(workdir, *options, process: int, num_processes: int, port: int) -> subprocess.Popen:
    environment = os.environ | {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(num_processes),
        "JAX_PROCESS_ID": str(process),
        "JAX_NUM_CPU_DEVICES": str(8 // num_processes),
    }
    return subprocess.Popen(
        command(workdir, *OPTIONS, *options), cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_two(workdir, *options, timeout_s: float) -> tuple[list[int], list[str]]:
    """Exit codes and outputs of a run of two processes."""
    port = free_port()
    both = [start(workdir, *options, process=i, num_processes=2, port=port) for i in range(2)]
    outputs = [out for out, _ in outputs_of(both, timeout_s=timeout_s)]
    return [process.returncode for process in both], outputs


def outputs_of(processes: list[subprocess.Popen], *, timeout_s: float) -> list[tuple[str, str]]:
    """What each of them printed by its end; none outlives this."""
    try:
        return [process.communicate(timeout=timeout_s) for process in processes]
    finally:
        for process in processes:
            process.kill()


def joined(*environments: dict[str, str]) -> list[str]:
    """What each process says of the run that it joined: (index, count) or "alone"."""
    program = (
        "import jax; from jaxterm import distributed; distributed.start(); "
        "print((jax.process_index(), jax.process_count())"
        " if jax.distributed.is_initialized() else 'alone')"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, env=os.environ | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for environment in environments
    ]  # fmt: skip
    outputs = outputs_of(processes, timeout_s=120)
    assert all(process.returncode == 0 for process in processes), outputs
    return [out.strip() for out, _ in outputs]


def test_variables_of_a_pod_off_a_tpu_are_no_run_to_join():
    """Images made for TPU hosts set some; a laptop or a GPU that runs them is alone."""
    assert joined({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5p-8"}) == [
        "alone"
    ]


def test_joins_the_tasks_of_a_slurm_step():
    step = {
        "JAX_COORDINATOR_PORT": str(free_port()), "SLURM_JOB_ID": "1", "SLURM_NTASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
    }  # fmt: skip
    tasks = [step | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    assert joined(*tasks) == ["(0, 2)", "(1, 2)"]


def test_joins_the_slices_of_a_tpu_job():
    """As GKE names them, two slices of one host; the hosts have no chips and compute on CPUs."""
    job = {
        "JAX_FORCE_TPU_INIT": "1", "JAX_PLATFORMS": "cpu", "TPU_WORKER_ID": "0",
        "TPU_WORKER_HOSTNAMES": "localhost", "JAX_COORDINATOR_PORT": str(free_port()),
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost:8080", "MEGASCALE_NUM_SLICES": "2",
    }  # fmt: skip
    slices = [job | {"MEGASCALE_SLICE_ID": str(i)} for i in range(2)]
    assert joined(*slices) == ["(0, 2)", "(1, 2)"]


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path):
    """Same mesh of eight devices, in one process and in two: same losses, same model."""
    train(tmp_path / "one", *OPTIONS, JAX_NUM_CPU_DEVICES="8")
    codes, outputs = run_two(tmp_path / "two", timeout_s=900)
    assert codes == [0, 0], "\n\n".join(outputs)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one.keys() == two.keys() == {1, 2, 3, 4}
    np.testing.assert_allclose(list(one.values()), list(two.values()), rtol=1e-6)
    ours, theirs = exported(tmp_path / "one"), exported(tmp_path / "two")
    for name, values in ours.items():
        np.testing.assert_allclose(theirs[name], values, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_an_error_in_process_0_ends_all(tmp_path):
    """At once: a process that waits for the other's end would wait for five minutes."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("{not json\n")
    codes, outputs = run_two(tmp_path / "run", f"--config.data.corpus={corpus}", timeout_s=240)
    assert codes == [1, 1], "\n\n".join(outputs)
    assert re.search(r"^error: .*corpus\.jsonl.*line 1", outputs[0], re.MULTILINE), outputs[0]
    assert "error: prepare failed in process 0; see its output" in outputs[1]
    assert not any("Traceback" in output for output in outputs)
