r"""Stage 2: corpus -> tokens. Conversations become ArrayRecord shards and an index.

    python -m data_pipeline.tokenize corpus --tokenizer=Qwen3-8B --output=tokens
    python -m data_pipeline.tokenize sessions.jsonl --tokenizer=Qwen3-8B --output=tokens \
        --think=strip_history --num_workers=8

Each shard is made by one process from its own rows, so memory does not grow with the corpus. A run
that was stopped goes on where it was when the same command is given again; a finished one does
nothing.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import pyarrow.parquet as pq
from absl import flags
from rich import console as rich_console
from rich import progress as rich_progress

from data_pipeline import chat, cli, corpus, executor, manifest, shards, storage, tokenize_shard
from data_pipeline.curation import curation_report


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizeOptions:
    """What tokenize is told."""

    think: chat.Think = dataclasses.field(
        default="keep",
        metadata=cli.flag(
            "the <think> blocks of earlier turns: keep them, or strip_history as Qwen3 does"
        ),
    )
    shard_examples: int = dataclasses.field(default=512, metadata=cli.flag("examples a shard"))

    def __post_init__(self):
        cli.require_choice("think", self.think, chat.Think)
        cli.require(
            self.shard_examples > 0, f"--shard_examples={self.shard_examples} must be positive"
        )


def tokenize(
    corpus_names: Sequence[str],
    *,
    tokenizer_dir: str,
    output_dir: storage.Path,
    options: TokenizeOptions,
    workers: executor.WorkerOptions | None = None,
    overwrite: bool = False,
) -> storage.Path:
    """Tokenise a corpus into `output_dir`; returns that folder.

    Raises:
        ValueError: a bad input, setting or row, naming it.
    """
    files = corpus.find_files(corpus_names)
    tokenizer = chat.resolve_tokenizer_dir(tokenizer_dir)
    stage = _stage(files, tokenizer, output_dir, options)
    console = rich_console.Console(stderr=True)
    if manifest.begin(stage, overwrite=overwrite):
        console.print(f"tokenize: {output_dir} is done already", soft_wrap=True)
        return output_dir
    with manifest.discard_on_error(stage):
        tasks = _tasks(files, tokenizer, stage, options)
        input_bytes = sum(map(storage.size, files))
        _run_tasks(tasks, workers or executor.WorkerOptions(), input_bytes, console)
        _finish(stage, tasks)
    return output_dir


def _stage(
    files: Sequence[storage.Path],
    tokenizer: pathlib.Path,
    output_dir: storage.Path,
    options: TokenizeOptions,
) -> manifest.Stage:
    inputs = manifest.digest_files(files, cache_dir=output_dir)
    of_tokenizer = manifest.digest_files(chat.tokenizer_files(tokenizer))
    inputs |= {f"tokenizer/{name.split(':')[1]}": each for name, each in of_tokenizer.items()}
    return manifest.Stage("tokenize", output_dir, inputs, manifest.options_of(options))


def _tasks(
    files: Sequence[storage.Path],
    tokenizer: pathlib.Path,
    stage: manifest.Stage,
    options: TokenizeOptions,
) -> list[tokenize_shard.Task]:
    pieces = corpus.split_into_spans(files, max_rows=options.shard_examples)
    if not pieces:
        names = ", ".join(map(str, files))
        raise ValueError(f"{names}: the corpus is empty, no row to tokenize; name other files")
    of_tokenizer = {k: v for k, v in stage.inputs.items() if k.startswith("tokenizer/")}
    parts_dir = stage.output_dir / "parts"
    storage.make_folder(parts_dir)
    return [
        tokenize_shard.Task(
            shard=shard,
            num_shards=len(pieces),
            spans=tuple(spans),
            tokenizer_dir=tokenizer,
            tokenizer_digest=manifest.digest_json(of_tokenizer),
            think=options.think,
            output_dir=stage.output_dir,
            parts_dir=parts_dir,
        )
        for shard, spans in enumerate(pieces)
    ]


def _run_tasks(
    tasks: Sequence[tokenize_shard.Task],
    workers: executor.WorkerOptions,
    input_bytes: int,
    console: rich_console.Console,
) -> None:
    todo = [task for task in tasks if not task.is_done()]
    columns = (
        *rich_progress.Progress.get_default_columns(),
        rich_progress.TextColumn("{task.fields[tokens]:,} tokens"),
    )
    with rich_progress.Progress(*columns, console=console) as bar:
        shown = bar.add_task(
            "tokenize", total=len(tasks), completed=len(tasks) - len(todo), tokens=0
        )
        tokens = 0
        done = executor.results(
            tokenize_shard.run,
            todo,
            workers,
            input_bytes=input_bytes,
            threads=tokenize_shard.THREADS,
        )
        for _, num in done:
            tokens += num
            bar.update(shown, advance=1, tokens=tokens)


def _finish(stage: manifest.Stage, tasks: Sequence[tokenize_shard.Task]) -> None:
    """Join the parts of the index and write the manifest."""
    counts = dict.fromkeys(("num_tokens", "num_loss_tokens", "num_turns"), 0)
    num_examples = 0
    with (
        storage.write_through(stage.output_dir / shards.INDEX_FILE) as temporary,
        pq.ParquetWriter(temporary, tokenize_shard.INDEX_SCHEMA, compression="zstd") as writer,
    ):
        for task in tasks:
            part = pq.read_table(storage.for_arrow(task.part_path))
            writer.write_table(part)
            num_examples += len(part)
            for name in counts:
                counts[name] += int(part[name].to_numpy().sum())
    counts |= {"num_examples": num_examples, "num_shards": len(tasks)}
    sizes = storage.sizes([task.shard_path for task in tasks])
    files = [span.path for task in tasks for span in task.spans]
    funnel = curation_report.funnel_of(files)
    manifest.complete(stage, counts | {"shard_bytes": sizes, "funnel": funnel})
    for task in tasks:
        task.part_path.unlink()
    storage.remove_empty(tasks[0].parts_dir)


def main(argv: list[str]) -> None:
    """Run the command."""
    values = flags.FLAGS
    tokenize(
        argv,
        tokenizer_dir=values.tokenizer,
        output_dir=cli.output_dir(),
        options=cli.options_from_flags(TokenizeOptions),
        workers=cli.options_from_flags(executor.WorkerOptions),
        overwrite=values.overwrite,
    )


if __name__ == "__main__":
    cli.define_flags(TokenizeOptions, executor.WorkerOptions)
    cli.define_output_flags()
    cli.define_tokenizer_flag()
    cli.run(main)
