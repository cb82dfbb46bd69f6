r"""Stage 3: tokens -> plan. Decides, before the first step, which examples make which row.

    python -m data_pipeline.plan tokens --output=plan --row_length=32768 --global_batch_size=128
    python -m data_pipeline.plan tokens --output=plan --curriculum=two_stage \
        --first_sources=math,code,swe --replay=0.1
    python -m data_pipeline.plan tokens --output=plan --curriculum=staged --stages=stages.toml

It reads the index of the tokens alone and writes rows.arrow (each row a list of pieces: example,
repeated prompt, first token, number of tokens), report.json, report.html, pictures/ and
manifest.json with the plan's hash. Stages follow one another, each whole global batches; rows
without pieces fill them. A stages file is described in data_pipeline/planning/stages_file.py.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from absl import flags
from rich import console as rich_console
from rich import markup
from rich import table as rich_table

from data_pipeline import cli, manifest, shards, storage
from data_pipeline.planning import (
    curriculum,
    pieces,
    plan_report,
    plan_rows,
    stage_specs,
    stages_file,
)
from data_pipeline.showing import plan_pictures, report_page, visible

_Curriculum = stage_specs.Curriculum  # inside PlanOptions the module's name is a setting's

REPORT_FILE = "report.json"
_MOST = 10**15  # of any number


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What plan is told."""

    row_length: int = dataclasses.field(default=32_768, metadata=cli.flag("tokens a row"))
    global_batch_size: int = dataclasses.field(
        default=128, metadata=cli.flag("rows a step, over all devices")
    )
    epochs: float = dataclasses.field(default=2.0, metadata=cli.flag("passes over each example"))
    curriculum: _Curriculum = dataclasses.field(
        default="mixed", metadata=cli.flag("the order of the examples")
    )
    first_sources: tuple[str, ...] = dataclasses.field(
        default=(), metadata=cli.flag("sources of the first stage of two_stage")
    )
    replay: float = dataclasses.field(
        default=0.0,
        metadata=cli.flag("of two_stage: tokens of the first stage again in the second, a share"),
    )
    difficulty_by: stage_specs.By = dataclasses.field(
        default="length", metadata=cli.flag("what easy_to_hard sorts by")
    )
    difficulty_order: tuple[str, ...] = dataclasses.field(
        default=("easy", "medium", "hard"),
        metadata=cli.flag("values of the column `difficulty`, the easiest first"),
    )
    stages: str = dataclasses.field(
        default="",
        metadata=cli.flag("of staged: a TOML file of its stages", changes_output=False),
    )
    max_tokens: int = dataclasses.field(
        default=0,
        metadata=cli.flag(
            "train a seeded part of each source, that many tokens a pass in all: compares "
            "filters at equal volume; 0 takes all"
        ),
    )
    overlong: pieces.Overlong = dataclasses.field(
        default="split",
        metadata=cli.flag("examples longer than a row: split at turns, truncate, or drop"),
    )
    carry_prompt: bool = dataclasses.field(
        default=True,
        metadata=cli.flag("repeat the task prompt, untrained, in front of each part of a split"),
    )
    window_rows: int = dataclasses.field(
        default=4096, metadata=cli.flag("rows packed together; an example moves no further")
    )
    max_segments: int = dataclasses.field(
        default=0, metadata=cli.flag("examples a row may hold; 0 sets no limit")
    )
    num_shards: int = dataclasses.field(
        default=32,
        metadata=cli.flag(
            "data shards between which the attention work of a batch is evened; where it does not "
            "divide the batch, their greatest common divisor"
        ),
    )
    remainder: plan_rows.Remainder = dataclasses.field(
        default="pad",
        metadata=cli.flag("rows that make no whole batch: pad with empty rows, or drop them"),
    )
    seed: int = dataclasses.field(default=42, metadata=cli.flag("of the shuffles"))
    pictures: bool = dataclasses.field(
        default=True, metadata=cli.flag("draw pictures/ and report.html")
    )

    def __post_init__(self):
        cli.require_choice("curriculum", self.curriculum, _Curriculum)
        cli.require_choice("difficulty_by", self.difficulty_by, stage_specs.By)
        cli.require_choice("overlong", self.overlong, pieces.Overlong)
        cli.require_choice("remainder", self.remainder, plan_rows.Remainder)
        for name in ("global_batch_size", "epochs", "window_rows", "num_shards"):
            value = getattr(self, name)
            cli.require(0 < value < _MOST, f"--{name}={value} must be positive, below {_MOST:.0e}")
        for name in ("seed", "replay", "max_tokens", "max_segments"):
            value = getattr(self, name)
            cli.require(0 <= value < _MOST, f"--{name}={value} must be in [0, {_MOST:.0e})")
        for name in ("first_sources", "replay"):
            value = getattr(self, name)
            cli.require(
                not value or self.curriculum == "two_stage",
                f"--{name}={value} is of --curriculum=two_stage, not of {self.curriculum}",
            )
        cli.require(self.row_length > 1, f"--row_length={self.row_length} must be at least 2")
        cli.require(
            bool(self.stages) == (self.curriculum == "staged"),
            f"--stages={self.stages!r} and --curriculum={self.curriculum}: staged, and only that, "
            "reads a file of stages",
        )


def make_plan(
    tokens_dir: storage.Path,
    *,
    output_dir: storage.Path,
    options: PlanOptions,
    overwrite: bool = False,
) -> storage.Path:
    """Plan the training on a tokens folder into `output_dir`; returns that folder.

    Raises:
        ValueError: a bad setting or input, naming it; or nothing would be trained.
    """
    tokens_manifest = manifest.read(tokens_dir, stage="tokenize")
    inputs = {"tokens": manifest.digest_json(tokens_manifest)}
    specs = stages_file.read(storage.as_path(options.stages)) if options.stages else None
    if specs:
        inputs["stages"] = manifest.digest_json(stages_file.fields_of(specs))
    stage = manifest.Stage("plan", output_dir, inputs, manifest.options_of(options))
    console = rich_console.Console(stderr=True)
    if manifest.begin(stage, overwrite=overwrite):
        console.print(f"plan: {output_dir} is done already", soft_wrap=True)
        return output_dir
    with manifest.discard_on_error(stage):
        funnel = tokens_manifest["counts"].get("funnel", [])
        report = _make(stage, tokens_dir, options, specs, funnel)
    console.print(_summary(report))
    return output_dir


def _make(
    stage: manifest.Stage,
    tokens_dir: storage.Path,
    options: PlanOptions,
    specs: Sequence[stage_specs.StageSpec] | None,
    funnel: Sequence[Any],
) -> dict[str, Any]:
    output_dir = stage.output_dir
    index = shards.read_index(tokens_dir)
    stages = _stages(index, options, specs)
    rows = plan_rows.table_of(stages)
    digest = plan_rows.write(rows, output_dir, tokens_digest=stage.inputs["tokens"])
    report = plan_report.make_report(index, stages, overlong=options.overlong) | {
        "plan_hash": digest,
        "row_length": options.row_length,
        "global_batch_size": options.global_batch_size,
        "examples": len(index),
        "options": stage.options,
        "specs": stages_file.fields_of([each.stage.spec for each in stages]),
        "funnel": funnel,
    }
    manifest.write_json(output_dir / REPORT_FILE, report)
    if options.pictures:
        _draw(rows, index, report, output_dir, options)
    where = storage.relative(tokens_dir, output_dir)
    layout = [dataclasses.asdict(place) for place in rows.stages]
    manifest.complete(stage, {"plan_hash": digest, "tokens_dir": where, "stages": layout})
    return report


def _draw(
    rows: plan_rows.RowTable,
    index: pa.Table,
    report: dict[str, Any],
    output_dir: storage.Path,
    options: PlanOptions,
) -> None:
    figures = plan_pictures.figures(rows, index, report, difficulty_order=options.difficulty_order)
    report_page.write(plan_pictures.write(figures, output_dir), report, output_dir)


def _stages(
    index: pa.Table, options: PlanOptions, specs: Sequence[stage_specs.StageSpec] | None
) -> list[plan_rows.StageRows]:
    examples = _examples(index)
    if options.max_tokens:
        examples = curriculum.subsample(examples, options.max_tokens, seed=options.seed)
    specs = specs or stage_specs.presets(
        options.curriculum,
        epochs=options.epochs,
        by=options.difficulty_by,
        first_sources=options.first_sources,
        sources=np.unique(examples.sources).tolist(),
        replay=options.replay,
    )
    stages = curriculum.make_stages(
        specs, examples, seed=options.seed, difficulty_order=options.difficulty_order
    )
    lengths = {spec.row_length or options.row_length for spec in specs}
    parts = {
        length: pieces.make_pieces(
            index, row_length=length, overlong=options.overlong, carry_prompt=options.carry_prompt
        )
        for length in sorted(lengths)
    }
    rows = [
        plan_rows.pack_stage(
            stage,
            parts[stage.spec.row_length or options.row_length],
            _row_settings(options, stage.spec.global_batch_size or options.global_batch_size),
        )
        for stage in stages
    ]
    for stage in rows:
        if not len(stage.sizes):
            raise ValueError(
                f"stage {stage.stage.spec.name!r} has no step: of {len(index)} examples it draws "
                f"{sum(map(len, stage.stage.passes))} at --row_length={stage.parts.row_length}, "
                f"--overlong={options.overlong}, --remainder={options.remainder}, "
                f"--global_batch_size={stage.global_batch_size}; use more data or epochs, split "
                "or pad"
            )
    return rows


def _row_settings(options: PlanOptions, global_batch_size: int) -> plan_rows.RowSettings:
    return plan_rows.RowSettings(
        window_rows=options.window_rows,
        max_segments=options.max_segments,
        global_batch_size=global_batch_size,
        num_shards=math.gcd(options.num_shards, global_batch_size),
        remainder=options.remainder,
    )


def _examples(index: pa.Table) -> curriculum.Examples:
    return curriculum.Examples(
        num_tokens=index["num_tokens"].to_numpy().astype(np.int64),
        num_turns=index["num_turns"].to_numpy().astype(np.int64),
        sources=_texts(index["source"]),
        difficulties=_texts(index["difficulty"]),
        chosen=np.arange(len(index)),
    )


def _texts(column: pa.ChunkedArray) -> np.ndarray:
    """A column of few distinct texts as str [E]; null is empty."""
    coded = pc.fill_null(column, "").combine_chunks().dictionary_encode()
    names = np.array(coded.dictionary.to_pylist() or [""], str)
    return names[coded.indices.to_numpy()]


def _summary(report: dict[str, Any]) -> rich_table.Table:
    names = (markup.escape(visible.line(stage["name"])) for stage in report["stages"])
    table = rich_table.Table("plan", *names, "all")
    columns = [*report["stages"], report]
    for name in ("steps", "rows", "tokens_trained", "loss_tokens", "attention_work"):
        table.add_row(name, *(f"{each[name]:,}" for each in columns))
    table.add_row("fill", *(f"{each['fill']:.2%}" for each in columns))
    table.add_row("tokens_lost", *(f"{each['tokens_lost']['total']:,}" for each in columns))
    table.add_row("imbalance_max", *(f"{each['imbalance_max']:.3f}" for each in columns))
    return table


def main(argv: list[str]) -> None:
    """Run the command."""
    cli.require(len(argv) == 1, f"give one TOKENS_DIR, the output of tokenize, not {argv}")
    make_plan(
        storage.as_path(argv[0]),
        output_dir=cli.output_dir(),
        options=cli.options_from_flags(PlanOptions),
        overwrite=flags.FLAGS.overwrite,
    )


if __name__ == "__main__":
    cli.define_flags(PlanOptions)
    cli.define_output_flags()
    cli.run(main)
