"""Generated tasks in the local sandbox, through Harbor: what solutions score, and doing nothing."""

import subprocess

import generated_tasks
import pytest
from harbor_side import PROGRAM, needs_harbor
from sandboxes import needs_sandbox

from data_pipeline import harbor, rollout_options
from data_pipeline.taskgen import task as task_module

pytestmark = [pytest.mark.slow, needs_harbor, needs_sandbox]


def rewards(agent, wanted, folder):
    """Label -> reward, of one trial of each task."""
    labels = {}
    for label, task in wanted.items():
        task_module.write_task(task, folder / "tasks")
        labels[task.name] = label
    with harbor.process_environment(rollout_options.RolloutOptions(model="a/b")) as environment:
        done = subprocess.run(
            [str(PROGRAM), "run", "--path", str(folder / "tasks"), "--agent", agent,
             "--env", "data_pipeline.harbor_environment:LocalSandbox", "--n-concurrent", "2",
             "--jobs-dir", str(folder), "--job-name", "job", "--quiet", "--yes"],
            env=environment, capture_output=True, timeout=600, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    return generated_tasks.rewards_in(folder / "job", labels, done)


def test_solutions_score_one_and_half_a_solution_its_weight(tmp_path):
    wanted = generated_tasks.solved()
    assert rewards("oracle", wanted, tmp_path) == generated_tasks.rewards_of_solutions(wanted)


def test_doing_nothing_scores_less(tmp_path):
    wanted = generated_tasks.tasks()
    assert rewards("nop", wanted, tmp_path) == generated_tasks.rewards_of_nothing(wanted)
