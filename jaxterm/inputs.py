"""What a run reads, made ready in its folder: the base model and the plan of rows.

    WORKDIR/data   the corpus curated, tokenised and planned by data_pipeline.prepare

It is kept when it is there already.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from data_pipeline import curate, loader, manifest, plan, prepare, storage, tokenize
from jaxterm import config, distributed, start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """Folders and plans of a run."""

    hf_dir: pathlib.Path  # config, tokenizer and generation settings of the model
    train: loader.Plan
    heldout: loader.Plan | None
    heldout_corpus: storage.Path | None

    @property
    def report(self) -> dict[str, Any]:
        """The train plan's figures."""
        return manifest.read_json(self.train.folder / plan.REPORT_FILE)

    def unevenness(self, num_shards: int) -> str:
        """What to tell of a mesh with more data shards than the plan evens out; or nothing."""
        planned = min(stage["num_shards"] for stage in self.report["stages"])
        if planned % num_shards == 0:
            return ""
        return (
            f"the plan evens the attention work out over {planned} data shards, and the mesh has "
            f"{num_shards}: steps wait for the busiest; set config.data.num_shards={num_shards}, "
            "and more than one row a shard"
        )


def make_ready(
    run: config.TrainConfig, workdir: pathlib.Path, mesh_sizes: Mapping[str, int] | None = None
) -> Inputs:
    """Everything but the weights; process 0 does the work.

    Args:
        run: the settings.
        workdir: the run's folder.
        mesh_sizes: what every stage of the plan must fit, where it is to be trained.

    Raises:
        ValueError: a setting or file that does not fit, before anything is computed from it.
    """
    hf_dir = start.hf_folder(run, workdir)
    paths = prepare.prepared_paths(_prepared_dir(run, workdir, hf_dir))
    train = loader.Plan.open(paths.train_plan)
    _check_plan(run, train, paths.train_plan)
    if mesh_sizes:
        _check_stages(run, train, mesh_sizes)
    return Inputs(
        hf_dir=hf_dir,
        train=train,
        heldout=loader.Plan.open(paths.heldout_plan) if paths.heldout_plan else None,
        heldout_corpus=paths.heldout_corpus,
    )


def _prepared_dir(
    run: config.TrainConfig, workdir: pathlib.Path, hf_dir: pathlib.Path
) -> storage.Path:
    data = run.data
    if bool(data.corpus) == bool(data.prepared_dir):
        raise ValueError(
            f"config.data.corpus={data.corpus} and config.data.prepared_dir={data.prepared_dir!r}: "
            "set one of the two; --config.data.corpus takes Parquet or JSONL files or folders, "
            "separated by commas"
        )
    if data.prepared_dir:
        return storage.as_path(data.prepared_dir)
    options = prepare.PrepareOptions(
        curation=curate.CurateOptions(
            trajectory_filter=data.trajectory_filter,
            parse_failures=data.parse_failures,
            benchmarks=data.benchmarks,
            strict=data.strict,
            heldout_fraction=data.heldout_fraction,
        ),
        tokenization=tokenize.TokenizeOptions(think=data.think),
        planning=plan.PlanOptions(
            row_length=data.row_length,
            global_batch_size=data.global_batch_size,
            epochs=data.epochs,
            curriculum=data.curriculum,
            first_sources=data.first_sources,
            replay=data.replay,
            difficulty_by=data.difficulty_by,
            stages=data.stages,
            max_tokens=data.max_tokens,
            window_rows=data.window_rows,
            max_segments=data.max_segments,
            carry_prompt=data.carry_prompt,
            num_shards=data.num_shards,
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


def _check_plan(run: config.TrainConfig, train: loader.Plan, folder: storage.Path) -> None:
    settings = {"row_length": train.row_length, "global_batch_size": train.global_batch_size}
    faults = [
        f"config.data.{name}={getattr(run.data, name)}, the plan has {value}"
        for name, value in settings.items()
        if getattr(run.data, name) != value
    ]
    if faults:
        raise ValueError(f"{folder} is a plan for other settings: {'; '.join(faults)}; plan again")


def _check_stages(
    run: config.TrainConfig, train: loader.Plan, mesh_sizes: Mapping[str, int]
) -> None:
    rows = run.optimizer.num_micro_batches * mesh_sizes["data"] * mesh_sizes["fsdp"]
    context = mesh_sizes["context"]
    pieces = 2 * context if context > 1 else 1  # at the least
    for stage in train.stages:
        if stage.global_batch_size % rows or stage.row_length % pieces:
            raise ValueError(
                f"{train.folder}: stage {stage.name!r} has global_batch_size="
                f"{stage.global_batch_size} and row_length={stage.row_length}, which must be "
                f"multiples of {rows} (config.optimizer.num_micro_batches * data * fsdp of the "
                f"mesh) and of {pieces}, the pieces that context={context} cuts"
            )
        if stage.row_length > run.model.max_positions:
            raise ValueError(
                f"{train.folder}: stage {stage.name!r} has row_length={stage.row_length}, more "
                f"than config.model.max_positions={run.model.max_positions}; raise that, with "
                "config.model.rope_scaling or without"
            )
