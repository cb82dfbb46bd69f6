r"""Planning at the paper's scale: fill, balance, time, memory; TRL's and Grain's packing beside.

    uv run --group oracle --with trl==1.16.0 --with datasets python benchmarks/plan_quality.py
    uv run python benchmarks/plan_quality.py --peer_share=0

The corpus is 366,154 examples drawn from the published length statistics (synthetic_index.py).
Planning is the whole command, pictures included, in a process of its own. The peers pack real
arrays of tokens, so they are given a part of the examples, in the same shuffled order; each packs
what its user would give it: TRL all examples (it truncates), Grain those and the parts that we make
of the overlong ones. Fill is tokens / (rows * row length); peers have their own defaults.
"""

import json
import multiprocessing
import pathlib
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import synthetic_index
from absl import app, flags
from rich import console, table

from data_pipeline import plan, shards
from data_pipeline.planning import packing, pieces

_ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed plans.")
_PEER_SHARE = flags.DEFINE_float("peer_share", 0.05, "Part of the corpus that the peers pack.")
_NUM_BINS = flags.DEFINE_list("num_bins", ["64", "512"], "num_packing_bins of Grain.")

ROW_LENGTH = 32_768
WINDOW_ROWS = 4096


def write_tokens_dir(folder: pathlib.Path, seed: int) -> pa.Table:
    """A tokens folder of which plan reads the index alone."""
    index = synthetic_index.make(seed)
    pq.write_table(index, folder / shards.INDEX_FILE, compression="zstd")
    made = {"stage": "tokenize", "inputs": {}, "options": {}, "counts": {}}
    (folder / "manifest.json").write_text(json.dumps(made))
    return index


def timed_plan(tokens_dir: pathlib.Path, output_dir: pathlib.Path) -> tuple[float, ...]:
    """Seconds, CPU seconds and peak GiB of planning one epoch, in a fresh process."""
    start, cpu = time.perf_counter(), time.process_time()
    plan.make_plan(tokens_dir, output_dir=output_dir, options=plan.PlanOptions(epochs=1.0))
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return time.perf_counter() - start, time.process_time() - cpu, peak_gib


def in_fresh_process[Result](function: Callable[..., Result], *args: Any) -> Result:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def truncation_loss(index: pa.Table) -> float:
    """Share of the reply tokens in over-long adapter examples that keeping the head loses."""
    parts = pieces.make_pieces(index, row_length=ROW_LENGTH, overlong="truncate")
    is_long = parts.overlong & (np.array(index["source"].to_pylist()) == "adapters")
    return parts.lost[is_long, 1].sum() / index["num_loss_tokens"].to_numpy()[is_long].sum()


def greedy_in_order(num_tokens: np.ndarray) -> int:
    rows, room = 0, 0
    for size in num_tokens.tolist():
        if size > room:
            rows, room = rows + 1, ROW_LENGTH
        room -= size
    return rows


def trl_rows(num_tokens: np.ndarray) -> tuple[str, int, int]:
    """Its version, rows and tokens kept of pack_dataset(strategy="bfd")."""
    import datasets  # type: ignore[import-not-found]
    import trl  # type: ignore[import-not-found]

    offsets = np.concatenate([[0], np.cumsum(num_tokens)])
    values = pa.array(np.zeros(offsets[-1], np.int8))
    lists = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
    datasets.disable_progress_bars()
    dataset = datasets.Dataset(pa.table({"input_ids": lists}))
    packed = trl.pack_dataset(dataset, ROW_LENGTH, strategy="bfd")
    kept = np.minimum(num_tokens, ROW_LENGTH).sum()
    return trl.__version__, len(packed), int(kept)


def grain_rows(packer: Any, num_tokens: np.ndarray, num_bins: int) -> int:
    """Rows of one of Grain's packing datasets with that many open bins."""

    class Source:
        def __len__(self) -> int:
            return len(num_tokens)

        def __getitem__(self, i: int) -> dict[str, np.ndarray]:
            return {"tokens": np.zeros(num_tokens[i], np.int8)}

    parent = grain.MapDataset.source(Source()).to_iter_dataset(  # type: ignore[arg-type]
        grain.ReadOptions(num_threads=0)
    )
    packed = packer(
        parent, length_struct={"tokens": ROW_LENGTH}, num_packing_bins=num_bins, shuffle_bins=False
    )
    return sum(1 for _ in packed)


def compare(index: pa.Table, share: float) -> Iterator[tuple[str, int, float, str]]:
    """(who, rows, fill, remark) on a part of the examples."""
    rng = np.random.default_rng(0)
    lengths = index["num_tokens"].to_numpy().astype(np.int64)
    chosen = rng.permutation(len(lengths))[: round(share * len(lengths))]
    parts = pieces.make_pieces(index, row_length=ROW_LENGTH, overlong="split")
    ours = parts.num_slots[parts.of(chosen)]

    def fill(rows: int, tokens: int) -> float:
        return tokens / (rows * ROW_LENGTH)

    rows = packing.pack(ours, row_length=ROW_LENGTH, window_rows=WINDOW_ROWS)
    num_rows = len(rows.offsets) - 1
    yield "jaxterm", num_rows, fill(num_rows, ours.sum()), "0 reply tokens lost"
    if share < 1:
        for name in ("FirstFitPackIterDataset", "BestFitPackIterDataset"):
            packer = getattr(grain.experimental, name)
            for num_bins in map(int, _NUM_BINS.value):
                num_rows = grain_rows(packer, ours, num_bins)
                remark = f"{num_bins} bins"
                yield (
                    f"grain {name.removesuffix('PackIterDataset')}",
                    num_rows,
                    fill(num_rows, ours.sum()),
                    remark,
                )
        try:
            version, num_rows, kept = trl_rows(lengths[chosen])
        except ImportError:
            yield "TRL bfd", 0, 0.0, "not installed"
        else:
            lost = f"{version}; {1 - kept / lengths[chosen].sum():.1%} of all tokens truncated"
            yield "TRL bfd", num_rows, fill(num_rows, kept), lost
    num_rows = greedy_in_order(ours)
    yield "greedy, in order", num_rows, fill(num_rows, ours.sum()), ""
    num_rows = int(packing.best_fit_decreasing(ours, ROW_LENGTH).max()) + 1
    yield "best-fit decreasing, offline", num_rows, fill(num_rows, ours.sum()), "no order kept"


def main(_: list[str]) -> None:
    out = console.Console()
    out.print(f"python {platform.python_version()}, numpy {np.__version__}, pyarrow "
              f"{pa.__version__}, grain {grain.__version__}, {platform.machine()}")  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        index = write_tokens_dir(folder, seed=0)
        runs = [
            in_fresh_process(timed_plan, folder, folder / f"plan-{i}") for i in range(_ROUNDS.value)
        ]
        report = json.loads((folder / "plan-0" / plan.REPORT_FILE).read_text())
    seconds, cpu, _ = (statistics.median(values) for values in zip(*runs, strict=True))
    peak_gib = max(run[2] for run in runs)
    out.print(
        f"{len(index):,} examples planned in {seconds:.2f} s, CPU {cpu:.2f} s, peak "
        f"{peak_gib:.2f} GiB"
    )
    for name in ("rows", "fill", "steps", "tokens_carried", "imbalance_max", "imbalance_mean",
                 "imbalance_random_max"):  # fmt: skip
        out.print(f"  {name}: {report[name]:,.6g}")
    lost = truncation_loss(index)
    out.print(f"  reply tokens lost: {report['loss_tokens_lost']['total']}")
    out.print(f"  truncation would lose {lost:.1%} of those in over-long adapter examples")
    for share in filter(None, (1.0, _PEER_SHARE.value)):
        shown = table.Table("packing", "rows", "fill", "", title=f"{share:.0%} of the examples")
        for who, rows, fill, remark in compare(index, share):
            shown.add_row(who, f"{rows:,}", f"{fill:.2%}", remark)
        out.print(shown)


if __name__ == "__main__":
    app.run(main)
