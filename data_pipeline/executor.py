"""Where shard-to-shard work runs: in this process, in processes of this machine, or on a cluster.

A task is a picklable value that says everything about its work; a function of it writes files and
returns something small. Which executor ran it never shows in what it wrote.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from data_pipeline import cli

Executor = Literal["local"]

# Below this much input the start of the processes (3 s each) costs more than they give.
PROCESS_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Where a stage's work runs; its output is the same everywhere."""

    executor: Executor = dataclasses.field(
        default="local",
        metadata=cli.flag("where the work runs: processes of this machine", changes_output=False),
    )
    num_workers: int = dataclasses.field(
        default=0,
        metadata=cli.flag(
            "processes; 0 takes one for each core, or none for a small corpus", changes_output=False
        ),
    )

    def __post_init__(self):
        cli.require_choice("executor", self.executor, Executor)
        cli.require(self.num_workers >= 0, f"--num_workers={self.num_workers} must not be negative")


def results[Task, Result](
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: WorkerOptions,
    *,
    input_bytes: int,
) -> Iterator[tuple[Task, Result]]:
    """Run `function` on each task; yields each task with its result as it is done, in any order.

    Args:
        function: of a module, so that another process finds it by name.
        tasks: picklable.
        workers: where to run.
        input_bytes: of all tasks; with little to do no processes are started.

    Raises:
        Exception: what a task raised; those that had not begun are not run.
    """
    num_processes = _num_processes(len(tasks), workers, input_bytes)
    if num_processes == 0:
        yield from ((task, function(task)) for task in tasks)
        return
    # spawn: the tokenizer library and Arrow keep threads, which do not survive a fork.
    pool = concurrent.futures.ProcessPoolExecutor(
        num_processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_use_one_thread,
    )
    try:
        task_of = {pool.submit(function, task): task for task in tasks}
        for future in concurrent.futures.as_completed(task_of):
            yield task_of[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def num_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _num_processes(num_tasks: int, workers: WorkerOptions, input_bytes: int) -> int:
    """How many processes to start; 0 works in this one, where libraries may use threads."""
    if not workers.num_workers and input_bytes < PROCESS_BYTES:
        return 0
    wanted = workers.num_workers or num_cores()
    return min(wanted, num_tasks) if wanted > 1 else 0


def _use_one_thread() -> None:
    """For a process among as many as there are cores: libraries start no threads of their own."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
