"""What a task does: it is built, tested and solved in the local sandbox.

A task is good where its tests can be collected, give less than the full reward in the environment
as it is, and the full one after its solution, where it has one. Each of the two runs has a sandbox
of its own, so that nothing a test leaves behind helps the solution.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import math
import pathlib
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from data_pipeline.sandbox import sandbox, verifier
from data_pipeline.taskgen import making
from data_pipeline.taskgen import task as task_module

_LOGS = "/logs/verifier"
_MAX_RESULT_BYTES = 4 << 20  # of a result file; tasks are hostile
_SHOWN_CHARS = 1500  # of a program's output that a reason quotes
# How a program says that something is not installed. Where the sandbox left installations of the
# Dockerfile out, that is the machine's lack and not the task's.
_LACKS = re.compile(
    r"ModuleNotFoundError|No module named|command not found|: not found|FileNotFoundError"
    r"[^\n]*No such file or directory: '[^/']+'"
)
_NUM_TRIES = 3  # of a run that the machine cut off
_PAUSE_S = 5.0  # before the next, for the machine to recover
_SLACK_S = 60.0  # of a sandbox's life, beside the task's own limits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a task.

    Attributes:
        ending: "kept" where it is good; "invalid": it cannot be built, or its tests not collected.
        reason: in words fit to be sent back to its writer; empty where it is good.
        untouched_reward: of the environment as it is; None where that was not reached.
        solution_reward: after the solution; None where that was not reached.
        warnings: what the sandbox left out of the Dockerfile.
    """

    ending: Literal["kept", "invalid", "passes_untouched", "unsolvable"]
    reason: str = ""
    untouched_reward: float | None = None
    solution_reward: float | None = None
    warnings: tuple[str, ...] = ()


class Checker:
    """Checks tasks, a bounded number at a time; may be called from many threads."""

    def __init__(self, num_workers: int):
        """Make ready what all sandboxes share.

        Args:
            num_workers: sandboxes at a time.

        Raises:
            ValueError: the packages of the tests cannot be found.
        """
        self._num_workers = num_workers
        self._room = threading.Semaphore(num_workers)
        self._cancelled = threading.Event()
        self._folder = tempfile.TemporaryDirectory(prefix="taskgen-")  # goes with this object
        folder = pathlib.Path(self._folder.name)
        folder.chmod(0o755)
        self._packages = verifier.collect(folder / "packages")
        # Each task would tell anew what of its domain's Dockerfile is left out; outcomes have it.
        warnings.filterwarnings("ignore", module=r"data_pipeline\.sandbox\.")

    def cancel(self) -> None:
        """End what runs, and begin nothing more; a check under way raises SandboxError."""
        self._cancelled.set()

    def check(self, task: task_module.Task) -> Outcome:
        """Run a task.

        Raises:
            sandbox.SandboxError: no sandbox starts, or the machine ended each (it is short of
                memory, say); nothing is known about the task then.
        """
        with self._room, tempfile.TemporaryDirectory(dir=self._folder.name) as place:
            task_module.write_task(task, pathlib.Path(place))
            for left in reversed(range(_NUM_TRIES)):
                try:
                    return self._run(task, pathlib.Path(place) / task.name)
                except sandbox.SandboxError:
                    if not left or self._cancelled.is_set():
                        raise
                    time.sleep(_PAUSE_S)
        raise AssertionError("the last try returns or raises")

    def _run(self, task: task_module.Task, folder: pathlib.Path) -> Outcome:
        run = _Run(task, folder, self._packages, self._cancelled)
        try:
            return run.outcome()
        except _Failed as failed:
            return Outcome(
                ending=failed.ending,
                reason=str(failed),
                untouched_reward=run.untouched_reward,
                solution_reward=run.solution_reward,
                warnings=run.warnings,
            )

    def check_all(
        self, tasks: Iterable[task_module.Task]
    ) -> Iterator[tuple[task_module.Task, Outcome]]:
        """Run tasks side by side; yields each with its outcome, in their order."""
        with concurrent.futures.ThreadPoolExecutor(self._num_workers) as pool:
            waiting: list[tuple[task_module.Task, concurrent.futures.Future[Outcome]]] = []
            try:
                for task in tasks:
                    waiting.append((task, pool.submit(self.check, task)))
                    if len(waiting) > 2 * self._num_workers:  # a long list is not read at once
                        first, future = waiting.pop(0)
                        yield first, future.result()
                while waiting:
                    first, future = waiting.pop(0)
                    yield first, future.result()
            finally:
                for _, future in waiting:
                    future.cancel()


class SandboxCheck:
    """A making.Check that runs tasks in the local sandbox."""

    def __init__(self, num_workers: int):
        """Look whether sandboxes run here.

        Raises:
            ValueError: this machine runs no sandbox.
        """
        try:
            sandbox.check()
        except sandbox.SandboxError as error:
            raise ValueError(
                f"tasks cannot be tried in the local sandbox ({error}); see to it, or add "
                "--check=none"
            ) from error
        self._checker = Checker(num_workers)

    def __call__(self, task: task_module.Task) -> str:
        """Empty for a good task.

        Of one that needs a package which the Dockerfile installs and this machine lacks, what that
        is.

        Raises:
            making.Rejected: it is not good.
        """
        outcome = self._checker.check(task)
        if outcome.ending == "kept":
            return ""
        if outcome.warnings and _LACKS.search(outcome.reason):
            return f"not tried: {outcome.reason}"
        raise making.Rejected(outcome.ending, outcome.reason)

    def cancel(self) -> None:
        """End what runs."""
        self._checker.cancel()


class _Failed(Exception):
    """Ends a run; the message is the reason."""

    def __init__(self, ending: Literal["invalid", "passes_untouched", "unsolvable"], reason: str):
        super().__init__(reason)
        self.ending: Literal["invalid", "passes_untouched", "unsolvable"] = ending


class _Run:
    """The two runs of one task."""

    def __init__(
        self,
        task: task_module.Task,
        folder: pathlib.Path,
        packages: pathlib.Path,
        cancelled: threading.Event,
    ):
        self.untouched_reward: float | None = None
        self.solution_reward: float | None = None
        self.warnings: tuple[str, ...] = ()
        self._task = task
        self._folder = folder
        self._packages = packages
        self._cancelled = cancelled

    def outcome(self) -> Outcome:
        """Of a good task.

        Raises:
            _Failed: it is not.
        """
        self._run_untouched()
        if self._task.solution:
            self._run_solution()
        return Outcome(
            ending="kept",
            untouched_reward=self.untouched_reward,
            solution_reward=self.solution_reward,
            warnings=self.warnings,
        )

    def _run_untouched(self) -> None:
        with self._box() as box:
            self.untouched_reward, results, said = self._test(box)
        if self._task.tests and not results.get("tests"):
            problem = str(results.get("problem") or said)[-_SHOWN_CHARS:]
            raise _Failed("invalid", f"pytest cannot collect the tests: {problem.strip()}")
        if self.untouched_reward >= 1:
            reason = "the tests pass where nothing was done; test what the agent is asked for"
            raise _Failed("passes_untouched", reason)

    def _run_solution(self) -> None:
        with self._box() as box:
            box.put_dir(self._folder / "solution", "/solution")
            done = self._run_script(box, "/solution/solve.sh", self._task.limits.agent_timeout_s)
            if done.return_code != 0:
                said = _tail(done.stdout + done.stderr)
                how = done.status if done.status != "ok" else f"exit code {done.return_code}"
                raise _Failed("unsolvable", f"the solution fails ({how}): {said}")
            self.solution_reward, results, said = self._test(box)
        if self.solution_reward < 1:
            failed = [t["name"] for t in results.get("tests", ()) if t["outcome"] != "passed"]
            raise _Failed(
                "unsolvable",
                f"the solution does not pass {', '.join(map(str, failed)) or 'the tests'}: {said}",
            )

    @contextlib.contextmanager
    def _box(self) -> Iterator[sandbox.Sandbox]:
        """The environment, built; what goes wrong in it from then on is the task's fault.

        Raises:
            sandbox.SandboxError: the sandbox did not start, or was lost.
        """
        limits = self._task.limits
        lifetime_s = limits.build_timeout_s + limits.agent_timeout_s + limits.verifier_timeout_s
        box = sandbox.Sandbox(
            cpus=limits.cpus,
            memory_mb=limits.memory_mb,
            storage_mb=limits.storage_mb,
            network=limits.network,
            lifetime_s=lifetime_s + _SLACK_S,
            read_only={str(self._packages): verifier.INSIDE},
        )
        box.start()
        try:
            self._build(box)
            yield box
        except (sandbox.SandboxError, _Failed) as error:
            ended = box.ended()
            if isinstance(error, sandbox.SandboxLost):
                raise
            if isinstance(ended, sandbox.SandboxLost):
                raise ended from error
            if isinstance(error, _Failed):
                raise
            raise _Failed("invalid", f"it does not run in a sandbox: {error}") from error
        finally:
            box.stop()

    def _build(self, box: sandbox.Sandbox) -> None:
        environment = self._folder / "environment"
        try:
            told = box.build(environment, timeout_s=self._task.limits.build_timeout_s)
        except ValueError as error:
            reason = str(error).replace(f"{environment}/", "")
            raise _Failed("invalid", f"the environment cannot be built: {reason}") from error
        self.warnings = tuple(told)

    def _test(self, box: sandbox.Sandbox) -> tuple[float, dict[str, Any], str]:
        """Reward, tests.json and the end of what pytest said."""
        box.put_dir(self._folder / "tests", "/tests")
        done = self._run_script(box, "/tests/test.sh", self._task.limits.verifier_timeout_s)
        said = _tail(done.stdout + done.stderr)
        if done.status != "ok":
            raise _Failed("invalid", f"the tests end by {done.status}: {said}")
        try:
            reward = float(box.get_file(f"{_LOGS}/reward.txt", max_bytes=100))
            results = {}
            if self._task.tests:
                told = box.get_file(f"{_LOGS}/tests.json", max_bytes=_MAX_RESULT_BYTES)
                results = json.loads(told)
        except (ValueError, RecursionError) as error:
            raise _Failed("invalid", f"the tests leave no results ({error}): {said}") from error
        if not math.isfinite(reward) or not isinstance(results, dict):
            raise _Failed("invalid", f"the tests leave no results: {said}")
        return reward, results, said

    def _run_script(self, box: sandbox.Sandbox, path: str, timeout_s: float) -> sandbox.Result:
        """Run a script as Harbor does, but with the system's own chmod.

        Raises:
            sandbox.SandboxLost: the check was cancelled.
        """
        command = f"/bin/chmod +x {path} && {path}"
        done = box.run(command, timeout_s=timeout_s, cancelled=self._cancelled)
        if done.status == "cancelled":
            box.stop()
            raise sandbox.SandboxLost("the check was cancelled")
        return done


def _tail(output: bytes) -> str:
    return output.decode("utf-8", "replace").strip()[-_SHOWN_CHARS:]
