r"""Stage 1: corpus -> corpus. Removes what cannot or should not be trained, and holds tasks out.

    python -m data_pipeline.curate nemotron/ --output=corpus --heldout_fraction=0.01
    python -m data_pipeline.curate a.jsonl b.parquet --output=corpus --trajectory_filter=complete

It writes train.parquet, heldout.parquet (where tasks are held out) and removed.parquet, where each
row that went has its reason. A row that is not of the corpus schema, or that has no assistant turn,
is an error unless --bad_rows=remove. Rows are judged in a first pass over the files and written in
a second, so memory does not grow with their text.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
from absl import flags
from rich import console as rich_console
from rich import progress as rich_progress
from rich import table as rich_table

from data_pipeline import chat, cli, corpus, heldout, manifest, records, verdicts

TRAIN_FILE, HELDOUT_FILE, REMOVED_FILE = corpus.TRAIN_FILE, "heldout.parquet", "removed.parquet"

_REMOVED_SCHEMA = records.CORPUS_SCHEMA.append(pa.field("reason", pa.string())).append(
    pa.field("location", pa.string())
)
_NUM_SHOWN = 5  # faults told in one error


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurateOptions:
    """What curate is told."""

    trajectory_filter: verdicts.TrajectoryFilter = dataclasses.field(
        default="none",
        metadata=cli.flag(
            "keep all episodes, those that came to their end, or those with reward 1"
        ),
    )
    heldout_fraction: float = dataclasses.field(
        default=0.0, metadata=cli.flag("share of the tasks that is held out of training")
    )
    heldout_seed: int = dataclasses.field(
        default=0, metadata=cli.flag("chooses which tasks are held out")
    )
    bad_rows: Literal["error", "remove"] = dataclasses.field(
        default="error",
        metadata=cli.flag(
            "rows that are malformed or have no assistant turn: stop, or remove them"
        ),
    )

    def __post_init__(self):
        cli.require_choice("trajectory_filter", self.trajectory_filter, verdicts.TrajectoryFilter)
        cli.require_choice("bad_rows", self.bad_rows, Literal["error", "remove"])
        cli.require(
            0 <= self.heldout_fraction < 1,
            f"--heldout_fraction={self.heldout_fraction} must be in [0, 1)",
        )


@dataclasses.dataclass(frozen=True)
class Curated:
    """The files that curate leaves."""

    train: pathlib.Path
    heldout: pathlib.Path | None
    removed: pathlib.Path


def curate(
    corpus_names: Sequence[str],
    *,
    output_dir: pathlib.Path,
    options: CurateOptions,
    special_tokens: Sequence[str] = chat.QWEN3_SPECIAL_TOKENS,
    overwrite: bool = False,
) -> Curated:
    """Curate a corpus into `output_dir`.

    Args:
        corpus_names: files, folders, or `embedded`.
        output_dir: the folder to write.
        options: what to remove and to hold out.
        special_tokens: texts that may not stand inside a message.
        overwrite: replace another output of curate.

    Raises:
        ValueError: a bad input, setting or row, naming it; or nothing would be left.
    """
    files = corpus.find_files(corpus_names)
    settings = manifest.options_of(options) | {"special_tokens": sorted(special_tokens)}
    digests = manifest.digest_files(files, cache_dir=output_dir)
    stage = manifest.Stage("curate", output_dir, digests, settings)
    console = rich_console.Console(stderr=True)
    if manifest.begin(stage, overwrite=overwrite):
        console.print(f"curate: {output_dir} is done already", soft_wrap=True)
        return _outputs(output_dir)
    with manifest.discard_on_error(stage):
        counts = _run(stage, files, special_tokens, options, console)
    console.print(_funnel(counts))
    return _outputs(output_dir)


def _run(
    stage: manifest.Stage,
    files: Sequence[pathlib.Path],
    special_tokens: Sequence[str],
    options: CurateOptions,
    console: rich_console.Console,
) -> dict[str, int]:
    """Judge, write; returns the counts of the funnel."""
    verdict = verdicts.judge(
        _progress(files, "judge", console),
        forged=chat.special_token_pattern(special_tokens),
        trajectory_filter=options.trajectory_filter,
    )
    _refuse(verdict, files, options)
    held_tasks = _choose_heldout(verdict, options)
    _write(_progress(files, "write", console), verdict, held_tasks, stage.output_dir)
    counts = _counts(verdict, held_tasks)
    manifest.complete(stage, counts)
    return counts


def _outputs(output_dir: pathlib.Path) -> Curated:
    held = output_dir / HELDOUT_FILE
    return Curated(
        output_dir / TRAIN_FILE, held if held.is_file() else None, output_dir / REMOVED_FILE
    )


def _progress(
    files: Sequence[pathlib.Path], what: str, console: rich_console.Console
) -> Iterator[corpus.Row]:
    with rich_progress.Progress(console=console, transient=True) as bar:
        shown = bar.add_task(f"curate: {what}", total=len(files))
        for file in files:
            yield from corpus.read_rows(file)
            bar.advance(shown)


def _refuse(
    verdict: verdicts.Verdicts, files: Sequence[pathlib.Path], options: CurateOptions
) -> None:
    """Raise for what the options do not allow, before anything is written."""
    if options.bad_rows == "error" and verdict.faults:
        more = len(verdict.faults) - _NUM_SHOWN
        raise ValueError(
            "; ".join(verdict.faults[:_NUM_SHOWN])
            + (f"; and {more} more such rows" if more > 0 else "")
            + "; correct these rows, or remove them with --bad_rows=remove"
        )
    if options.trajectory_filter == "success" and not verdict.num_rewards:
        raise ValueError(
            "--trajectory_filter=success needs the column `reward`, which no row has; "
            "use complete or none"
        )
    if "" not in verdict.reasons:
        names = ", ".join(map(str, files))
        why = collections.Counter(verdict.reasons)
        went = ", ".join(f"{num} {reason}" for reason, num in why.items()) or "it holds no row"
        raise ValueError(
            f"{names}: the corpus is empty, no row to train on ({went}); name other files, or "
            "loosen --trajectory_filter"
        )


def _choose_heldout(verdict: verdicts.Verdicts, options: CurateOptions) -> frozenset[str]:
    columns = zip(verdict.reasons, verdict.tasks, verdict.sources, verdict.domains, strict=True)
    rows = [(task, source, domain) for reason, task, source, domain in columns if not reason]
    chosen = heldout.choose_tasks(
        rows, fraction=options.heldout_fraction, seed=options.heldout_seed
    )
    if options.heldout_fraction and not chosen:
        raise ValueError(
            f"--heldout_fraction={options.heldout_fraction} needs a source with at least two "
            "tasks; set it to 0"
        )
    return chosen


def _write(
    rows: Iterable[corpus.Row],
    verdict: verdicts.Verdicts,
    held_tasks: frozenset[str],
    output_dir: pathlib.Path,
) -> None:
    sinks = {
        TRAIN_FILE: corpus.ParquetSink(output_dir / TRAIN_FILE),
        REMOVED_FILE: corpus.ParquetSink(output_dir / REMOVED_FILE, _REMOVED_SCHEMA),
    }
    if held_tasks:
        sinks[HELDOUT_FILE] = corpus.ParquetSink(output_dir / HELDOUT_FILE)
    try:
        for row, reason, task in zip(rows, verdict.reasons, verdict.tasks, strict=True):
            values: dict[str, Any] = row.conversation.to_row() if row.conversation else {}
            if reason:
                fault = f"{reason}: {row.fault}" if row.fault else reason
                sinks[REMOVED_FILE].write(values | {"reason": fault, "location": row.location})
            else:
                sinks[HELDOUT_FILE if task in held_tasks else TRAIN_FILE].write(values)
    except BaseException:
        for sink in sinks.values():
            sink.abandon()
        raise
    for sink in sinks.values():
        sink.close()


def _counts(verdict: verdicts.Verdicts, held_tasks: frozenset[str]) -> dict[str, int]:
    """Rows that were read, that went for each reason, and that stay on each side."""
    removed = collections.Counter(verdict.reasons)
    stay = [task for task, reason in zip(verdict.tasks, verdict.reasons, strict=True) if not reason]
    num_held = sum(task in held_tasks for task in stay)
    return {
        "rows": len(verdict.reasons),
        **{reason: removed[reason] for reason in verdicts.REASONS},
        "train": len(stay) - num_held,
        "heldout": num_held,
        "heldout_tasks": len(held_tasks),
    }


def _funnel(counts: dict[str, int]) -> rich_table.Table:
    table = rich_table.Table("curate", "rows", "left", title=None)
    left = counts["rows"]
    table.add_row("read", f"{left:,}", f"{left:,}")
    for reason in verdicts.REASONS:
        left -= counts[reason]
        if counts[reason]:
            table.add_row(reason, f"-{counts[reason]:,}", f"{left:,}")
    table.add_row(f"held out ({counts['heldout_tasks']:,} tasks)", f"{counts['heldout']:,}", "")
    table.add_row("train", f"{counts['train']:,}", f"{counts['train']:,}")
    return table


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
        overwrite=flags.FLAGS.overwrite,
    )


if __name__ == "__main__":
    cli.define_flags(CurateOptions)
    cli.define_output_flags()
    cli.define_tokenizer_flag()
    cli.run(main)
