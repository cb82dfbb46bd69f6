"""What Harbor itself says: its own exporter and its own models, asked in its own interpreter."""

import json
import os
import pathlib
import shutil
import subprocess

import pytest

from data_pipeline import harbor

try:
    PROGRAM = harbor.find_program()
    WHY_NOT = ""
except ValueError as error:
    PROGRAM, WHY_NOT = None, str(error)
needs_harbor = pytest.mark.skipif(PROGRAM is None, reason=WHY_NOT)

# Every trial's rows, as `harbor traces export` makes them before they become a data set.
_EXPORT = """
import contextlib, json, pathlib, sys
from harbor.utils import traces_utils

rows = {}
with contextlib.redirect_stdout(sys.stderr):
    for folder in traces_utils.iter_trial_dirs(pathlib.Path(sys.argv[1])):
        run = traces_utils.load_run_metadata(folder)
        main = traces_utils.collect_conversations_from_trial(folder, run_meta=run)
        rows[folder.name] = [row | {"trace_source": "main"} for row in main]
        for source, made in traces_utils.collect_subagent_traces(folder, run_meta=run).items():
            rows[folder.name] += [row | {"trace_source": source} for row in made]
print(json.dumps(rows))
"""
_DATA_SET = """
import contextlib, json, sys
from harbor.utils import traces_utils

with contextlib.redirect_stdout(sys.stderr):
    rows = list(traces_utils.export_traces(sys.argv[1]))
print(json.dumps(rows))
"""
_VALIDATE = """
import sys
from harbor.utils.trajectory_validator import TrajectoryValidator

for name in sys.argv[1:]:
    validator = TrajectoryValidator()
    if not validator.validate(name):
        sys.exit(f"{name}: {validator.errors}")
"""
_JOB = """
import json, sys
from harbor.models.job.config import JobConfig

print(JobConfig.model_validate_json(open(sys.argv[1]).read()).model_dump_json())
"""


def ask(script, *args):
    """What a script prints in Harbor's interpreter."""
    assert PROGRAM is not None
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(harbor.interpreter(PROGRAM)), "-c", script, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def exported(trials_dir):
    """Harbor's rows, by trial."""
    return json.loads(ask(_EXPORT, trials_dir))


def exported_data_set(trials_dir):
    """All rows of Harbor's export, as the data set that it makes of them."""
    assert PROGRAM is not None
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("needs uv, to run Harbor beside the package datasets")
    tool = [uv, "tool", "run", "--with", "datasets", "--from", f"harbor=={harbor.version(PROGRAM)}"]
    told = {"capture_output": True, "text": True, "timeout": 600}
    if subprocess.run([*tool, "python", "-c", "import datasets"], **told).returncode:
        pytest.skip("the package datasets cannot be had here")
    done = subprocess.run([*tool, "python", "-c", _DATA_SET, str(trials_dir)], **told)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def validate(trajectories):
    """Fails unless Harbor takes the files for ATIF."""
    ask(_VALIDATE, *trajectories)


def job_config(file):
    """A job's config as Harbor understands it."""
    return json.loads(ask(_JOB, file))


def write_trial(folder, trajectories, *, reward=1.0, exception="", task="", **result):
    """A trial's folder such as Harbor leaves; `trajectories` by the names of their files."""
    agent_dir = pathlib.Path(folder) / "agent"
    agent_dir.mkdir(parents=True)
    for name, trajectory in trajectories.items():
        text = trajectory if isinstance(trajectory, str) else json.dumps(trajectory)
        (agent_dir / name).write_text(text)
    told = {
        "trial_name": folder.name,
        "task_name": task or folder.name,
        "config": {
            "agent": {"name": "terminus-2", "model_name": "openai/some"},
            "task": {"path": f"/nowhere/{task or folder.name}"},
            "job_id": "a-job",
        },
        "agent_info": {
            "name": "terminus-2",
            "version": "2.0.0",
            "model_info": {"name": "some", "provider": "openai"},
        },
        "started_at": "2026-11-22T22:16:21.374043Z",
        "verifier_result": None if reward is None else {"rewards": {"reward": reward}},
        "exception_info": {"exception_type": exception, "exception_message": "why"}
        if exception
        else None,
    }
    (folder / "result.json").write_text(json.dumps(told | result))
    return folder
