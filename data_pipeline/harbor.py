"""Harbor, as a process of its own: the program, the job it is given, a run that can be stopped.

It lives in its own environment (`uv tool install harbor`) and is spoken to through files: the job's
config here, the trials that it leaves in `trials`. The server's address and key reach it in its
environment alone, so that neither is in a file, and a server may come back at another address.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from data_pipeline import rollout_options, trials
from data_pipeline.sandbox import verifier

OLDEST = (0, 24)
_INSTALL = "uv tool install harbor"
_LOCAL_SANDBOX = "data_pipeline.harbor_environment:LocalSandbox"
_NO_KEY = "none"  # LiteLLM wants one, and a server at home looks at none
_STOP_S = 300.0  # that Harbor may take to end its trials and take their environments down
_TICK_S = 0.5
_MIN_SECRET_BYTES = 8  # what is shorter is no key, and stands everywhere
_MAX_TEXT_BYTES = 64 << 20
_SETTINGS = {
    "HARBOR_TELEMETRY": "off",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else LiteLLM fetches its price list
    "HF_HUB_OFFLINE": "1",
}


class StoppedError(Exception):
    """A signal asked for the end; Harbor has ended, and its folder can be gone on with."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def find_program(name: str = "") -> pathlib.Path:
    """The program `harbor`.

    Raises:
        ValueError: it is not installed.
    """
    if name and not shutil.which(name):
        raise ValueError(f"--harbor={name} is no program; install it with `{_INSTALL}`")
    at_home = pathlib.Path.home() / ".local/bin/harbor"  # where uv puts it
    found = shutil.which(name or "harbor") or (at_home if os.access(at_home, os.X_OK) else "")
    if not found:
        raise ValueError(
            f"Harbor is not installed; get it with `{_INSTALL}`, or name --harbor=FILE"
        )
    return pathlib.Path(found).absolute()


def interpreter(program: pathlib.Path) -> pathlib.Path:
    """The Python that `program` runs in, to ask Harbor's own models."""
    return program.resolve().parent / "python"


def version(program: pathlib.Path) -> str:
    """Harbor's version.

    Raises:
        ValueError: it does not run, or is too old.
    """
    command = [str(program), "--version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ValueError(f"{program}: does not run ({error}); `{_INSTALL}`") from error
    found = re.search(r"(\d+)\.(\d+)[\w.]*", done.stdout)
    if not found or (int(found[1]), int(found[2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ValueError(f"{program}: version {done.stdout.strip()!r}; needs at least {oldest}")
    return found[0]


def job_config(
    options: rollout_options.RolloutOptions,
    *,
    tasks: Sequence[pathlib.Path],
    job_dir: pathlib.Path,
    context_tokens: int = 0,
) -> dict[str, Any]:
    """The config of a job in which Terminus 2 tries each task.

    Raw replies are kept, and a file for each linear history, which is what is trained on.

    Args:
        options: the settings of the rollout.
        tasks: the folders of the tasks.
        job_dir: where the trials go.
        context_tokens: that the model can read; 0: unknown.
    """
    is_own_server = bool(options.base_url)
    agent_options: dict[str, Any] = {
        "parser_name": options.parser,
        "temperature": options.temperature if options.temperature >= 0 else None,
        "max_turns": options.max_turns or None,
        "suppress_max_turns_warning": True,
        "enable_summarize": options.summarize,
        "interleaved_thinking": options.interleaved_thinking,
        "record_terminal_session": False,  # needs asciinema in every environment
        "trajectory_config": {"raw_content": True, "linear_history": True},
        "model_info": _model_info(options, context_tokens),
        "llm_kwargs": {"timeout": options.request_timeout_s},
        "llm_call_kwargs": dict(options.request_options()) or None,
    }
    kept = {name: value for name, value in agent_options.items() if value is not None}
    return {
        "job_name": job_dir.name,
        "jobs_dir": str(job_dir.parent.absolute()),
        "n_attempts": options.attempts,
        "n_concurrent_trials": options.concurrency,
        "timeout_multiplier": options.other_timeout_multiplier,
        "agent_timeout_multiplier": options.agent_timeout_multiplier,
        "quiet": True,
        "retry": {
            "max_retries": options.max_retries,
            "exclude_exceptions": trials.never_retried(),
            "wait_multiplier": 3.0,
            "min_wait_sec": 5.0,
            "max_wait_sec": 60.0,
        },
        "environment": _environment(options),
        "agents": [
            {
                "name": "terminus-2",
                "model_name": f"openai/{options.model}" if is_own_server else options.model,
                "kwargs": kept,
            }
        ],
        "tasks": [{"path": str(task.absolute())} for task in tasks],
    }


def _model_info(
    options: rollout_options.RolloutOptions, context_tokens: int
) -> dict[str, Any] | None:
    """What LiteLLM is told of a model that it does not know."""
    info: dict[str, Any] = {}
    if context_tokens:
        info["max_input_tokens"] = context_tokens
    if options.max_tokens:
        info["max_output_tokens"] = options.max_tokens
    if options.dollars_per_million_input or options.dollars_per_million_output:
        info |= {
            "input_cost_per_token": options.dollars_per_million_input / 1e6,
            "output_cost_per_token": options.dollars_per_million_output / 1e6,
        }
    if info and options.base_url:
        info |= {"litellm_provider": "openai", "mode": "chat"}
    return info or None


def _environment(options: rollout_options.RolloutOptions) -> dict[str, Any]:
    name, settings = options.environment, dict(options.environment_settings())
    told: dict[str, Any] = {"kwargs": settings}
    if options.compose:
        told["extra_docker_compose"] = [
            str(pathlib.Path(path).resolve()) for path in options.compose
        ]
    if name == rollout_options.LOCAL:
        return {"import_path": _LOCAL_SANDBOX} | told
    return {"import_path" if ":" in name else "type": name} | told


@contextlib.contextmanager
def process_environment(options: rollout_options.RolloutOptions) -> Iterator[dict[str, str]]:
    """The environment variables of Harbor's process, the key among them.

    Harbor finds this package, and none of those installed beside it, in a folder of its own: its
    environment and ours would not agree about the rest.
    """
    with tempfile.TemporaryDirectory(prefix="harbor-") as folder:
        pathlib.Path(folder).chmod(0o755)  # a sandbox's user, who is another, reads what is in it
        package = pathlib.Path(__file__).resolve().parent
        (pathlib.Path(folder) / package.name).symlink_to(package, target_is_directory=True)
        path = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = dict(os.environ) | _SETTINGS | {"PYTHONPATH": os.pathsep.join(path)}
        if options.environment == rollout_options.LOCAL:
            # Without a pytest of ours the sandbox takes the system's, or says what to do.
            with contextlib.suppress(ValueError):
                packages = verifier.collect(pathlib.Path(folder) / "verifier")
                variables.setdefault(verifier.FOLDER_VARIABLE, str(packages))
        if options.base_url:
            variables["OPENAI_API_KEY"] = os.environ.get(options.api_key_env) or _NO_KEY
            variables["OPENAI_BASE_URL"] = variables["OPENAI_API_BASE"] = options.base_url
        yield variables


def let_go_on(job_dir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Let the next run of a job go on with the trials in its folder.

    Harbor goes on where it finds the very config of the last run, and refuses another. What differs
    here is only how it is run: our manifest tells whether tasks and settings are the same.
    """
    (job_dir / "config.json").write_text(json.dumps(config), "utf-8")
    (job_dir / "lock.json").unlink(missing_ok=True)  # holds that, too
    if not progress(job_dir):  # half written, by a Harbor that was killed
        (job_dir / trials.RESULT_FILE).unlink(missing_ok=True)


def run(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    log_file: pathlib.Path,
    keep_open: Sequence[int],
    tick: Callable[[], None],
) -> int:
    """Run Harbor to its end; returns its exit code.

    SIGINT and SIGTERM to this process end it as ^C does: trials are cancelled and their
    environments taken down. A second one kills it.

    Args:
        command: what to run.
        environment: its environment variables, all of them.
        log_file: where what it prints is added.
        keep_open: file descriptors that it inherits, and keeps open if this process is killed.
        tick: called now and then; what it raises ends Harbor first.

    Raises:
        StoppedError: a signal came.
    """
    with _signals() as caught, log_file.open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            pass_fds=keep_open,
            start_new_session=True,  # a ^C of the terminal comes through here, and once
        )
        try:
            while process.poll() is None:
                if caught:
                    raise StoppedError(caught[0])
                tick()
                time.sleep(_TICK_S)
        except BaseException:
            _end(process, caught)
            raise
    return process.returncode


def _end(process: subprocess.Popen[bytes], caught: Sequence[int]) -> None:
    num_caught, give_up = len(caught), time.monotonic() + _STOP_S
    process.send_signal(signal.SIGINT)
    while process.poll() is None:
        if len(caught) > num_caught or time.monotonic() > give_up:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return
        time.sleep(_TICK_S)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The SIGINTs and SIGTERMs that came meanwhile, instead of what they would do."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may ask for them
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {n: signal.signal(n, lambda number, _: caught.append(number)) for n in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def redact(folder: pathlib.Path, variable: str) -> None:
    """Take the key that an environment variable holds out of all files of a folder.

    Servers repeat a key that they refuse, and Harbor writes down what they say.
    """
    secret = os.environ.get(variable, "").encode()
    if len(secret) < _MIN_SECRET_BYTES:
        return
    for root, _, names in os.walk(folder):  # follows no links
        for path in (pathlib.Path(root, name) for name in names):
            if path.is_symlink() or not path.is_file() or path.stat().st_size > _MAX_TEXT_BYTES:
                continue
            content = path.read_bytes()
            if secret in content:
                path.write_bytes(content.replace(secret, b"[redacted]"))


def progress(job_dir: pathlib.Path) -> Mapping[str, int]:
    """What a job counts while it runs; empty before it counts, and while it writes the numbers."""
    try:
        stats = json.loads((job_dir / trials.RESULT_FILE).read_bytes())["stats"]
        names = ("n_completed_trials", "n_running_trials", "n_errored_trials", "n_retries")
        return {name: int(stats.get(name) or 0) for name in names}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
