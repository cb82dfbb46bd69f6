r"""Stage 1: corpus -> corpus. Removes what cannot or should not be trained, and holds tasks out.

    python -m data_pipeline.curate nemotron/ --output=corpus --heldout_fraction=0.01 \
        --benchmarks=terminal-bench-2/ --parse_failures=mask
    python -m data_pipeline.curate a.jsonl b.parquet --output=corpus --trajectory_filter=complete

It writes the folders train/, heldout/ (where tasks are held out) and removed/, where each row that
went is as it was read, with its reason; statistics.parquet, a line for each row that was read; and
report.json, what each filter took. Rows are judged in a first pass over the files and written in a
second, each in pieces of --shard_rows rows, so memory does not grow with their text, and a run that
was stopped goes on where it was.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from absl import flags
from rich import console as rich_console
from rich import progress as rich_progress

from data_pipeline import chat, cli, corpus, executor, manifest, storage
from data_pipeline.curation import (
    benchmark_tasks,
    curate_shard,
    curation_report,
    heldout,
    row_filters,
    verdicts,
)

TRAIN_FOLDER, HELDOUT_FOLDER, REMOVED_FOLDER = (
    curate_shard.TRAIN, curate_shard.HELDOUT, curate_shard.REMOVED,
)  # fmt: skip
STATISTICS_FILE = "statistics.parquet"
_NUM_SHOWN = 5  # faults told in one error


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurateOptions(row_filters.FilterOptions):
    """What curate is told."""

    benchmarks: tuple[str, ...] = dataclasses.field(
        default=(),
        metadata=cli.flag(
            "folders of Harbor or Terminal-Bench tasks, or .jsonl files of instructions: rows "
            "whose instruction shares --ngram words in a row with one of them go",
            changes_output=False,  # the instructions in them do
        ),
    )
    near_duplicates: float = dataclasses.field(
        default=0.0,
        metadata=cli.flag(
            "similarity of task and replies from which on rows are near-duplicates; 0 keeps them"
        ),
    )
    heldout_fraction: float = dataclasses.field(
        default=0.0,
        metadata=cli.flag("share of tasks held out of training; those of one instruction together"),
    )
    heldout_seed: int = dataclasses.field(
        default=0, metadata=cli.flag("chooses which tasks are held out")
    )
    strict: bool = dataclasses.field(
        default=False,
        metadata=cli.flag(
            "stop, instead of removing and reporting them, at damaged files, malformed rows, empty "
            "turns, oversized messages and special tokens inside messages"
        ),
    )
    shard_rows: int = dataclasses.field(default=2048, metadata=cli.flag("rows read for a file"))

    def __post_init__(self):
        super().__post_init__()
        cli.require(
            0 <= self.heldout_fraction < 1,
            f"--heldout_fraction={self.heldout_fraction} must be in [0, 1)",
        )
        cli.require(
            0 <= self.near_duplicates <= 1,
            f"--near_duplicates={self.near_duplicates} must be in [0, 1]",
        )
        cli.require(self.shard_rows > 0, f"--shard_rows={self.shard_rows} must be positive")


@dataclasses.dataclass(frozen=True)
class Curated:
    """The folders of corpus files that curate leaves; None where no row went there."""

    train: storage.Path
    heldout: storage.Path | None
    removed: storage.Path | None


def curate(
    corpus_names: Sequence[str],
    *,
    output_dir: storage.Path,
    options: CurateOptions,
    special_tokens: Sequence[str] = chat.QWEN3_SPECIAL_TOKENS,
    workers: executor.WorkerOptions | None = None,
    overwrite: bool = False,
) -> Curated:
    """Curate a corpus into `output_dir`.

    Args:
        corpus_names: files, folders, or `embedded`.
        output_dir: the folder to write.
        options: what to remove and to hold out.
        special_tokens: texts that may not stand inside a message.
        workers: where the work runs.
        overwrite: replace another output of curate.

    Raises:
        ValueError: a bad input, setting or row, naming it; or nothing would be left.
    """
    files = corpus.find_files(corpus_names)
    settings = row_filters.Settings(
        options, tuple(sorted(special_tokens)), benchmark_tasks.read(options.benchmarks)
    )
    stage = _stage(files, output_dir, settings)
    console = rich_console.Console(stderr=True)
    if manifest.begin(stage, overwrite=overwrite):
        console.print(f"curate: {output_dir} is done already", soft_wrap=True)
        return _outputs(output_dir)
    with manifest.discard_on_error(stage):
        tasks = _tasks(files, settings, output_dir, options)
        run = _Runner(files, workers or executor.WorkerOptions(), console)
        report = _run(stage, tasks, files, options, run)
    console.print(curation_report.table(report))
    if faults := curation_report.faults(report):
        console.print(
            f"curate: {faults}; {output_dir / REMOVED_FOLDER} holds all, --strict stops at them",
            soft_wrap=True,
            markup=False,
        )
    return _outputs(output_dir)


def _stage(
    files: Sequence[storage.Path], output_dir: storage.Path, settings: row_filters.Settings
) -> manifest.Stage:
    told = manifest.options_of(settings.options) | {
        "special_tokens": list(settings.special_tokens),
        "benchmark_instructions": manifest.digest_json(settings.benchmark),
    }
    digests = manifest.digest_files(files, cache_dir=output_dir)
    return manifest.Stage("curate", output_dir, digests, told)


def _tasks(
    files: Sequence[storage.Path],
    settings: row_filters.Settings,
    output_dir: storage.Path,
    options: CurateOptions,
) -> list[curate_shard.Task]:
    parts_dir = output_dir / "parts"
    storage.make_folder(parts_dir)
    pieces = corpus.split_into_spans(files, max_rows=options.shard_rows, tolerant=True)
    return [
        curate_shard.Task(
            number=number,
            spans=tuple(spans),
            settings=settings,
            with_sketches=options.near_duplicates > 0,
            output_dir=output_dir,
            parts_dir=parts_dir,
        )
        for number, spans in enumerate(pieces)
    ]


@dataclasses.dataclass(frozen=True)
class _Runner:
    """Runs tasks, showing how far they are."""

    files: Sequence[storage.Path]
    workers: executor.WorkerOptions
    console: rich_console.Console

    def __call__[Task](
        self, what: str, function: Callable[[Task], int], tasks: Sequence[Task], num_done: int
    ) -> None:
        input_bytes = sum(map(storage.size, self.files))
        columns = (
            *rich_progress.Progress.get_default_columns(),
            rich_progress.TextColumn("{task.fields[rows]:,} rows"),
        )
        with rich_progress.Progress(*columns, console=self.console, transient=True) as bar:
            total, rows = num_done + len(tasks), 0
            shown = bar.add_task(f"curate: {what}", total=total, completed=num_done, rows=0)
            for _, num in executor.results(function, tasks, self.workers, input_bytes=input_bytes):
                rows += num
                bar.update(shown, advance=1, rows=rows)


def _run(
    stage: manifest.Stage,
    tasks: Sequence[curate_shard.Task],
    files: Sequence[storage.Path],
    options: CurateOptions,
    run: _Runner,
) -> dict[str, Any]:
    """Judge, decide, write; returns the report."""
    todo = [task for task in tasks if not task.judged_path.is_file()]
    run("judge", curate_shard.judge, todo, len(tasks) - len(todo))
    parts = [pq.read_table(storage.for_arrow(task.judged_path)) for task in tasks]
    judged = pa.concat_tables(parts) if parts else curate_shard.NOTHING_JUDGED
    verdict = verdicts.decide(judged, threshold=options.near_duplicates)
    _refuse(verdict, judged, files, options)
    row_tasks = verdicts.group_tasks(judged["task"].to_pylist(), judged["instruction"].to_pylist())
    held_tasks = _choose_heldout(verdict, row_tasks, judged, options)
    is_heldout = [task in held_tasks for task in row_tasks]
    write_tasks, first = [], 0
    for task, part in zip(tasks, parts, strict=True):
        rows = slice(first, first + len(part))
        first += len(part)
        write_tasks.append(
            curate_shard.WriteTask(
                task,
                reasons=tuple(verdict.reasons[rows]),
                details=tuple(verdict.details[rows]),
                is_heldout=tuple(is_heldout[rows]),
            )
        )
    todo = [task for task in write_tasks if not task.span.written_path.is_file()]
    run("write", curate_shard.write, todo, len(tasks) - len(todo))
    report = curation_report.make(
        verdict,
        locations=judged["location"].to_pylist(),
        edits=judged["edits"].to_pylist(),
        is_heldout=is_heldout,
        num_heldout_tasks=len(held_tasks),
        settings=tasks[0].settings,
    )
    _finish(stage, tasks[0].parts_dir, judged, verdict, report)
    return report


def _finish(
    stage: manifest.Stage,
    parts_dir: storage.Path,
    judged: pa.Table,
    verdict: verdicts.Verdicts,
    report: dict[str, Any],
) -> None:
    place = curate_shard.STATISTICS_SCHEMA.get_field_index("reason")
    statistics = judged.select(curate_shard.STATISTICS_SCHEMA.names).set_column(
        place, "reason", pa.array(verdict.reasons, pa.string())
    )
    with storage.write_through(stage.output_dir / STATISTICS_FILE) as temporary:
        pq.write_table(statistics, temporary, compression="zstd")
    manifest.write_json(stage.output_dir / curation_report.FILE, report)
    storage.remove_tree(parts_dir)  # first: what is whole holds no parts, whenever it is killed
    manifest.complete(stage, curation_report.counts(report))


def _outputs(output_dir: storage.Path) -> Curated:
    held, removed = output_dir / HELDOUT_FOLDER, output_dir / REMOVED_FOLDER
    return Curated(
        train=output_dir / TRAIN_FOLDER,
        heldout=held if held.is_dir() else None,
        removed=removed if removed.is_dir() else None,
    )


def _refuse(
    verdict: verdicts.Verdicts,
    judged: pa.Table,
    files: Sequence[storage.Path],
    options: CurateOptions,
) -> None:
    """Raise for what the options do not allow, before anything is written."""
    rows = [i for i, reason in enumerate(verdict.reasons) if reason in row_filters.FAULTS]
    faults = [
        curation_report.fault(str(judged["location"][i]), verdict.reasons[i], verdict.details[i])
        for i in rows[:_NUM_SHOWN]
    ]
    more = f"; and {len(rows) - _NUM_SHOWN} more" if len(rows) > _NUM_SHOWN else ""
    if options.strict and rows:
        raise ValueError(
            f"{'; '.join(faults)}{more}; correct these rows, or remove them with --nostrict"
        )
    if options.trajectory_filter == "success" and judged["reward"].null_count == len(judged):
        raise ValueError(
            "--trajectory_filter=success needs the column `reward`, which no row has; "
            "use complete or none"
        )
    if "" not in verdict.reasons:
        names = ", ".join(map(str, files))
        why = collections.Counter(verdict.reasons)
        went = ", ".join(f"{num} {reason}" for reason, num in why.items()) or "it holds no row"
        first = f": {faults[0]}" if faults else ""
        raise ValueError(
            f"{names}: the corpus is empty, no row to train on ({went}{first}); name other files, "
            "or loosen the filters"
        )


def _choose_heldout(
    verdict: verdicts.Verdicts,
    row_tasks: Sequence[str],
    judged: pa.Table,
    options: CurateOptions,
) -> frozenset[str]:
    rows = zip(row_tasks, judged["source"].to_pylist(), judged["domain"].to_pylist(), strict=True)
    stay = [row for row, reason in zip(rows, verdict.reasons, strict=True) if not reason]
    chosen = heldout.choose_tasks(
        stay, fraction=options.heldout_fraction, seed=options.heldout_seed
    )
    if options.heldout_fraction and not chosen:
        raise ValueError(
            f"--heldout_fraction={options.heldout_fraction} needs a source with at least two "
            "tasks; set it to 0"
        )
    return chosen


def main(argv: list[str]) -> None:
    """Run the command."""
    tokenizer = flags.FLAGS.tokenizer
    special = chat.QWEN3_SPECIAL_TOKENS
    if tokenizer:
        special = chat.special_tokens_of(chat.resolve_tokenizer_dir(tokenizer))
    curate(
        argv,
        output_dir=cli.output_dir(),
        options=cli.options_from_flags(CurateOptions),
        special_tokens=special,
        workers=cli.options_from_flags(executor.WorkerOptions),
        overwrite=flags.FLAGS.overwrite,
    )


if __name__ == "__main__":
    cli.define_flags(CurateOptions, executor.WorkerOptions)
    cli.define_output_flags()
    cli.define_tokenizer_flag()
    cli.run(main)
