"""What a run reads, made ready in its folder: the start checkpoint and the plan of rows.

    WORKDIR/start/hf          with start.random: a Hugging Face folder with random weights
    WORKDIR/start/checkpoint  the Hugging Face folder's weights, converted
    WORKDIR/data              the corpus curated, tokenised and planned

Each is what the command of that stage makes (`python -m convert hf-to-orbax`, `python -m
data_pipeline.prepare`), and is kept when it is there already.
"""

import dataclasses
import pathlib

import transformers

from convert import hf_to_orbax, random_hf
from data_pipeline import curate, embedded, loader, manifest, plan, prepare, tokenize
from jaxterm import architecture, config, distributed

# Settings of the model that a run may choose against its start's config.json.
_FREE_FIELDS = ("rope_scaling", "max_positions", "vocab_multiple")


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
    hf_dir = _hf_dir(run, workdir)
    if run.start.random:
        distributed.once("random start", lambda: _make_random_start(run, hf_dir))
    _check_architecture(run.model, hf_dir)
    _check_vocabulary(run.model, hf_dir)
    paths = prepare.prepared_paths(_prepared_dir(run, workdir, hf_dir))
    train = loader.Plan.open(paths.train_plan)
    _check_plan(run, train, paths.train_plan)
    return Inputs(
        hf_dir=hf_dir,
        train=train,
        heldout=loader.Plan.open(paths.heldout_plan) if paths.heldout_plan else None,
        heldout_corpus=paths.heldout_corpus,
    )


def start_checkpoint(
    run: config.TrainConfig, workdir: pathlib.Path, hf_dir: pathlib.Path
) -> pathlib.Path:
    """The CHECKPOINT_DIR that a fresh run starts from, converted if need be."""
    if run.start.checkpoint_dir:
        return pathlib.Path(run.start.checkpoint_dir)
    checkpoint_dir = workdir / "start" / "checkpoint"

    def convert() -> None:
        if not checkpoint_dir.exists():
            hf_to_orbax.convert(hf_dir, checkpoint_dir, vocab_multiple=run.model.vocab_multiple)

    distributed.once("start checkpoint", convert)
    return checkpoint_dir


def _hf_dir(run: config.TrainConfig, workdir: pathlib.Path) -> pathlib.Path:
    if bool(run.start.hf_dir) == run.start.random:
        raise ValueError(
            f"config.start.hf_dir={run.start.hf_dir!r} and config.start.random={run.start.random}: "
            "a run starts from one of the two; set --config.start.hf_dir to the folder of the base "
            "model (config.json, safetensors, tokenizer)"
        )
    return workdir / "start" / "hf" if run.start.random else pathlib.Path(run.start.hf_dir)


def _make_random_start(run: config.TrainConfig, hf_dir: pathlib.Path) -> None:
    if not hf_dir.exists():
        tokenizer_dir = run.start.tokenizer_dir or embedded.tokenizer_dir()
        random_hf.make_random_hf_folder(run.model, tokenizer_dir, hf_dir, seed=run.seed)


def _check_architecture(model: architecture.ModelConfig, hf_dir: pathlib.Path) -> None:
    found = architecture.from_hf_folder(hf_dir)
    differences = [
        f"{field.name} is {getattr(found, field.name)} there and {getattr(model, field.name)} in "
        f"config.model.{field.name}"
        for field in dataclasses.fields(architecture.ModelConfig)
        if field.name not in _FREE_FIELDS
        and getattr(found, field.name) != getattr(model, field.name)
    ]
    if differences:
        raise ValueError(
            f"{hf_dir / 'config.json'} is another model than the config: {'; '.join(differences)}; "
            "choose the configs/ file of that model, or set those values"
        )


def _check_vocabulary(model: architecture.ModelConfig, hf_dir: pathlib.Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(hf_dir)
    if len(tokenizer) > model.vocab_size:
        raise ValueError(
            f"the tokenizer in {hf_dir} has {len(tokenizer)} tokens, more than "
            f"config.model.vocab_size={model.vocab_size}: its last ids would have no embedding; "
            "give the tokenizer of this model"
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
        # As many rows as a training step computes at a time: they fit, and the mesh divides them.
        heldout_batch_size=data.global_batch_size // run.optimizer.num_micro_batches,
    )

    def work() -> None:
        prepare.prepare(
            data.corpus, tokenizer_dir=hf_dir, output_dir=workdir / "data", options=options
        )

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
