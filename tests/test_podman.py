"""Generated tasks in containers, by Harbor itself: what solutions score, and doing nothing.

tests/podman/setup.sh installs what this needs. The tasks have the Dockerfile of a domain, built on
an image of this machine instead of a registry's.
"""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import subprocess

import generated_tasks
import pytest
from harbor_side import PROGRAM, WHY_NOT

from data_pipeline.taskgen import domains
from data_pipeline.taskgen import task as task_module

pytestmark = pytest.mark.slow

HERE = pathlib.Path(__file__).parent / "podman"
IMAGE = "localhost/debian:12-jaxterm"
DOMAIN = generated_tasks.DOMAIN
LIMITS = task_module.Limits(network=True)  # compose.yaml cuts it off
BUILD_S, JOB_S = 600, 900


@functools.cache
def environment():
    """Variables under which Harbor meets the settings of tests/podman and its podman-compose."""
    assert PROGRAM is not None
    path = [str(HERE / "bin"), str(PROGRAM.parent), os.environ["PATH"]]
    return os.environ | {
        "PATH": os.pathsep.join(path),
        "CONTAINERS_CONF": str(HERE / "containers.conf"),
        "HARBOR_TELEMETRY": "off",
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }


def run(*words, timeout_s=60.0):
    return subprocess.run(
        [str(word) for word in words],
        env=environment(), capture_output=True, timeout=timeout_s, stdin=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip


def missing():
    """What the setup has not brought."""
    if PROGRAM is None:
        return WHY_NOT
    beyond_ours = environment()["PATH"].partition(os.pathsep)[2]
    for name in ("podman", "podman-compose"):
        if not shutil.which(name, path=beyond_ours):
            return f"{name} is not installed"
    found = run("podman", "image", "exists", IMAGE)
    return f"podman has no image {IMAGE}" if found.returncode else ""


@pytest.fixture(scope="module", autouse=True)
def podman(tmp_path_factory):
    """Skips where podman is not set up, but not where CI has just done it; builds the domain's
    layers once, which those of the tasks then begin with."""
    if os.environ.get("PODMAN_TESTS") == "skip":
        pytest.skip("tests/podman/setup.sh found that podman does not work here")
    if why := missing():
        told = f"{why}; run tests/podman/setup.sh"
        (pytest.fail if os.environ.get("PODMAN_TESTS") == "required" else pytest.skip)(told)
    context = tmp_path_factory.mktemp("context")
    (context / "Dockerfile").write_text(domains.dockerfile(DOMAIN))
    done = run(
        "podman", "build", "--quiet", "--build-arg", f"BASE_IMAGE={IMAGE}", "--tag",
        f"localhost/jaxterm-{DOMAIN}", context,
        timeout_s=BUILD_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:].decode()


def rewards(agent, wanted, folder):
    """Label -> reward, of one trial of each task."""
    labels = {}
    for label, task in wanted.items():
        task_module.write_task(dataclasses.replace(task, limits=LIMITS), folder / "tasks")
        labels[task.name] = label
    done = run(
        PROGRAM, "run", "--path", folder / "tasks", "--agent", agent, "--env", "podman",
        "--extra-docker-compose", HERE / "compose.yaml", "--n-concurrent", 2,
        "--jobs-dir", folder, "--job-name", "job", "--quiet", "--yes",
        timeout_s=JOB_S,
    )  # fmt: skip
    return generated_tasks.rewards_in(folder / "job", labels, done)


def test_solutions_score_one_and_half_a_solution_its_weight(tmp_path):
    wanted = generated_tasks.solved()
    assert rewards("oracle", wanted, tmp_path) == generated_tasks.rewards_of_solutions(wanted)


def test_doing_nothing_scores_less(tmp_path):
    wanted = generated_tasks.tasks()
    assert rewards("nop", wanted, tmp_path) == generated_tasks.rewards_of_nothing(wanted)


def test_what_a_command_prints_has_no_carriage_returns(tmp_path):
    """podman-compose by itself gives a command a terminal, whose lines end in CR LF."""
    file = tmp_path / "compose.json"
    file.write_text(json.dumps({"services": {"main": {"image": IMAGE, "command": "sleep 600"}}}))
    compose = ("podman-compose", "--in-pod=false", "--project-name", f"lines-{os.getpid()}",
               "-f", HERE / "compose.yaml", "-f", file)  # fmt: skip
    up = run(*compose, "up", "--detach", "--no-build")
    try:
        done = run(*compose, "exec", "main", "sh", "-c", "echo exec; echo $0; exit 3", "exec")
    finally:
        run(*compose, "down")
    assert (done.stdout, done.returncode) == (b"exec\nexec\n", 3), (up.stderr, done.stderr)
