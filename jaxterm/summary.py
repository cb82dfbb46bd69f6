"""What a finished run leaves to look at: summary.json, loss.png and a table."""

import importlib.metadata
import json
import os
import pathlib
import statistics
from typing import Any

import rich.box
import rich.console
import rich.table

from jaxterm import goodput, heldout, inputs, metrics

FILE_NAME = "summary.json"
CURVE_NAME = "loss.png"
_OF_STAGES = ("name", "steps", "global_batch_size", "row_length", "sources")
_PACKAGES = ("jaxterm", "jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers")


def write(
    workdir: pathlib.Path,
    ready: inputs.Inputs,
    *,
    settings: dict[str, Any],
    hf_dir: pathlib.Path | None,
) -> dict[str, Any]:
    """Gather the run's figures, and write summary.json and loss.png.

    Args:
        workdir: folder of the run, with its metrics.jsonl.
        ready: what it read.
        settings: JSON values of its config.
        hf_dir: the exported model, if any.

    Returns:
        What summary.json holds.
    """
    steps = metrics.read_records(workdir, "train")
    evaluations = metrics.read_records(workdir, "heldout")
    # The first step of a process compiles; the median leaves it out of account.
    rates = [record["tokens_per_s"] for record in steps]
    report = ready.report
    values = {
        "heldout_loss": evaluations[-1][heldout.ALL] if evaluations else None,
        "heldout_loss_before": evaluations[0][heldout.ALL] if evaluations else None,
        "heldout_by_source": _by_source(evaluations),
        "heldout_corpus": str(ready.heldout_corpus) if ready.heldout_corpus else None,
        "train_loss": steps[-1]["loss"],
        "steps": steps[-1]["step"],
        "tokens_per_s": statistics.median(rates),
        "seconds": sum(record["seconds"] for record in steps),
        "goodput": goodput.total(metrics.read_records(workdir, goodput.KIND)),
        "fill": report["fill"],
        "curriculum": report["options"]["curriculum"],
        "stages": [{name: stage[name] for name in _OF_STAGES} for stage in report["stages"]],
        "hf_dir": str(hf_dir) if hf_dir else None,
        "plan_hash": ready.train.plan_hash,
        "config": settings,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    temporary = workdir / (FILE_NAME + ".tmp")
    temporary.write_text(json.dumps(values, indent=2) + "\n")
    _plot(steps, evaluations, workdir / CURVE_NAME)
    os.replace(temporary, workdir / FILE_NAME)
    return values


def show(values: dict[str, Any], workdir: pathlib.Path) -> None:
    """Print the table and where things lie."""
    console = rich.console.Console()
    table = rich.table.Table(title="Held-out loss, nats a token", box=rich.box.SIMPLE_HEAD)
    table.add_column("domain")
    for name in ("before", "after"):
        table.add_column(name, justify="right")
    for source, (before, after) in values["heldout_by_source"].items():
        table.add_row(source, f"{before:.4f}", f"{after:.4f}")
    if values["heldout_loss"] is not None:
        table.add_section()
        before, after = values["heldout_loss_before"], values["heldout_loss"]
        table.add_row(heldout.ALL, f"{before:.4f}", f"{after:.4f}", style="bold")
        console.print(table)
    console.print(
        f"{values['steps']} steps, {values['tokens_per_s']:,.0f} tokens/s, "
        f"rows filled {values['fill']:.1%}, last training loss {values['train_loss']:.4f}",
        highlight=False,
    )
    if values["goodput"] is not None:
        console.print(goodput.line(values["goodput"]), highlight=False, soft_wrap=True)
    lines = {
        "model": values["hf_dir"],
        "curve": workdir / CURVE_NAME,
        "figures": workdir / FILE_NAME,
        "held-out": values["heldout_corpus"],
    }
    for name, path in lines.items():
        if path:
            console.print(f"{name + ':':10}{path}", highlight=False, soft_wrap=True)


def _by_source(evaluations: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    if not evaluations:
        return {}
    first, last = evaluations[0], evaluations[-1]
    names = sorted(set(last) - {"step", "kind", heldout.ALL})
    return {name: (first[name], last[name]) for name in names}


def _plot(
    steps: list[dict[str, Any]], evaluations: list[dict[str, Any]], path: pathlib.Path
) -> None:
    import matplotlib.figure  # a second, which a command that ends with an error is spared

    figure = matplotlib.figure.Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot([r["step"] for r in steps], [r["loss"] for r in steps], lw=1, label="training batch")
    axes.plot(
        [r["step"] for r in evaluations], [r[heldout.ALL] for r in evaluations],
        "o-", ms=5, label="held-out",
    )  # fmt: skip
    axes.set(xlabel="step", ylabel="loss, nats a loss token")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary)
    os.replace(temporary, path)
