r"""Tasks -> trials: an agent, Terminus 2, tries each task through Harbor, and its tests judge it.

    python -m data_pipeline.rollout tasks --output=rollout --model=Qwen/Qwen3-32B \
        --base_url=http://127.0.0.1:8000/v1 --attempts=2 --concurrency=16
    python -m data_pipeline.rollout tasks --output=rollout --model=openai/gpt-5 \
        --environment=podman

It writes job.json, what Harbor is told; trials/, the job that Harbor leaves, a folder a trial with
its trajectory and result; tasks.json, the labels of the tasks; harbor.log; and failures.jsonl, the
trials that were done again and why. data_pipeline.collect makes a corpus of it.

A failure that is not the agent's own (the environment does not start or dies, the server refuses or
breaks off) is tried again; data_pipeline.trials holds which is which. ^C ends the trials that run,
and the same command goes on with those that have not ended by their agent's doing.
"""

import contextlib
import fcntl
import hashlib
import json
import pathlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from rich import console as rich_console
from rich import progress as rich_progress

from data_pipeline import (
    cli,
    harbor,
    manifest,
    model_server,
    rollout_options,
    rollout_report,
    task_labels,
    trials,
)

JOB_FILE, TRIALS_FOLDER = "job.json", "trials"
LOG_FILE, FAILURES_FILE, _LOCK_FILE = "harbor.log", "failures.jsonl", ".lock"
_LOG_LINES = 12  # shown where Harbor fails
_MESSAGE_CHARS = 500


def rollout(
    tasks_dir: pathlib.Path,
    *,
    output_dir: pathlib.Path,
    options: rollout_options.RolloutOptions,
    overwrite: bool = False,
) -> Mapping[str, Any]:
    """Let the agent try every task of a folder; returns the report.

    Args:
        tasks_dir: a folder of task folders.
        output_dir: the folder to write.
        options: the settings.
        overwrite: replace another rollout.

    Raises:
        ValueError: a bad folder or setting, a missing program, a server that is gone, Harbor's own
            failure, or too many trials that failed by no doing of the agent.
        harbor.StoppedError: a signal came; the same call goes on.
    """
    tasks = find_tasks(tasks_dir, options)
    program = harbor.find_program(options.harbor)
    stage = _stage(tasks, output_dir, options)
    if (output_dir / _LOCK_FILE).is_file():
        with _lock(output_dir):  # before --overwrite moves what still runs
            pass
    console = rich_console.Console(stderr=True)
    if manifest.begin(stage, overwrite=overwrite):
        console.print(f"rollout: {output_dir} is done already", soft_wrap=True)
        return manifest.read_json(output_dir / rollout_report.FILE)
    with _lock(output_dir) as lock:
        context_tokens = _ask_server(options)
        labels = {task.name: task_labels.read(task) for task in tasks}
        told = {name: found.to_json() for name, found in labels.items() if found}
        manifest.write_json(output_dir / task_labels.TASKS_FILE, told)
        run = _Run(tasks, output_dir, options, program, console)
        run.prepare(context_tokens)
        try:
            run.run_harbor(lock)
        finally:
            harbor.redact(output_dir, options.api_key_env)
        return _finish(stage, run)


def find_tasks(
    tasks_dir: pathlib.Path, options: rollout_options.RolloutOptions
) -> list[pathlib.Path]:
    """The folders of the tasks to roll out, by name.

    Raises:
        ValueError: there is no folder, or no task in it.
    """
    cli.require(tasks_dir.is_dir(), f"{tasks_dir}: no such folder; name the folder of the tasks")
    pattern = f"[!.]*/{task_labels.TASK_FILE}"  # a hidden folder is one half written
    found = sorted(p.parent for p in tasks_dir.glob(pattern))
    if not found:  # the output of a taskgen stage
        found = sorted(p.parent for p in (tasks_dir / "tasks").glob(pattern))
    cli.require(
        bool(found), f"{tasks_dir}: holds no task (a folder with {task_labels.TASK_FILE} in it)"
    )
    if options.num_tasks:  # a larger number takes the same ones, and more
        found.sort(key=lambda task: manifest.digest_json([options.seed, task.name]))
    return sorted(found[: options.num_tasks or None])


def _stage(
    tasks: Sequence[pathlib.Path],
    output_dir: pathlib.Path,
    options: rollout_options.RolloutOptions,
) -> manifest.Stage:
    inputs = {"tasks": manifest.digest_json({task.name: _digest(task) for task in tasks})}
    return manifest.Stage("rollout", output_dir, inputs, manifest.options_of(options))


def _digest(task: pathlib.Path) -> str:
    """A hash of all files of a task."""
    whole = hashlib.sha256()
    for path in sorted(p for p in task.rglob("*") if p.is_file() and not p.is_symlink()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        whole.update(json.dumps([str(path.relative_to(task)), content]).encode())
    return whole.hexdigest()


@contextlib.contextmanager
def _lock(output_dir: pathlib.Path) -> Iterator[int]:
    """A lock that Harbor's process holds too, so that no other begins while either lives."""
    with (output_dir / _LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"--output={output_dir}: a rollout still runs in it (or the Harbor of one that was "
                "killed, which ends by itself); wait for it"
            ) from error
        yield file.fileno()


def _ask_server(options: rollout_options.RolloutOptions) -> int:
    if not options.base_url:
        return options.context_tokens
    says = model_server.check(
        options.base_url, model=options.model, api_key_env=options.api_key_env
    )
    return options.context_tokens or says


class _Run:
    """One run of Harbor over a folder that may hold trials of earlier ones."""

    def __init__(
        self,
        tasks: Sequence[pathlib.Path],
        output_dir: pathlib.Path,
        options: rollout_options.RolloutOptions,
        program: pathlib.Path,
        console: rich_console.Console,
    ):
        self.output_dir, self.options, self.console = output_dir, options, console
        self.tasks, self.job_dir = tasks, output_dir / TRIALS_FOLDER
        self.total = len(tasks) * options.attempts
        self.program, self.version = program, harbor.version(program)

    def prepare(self, context_tokens: int) -> None:
        """Write the job, and clear away what Harbor is to do again."""
        config = harbor.job_config(
            self.options, tasks=self.tasks, job_dir=self.job_dir, context_tokens=context_tokens
        )
        manifest.write_json(self.output_dir / JOB_FILE, config)
        if not self.job_dir.is_dir():
            return
        harbor.let_go_on(self.job_dir, config)
        again = [trial for trial in self._ended() if self._is_done_again(trial)]
        for trial in again:
            self._remove(trial)
        if again:
            self.console.print(f"rollout: {len(again)} trials are done again", soft_wrap=True)

    def _ended(self) -> Iterator[trials.Trial | pathlib.Path]:
        """The trials that have ended; only the folder of one whose result is damaged."""
        for folder in sorted(self.job_dir.iterdir()):
            if (folder / trials.RESULT_FILE).is_file():
                try:
                    trial = trials.read(folder)
                except ValueError:
                    yield folder
                else:
                    if trial:
                        yield trial

    def _is_done_again(self, trial: trials.Trial | pathlib.Path) -> bool:
        return isinstance(trial, pathlib.Path) or trial.failure in trials.DONE_AGAIN

    def _remove(self, trial: trials.Trial | pathlib.Path) -> None:
        is_damaged = isinstance(trial, pathlib.Path)
        folder = trial if is_damaged else trial.folder
        told = {"trial": folder.name}
        if not is_damaged:
            told |= {
                "task": trial.task,
                "failure": str(trial.failure),
                "exception": trial.exception,
                "message": trial.message[:_MESSAGE_CHARS],
            }
        with (self.output_dir / FAILURES_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")
        shutil.rmtree(folder)

    def run_harbor(self, lock: int) -> None:
        """Run Harbor until every trial has ended."""
        options, log_file = self.options, self.output_dir / LOG_FILE
        command = [str(self.program), "run", "-c", str(self.output_dir / JOB_FILE), "--yes"]
        watch = model_server.Watch(
            options.base_url, api_key_env=options.api_key_env, grace_s=options.server_grace_s
        )
        with harbor.process_environment(options) as environment, self._bar() as show:

            def tick() -> None:
                show(harbor.progress(self.job_dir))
                watch.look()

            code = harbor.run(
                command, environment=environment, log_file=log_file, keep_open=[lock], tick=tick
            )
        if code:
            tail = log_file.read_text("utf-8", errors="replace").splitlines()[-_LOG_LINES:]
            raise ValueError(
                f"harbor ended with exit code {code}; the end of {log_file}:\n" + "\n".join(tail)
            )

    @contextlib.contextmanager
    def _bar(self) -> Iterator[Any]:
        columns = (
            *rich_progress.Progress.get_default_columns(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TextColumn("{task.fields[told]}"),
        )
        with rich_progress.Progress(*columns, console=self.console, transient=True) as bar:
            shown = bar.add_task("rollout", total=self.total, told="")

            def show(stats: Mapping[str, int]) -> None:
                if stats:
                    told = (
                        f"{stats['n_running_trials']} running, {stats['n_errored_trials']} ended "
                        f"early, {stats['n_retries']} tried again"
                    )
                    bar.update(shown, completed=stats["n_completed_trials"], told=told)

            yield show

    def results(self) -> Iterator[trials.Trial]:
        """The trials that have ended and can be read."""
        yield from (trial for trial in self._ended() if isinstance(trial, trials.Trial))


def _finish(stage: manifest.Stage, run: _Run) -> Mapping[str, Any]:
    report = rollout_report.make(run.results(), num_wanted=run.total)
    report = {"harbor": run.version, **report}
    manifest.write_json(run.output_dir / rollout_report.FILE, report)
    run.console.print(rollout_report.table(report))
    for warning in rollout_report.warnings(report, run.options):
        run.console.print(f"rollout: {warning}", soft_wrap=True, markup=False)
    rollout_report.refuse_failures(report, run.options, run.output_dir)
    manifest.complete(stage, rollout_report.totals(report))
    return report


def main(argv: list[str]) -> None:
    """Run the command."""
    cli.require(len(argv) == 1, f"name one TASKS_DIR, not {len(argv)}")
    output_dir = cli.output_dir()
    cli.require(
        isinstance(output_dir, pathlib.Path),
        f"--output={output_dir}: Harbor writes to local folders only",
    )
    try:
        rollout(
            pathlib.Path(argv[0]),
            output_dir=pathlib.Path(str(output_dir)),
            options=cli.options_from_flags(rollout_options.RolloutOptions),
            overwrite=flags.FLAGS.overwrite,
        )
    except harbor.StoppedError as stopped:
        print(f"rollout: {stopped}; the same command goes on", file=sys.stderr)
        sys.exit(128 + stopped.number)


if __name__ == "__main__":
    cli.define_flags(rollout_options.RolloutOptions)
    cli.define_output_flags()
    cli.run(main)
