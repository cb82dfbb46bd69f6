"""What a run reads, made ready in its folder: the base model and the plan of rows.

    WORKDIR/data   the corpus curated, tokenised and planned by data_pipeline.prepare

It is kept when it is there already.
"""

import dataclasses
import pathlib

from data_pipeline import curate, loader, manifest, plan, prepare, tokenize
from jaxterm import config, distributed, start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """Folders and plans of a run."""

    hf_dir: pathlib.Path  # config, tokenizer and generation settings of the model
    train: loader.Plan
    heldout: loader.Plan | None
    heldout_corpus: pathlib.Path | None

    @property
    def fill(self) -> float:
        """Share of the train plan's positions that hold tokens."""
        return manifest.read_json(self.train.folder / plan.REPORT_FILE)["fill"]


def make_ready(run: config.TrainConfig, workdir: pathlib.Path) -> Inputs:
    """Everything but the weights; process 0 does the work.

    Raises:
        ValueError: a setting or file that does not fit, before anything is computed from it.
    """
    hf_dir = start.hf_folder(run, workdir)
    paths = prepare.prepared_paths(_prepared_dir(run, workdir, hf_dir))
    train = loader.Plan.open(paths.train_plan)
    _check_plan(run, train, paths.train_plan)
    return Inputs(
        hf_dir=hf_dir,
        train=train,
        heldout=loader.Plan.open(paths.heldout_plan) if paths.heldout_plan else None,
        heldout_corpus=paths.heldout_corpus,
    )


def _prepared_dir(
    run: config.TrainConfig, workdir: pathlib.Path, hf_dir: pathlib.Path
) -> pathlib.Path:
    data = run.data
    if bool(data.corpus) == bool(data.prepared_dir):
        raise ValueError(
            f"config.data.corpus={data.corpus} and config.data.prepared_dir={data.prepared_dir!r}: "
            "set one of the two; --config.data.corpus takes Parquet or JSONL files or folders, "
            "separated by commas"
        )
    if data.prepared_dir:
        return pathlib.Path(data.prepared_dir)
    options = prepare.PrepareOptions(
        curation=curate.CurateOptions(
            trajectory_filter=data.trajectory_filter,
            bad_rows=data.bad_rows,
            heldout_fraction=data.heldout_fraction,
        ),
        tokenization=tokenize.TokenizeOptions(think=data.think),
        planning=plan.PlanOptions(
            row_length=data.row_length,
            global_batch_size=data.global_batch_size,
            epochs=data.epochs,
            curriculum=data.curriculum,
            first_sources=data.first_sources,
            overlong=data.overlong,
            seed=run.seed,
        ),
    )

    def work() -> None:
        try:
            prepare.prepare(
                data.corpus, tokenizer_dir=hf_dir, output_dir=workdir / "data", options=options
            )
        except ValueError as error:
            raise ValueError(
                f"{error} (in a run these settings are --config.data.NAME, and other data needs "
                "another --workdir)"
            ) from error

    distributed.once("prepare", work)
    return workdir / "data"


def _check_plan(run: config.TrainConfig, train: loader.Plan, folder: pathlib.Path) -> None:
    settings = {"row_length": train.row_length, "global_batch_size": train.global_batch_size}
    faults = [
        f"config.data.{name}={getattr(run.data, name)}, the plan has {value}"
        for name, value in settings.items()
        if getattr(run.data, name) != value
    ]
    if faults:
        raise ValueError(f"{folder} is a plan for other settings: {'; '.join(faults)}; plan again")
