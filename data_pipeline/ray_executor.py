"""The work of `executor` on a Ray cluster: the same tasks, the same bytes, more machines.

Every machine must see the input, the tokenizer and the output under the same paths. The package
itself travels with the job. Ray runs the task of a worker that died again; a task's files come into
their place whole or not at all, so that leaves no trace.
"""

import itertools
import os
import pathlib
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import data_pipeline
from data_pipeline import executor

_QUEUED = 2  # tasks in flight for each that can run, so that no core waits for this process
_ANSWER_SECONDS = 20  # that a cluster's address may take to answer
_MAX_RETRIES = 5  # of a task whose worker or machine died


def results[Task, Result](
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: executor.WorkerOptions,
    *,
    threads: int,
) -> Iterator[tuple[Task, Result]]:
    """`executor.results` on Ray; the cluster is left as it was found.

    Raises:
        ValueError: Ray is not installed, or no cluster answers at the address.
        Exception: what a task raised.
    """
    ray = load_ray()
    is_ours = not ray.is_initialized()
    if is_ours:
        _connect(ray, workers, threads)
    try:
        yield from _results(ray, function, tasks, workers, threads)
    finally:
        if is_ours:
            ray.shutdown()


def load_ray() -> Any:
    """Import Ray, set up to start workers of its own Python and to report nothing to its makers.

    Under `uv run` it would start each worker by `uv run` in a copy of the working folder, where uv
    finds no environment: the worker dies, and no task ever runs. Ray reads that switch on import.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            "--executor=ray needs Ray, which is not installed: uv sync --extra ray, or "
            "pip install 'jaxterm[ray]'"
        ) from error
    return ray


def _connect(ray: Any, workers: executor.WorkerOptions, threads: int) -> None:
    address = workers.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    own_cluster = {
        "num_cpus": max(executor.num_cores(), workers.num_workers * threads),
        "include_dashboard": False,
        "object_store_memory": 80 << 20,  # results are a few bytes
    }
    try:
        _require_answer(address)
        ray.init(
            address,
            runtime_env={"py_modules": [str(pathlib.Path(data_pipeline.__file__).parent)]},
            log_to_driver=False,
            logging_level="error",
            **(own_cluster if address == "local" else {}),
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"--ray_address={address}: no Ray cluster can be reached ({error}); name another, or "
            "leave it out to start one on this machine"
        ) from error


def _require_answer(address: str) -> None:
    """OSError where nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()


def _results(
    ray: Any,
    function: Callable[..., Any],
    tasks: Sequence[Any],
    workers: executor.WorkerOptions,
    threads: int,
) -> Iterator[tuple[Any, Any]]:
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    cpus = max(1, min(threads, max(nodes)))  # a task that no machine has room for would never run
    limit = workers.num_workers or _QUEUED * max(1, sum(cores // cpus for cores in nodes))
    remote = ray.remote(_run).options(num_cpus=cpus, max_retries=_MAX_RETRIES)
    todo, task_of = iter(tasks), {}
    try:
        while True:
            for task in itertools.islice(todo, limit - len(task_of)):
                task_of[remote.remote(function, task, os.getcwd(), cpus)] = task
            if not task_of:
                return
            [done], _ = ray.wait(list(task_of), num_returns=1)
            yield task_of.pop(done), _value(ray, done)
    finally:
        for ref in task_of:
            ray.cancel(ref)
        if task_of:  # none may write once the caller cleans up
            ray.wait(list(task_of), num_returns=len(task_of))


def _run(function: Callable[[Any], Any], task: Any, folder: str, threads: int) -> Any:
    """In a worker: where this process works, so that a relative path names the same file."""
    executor.use_threads(threads)
    os.chdir(folder)
    return function(task)


def _value(ray: Any, ref: Any) -> Any:
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # as it was raised, not in Ray's wrapping
    except ray.exceptions.RaySystemError as error:
        raise OSError(f"Ray: {error}; the same command goes on where it was") from error
