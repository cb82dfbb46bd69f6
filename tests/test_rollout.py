"""A rollout: its settings as Harbor takes them, failures told apart, its report and faults."""

import dataclasses
import fcntl
import json
import pathlib

import pytest
from harbor_side import PROGRAM, ask, job_config, needs_harbor

from data_pipeline import (
    harbor,
    rollout,
    rollout_options,
    rollout_report,
    trials,
)

REPOSITORY = pathlib.Path(rollout.__file__).parents[1]


def options(**more):
    return rollout_options.RolloutOptions(
        **{"model": "scripted", "base_url": "http://127.0.0.1:9/v1"} | more
    )


# --- the settings, and what Harbor makes of them


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"model": ""}, "--model is not set"),
        ({"base_url": "", "model": "gpt"}, "--model=gpt must be provider/name"),
        ({"base_url": "localhost:8000"}, "--base_url=localhost:8000 must begin with http"),
        ({"attempts": 0}, "--attempts=0 must be at least 1"),
        ({"max_turns": -1}, "--max_turns=-1 must not be negative"),
        ({"agent_timeout_multiplier": 0.0}, "--agent_timeout_multiplier=0.0 must be positive"),
        ({"max_failed_share": 1.5}, r"--max_failed_share=1.5 must be in \[0, 1\]"),
        ({"sampling": "{"}, "--sampling={ is no JSON"),
        ({"environment_options": "[]"}, r"--environment_options=\[\] must be a JSON object"),
        ({"parser": "yaml"}, "--parser='yaml' must be one of"),
    ],
)
def test_settings(more, told):
    with pytest.raises(ValueError, match=told):
        options(**more)


def test_a_few_tasks_are_drawn_and_more_hold_the_same(tmp_path):
    names = [f"{kind}-{i:02d}" for kind in ("adapt", "seed", "skill") for i in range(20)]
    for name in (*names, ".half-written"):
        (tmp_path / "tasks" / name).mkdir(parents=True)
        (tmp_path / "tasks" / name / "task.toml").touch()

    def found(**more):
        return [task.name for task in rollout.find_tasks(tmp_path, options(**more))]

    assert found() == names == found(num_tasks=100)
    few, more = found(num_tasks=10), found(num_tasks=20)
    assert few == sorted(few) and len(few) == 10 and {*few} < {*more}
    assert len({name.split("-")[0] for name in few}) == 3  # not the first ones by name
    assert found(num_tasks=10, seed=1) != few == found(num_tasks=10)


def holds(whole, part):
    """Whether all that `part` says stands in `whole`."""
    if isinstance(part, dict):
        return all(name in whole and holds(whole[name], value) for name, value in part.items())
    if isinstance(part, list):
        return len(whole) == len(part) and all(map(holds, whole, part))
    return whole == part


_AGENT_OPTIONS = """
import json, sys
from harbor.agents.terminus_2.terminus_2 import Terminus2Options

known = set(Terminus2Options.model_fields)
told = json.loads(sys.argv[1])
print(json.dumps([sorted(set(told) - known), Terminus2Options(**told).model_dump(mode="json")]))
"""


@needs_harbor
def test_harbor_understands_every_setting(tmp_path):
    told = options(
        attempts=3, concurrency=7, agent_timeout_multiplier=5.0, max_turns=12, temperature=0.7,
        max_tokens=900, sampling='{"extra_body": {"top_k": 20}}', dollars_per_million_input=2.0,
        environment="podman", environment_options='{"a": 1}', parser="xml",
        compose=(str(pathlib.Path(__file__).parent / "podman" / "compose.yaml"),),
    )  # fmt: skip
    tasks = [tmp_path / "b", tmp_path / "a"]
    config = harbor.job_config(
        told, tasks=tasks, job_dir=tmp_path / "trials", context_tokens=32_768
    )
    (tmp_path / "job.json").write_text(json.dumps(config))
    understood = job_config(tmp_path / "job.json")
    understood["retry"]["exclude_exceptions"].sort()
    assert holds(understood, config)
    agent = config["agents"][0]["kwargs"]
    unknown, said = json.loads(ask(_AGENT_OPTIONS, json.dumps(agent)))
    assert unknown == [] and holds(said, agent)
    assert agent["model_info"]["max_input_tokens"] == 32_768
    assert agent["llm_call_kwargs"] == {"max_tokens": 900, "extra_body": {"top_k": 20}}
    assert agent["trajectory_config"] == {"raw_content": True, "linear_history": True}
    assert "127.0.0.1" not in json.dumps(config)  # a server may come back elsewhere


def test_environments():
    def of(name):
        config = harbor.job_config(options(environment=name), tasks=[], job_dir=pathlib.Path("x"))
        return config["environment"]

    ours = "data_pipeline.harbor_environment:LocalSandbox"
    assert of("local") == {"import_path": ours, "kwargs": {}}
    assert of("daytona") == {"type": "daytona", "kwargs": {}}
    assert of("mine:Own") == {"import_path": "mine:Own", "kwargs": {}}


_POLICIES = """
import json
from harbor.models.trial import error_policy

policies = error_policy.ERROR_POLICIES.items()
print(json.dumps({name: [one.should_retry, one.has_valid_reward] for name, one in policies}))
"""


@needs_harbor
def test_failures_are_told_apart_as_harbor_does():
    """What Harbor would try again is infrastructure, what it counts a reward of is the agent's."""
    policies = json.loads(ask(_POLICIES))
    assert len(policies) > 40
    for name, (is_retried, is_result) in policies.items():
        failure = trials.failure_of(name)
        assert (failure == trials.Failure.INFRASTRUCTURE) == is_retried, name
        assert (failure == trials.Failure.AGENT) == is_result, name


def test_an_end_of_the_local_sandbox_is_told_by_its_reason():
    def of(status):
        return trials.failure_of("SandboxEnded", f"the sandbox ended ({status}): so it was")

    assert of("died") == of("machine_out_of_memory") == trials.Failure.INFRASTRUCTURE
    assert trials.failure_of("SandboxLost") == trials.Failure.INFRASTRUCTURE
    assert "SandboxLost" not in trials.never_retried()
    assert of("out_of_memory") == of("too_many_processes") == trials.Failure.AGENT
    assert "SandboxEnded" in trials.never_retried()


# --- the report


def trial(folder, **more):
    values = {field.name: None for field in dataclasses.fields(trials.Trial)}
    values |= {"exception": "", "message": "", "num_requests": 0, "folder": folder}
    return trials.Trial(**values | more)


def test_slow_serving_is_told_from_slow_shells(tmp_path):
    late = {"exception": "AgentTimeoutError", "agent_s": 100.0, "num_requests": 4}
    slow_server = [trial(tmp_path, waiting_s=90.0, **late), trial(tmp_path, reward=1.0)]
    slow_shell = [trial(tmp_path, waiting_s=5.0, **late), trial(tmp_path, reward=1.0)]
    in_time = [trial(tmp_path, reward=1.0)] * 20 + slow_server[:1]

    def told(results):
        report = rollout_report.make(results, num_wanted=len(results))
        return " ".join(rollout_report.warnings(report, options(concurrency=9)))

    assert "waiting for the model (22 s a request): lower --concurrency=9" in told(slow_server)
    assert "50% of the trials" in told(slow_server)
    assert "--max_turns" in told(slow_shell) and "--concurrency" not in told(slow_shell)
    assert told(in_time) == ""


def test_too_many_failures_are_no_success(tmp_path):
    results = [trial(tmp_path, reward=1.0)] * 8
    results += [trial(tmp_path, exception="InternalServerError", reward=None)]
    report = rollout_report.make(results, num_wanted=10)  # one has not ended
    rollout_report.refuse_failures(report, options(max_failed_share=0.2), tmp_path)
    with pytest.raises(ValueError, match=r"2 of 10 .*1 infrastructure, 1 not ended"):
        rollout_report.refuse_failures(report, options(max_failed_share=0.1), tmp_path)


@needs_harbor
def test_one_rollout_at_a_time(tmp_path):
    (tmp_path / "tasks" / "one").mkdir(parents=True)
    (tmp_path / "tasks" / "one" / "task.toml").write_text("")
    output = tmp_path / "out"
    with pytest.raises(ValueError, match="does not answer"):
        rollout.rollout(tmp_path / "tasks", output_dir=output, options=options())
    with (output / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="still runs in it"):
            rollout.rollout(tmp_path / "tasks", output_dir=output, options=options())


def test_faults_of_the_caller(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        rollout.rollout(tmp_path / "none", output_dir=tmp_path / "out", options=options())
    with pytest.raises(ValueError, match="holds no task"):
        rollout.rollout(tmp_path, output_dir=tmp_path / "out", options=options())
    with pytest.raises(ValueError, match="--harbor=no-such-program"):
        harbor.find_program("no-such-program")
    with pytest.raises(ValueError, match="does not run"):
        harbor.version(pathlib.Path("/bin/false"))
    old = tmp_path / "harbor"
    old.write_text("#!/bin/sh\necho 0.9.1\n")
    old.chmod(0o755)
    with pytest.raises(ValueError, match=r"'0.9.1'; needs at least 0.24"):
        harbor.version(old)


@needs_harbor
def test_harbors_interpreter_is_found():
    assert PROGRAM is not None
    assert ask("import harbor; print('here')") == "here\n"
    assert harbor.version(PROGRAM).count(".") == 2
