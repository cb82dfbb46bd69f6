"""plan -> batches: random access to rows, and a Grain iterator whose state is one integer.

Every batch follows from (plan, step) alone, so every host can make its part of it, and a run goes
on from a step number on any number of hosts.

    tokens       a a a a b b b .      two segments, one slot of padding
    positions    0 1 2 3 0 1 2 0
    segment_ids  1 1 1 1 2 2 2 0
    loss_mask    0 0 1 1 0 1 1 0      tokens that are to be predicted; never a piece's first
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import grain
import numpy as np
import pyarrow as pa

from data_pipeline import manifest, shards, storage
from data_pipeline.planning import plan_rows

FIELDS = ("tokens", "positions", "segment_ids", "loss_mask")
Batch = dict[str, np.ndarray]  # FIELDS, int32 [B, T] each


@dataclasses.dataclass(frozen=True)
class Segment:
    """A piece of an example in a row; `segment_ids` counts the pieces of a row from 1."""

    example: int  # row of the index
    prompt: int  # leading tokens of the example that are repeated in front, as context
    first_token: int
    num_tokens: int  # from first_token on
    source: str
    domain: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """An opened plan and the tokens it speaks of; travels to other processes."""

    folder: storage.Path
    plan_hash: str
    row_length: int  # of the stages that set none of their own
    global_batch_size: int  # likewise
    rows: plan_rows.RowTable
    index: pa.Table  # of the examples: shard, position, source, domain
    shard_of: np.ndarray  # int32 [E]
    position_of: np.ndarray  # int32 [E]
    reader: shards.ShardReader

    @classmethod
    def open(cls, folder: storage.PathLike, *, tokens_dir: storage.PathLike = "") -> "Plan":
        """Open a plan.

        Args:
            folder: the output of data_pipeline.plan.
            tokens_dir: where the tokens are, if not where they were when the plan was made.

        Raises:
            ValueError: the plan or its tokens are absent, unfinished or damaged, or differ.
        """
        folder = storage.as_path(folder)
        made = manifest.read(folder, stage="plan")
        where = made["counts"]["tokens_dir"]
        tokens = storage.as_path(tokens_dir) if tokens_dir else storage.join(folder, where)
        tokens_manifest = manifest.read(tokens, stage="tokenize")
        if manifest.digest_json(tokens_manifest) != made["inputs"]["tokens"]:
            raise ValueError(f"{tokens}: not the tokens that {folder} was planned on; plan again")
        columns = ["shard", "position", "source", "domain"]
        index = shards.read_index(tokens, columns=columns)
        counts = tokens_manifest["counts"]
        num_shards = counts["num_shards"]
        paths = [tokens / shards.shard_name(i, num_shards) for i in range(num_shards)]
        shards.check_sizes(paths, counts.get("shard_bytes", ()))
        plan_hash = made["counts"]["plan_hash"]
        return cls(
            folder=folder,
            plan_hash=plan_hash,
            row_length=made["options"]["row_length"],
            global_batch_size=made["options"]["global_batch_size"],
            rows=plan_rows.read(
                folder,
                [plan_rows.PlanStage(**stage) for stage in made["counts"]["stages"]],
                tokens_digest=made["inputs"]["tokens"],
                plan_hash=plan_hash,
            ),
            index=index,
            shard_of=index["shard"].to_numpy(),
            position_of=index["position"].to_numpy(),
            reader=shards.ShardReader(paths),
        )

    @property
    def stages(self) -> tuple[plan_rows.PlanStage, ...]:
        """The stages, in their order."""
        return self.rows.stages

    @property
    def num_rows(self) -> int:
        """Rows of all steps, those that only pad a batch among them."""
        return len(self.rows.offsets) - 1

    @property
    def num_steps(self) -> int:
        """Whole global batches."""
        return sum(stage.num_steps for stage in self.stages)

    def stage_of_step(self, step: int) -> plan_rows.PlanStage:
        """The stage of a step.

        Raises:
            IndexError: there is no such step.
        """
        for stage in self.stages:
            if 0 <= step - stage.first_step < stage.num_steps:
                return stage
        raise IndexError(f"step {step} of a plan of {self.num_steps} steps")

    def first_row(self, step: int) -> int:
        """The first row of the global batch of a step; the others follow it."""
        stage = self.stage_of_step(step)
        return stage.first_row + (step - stage.first_step) * stage.global_batch_size

    def segments(self, row: int) -> list[Segment]:
        """What row `row` holds, in its order."""
        first, last = self.rows.offsets[row : row + 2].tolist()
        rows = self.rows
        return [
            Segment(
                example=example,
                prompt=int(rows.prompt[i]),
                first_token=int(rows.first[i]),
                num_tokens=int(rows.num_tokens[i]),
                source=self.index["source"][example].as_py() or "",
                domain=self.index["domain"][example].as_py() or "",
            )
            for i, example in enumerate(rows.example[first:last].tolist(), first)
        ]

    def read_row(self, row: int) -> Batch:
        """The four arrays of a row, int32 [T] each.

        Raises:
            IndexError: there is no such row.
            ValueError: naming a shard and record that cannot be read.
        """
        if not 0 <= row < self.num_rows:
            raise IndexError(f"row {row} of a plan of {self.num_rows} rows")
        [stage] = (each for each in self.stages if 0 <= row - each.first_row < each.num_rows)
        arrays = {name: np.zeros(stage.row_length, np.int32) for name in FIELDS}
        at, table = 0, self.rows
        begin, end = table.offsets[row : row + 2].tolist()
        for number, piece in enumerate(range(begin, end), start=1):
            example, prompt = int(table.example[piece]), int(table.prompt[piece])
            first, num = int(table.first[piece]), int(table.num_tokens[piece])
            read = self.reader.read(int(self.shard_of[example]), int(self.position_of[example]))
            body, end_at = at + prompt, at + prompt + num
            arrays["tokens"][at:body] = read.tokens[:prompt]
            arrays["tokens"][body:end_at] = read.tokens[first : first + num]
            arrays["positions"][at:end_at] = np.arange(prompt + num)
            arrays["segment_ids"][at:end_at] = number
            arrays["loss_mask"][body:end_at] = read.loss_mask[first : first + num]
            # What stood before it in the example does not stand before it here.
            arrays["loss_mask"][body] = 0
            at = end_at
        return arrays

    def read_batch(self, step: int, *, rows: Sequence[int] | None = None) -> Batch:
        """Rows of the global batch of a step: all, or those in `rows`, in that order.

        Returns:
            int32 [len(rows), T] arrays.

        Raises:
            IndexError: there is no such step.
            ValueError: a shard cannot be read.
        """
        first = self.first_row(step)
        wanted = range(self.stage_of_step(step).global_batch_size) if rows is None else rows
        read = [self.read_row(first + row) for row in wanted]
        return {name: np.stack([row[name] for row in read]) for name in FIELDS}


@dataclasses.dataclass(frozen=True)
class _RowSource:
    """The rows of one stage that one process reads, in the order of the steps, from a step on."""

    plan: Plan
    stage: plan_rows.PlanStage
    start_step: int
    rows: tuple[int, ...]  # of every global batch

    def __len__(self) -> int:
        stop_step = self.stage.first_step + self.stage.num_steps
        return (stop_step - self.start_step) * len(self.rows)

    def __getitem__(self, i: int) -> Batch:
        step, at = divmod(int(i), len(self.rows))
        return self.plan.read_row(self.plan.first_row(self.start_step + step) + self.rows[at])

    def __repr__(self) -> str:
        return f"rows of {self.plan.folder} from step {self.start_step}"


class Loader:
    """Iterates over the batches of a plan; `step` is its whole state."""

    def __init__(self, batches: Iterator[Batch], step: int):
        self._batches = batches
        self.step = step  # of the batch that comes next

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.step += 1
        return batch


def make_loader(
    plan: Plan,
    *,
    start_step: int = 0,
    rows_of: Callable[[int], Sequence[int]] = range,
    num_workers: int = 0,
    num_threads: int = 4,
) -> Loader:
    """Iterate over this process's part of the batches from `start_step` to the plan's end.

    Args:
        plan: an opened plan.
        start_step: the `step` of an earlier loader resumes it, whatever its other arguments.
        rows_of: given the rows of a global batch (stages may differ in it), the numbers of those
            that this process reads; all of them unless given.
        num_workers: Grain processes that read rows ahead; 0 reads in threads of this one.
        num_threads: threads that read whole batches ahead, of each worker.

    Raises:
        ValueError: a step outside of the plan, or rows outside of a batch.
    """
    if not 0 <= start_step <= plan.num_steps:
        raise ValueError(f"start_step={start_step} is outside of the plan's {plan.num_steps} steps")
    sources = []
    for stage in plan.stages:
        size = stage.global_batch_size
        rows = tuple(rows_of(size))
        if not rows or not set(rows) <= set(range(size)):
            raise ValueError(f"rows={list(rows)} must be some of the {size} rows of a batch")
        if start_step < stage.first_step + stage.num_steps:
            first = max(start_step, stage.first_step)
            sources.append(_RowSource(plan, stage, first, rows))
    stages = (_iterate(source, num_workers, num_threads) for source in sources)
    return Loader(itertools.chain.from_iterable(stages), start_step)


def _iterate(source: _RowSource, num_workers: int, num_threads: int) -> Iterator[Batch]:
    """The batches of one stage; its reading ahead begins when the first is asked for."""
    dataset = grain.MapDataset.source(cast(Any, source))
    reads = grain.ReadOptions(
        num_threads=num_threads,
        prefetch_buffer_size=max(2, num_threads),  # batches
    )
    batches = dataset.batch(len(source.rows), drop_remainder=True).to_iter_dataset(reads)
    if num_workers:
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    return iter(batches)
