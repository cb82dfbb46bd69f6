"""Tokens a second that the loader gives one process: rows of 32,768 from ArrayRecord shards.

    python benchmarks/loader_speed.py
    python benchmarks/loader_speed.py --num_tokens=200_000_000 --batch_size=8

The shards hold pieces of the shipped sessions, joined to the published lengths (benchmarks/
synthetic_index.py) and shuffled into rows by plan. Beside it: the same bytes read and unpacked
without packing them into rows. The first round, which fills the page cache, is not counted.
"""

import json
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator

import grain
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import synthetic_index
from absl import app, flags
from rich import console

from data_pipeline import loader, manifest, plan, records, shards, tokenize

_NUM_TOKENS = flags.DEFINE_integer("num_tokens", 60_000_000, "Tokens of the corpus, about.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Rows of a batch.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed passes over the plan.")
_NUM_THREADS = flags.DEFINE_integer("num_threads", 4, "Threads of the loader.")

ROW_LENGTH = 32_768
SHARD_EXAMPLES = 512


def session_tokens(folder: pathlib.Path) -> np.ndarray:
    """All tokens of the shipped sessions, joined."""
    tokens = tokenize.tokenize(
        ["embedded"],
        tokenizer_dir="embedded",
        output_dir=folder / "sessions",
        options=tokenize.TokenizeOptions(),
    )
    index = shards.read_index(tokens).to_pylist()
    num_shards = 1 + max(row["shard"] for row in index)
    paths = [tokens / shards.shard_name(i, num_shards) for i in range(num_shards)]
    reader = shards.ShardReader(paths)
    return np.concatenate([reader.read(row["shard"], row["position"]).tokens for row in index])


def write_tokens_dir(folder: pathlib.Path, source: np.ndarray) -> None:
    """Shards and index of examples with the published lengths, their tokens cut from `source`."""
    rng = np.random.default_rng(0)
    scale = _NUM_TOKENS.value / 6_325_491_338
    index = synthetic_index.make(scale=scale)
    num_shards = -(-len(index) // SHARD_EXAMPLES)
    columns = ("num_tokens", "turn_starts", "loss_starts", "loss_ends")

    def examples(shard: int) -> Iterator[records.Example]:
        table = index.select(columns).slice(shard * SHARD_EXAMPLES, SHARD_EXAMPLES)
        for row in table.to_pylist():
            mask = np.zeros(row["num_tokens"], np.uint8)
            for start, end in zip(row["loss_starts"], row["loss_ends"], strict=True):
                mask[start:end] = 1
            turns = np.array(row["turn_starts"], np.int32)
            yield records.Example(
                tokens=np.resize(np.roll(source, -int(rng.integers(len(source)))), len(mask)),
                loss_mask=mask,
                turn_starts=turns,
                turn_is_assistant=np.arange(len(turns), dtype=np.uint8) % 2,
                id="",
                source="",
            )

    folder.mkdir()
    paths = [folder / shards.shard_name(shard, num_shards) for shard in range(num_shards)]
    for shard, path in enumerate(paths):
        shards.write_shard(examples(shard), path)
    pq.write_table(index, folder / shards.INDEX_FILE, compression="zstd")
    sizes = [path.stat().st_size for path in paths]
    made = {
        "stage": "tokenize", "inputs": {}, "options": {},
        "counts": {"num_shards": num_shards, "shard_bytes": sizes},
    }  # fmt: skip
    (folder / manifest.FILE).write_text(json.dumps(made))


def load(opened: loader.Plan) -> float:
    """Tokens a second of one pass of the loader, padding not counted."""
    start, num_tokens = time.perf_counter(), 0
    for batch in loader.make_loader(opened, num_threads=_NUM_THREADS.value):
        num_tokens += int(np.count_nonzero(batch["segment_ids"]))
    return num_tokens / (time.perf_counter() - start)


def read(opened: loader.Plan) -> float:
    """Tokens a second of reading every example once, in the shards' order, in one thread."""
    start, num_tokens = time.perf_counter(), 0
    for shard, position in zip(opened.shard_of, opened.position_of, strict=True):
        num_tokens += len(opened.reader.read(int(shard), int(position)).tokens)
    return num_tokens / (time.perf_counter() - start)


def main(_: list[str]) -> None:
    out = console.Console()
    out.print(f"python {platform.python_version()}, numpy {np.__version__}, pyarrow "
              f"{pa.__version__}, grain {grain.__version__}, {platform.machine()}")  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_tokens_dir(folder / "tokens", session_tokens(folder))
        options = plan.PlanOptions(
            row_length=ROW_LENGTH, global_batch_size=_BATCH_SIZE.value, epochs=1.0, pictures=False
        )
        opened = loader.Plan.open(
            plan.make_plan(folder / "tokens", output_dir=folder / "plan", options=options)
        )
        rates = [(load(opened), read(opened)) for _ in range(_ROUNDS.value + 1)][1:]
    loaded, unpacked = (statistics.median(values) for values in zip(*rates, strict=True))
    out.print(f"loader, {_NUM_THREADS.value} threads: {loaded / 1e6:.1f} million tokens/s")
    out.print(f"reading alone, one thread: {unpacked / 1e6:.1f} million tokens/s")


if __name__ == "__main__":
    app.run(main)
