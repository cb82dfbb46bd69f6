"""Several processes are one run: real processes, joined by jax.distributed over localhost."""

import os
import socket
import subprocess

import numpy as np
import pytest
from test_train import ROOT, command, exported, losses, train

OPTIONS = (
    "--config.max_steps=4",
    "--config.data.global_batch_size=8",
    "--config.data.row_length=1024",
    "--config.mesh.fsdp=4",
    "--config.mesh.context=2",
)


def start(workdir, *, process: int, num_processes: int, port: int) -> subprocess.Popen:
    environment = os.environ | {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(num_processes),
        "JAX_PROCESS_ID": str(process),
        "JAX_NUM_CPU_DEVICES": str(8 // num_processes),
    }
    return subprocess.Popen(
        command(workdir, *OPTIONS), cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path):
    """Same mesh of eight devices, in one process and in two: same losses, same model."""
    train(tmp_path / "one", *OPTIONS, JAX_NUM_CPU_DEVICES="8")
    port = free_port()
    both = [start(tmp_path / "two", process=i, num_processes=2, port=port) for i in range(2)]
    outputs = [process.communicate(timeout=900)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n\n".join(outputs)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one.keys() == two.keys() == {1, 2, 3, 4}
    np.testing.assert_allclose(list(one.values()), list(two.values()), rtol=1e-6)
    ours, theirs = exported(tmp_path / "one"), exported(tmp_path / "two")
    for name, values in ours.items():
        np.testing.assert_allclose(theirs[name], values, atol=1e-5, err_msg=name)
