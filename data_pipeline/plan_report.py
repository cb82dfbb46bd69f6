"""What a plan does with every token: the figures of report.json and one picture of them.

tokens_total = tokens_trained + tokens_lost.total, in each stage and in all; the same for the loss
tokens. All figures count every pass.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline import pieces, plan_rows

_SUMS = ("rows", "padding_rows", "steps", "segments", "tokens_total", "tokens_trained",
         "loss_tokens_total", "loss_tokens", "attention_work")  # fmt: skip
_MAX_SOURCES_SHOWN = 8


def make_report(
    index: pa.Table,
    parts: pieces.Pieces,
    stages: Sequence[plan_rows.StageRows],
    *,
    row_length: int,
    global_batch_size: int,
) -> dict[str, Any]:
    """The figures of a plan: of each stage under `stages`, and of all."""
    figures, first_step = [], 0
    for stage in stages:
        figures.append(
            {"first_step": first_step}
            | _stage_report(index, parts, stage, row_length, global_batch_size)
        )
        first_step += figures[-1]["steps"]
    total: dict[str, Any] = {name: sum(each[name] for each in figures) for name in _SUMS}
    for kind in ("tokens_lost", "loss_tokens_lost"):
        total[kind] = {
            reason: sum(each[kind][reason] for each in figures) for reason in figures[0][kind]
        }
    total["fill"] = _fill(total, row_length)
    return total | {
        "row_length": row_length,
        "global_batch_size": global_batch_size,
        "examples": len(index),
        "examples_overlong": parts.num_overlong,
        "turns_cut": parts.num_hard_cuts,
        "stages": figures,
    }


def _stage_report(
    index: pa.Table,
    parts: pieces.Pieces,
    stage: plan_rows.StageRows,
    row_length: int,
    global_batch_size: int,
) -> dict[str, Any]:
    num_tokens, num_loss = parts.num_tokens[stage.pieces], parts.num_loss_tokens[stage.pieces]
    padding_rows = int((stage.sizes == 0).sum())
    went = {
        reason: lost[stage.examples].sum(0) * stage.num_passes
        for reason, lost in parts.lost.items()
    }
    dropped = [parts.num_tokens[stage.dropped].sum(), parts.num_loss_tokens[stage.dropped].sum()]
    went["remainder"] = np.array(dropped)
    totals = [
        int(index[name].to_numpy()[stage.examples].sum(dtype=np.int64)) * stage.num_passes
        for name in ("num_tokens", "num_loss_tokens")
    ]
    figures = {
        "name": stage.name,
        "rows": len(stage.sizes) - padding_rows,
        "padding_rows": padding_rows,
        "steps": len(stage.sizes) // global_batch_size,
        "segments": len(stage.pieces),
        "tokens_total": totals[0],
        "tokens_trained": int(num_tokens.sum()),
        "loss_tokens_total": totals[1],
        "loss_tokens": int(num_loss.sum()),
        "attention_work": int((num_tokens**2).sum()),
        "tokens_lost": _with_total({reason: int(each[0]) for reason, each in went.items()}),
        "loss_tokens_lost": _with_total({reason: int(each[1]) for reason, each in went.items()}),
    }
    return figures | {"fill": _fill(figures, row_length)}


def _with_total(lost: dict[str, int]) -> dict[str, int]:
    return lost | {"total": sum(lost.values())}


def _fill(figures: dict[str, Any], row_length: int) -> float:
    """Share of the slots of rows that hold tokens; the empty rows of a last batch are left out."""
    return figures["tokens_trained"] / max(1, figures["rows"] * row_length)


def plot(
    index: pa.Table,
    parts: pieces.Pieces,
    stages: Sequence[plan_rows.StageRows],
    row_length: int,
    path: pathlib.Path,
) -> None:
    """Draw fill, segments a row and lengths by source."""
    from matplotlib import figure  # slow to import, and only this needs it

    sizes = np.concatenate([stage.sizes for stage in stages])
    chosen = np.concatenate([stage.pieces for stage in stages])
    row_of = np.repeat(np.arange(len(sizes)), sizes)
    tokens = np.bincount(row_of, parts.num_tokens[chosen], minlength=len(sizes))[sizes > 0]
    picture = figure.Figure(figsize=(13, 3.6), layout="constrained")
    of_fill, of_segments, of_lengths = picture.subplots(1, 3)
    of_fill.hist(tokens / row_length, bins=50, range=(0, 1))
    of_fill.set(title="fill of the rows", xlabel="tokens / row length", ylabel="rows", yscale="log")
    top = int(sizes.max())
    of_segments.hist(sizes[sizes > 0], bins=min(50, top), range=(0.5, top + 0.5))
    of_segments.set(title="segments of the rows", xlabel="segments", ylabel="rows")
    lengths, names = _lengths_by_source(index)
    of_lengths.hist(lengths, bins=50, stacked=True, label=names)
    of_lengths.axvline(row_length, color="black", linestyle=":", linewidth=1)
    of_lengths.set(title="lengths by source", xlabel="tokens", ylabel="examples")
    of_lengths.legend(fontsize="small")
    temporary = path.with_name(path.name + ".tmp")
    picture.savefig(temporary, format="png", dpi=100, metadata={"Software": None})
    temporary.replace(path)


def _lengths_by_source(index: pa.Table) -> tuple[list[np.ndarray], list[str]]:
    """Lengths of the examples of the largest sources, and of all others together."""
    sources = np.array([source or "(no source)" for source in index["source"].to_pylist()])
    names, counts = np.unique(sources, return_counts=True)
    names = names[np.argsort(-counts, kind="stable")]
    shown, rest = names[:_MAX_SOURCES_SHOWN].tolist(), names[_MAX_SOURCES_SHOWN:]
    num_tokens = index["num_tokens"].to_numpy()
    lengths = [num_tokens[sources == name] for name in shown]
    labels = [_label(name) for name in shown]
    if len(rest):
        return [*lengths, num_tokens[np.isin(sources, rest)]], [*labels, "others"]
    return lengths, labels


def _label(name: str) -> str:
    """A name as matplotlib shows it: `$` would begin a formula, `_` in front would hide it."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")
