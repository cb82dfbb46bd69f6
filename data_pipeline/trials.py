"""A trial as Harbor leaves it: its folder, its result, and whose failure it was if it failed.

Harbor writes result.json when a trial has ended, so a folder without it is of one that runs, or
that was killed. Nothing below a trial's folder is taken for another trial: what lies there, the
agent's shell may have written.
"""

import dataclasses
import enum
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

RESULT_FILE = "result.json"
_NUMBER_END = 1 << 53


class Failure(enum.StrEnum):
    """Whose failure ended a trial."""

    NONE = "none"
    AGENT = "the agent's own"  # as much a result as a wrong answer: kept, never done again
    TESTS = "no verdict of the tests"  # the agent's work is whole, its reward unknown
    INFRASTRUCTURE = "infrastructure"  # nothing that the agent did: tried again at once
    SETTINGS = "settings"  # trying again does not help; done again by the next command
    STOPPED = "stopped"  # by whoever ran it; done again by the next command


# Exception types of Harbor, of the environments and of LiteLLM, by the name that Harbor records.
_FAILURES: Mapping[Failure, tuple[str, ...]] = {
    Failure.AGENT: (
        "AgentTimeoutError",
        "NonZeroAgentExitCodeError",
        "ContextLengthExceededError",
        "ContextWindowExceededError",
        "OutputLengthExceededError",
        "OutputTokenExceededError",
        "AgentSafetyRefusalError",
        "ContentPolicyViolationError",
        "SandboxEnded",  # of the local sandbox; but see _EXHAUSTED
    ),
    Failure.TESTS: (
        "VerifierTimeoutError",
        "RewardFileNotFoundError",
        "RewardFileEmptyError",
        "VerifierOutputParseError",
    ),
    Failure.INFRASTRUCTURE: (
        # the environment did not start, or died
        "EnvironmentStartTimeoutError",
        "SandboxBuildFailedError",
        "SandboxError",
        "SandboxLost",  # the machine's shortage of memory, or ended from outside
        "AgentSetupTimeoutError",
        "HealthcheckError",
        "SandboxLikelyOutOfMemoryError",
        "MemoryLimitExceededError",
        "AddTestsDirError",
        "DownloadVerifierDirError",
        # the model's server refused the connection, was overloaded, or answered 5xx
        "APIConnectionError",
        "APIError",
        "InternalServerError",
        "RateLimitError",
        "ServiceUnavailableError",
        "Timeout",
    ),
    Failure.SETTINGS: (
        "AgentAuthenticationError",
        "AuthenticationError",
        "PermissionDeniedError",
        "NotFoundError",
        "ModelNotFoundError",
        "BadRequestError",
        "UnprocessableEntityError",
        "UnsupportedParamsError",
        "UnsupportedModelParametersError",
        "APIResponseValidationError",
        "ApiProviderResourceNotFoundError",
        "ServiceOperationsUnsupportedError",
        "BudgetExceededError",
        "MissingExtraError",
        "DspyImportError",
        "RegradeError",
        "VercelScopeError",
        "ValueError",  # Harbor's own, and the local sandbox's, for a task or setting that cannot be
        "NotImplementedError",
    ),
    Failure.STOPPED: ("CancelledError",),
}
_FAILURE_OF = {name: failure for failure, names in _FAILURES.items() for name in names}
DONE_AGAIN = (Failure.INFRASTRUCTURE, Failure.SETTINGS, Failure.STOPPED)


_SANDBOX_TYPES = ("SandboxEnded", "SandboxError")
# How the local sandbox names an end that the agent's commands brought about, unlike `died` and
# `machine_out_of_memory`.
_EXHAUSTED = ("(out_of_memory)", "(out_of_disk)", "(too_many_processes)", "(lifetime)")


def failure_of(exception: str, message: str = "") -> Failure:
    """Whose failure an exception type stands for; an unknown one is the infrastructure's.

    Terminus 2 raises nothing for a reply that it cannot read: it says so to the model. The local
    sandbox has one type for all ends, and says in words whether the agent used it up.
    """
    if not exception:
        return Failure.NONE
    if exception in _SANDBOX_TYPES:
        is_used_up = any(status in message for status in _EXHAUSTED)
        return Failure.AGENT if is_used_up else Failure.INFRASTRUCTURE
    return _FAILURE_OF.get(exception, Failure.INFRASTRUCTURE)


def never_retried() -> list[str]:
    """The exception types after which Harbor is not to try again."""
    return sorted(n for n, failure in _FAILURE_OF.items() if failure != Failure.INFRASTRUCTURE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """What result.json says.

    Attributes:
        task: the task's name.
        task_folder: where the task was, as recorded; empty for a task of a registry.
        source: the data set that the task was named by.
        model, model_provider: as Harbor splits the model's name.
        started_at: ISO time.
        exception, message: the type and text of what ended the trial early; empty for nothing.
        reward: of the tests; None where they gave none that counts.
        agent_s: seconds that the agent ran.
        waiting_s: those of them that it waited for the model.
        num_requests: to the model.
        input_tokens, output_tokens, cost_usd: of the whole trial.
    """

    folder: pathlib.Path
    name: str
    task: str
    task_folder: str
    source: str
    agent: str
    model: str
    model_provider: str
    run_id: str
    started_at: str
    exception: str
    message: str
    reward: float | None
    agent_s: float | None
    waiting_s: float | None
    num_requests: int
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None

    @property
    def failure(self) -> Failure:
        """Whose failure ended it."""
        return failure_of(self.exception, self.message)

    @property
    def agent_dir(self) -> pathlib.Path:
        """Where its trajectories lie."""
        return self.folder / "agent"


def find(root: pathlib.Path) -> list[pathlib.Path]:
    """The folders of trials at or below `root`, sorted.

    Raises:
        ValueError: there is no such folder, or none of a trial in it.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; name the folder of a job, or one that holds it")
    found = sorted(_below(root))
    if not found:
        raise ValueError(
            f"{root}: holds no trial (a folder with `agent` in it); name the folder of a job"
        )
    return found


def _below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    with os.scandir(folder) as entries:
        folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    if any(entry.name == "agent" for entry in folders):
        yield folder
        return
    for entry in folders:
        if not entry.name.startswith("."):
            yield from _below(folder / entry.name)


def read(folder: pathlib.Path) -> Trial | None:
    """The result of a trial; None where it has not ended.

    Raises:
        ValueError: result.json is damaged.
    """
    path = folder / RESULT_FILE
    try:
        result = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    if not isinstance(result, dict) or not isinstance(result.get("trial_name"), str):
        raise ValueError(f"{path}: damaged (no result of a trial)")
    return _trial(folder, result)


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number that a column can hold."""
    return type(value) in (int, float) and -_NUMBER_END < value < _NUMBER_END


def _trial(folder: pathlib.Path, result: Mapping[str, Any]) -> Trial:
    config, info = _in(result, "config"), _in(result, "agent_info")
    agent, model = _in(config, "agent"), _in(info, "model_info")
    usage, raised = _in(result, "agent_result"), _in(result, "exception_info")
    exception, message = _str(raised, "exception_type"), _str(raised, "exception_message")
    waits_ms = _in(usage, "metadata").get("api_request_times_msec")
    waits_ms = list(filter(is_number, waits_ms)) if isinstance(waits_ms, list) else []
    return Trial(
        folder=folder,
        name=_str(result, "trial_name"),
        task=_str(result, "task_name"),
        task_folder=_str(_in(config, "task"), "path"),
        source=_str(result, "source"),
        agent=_str(agent, "name") or _str(info, "name") or _str(agent, "import_path"),
        model=_str(model, "name") or _str(agent, "model_name"),
        model_provider=_str(model, "provider"),
        run_id=_str(config, "job_id") or _str(config, "job_name") or _str(result, "trial_name"),
        started_at=_str(result, "started_at"),
        exception=exception,
        message=message,
        reward=_reward(result, failure_of(exception, message)),
        agent_s=_seconds(_in(result, "agent_execution")),
        waiting_s=sum(waits_ms) / 1000 if waits_ms else None,
        num_requests=len(waits_ms),
        input_tokens=_number(usage, "n_input_tokens"),
        output_tokens=_number(usage, "n_output_tokens"),
        cost_usd=_number(usage, "cost_usd"),
    )


def _reward(result: Mapping[str, Any], failure: Failure) -> float | None:
    """The tests' verdict on the agent's work, where the agent was let finish it."""
    if failure not in (Failure.NONE, Failure.AGENT) or result.get("reward_valid") is False:
        return None
    reward = _number(_in(_in(result, "verifier_result"), "rewards"), "reward")
    return None if reward is None else float(reward)


def _in(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    return found if isinstance(found, dict) else {}


def _str(value: Mapping[str, Any], name: str) -> str:
    found = value.get(name)
    return found.encode(errors="replace").decode() if isinstance(found, str) else ""


def _number(value: Mapping[str, Any], name: str) -> Any:
    found = value.get(name)
    return found if is_number(found) else None


def _seconds(timing: Mapping[str, Any]) -> float | None:
    try:
        begin, end = (
            datetime.fromisoformat(timing[name]) for name in ("started_at", "finished_at")
        )
        return (end - begin).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None
