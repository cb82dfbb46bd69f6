r"""Curate, tokenize and plan in one: from raw sessions to what a training run reads.

    python -m data_pipeline.prepare sessions.jsonl --tokenizer=Qwen3-8B --output=prepared
    python -m data_pipeline.prepare embedded --tokenizer=embedded --output=prepared \
        --row_length=2048 --global_batch_size=8 --heldout_fraction=0.1
    python -m data_pipeline.prepare nemotron/ --tokenizer=Qwen3-14B --output=prepared --epochs=2

It leaves OUTPUT/corpus, OUTPUT/tokens and OUTPUT/plan, and of the tasks that are held out
OUTPUT/heldout/tokens and OUTPUT/heldout/plan. The same command again does what is not done yet, and
nothing where all is.
"""

import dataclasses
from collections.abc import Sequence

from absl import flags

from data_pipeline import chat, cli, curate, executor, manifest, plan, storage, tokenize
from data_pipeline.planning import stages_file


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What the three stages are told."""

    curation: curate.CurateOptions = dataclasses.field(default_factory=curate.CurateOptions)
    tokenization: tokenize.TokenizeOptions = dataclasses.field(
        default_factory=tokenize.TokenizeOptions
    )
    planning: plan.PlanOptions = dataclasses.field(default_factory=plan.PlanOptions)


@dataclasses.dataclass(frozen=True)
class PreparedPaths:
    """Where prepare left what; the held-out ones are None where nothing is held out."""

    train_corpus: storage.Path
    train_tokens: storage.Path
    train_plan: storage.Path
    heldout_corpus: storage.Path | None
    heldout_tokens: storage.Path | None
    heldout_plan: storage.Path | None


def prepare(
    corpus: Sequence[str],
    *,
    tokenizer_dir: storage.PathLike,
    output_dir: storage.PathLike,
    options: PrepareOptions | None = None,
    workers: executor.WorkerOptions | None = None,
    overwrite: bool = False,
) -> PreparedPaths:
    """Run the three stages; those that are done already are not run again.

    Args:
        corpus: Parquet or JSONL files, folders of them, or `embedded`.
        tokenizer_dir: Hugging Face folder of the model's tokenizer, or `embedded`.
        output_dir: the folder to write.
        options: settings of the stages.
        workers: where their work runs.
        overwrite: replace output of other settings.

    Raises:
        ValueError: a bad input, setting or row, naming it.
    """
    options, output = options or PrepareOptions(), storage.as_path(output_dir)
    try:
        return _prepare(corpus, str(tokenizer_dir), output, options, workers, overwrite)
    except ValueError:
        storage.remove_empty(output)  # no stage left anything
        raise


def _prepare(
    corpus: Sequence[str],
    tokenizer_dir: str,
    output: storage.Path,
    options: PrepareOptions,
    workers: executor.WorkerOptions | None,
    overwrite: bool,
) -> PreparedPaths:
    tokenizer = chat.resolve_tokenizer_dir(tokenizer_dir)
    if options.planning.stages:
        stages_file.read(storage.as_path(options.planning.stages))
    # Here only to fail, if it must, before the corpus is read and anything is replaced.
    chat.ChatTokenizer(tokenizer, think=options.tokenization.think)
    curated = curate.curate(
        corpus,
        output_dir=output / "corpus",
        options=options.curation,
        special_tokens=chat.special_tokens_of(tokenizer),
        workers=workers,
        overwrite=overwrite,
    )

    def rows_of(side: storage.Path, folder: storage.Path, planning: plan.PlanOptions) -> None:
        tokenize.tokenize(
            [str(side)],
            tokenizer_dir=str(tokenizer),
            output_dir=folder / "tokens",
            options=options.tokenization,
            workers=workers,
            overwrite=overwrite,
        )
        plan.make_plan(
            folder / "tokens", output_dir=folder / "plan", options=planning, overwrite=overwrite
        )

    rows_of(curated.train, output, options.planning)
    if curated.heldout:
        rows_of(curated.heldout, output / "heldout", _heldout_planning(options))
    else:
        _discard_heldout(output / "heldout")
    return prepared_paths(output)


def _discard_heldout(folder: storage.Path) -> None:
    """Remove what an earlier run with other settings held out; nothing would read it."""
    manifest.discard(folder / "plan", stage="plan")
    manifest.discard(folder / "tokens", stage="tokenize")
    storage.remove_empty(folder)


def prepared_paths(folder: storage.PathLike) -> PreparedPaths:
    """What `prepare` left in `folder`.

    Raises:
        ValueError: it did not, or did not finish.
    """
    output = storage.as_path(folder)
    manifest.read(output / "corpus", stage="curate")
    heldout_corpus = output / "corpus" / curate.HELDOUT_FOLDER
    held = output / "heldout" if heldout_corpus.exists() else None
    for parent in (output, held) if held else (output,):
        manifest.read(parent / "plan", stage="plan")
    return PreparedPaths(
        train_corpus=output / "corpus" / curate.TRAIN_FOLDER,
        train_tokens=output / "tokens",
        train_plan=output / "plan",
        heldout_corpus=heldout_corpus if held else None,
        heldout_tokens=held / "tokens" if held else None,
        heldout_plan=held / "plan" if held else None,
    )


def _heldout_planning(options: PrepareOptions) -> plan.PlanOptions:
    """Every held-out token once; whoever reads it makes its batches."""
    return dataclasses.replace(
        options.planning,
        global_batch_size=1,
        epochs=1,
        curriculum="mixed",
        first_sources=(),
        replay=0.0,
        max_segments=0,
        stages="",
        max_tokens=0,
        overlong="split",
        remainder="pad",
        pictures=False,
    )


def main(argv: list[str]) -> None:
    """Run the command."""
    prepare(
        argv,
        tokenizer_dir=flags.FLAGS.tokenizer,
        output_dir=cli.output_dir(),
        options=PrepareOptions(
            curation=cli.options_from_flags(curate.CurateOptions),
            tokenization=cli.options_from_flags(tokenize.TokenizeOptions),
            planning=cli.options_from_flags(plan.PlanOptions),
        ),
        workers=cli.options_from_flags(executor.WorkerOptions),
        overwrite=flags.FLAGS.overwrite,
    )


if __name__ == "__main__":
    cli.define_flags(
        curate.CurateOptions, tokenize.TokenizeOptions, plan.PlanOptions, executor.WorkerOptions
    )
    cli.define_output_flags()
    cli.define_tokenizer_flag()
    cli.run(main)
