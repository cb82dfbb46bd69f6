"""Where shard-to-shard work runs: in this process, in processes of this machine, or on a cluster.

A task is a picklable value that says everything about its work; a function of it writes files and
returns something small. Which executor ran it never shows in what it wrote.
"""

import concurrent.futures
import concurrent.futures.process
import dataclasses
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from data_pipeline import cli

Executor = Literal["local", "ray"]

# Below this much input the start of the processes (3 s each) costs more than they give.
PROCESS_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Where a stage's work runs; its output is the same everywhere."""

    executor: Executor = dataclasses.field(
        default="local",
        metadata=cli.flag(
            "where the work runs: this machine, or a Ray cluster (extra `ray`)",
            changes_output=False,
        ),
    )
    num_workers: int = dataclasses.field(
        default=0,
        metadata=cli.flag(
            "processes; 0 takes as many as keep the cores busy, or none for a small corpus",
            changes_output=False,
        ),
    )
    ray_address: str = dataclasses.field(
        default="",
        metadata=cli.flag(
            "the Ray cluster: HOST:PORT, or auto for one that runs here; unset takes RAY_ADDRESS, "
            "or starts one on this machine that ends with the work",
            changes_output=False,
        ),
    )

    def __post_init__(self):
        cli.require_choice("executor", self.executor, Executor)
        cli.require(self.num_workers >= 0, f"--num_workers={self.num_workers} must not be negative")
        cli.require(
            not self.ray_address or self.executor == "ray",
            f"--ray_address={self.ray_address} needs --executor=ray",
        )


def results[Task, Result](
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: WorkerOptions,
    *,
    input_bytes: int,
    threads: int = 1,
) -> Iterator[tuple[Task, Result]]:
    """Run `function` on each task; yields each task with its result as it is done, in any order.

    Args:
        function: of a module, so that another process finds it by name.
        tasks: picklable.
        workers: where to run.
        input_bytes: of all tasks; with little to do no processes are started.
        threads: how many cores one task keeps busy.

    Raises:
        Exception: what a task raised; those that had not begun are not run.
        OSError: a process was killed.
    """
    if workers.executor == "ray":
        from data_pipeline import ray_executor

        yield from ray_executor.results(function, tasks, workers, threads=threads)
        return
    num_processes = _num_processes(len(tasks), workers, input_bytes, threads)
    if num_processes == 0:
        yield from ((task, function(task)) for task in tasks)
        return
    # spawn: the tokenizer library and Arrow keep threads, which do not survive a fork.
    pool = concurrent.futures.ProcessPoolExecutor(
        num_processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin_process,
        initargs=(max(1, num_cores() // num_processes),),
    )
    try:
        task_of = {pool.submit(function, task): task for task in tasks}
        for future in concurrent.futures.as_completed(task_of):
            yield task_of[future], future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise OSError(
            f"one of {num_processes} worker processes was killed, for want of memory it may be; "
            "the same command goes on where it was, with a smaller --num_workers if need be"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def num_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_threads(num: int) -> None:
    """For a process that shares the cores with others: what the tokenizer library may start."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if num > 1 else "false"
    os.environ["RAYON_NUM_THREADS"] = str(num)


def _begin_process(threads: int) -> None:
    """What a process does first."""
    use_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Else the processes of a killed command go on, and wait for ever, beside the next one's."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _num_processes(num_tasks: int, workers: WorkerOptions, input_bytes: int, threads: int) -> int:
    """How many processes to start; 0 works in this one, where libraries may use threads."""
    if not workers.num_workers and input_bytes < PROCESS_BYTES:
        return 0
    wanted = min(workers.num_workers or -(-num_cores() // threads), num_tasks)
    return wanted if wanted > 1 else 0
