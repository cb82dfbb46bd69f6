r"""Stage 3: tokens -> plan. Decides, before the first step, which examples make which row.

    python -m data_pipeline.plan tokens --output=plan --row_length=32768 --global_batch_size=128
    python -m data_pipeline.plan tokens --output=plan --curriculum=two_stage \
        --first_sources=math,code,swe --overlong=truncate

It reads the index of the tokens alone and writes rows.arrow (each row a list of pieces: example,
first token, number of tokens), report.json, report.png and manifest.json with the plan's hash. Row
i of step s is row s * global_batch_size + i; rows without pieces fill the last batch of a stage.
"""

import dataclasses
import os
import pathlib
from typing import Any

import pyarrow as pa
from absl import flags
from rich import console as rich_console
from rich import table as rich_table

from data_pipeline import cli, curriculum, manifest, pieces, plan_report, plan_rows, shards

_Curriculum = curriculum.Curriculum  # inside PlanOptions the module's name is a setting's

REPORT_FILE, PLOT_FILE = "report.json", "report.png"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What plan is told."""

    row_length: int = dataclasses.field(default=32_768, metadata=cli.flag("tokens a row"))
    global_batch_size: int = dataclasses.field(
        default=128, metadata=cli.flag("rows a step, over all devices")
    )
    epochs: int = dataclasses.field(default=2, metadata=cli.flag("passes over each example"))
    curriculum: _Curriculum = dataclasses.field(
        default="mixed", metadata=cli.flag("the order of the examples")
    )
    first_sources: tuple[str, ...] = dataclasses.field(
        default=(), metadata=cli.flag("sources of the first stage of two_stage")
    )
    overlong: pieces.Overlong = dataclasses.field(
        default="split",
        metadata=cli.flag("examples longer than a row: split at turns, truncate, or drop"),
    )
    window_rows: int = dataclasses.field(
        default=4096, metadata=cli.flag("rows packed together; an example moves no further")
    )
    remainder: plan_rows.Remainder = dataclasses.field(
        default="pad",
        metadata=cli.flag(
            "the last batch of a stage: pad with empty rows, or drop it where it is not full"
        ),
    )
    seed: int = dataclasses.field(default=42, metadata=cli.flag("of the shuffles"))

    def __post_init__(self):
        cli.require_choice("curriculum", self.curriculum, _Curriculum)
        cli.require_choice("overlong", self.overlong, pieces.Overlong)
        cli.require_choice("remainder", self.remainder, plan_rows.Remainder)
        for name in ("global_batch_size", "epochs", "window_rows"):
            cli.require(getattr(self, name) > 0, f"--{name}={getattr(self, name)} must be positive")
        cli.require(self.row_length > 1, f"--row_length={self.row_length} must be at least 2")
        cli.require(self.seed >= 0, f"--seed={self.seed} must not be negative")


def make_plan(
    tokens_dir: pathlib.Path,
    *,
    output_dir: pathlib.Path,
    options: PlanOptions,
    overwrite: bool = False,
) -> pathlib.Path:
    """Plan the training on a tokens folder into `output_dir`; returns that folder.

    Raises:
        ValueError: a bad setting or input, naming it; or nothing would be trained.
    """
    tokens_manifest = manifest.read(tokens_dir, stage="tokenize")
    tokens_digest = manifest.digest_json(tokens_manifest)
    stage = manifest.Stage(
        "plan", output_dir, {"tokens": tokens_digest}, manifest.options_of(options)
    )
    console = rich_console.Console(stderr=True)
    if manifest.begin(stage, overwrite=overwrite):
        console.print(f"plan: {output_dir} is done already", soft_wrap=True)
        return output_dir
    with manifest.discard_on_error(stage):
        report = _make(stage, tokens_dir, options)
    console.print(_summary(report))
    return output_dir


def _make(stage: manifest.Stage, tokens_dir: pathlib.Path, options: PlanOptions) -> dict[str, Any]:
    output_dir = stage.output_dir
    index = shards.read_index(tokens_dir)
    parts = pieces.make_pieces(index, row_length=options.row_length, overlong=options.overlong)
    stages = _stages(index, parts, options)
    digest = plan_rows.write(
        stages, parts, output_dir, settings_digest=manifest.digest_json(stage.identity())
    )
    report = plan_report.make_report(
        index,
        parts,
        stages,
        row_length=options.row_length,
        global_batch_size=options.global_batch_size,
    )
    manifest.write_json(output_dir / REPORT_FILE, report | {"plan_hash": digest})
    plan_report.plot(index, parts, stages, options.row_length, output_dir / PLOT_FILE)
    where = os.path.relpath(tokens_dir.resolve(), output_dir.resolve())
    manifest.complete(stage, {"plan_hash": digest, "tokens_dir": where, "stages": report["stages"]})
    return report


def _stages(
    index: pa.Table, parts: pieces.Pieces, options: PlanOptions
) -> list[plan_rows.StageRows]:
    stages = curriculum.make_stages(
        options.curriculum,
        num_tokens=index["num_tokens"].to_numpy(),
        sources=index["source"].to_pylist(),
        epochs=options.epochs,
        seed=options.seed,
        first_sources=options.first_sources,
    )
    rows = [
        plan_rows.pack_stage(
            stage,
            parts,
            row_length=options.row_length,
            window_rows=options.window_rows,
            global_batch_size=options.global_batch_size,
            remainder=options.remainder,
        )
        for stage in stages
    ]
    if not any(len(stage.sizes) for stage in rows):
        raise ValueError(
            f"the plan has no step: {len(parts.example)} pieces at --row_length="
            f"{options.row_length}, --overlong={options.overlong}, "
            f"--remainder={options.remainder}, --global_batch_size={options.global_batch_size}; "
            "use more data, split or pad"
        )
    return rows


def _summary(report: dict[str, Any]) -> rich_table.Table:
    table = rich_table.Table("plan", *(stage["name"] for stage in report["stages"]), "all")
    for name in ("steps", "rows", "fill", "tokens_trained", "loss_tokens", "attention_work"):
        cells = [*(stage[name] for stage in report["stages"]), report[name]]
        table.add_row(name, *(f"{c:.2%}" if name == "fill" else f"{c:,}" for c in cells))
    lost = [*(stage["tokens_lost"] for stage in report["stages"]), report["tokens_lost"]]
    table.add_row("tokens_lost", *(f"{each['total']:,}" for each in lost))
    return table


def main(argv: list[str]) -> None:
    """Run the command."""
    cli.require(len(argv) == 1, f"give one TOKENS_DIR, the output of tokenize, not {argv}")
    make_plan(
        pathlib.Path(argv[0]),
        output_dir=cli.output_dir(),
        options=cli.options_from_flags(PlanOptions),
        overwrite=flags.FLAGS.overwrite,
    )


if __name__ == "__main__":
    cli.define_flags(PlanOptions)
    cli.define_output_flags()
    cli.run(main)
