"""Held-out loss: the mean cross-entropy of all held-out loss tokens, and of each source's."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from data_pipeline import loader
from jaxterm import batches, config, model, sharding, train_step

ALL = "all"


class HeldoutLoss:
    """Evaluates parameters on a held-out plan; compiled at the first use."""

    def __init__(self, run: config.TrainConfig, plan: loader.Plan, mesh: jax.sharding.Mesh):
        self._plan = plan
        self._mesh = mesh
        # As many rows as a training step computes at a time: they fit, and the mesh divides them.
        self._num_rows = run.data.global_batch_size // run.optimizer.num_micro_batches
        self._sources = sorted(set(plan.index["source"].to_pylist()))
        # Summed on every device, so that every process can read the result.
        replicated = sharding.named_sharding(mesh)
        self._step: Callable[..., Any] = jax.jit(
            train_step.make_eval_step(run, len(self._sources)),
            out_shardings=(replicated, replicated),
        )

    def __call__(self, params: model.Params) -> dict[str, float]:
        """Mean loss in nats a loss token, of each source and of ALL."""
        sums = np.zeros((2, len(self._sources)))
        with jax.set_mesh(self._mesh):
            for batch, groups in self._batches():
                sums += np.asarray(jax.device_get(self._step(params, batch, groups)))
        means = {
            source if source != ALL else f"source {ALL}": float(loss_sum / count)
            for source, loss_sum, count in zip(self._sources, *sums, strict=True)
            if count
        }
        return {ALL: float(sums[0].sum() / sums[1].sum()), **means}

    def _batches(self) -> Iterator[tuple[train_step.Batch, jax.Array]]:
        """Batches of `_num_rows` rows, the last one filled with rows of padding; and the groups."""
        plan, size = self._plan, self._num_rows
        rows = batches.rows_of_process(self._mesh, size)
        for first in range(0, plan.num_rows, size):
            local = [self._read_row(first + row) for row in rows]
            stacked = {name: np.stack([row[name] for row in local]) for name in local[0]}
            placed = batches.place(stacked, rows, self._mesh, size)
            groups = placed.pop("groups")
            yield placed, groups

    def _read_row(self, row: int) -> dict[str, np.ndarray]:
        """A row of the plan, and the index of the source of each of its tokens, int32 [T] each."""
        if row >= self._plan.num_rows:
            nothing = np.zeros(self._plan.row_length, np.int32)
            return dict.fromkeys((*loader.FIELDS, "groups"), nothing)
        arrays = self._plan.read_row(row)
        sources = [self._sources.index(piece.source) for piece in self._plan.segments(row)]
        groups = np.asarray([0, *sources], np.int32)[arrays["segment_ids"]]  # 0: any, for padding
        return {**arrays, "groups": groups}
