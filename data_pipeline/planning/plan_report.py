"""What a plan does with every token: the figures of report.json.

tokens_total = tokens_trained + tokens_lost.total, in each stage and in all; the same for the loss
tokens. tokens_carried are the prompts that the parts of a split example repeat, which no loss
trains. All figures count every pass.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.planning import balance, pieces, plan_rows

_SUMS = ("rows", "padding_rows", "steps", "segments", "tokens_total", "tokens_trained",
         "tokens_carried", "loss_tokens_total", "loss_tokens", "attention_work")  # fmt: skip


def make_report(
    index: pa.Table, stages: Sequence[plan_rows.StageRows], *, overlong: pieces.Overlong
) -> dict[str, Any]:
    """The figures of a plan: of each stage under `stages`, and of all."""
    placed = plan_rows.places(stages)
    figures = [
        {"name": place.name, "first_step": place.first_step, "row_length": place.row_length,
         "global_batch_size": place.global_batch_size}
        | _stage_report(index, rows, overlong)
        for rows, place in zip(stages, placed, strict=True)
    ]  # fmt: skip
    total: dict[str, Any] = {name: sum(each[name] for each in figures) for name in _SUMS}
    for kind in ("tokens_lost", "loss_tokens_lost", "overlong"):
        total[kind] = {
            reason: sum(each[kind][reason] for each in figures) for reason in figures[0][kind]
        }
    slots = sum(each["rows"] * each["row_length"] for each in figures)
    total["fill"] = _fill(total, slots)
    for name in ("imbalance_max", "imbalance_random_max"):
        total[name] = max((each[name] for each in figures if each["steps"]), default=1.0)
    total["imbalance_mean"] = sum(each["imbalance_mean"] * each["steps"] for each in figures) / max(
        1, total["steps"]
    )
    return total | {"never_drawn": _never_drawn(index, stages), "stages": figures}


def _never_drawn(index: pa.Table, stages: Sequence[plan_rows.StageRows]) -> dict[str, Any]:
    """What no stage draws, so what no figure of a stage counts."""
    left = np.ones(len(index), bool)
    for rows in stages:
        for examples in rows.stage.passes:
            left[examples] = False
    column = index["source"]
    sources = {*column.unique().to_pylist()} - {*column.filter(~left).unique().to_pylist()}
    return {
        "examples": int(left.sum()),
        "tokens": int(index["num_tokens"].to_numpy()[left].sum(dtype=np.int64)),
        "loss_tokens": int(index["num_loss_tokens"].to_numpy()[left].sum(dtype=np.int64)),
        "sources": sorted(source or "" for source in sources),
    }


def _stage_report(
    index: pa.Table, rows: plan_rows.StageRows, overlong: pieces.Overlong
) -> dict[str, Any]:
    parts, chosen = rows.parts, rows.pieces
    padding_rows = int((rows.sizes == 0).sum())
    examples = np.concatenate([np.zeros(0, np.int64), *rows.stage.passes])
    num_tokens = index["num_tokens"].to_numpy()[examples]
    repeated = parts.num_repeated
    lost = {reason: np.zeros(2, np.int64) for reason in pieces.LOST_BY.values()}
    lost[pieces.LOST_BY[overlong]] = parts.lost[examples].sum(0)
    lost["remainder"] = np.array(
        [
            (parts.num_slots - repeated)[rows.dropped].sum(),
            parts.num_loss_tokens[rows.dropped].sum(),
        ]
    )
    figures = {
        "rows": len(rows.sizes) - padding_rows,
        "padding_rows": padding_rows,
        "steps": len(rows.sizes) // rows.global_batch_size,
        "segments": len(chosen),
        "tokens_total": int(num_tokens.sum(dtype=np.int64)),
        "tokens_trained": int((parts.num_slots - repeated)[chosen].sum()),
        "tokens_carried": int(repeated[chosen].sum()),
        "loss_tokens_total": int(index["num_loss_tokens"].to_numpy()[examples].sum(dtype=np.int64)),
        "loss_tokens": int(parts.num_loss_tokens[chosen].sum()),
        "attention_work": int(rows.work.sum()),
        "tokens_lost": _with_total({reason: int(each[0]) for reason, each in lost.items()}),
        "loss_tokens_lost": _with_total({reason: int(each[1]) for reason, each in lost.items()}),
        "overlong": _overlong(rows, examples, num_tokens, overlong),
    }
    figures["sources"] = _sources(index, examples)
    slots = figures["rows"] * parts.row_length
    return figures | {"fill": _fill(figures, slots)} | _imbalance(rows)


def _sources(index: pa.Table, examples: np.ndarray) -> dict[str, dict[str, float]]:
    """Of each source: the tokens that are drawn, and how often all of its tokens that makes."""
    coded = pc.fill_null(index["source"], "").combine_chunks().dictionary_encode()
    codes, num_tokens = coded.indices.to_numpy(), index["num_tokens"].to_numpy()
    names = coded.dictionary.to_pylist()
    held = np.bincount(codes, num_tokens, len(names))
    drawn = np.bincount(codes[examples], num_tokens[examples], len(names))
    return {
        name: {"tokens": int(tokens), "epochs": round(float(tokens / max(1, total)), 4)}
        for name, tokens, total in sorted(zip(names, drawn, held, strict=True))
        if tokens
    }


def _overlong(
    rows: plan_rows.StageRows,
    examples: np.ndarray,
    num_tokens: np.ndarray,
    overlong: pieces.Overlong,
) -> dict[str, int]:
    """Examples longer than a row, how many tokens they hold by what is done with them, and how
    many cuts fall inside a turn."""
    parts = rows.parts
    is_long = parts.overlong[examples]
    held = dict.fromkeys(pieces.LOST_BY.values(), 0)
    held[pieces.LOST_BY[overlong]] = int(num_tokens[is_long].sum(dtype=np.int64))
    cuts = int((parts.num_repeated - parts.prompt)[rows.pieces].sum())
    return {"examples": int(is_long.sum()), "turns_cut": cuts, **held}


def _imbalance(rows: plan_rows.StageRows) -> dict[str, float]:
    """Largest over mean attention work of the shards of a batch: as dealt, and dealt at random."""
    sizes = {"batch_size": rows.global_batch_size, "num_shards": rows.num_shards}
    dealt = balance.imbalance(rows.work, **sizes)
    by_batch = rows.work.reshape(-1, rows.global_batch_size)
    shuffled = np.random.default_rng(0).permuted(by_batch, axis=1).reshape(-1)
    at_random = balance.imbalance(shuffled, **sizes)
    return {
        "num_shards": rows.num_shards,
        "imbalance_max": float(dealt.max(initial=1.0)),
        "imbalance_mean": float(dealt.mean()) if len(dealt) else 1.0,
        "imbalance_random_max": float(at_random.max(initial=1.0)),
    }


def _with_total(lost: dict[str, int]) -> dict[str, int]:
    return lost | {"total": sum(lost.values())}


def _fill(figures: dict[str, Any], slots: int) -> float:
    """Share of the slots of rows that hold tokens; empty rows, which fill a batch, are left out."""
    return (figures["tokens_trained"] + figures["tokens_carried"]) / max(1, slots)
