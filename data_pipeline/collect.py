r"""Trials -> corpus: what agents did becomes conversations with the reward that their tests gave.

    python -m data_pipeline.collect rollout --output=corpus
    python -m data_pipeline.collect jobs --output=corpus --tasks=tasks --nosubagents

TRIALS_DIR is what data_pipeline.rollout wrote, a folder of one of Harbor's jobs, or any folder that
holds such. A trial leaves a row for each linear history: one, or, where the history was summarised,
one for each part and each subagent that wrote the summary. The rows have the columns of
nvidia/Nemotron-Terminal-Corpus, those of Harbor's own export, and reward, complete, domain,
difficulty, tokens and cost. Turns that a later history copies from an earlier one are named in
`untrained_turns`, so that each reply is trained once.

A trial that cannot be read, or that was ended by no doing of its agent, is counted with its reason
in report.json and in the table at the end. Trials are read one by one.
"""

import collections
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from absl import flags
from rich import console as rich_console
from rich import progress as rich_progress

from data_pipeline import (
    cli,
    collect_report,
    collect_shard,
    executor,
    manifest,
    storage,
    task_labels,
    trials,
)

KeepOrDrop = Literal["keep", "drop"]
_PARTS = "parts"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """What collect is told."""

    tasks: tuple[str, ...] = dataclasses.field(
        default=(),
        metadata=cli.flag(
            "folders of the tasks, where the trials do not tell; their task.toml holds source, "
            "domain, difficulty, and whether their reward is one",
            changes_output=False,  # the labels in them do
        ),
    )
    subagents: bool = dataclasses.field(
        default=True,
        metadata=cli.flag("with the conversations of the subagents that summarised a history"),
    )
    interrupted: KeepOrDrop = dataclasses.field(
        default="drop",
        metadata=cli.flag(
            "trials that a failure of the infrastructure, of the settings or a stop cut short; "
            "those that the agent itself ended, by its timeout say, are kept anyway"
        ),
    )
    shard_trials: int = dataclasses.field(default=512, metadata=cli.flag("trials read for a file"))

    def __post_init__(self):
        cli.require_choice("interrupted", self.interrupted, KeepOrDrop)
        cli.require(self.shard_trials > 0, f"--shard_trials={self.shard_trials} must be positive")


def collect(
    trials_dir: pathlib.Path,
    *,
    output_dir: storage.Path,
    options: CollectOptions,
    workers: executor.WorkerOptions | None = None,
    overwrite: bool = False,
) -> Mapping[str, Any]:
    """Make a corpus of the trials at or below a folder; returns the report.

    Args:
        trials_dir: where the trials are.
        output_dir: the folder to write.
        options: what to keep.
        workers: where the work runs.
        overwrite: replace another output of collect.

    Raises:
        ValueError: a bad folder or setting, naming it; or no trial left a row.
    """
    folders = trials.find(trials_dir)
    labels = _labels(trials_dir, options.tasks)
    told = manifest.options_of(options) | {"labels": manifest.digest_json(labels)}
    inputs = {"trials": _digest(trials_dir, folders)}
    stage = manifest.Stage("collect", output_dir, inputs, told)
    console = rich_console.Console(stderr=True)
    if manifest.begin(stage, overwrite=overwrite):
        console.print(f"collect: {output_dir} is done already", soft_wrap=True)
        return manifest.read_json(output_dir / collect_report.FILE)
    with manifest.discard_on_error(stage):
        shards = _shards(folders, labels, output_dir, options)
        _run(shards, workers or executor.WorkerOptions(), console)
        counts = collections.Counter[str]()
        for shard in shards:
            counts.update(manifest.read_json(shard.counts_path)["counts"])
        report = collect_report.make(counts)
        _refuse_nothing(trials_dir, report)
        manifest.write_json(output_dir / collect_report.FILE, report)
    storage.remove_tree(output_dir / _PARTS)
    manifest.complete(stage, collect_report.totals(report))
    console.print(collect_report.table(report))
    for warning in collect_report.warnings(report):
        console.print(f"collect: {warning}", soft_wrap=True, markup=False)
    return report


def _labels(trials_dir: pathlib.Path, tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The labels of the tasks that are told of, by the names of their folders."""
    found: dict[str, dict[str, Any]] = {}
    for folder in (trials_dir.absolute().parent, trials_dir):  # of rollout's folder, its trials too
        if (folder / task_labels.TASKS_FILE).is_file():
            found |= manifest.read_json(folder / task_labels.TASKS_FILE)
    for name in tasks:
        folder = pathlib.Path(name)
        cli.require(folder.is_dir(), f"--tasks={name}: no such folder")
        read = {task.name: task_labels.read(task) for task in sorted(folder.iterdir())}
        found |= {task: labels.to_json() for task, labels in read.items() if labels}
    return found


def _digest(root: pathlib.Path, folders: Sequence[pathlib.Path]) -> str:
    """A hash of the results of all trials, which no two runs of a trial share."""
    whole = hashlib.sha256()
    for folder in folders:
        result = folder / trials.RESULT_FILE
        content = result.read_bytes() if result.is_file() else b""
        name = str(folder.relative_to(root))
        whole.update(json.dumps([name, hashlib.sha256(content).hexdigest()]).encode())
    return whole.hexdigest()


def _shards(
    folders: Sequence[pathlib.Path],
    labels: Mapping[str, dict[str, Any]],
    output_dir: storage.Path,
    options: CollectOptions,
) -> list[collect_shard.Shard]:
    storage.make_folder(output_dir / _PARTS)
    num = options.shard_trials
    return [
        collect_shard.Shard(
            trials=tuple(map(str, folders[first : first + num])),
            labels=labels,
            subagents=options.subagents,
            keeps_interrupted=options.interrupted == "keep",
            corpus_path=output_dir / f"part-{first // num:05d}.parquet",
            counts_path=output_dir / _PARTS / f"counts-{first // num:05d}.json",
        )
        for first in range(0, len(folders), num)
    ]


def _run(
    shards: Sequence[collect_shard.Shard],
    workers: executor.WorkerOptions,
    console: rich_console.Console,
) -> None:
    todo = [shard for shard in shards if not shard.counts_path.is_file()]
    num_done = sum(len(shard.trials) for shard in shards if shard not in todo)
    total = sum(len(shard.trials) for shard in shards)
    about_bytes = 200_000 * (total - num_done)  # of a trial's files; to look at all takes longer
    with rich_progress.Progress(
        *rich_progress.Progress.get_default_columns(),
        rich_progress.MofNCompleteColumn(),
        console=console,
        transient=True,
    ) as bar:
        shown = bar.add_task("collect", total=total, completed=num_done)
        done = executor.results(collect_shard.write, todo, workers, input_bytes=about_bytes)
        for shard, _ in done:
            bar.update(shown, advance=len(shard.trials))


def _refuse_nothing(trials_dir: pathlib.Path, report: Mapping[str, Any]) -> None:
    if not report["rows"]:
        why = ", ".join(f"{num} {reason}" for reason, num in report["dropped"].items())
        raise ValueError(
            f"{trials_dir}: no trial left a conversation ({why}); see what data_pipeline.rollout "
            "told of them, or keep cut ones with --interrupted=keep"
        )


def main(argv: list[str]) -> None:
    """Run the command."""
    cli.require(len(argv) == 1, f"name one TRIALS_DIR, not {len(argv)}")
    collect(
        pathlib.Path(argv[0]),
        output_dir=cli.output_dir(),
        options=cli.options_from_flags(CollectOptions),
        workers=cli.options_from_flags(executor.WorkerOptions),
        overwrite=flags.FLAGS.overwrite,
    )


if __name__ == "__main__":
    cli.define_flags(CollectOptions, executor.WorkerOptions)
    cli.define_output_flags()
    cli.run(main)
