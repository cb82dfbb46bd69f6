r"""Tasks from datasets of math, code and code-repair prompts, without a model.

    python -m data_pipeline.taskgen adapt math problems.parquet --output=tasks/math \
        --min_response_chars=8000 --benchmarks=terminal-bench-2/
    python -m data_pipeline.taskgen adapt code a.jsonl --prompt_column=input --output=tasks/code
    python -m data_pipeline.taskgen adapt swe swe.parquet --near_duplicates=0 --output=tasks/swe

These are the paper's dataset adapters (arXiv 2602.21193, 4.1). A record's prompt is kept as it is,
with a sentence that says where the answer goes; of a code-repair prompt each code file that it
contains lies in the environment. Such tasks have no tests, so their rollouts have no reward;
--answer_tests makes tests for math records whose answer is a number.

It leaves OUTPUT/tasks, a Harbor task folder each; removed.jsonl, which record went and why; and
report.json. A run that was stopped goes on where it was; memory does not grow with the records.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tokenizers
from absl import flags
from rich import console as rich_console
from rich import progress as rich_progress

from data_pipeline import chat, cli, corpus, manifest, storage
from data_pipeline.curation import benchmark_tasks
from data_pipeline.taskgen import (
    adapt_record,
    adapt_report,
    adapters,
    dataset_rows,
    domains,
    seen_prompts,
)
from data_pipeline.taskgen import task as task_module

TASKS_FOLDER, REMOVED_FILE = "tasks", "removed.jsonl"
_SEEN_FILE = "prompts.sqlite"  # while the stage works
_COMMIT_S = 2.0  # what a kill makes the next run do again
_COMMIT_ROWS = 2000


def adapt(
    kind: adapters.Kind,
    names: Sequence[str],
    *,
    output_dir: storage.Path,
    options: adapt_record.AdaptOptions,
    tokenizer: str = "",
    overwrite: bool = False,
) -> pathlib.Path:
    """Make tasks of the records of datasets; returns the folder that holds them.

    Args:
        kind: of the datasets.
        names: Parquet or JSONL files, or folders of them.
        output_dir: a local folder to write.
        options: columns and filters.
        tokenizer: Hugging Face folder, or `embedded`; for min_response_tokens.
        overwrite: replace what was made with other settings.

    Raises:
        ValueError: a bad input or setting, naming it; or no task would be left.
    """
    cli.require_choice("kind", kind, adapters.Kind)
    if not isinstance(output_dir, pathlib.Path):
        raise ValueError(f"--output={output_dir}: tasks are folders on a disk; name a local folder")
    cli.require(
        not options.min_response_tokens or bool(tokenizer),
        f"--min_response_tokens={options.min_response_tokens} needs --tokenizer; name it, or use "
        "--min_response_chars",
    )
    files = corpus.find_files(names)
    benchmark = benchmark_tasks.read(options.benchmarks)
    dockerfile = _dockerfile(kind, options)
    told = manifest.options_of(options) | {
        "kind": kind,
        "benchmark_instructions": manifest.digest_json(benchmark),
        "dockerfile": manifest.digest_json(dockerfile),
        "tokenizer": _tokenizer_digest(tokenizer) if options.min_response_tokens else "",
    }
    digests = manifest.digest_files(files, cache_dir=output_dir)
    stage = manifest.Stage("taskgen.adapt", output_dir, digests, told)
    console = rich_console.Console(stderr=True)
    if manifest.begin(stage, overwrite=overwrite):
        console.print(f"taskgen adapt: {output_dir} is done already", soft_wrap=True)
        return output_dir / TASKS_FOLDER
    maker = adapt_record.Maker(
        kind, options, dockerfile, benchmark, _token_counter(tokenizer, options)
    )
    with manifest.discard_on_error(stage):
        report = _run(files, maker, output_dir, console)
    manifest.write_json(output_dir / adapt_report.FILE, report)
    for path in output_dir.glob(f"{_SEEN_FILE}*"):
        path.unlink()
    manifest.complete(stage, adapt_report.counts(report))
    console.print(adapt_report.table(report))
    return output_dir / TASKS_FOLDER


def _dockerfile(kind: adapters.Kind, options: adapt_record.AdaptOptions) -> str:
    if not options.dockerfile:
        return domains.dockerfile(adapters.ADAPTERS[kind].domain)
    path = pathlib.Path(options.dockerfile)
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--dockerfile={path}: not UTF-8 ({error})") from error


def _tokenizer_digest(name: str) -> str:
    path = pathlib.Path(chat.resolve_tokenizer_dir(name)) / "tokenizer.json"
    return next(iter(manifest.digest_files([path]).values()))


def _token_counter(name: str, options: adapt_record.AdaptOptions) -> Callable[[str], int] | None:
    if not options.min_response_tokens:
        return None
    path = pathlib.Path(chat.resolve_tokenizer_dir(name)) / "tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


@dataclasses.dataclass
class _Progress:
    """How far a run is; committed together with the prompts that were seen."""

    place: tuple[int, int] = (0, 0)  # of the next row
    removed_bytes: int = 0
    tally: adapt_report.Tally = dataclasses.field(default_factory=adapt_report.Tally)

    def states(self) -> dict[str, str]:
        """As it is kept."""
        return {
            "place": json.dumps([self.place, self.removed_bytes]), "tally": self.tally.to_json(),
        }  # fmt: skip

    @classmethod
    def of(cls, seen: seen_prompts.SeenPrompts) -> "_Progress":
        """As it was kept; a new one where nothing was."""
        place, removed_bytes = json.loads(seen.state("place", "[[0, 0], 0]"))
        tally = adapt_report.Tally.from_json(seen.state("tally", "{}"))
        return cls((place[0], place[1]), removed_bytes, tally)


def _run(
    files: Sequence[storage.Path],
    maker: adapt_record.Maker,
    output_dir: pathlib.Path,
    console: rich_console.Console,
) -> dict[str, Any]:
    """Go through the rows, from where an earlier run was; returns the report."""
    tasks_dir = output_dir / TASKS_FOLDER
    tasks_dir.mkdir(exist_ok=True)
    seen = seen_prompts.SeenPrompts(
        output_dir / _SEEN_FILE, threshold=maker.options.near_duplicates
    )
    progress = _Progress.of(seen)
    with (output_dir / REMOVED_FILE).open("ab") as removed:
        removed.truncate(progress.removed_bytes)
        last_s, num = time.monotonic(), 0
        for row in _shown(files, progress, console):
            _take(row, maker, seen, tasks_dir, progress.tally, removed)
            progress.place, num = row.resume, num + 1
            if num % _COMMIT_ROWS == 0 or time.monotonic() - last_s > _COMMIT_S:
                removed.flush()
                progress.removed_bytes = removed.tell()
                seen.commit(**progress.states())
                last_s = time.monotonic()
    seen.close()
    report = progress.tally.report()
    if not report["kept"]:
        went = ", ".join(f"{s['removed']} {s['name']}" for s in report["steps"] if s["removed"])
        first = next((s["examples"][0] for s in report["steps"] if s["removed"]), None)
        told = f", such as {first['location']}: {first['detail']}" if first else ""
        raise ValueError(
            f"{', '.join(map(str, files))}: no task is left ({went or 'no record'}{told}); name "
            "the columns, or loosen the filters"
        )
    return report


def _take(
    row: dataset_rows.DatasetRow,
    maker: adapt_record.Maker,
    seen: seen_prompts.SeenPrompts,
    tasks_dir: pathlib.Path,
    tally: adapt_report.Tally,
    removed: Any,
) -> None:
    """Write the row's task, or the line that says why there is none."""
    try:
        column, prompt, task = maker.make(row)
        if repeat := seen.add(task.name, prompt):
            name, similarity = repeat
            reason = adapt_report.DUPLICATE if similarity == 1 else adapt_report.NEAR_DUPLICATE
            raise adapters.Unadaptable(reason, f"{similarity:.0%} like {name}")
    except adapters.Unadaptable as error:
        line = {"location": row.location, "reason": error.reason, "detail": str(error)}
        removed.write((json.dumps(line) + "\n").encode())
        tally.remove(**line)
    else:
        task_module.write_task(task, tasks_dir)
        tally.keep(column=column, has_tests=bool(task.tests), num_files=len(task.files))


def _shown(
    files: Sequence[storage.Path], progress: _Progress, console: rich_console.Console
) -> Iterator[dataset_rows.DatasetRow]:
    """The rows that are left, with a bar that goes by bytes of the files."""
    sizes = list(map(storage.size, files))
    columns = (
        *rich_progress.Progress.get_default_columns(),
        rich_progress.TextColumn("{task.fields[rows]:,} records, {task.fields[kept]:,} tasks"),
    )
    with rich_progress.Progress(*columns, console=console, transient=True) as bar:
        shown = bar.add_task("taskgen adapt", total=sum(sizes), rows=0, kept=0)
        for row in dataset_rows.read(files, start=progress.place):
            yield row
            file, place = row.resume
            done = sum(sizes[:file]) + (row.share * sizes[file] if place else 0)
            tally = progress.tally
            bar.update(shown, completed=done, rows=tally.num_rows, kept=tally.num_kept)


def define_flags() -> None:
    """Of this command."""
    cli.define_flags(adapt_record.AdaptOptions)
    cli.define_output_flags()
    cli.define_tokenizer_flag()


def main(argv: list[str]) -> None:
    """Run the command."""
    kinds = tuple(adapters.ADAPTERS)
    cli.require(bool(argv) and argv[0] in kinds, f"name the kind first: {', '.join(kinds)}")
    adapt(
        argv[0],  # type: ignore[arg-type]
        argv[1:],
        output_dir=cli.output_dir(),
        options=cli.options_from_flags(adapt_record.AdaptOptions),
        tokenizer=flags.FLAGS.tokenizer,
        overwrite=flags.FLAGS.overwrite,
    )
