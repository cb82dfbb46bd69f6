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
            source: float(loss_sum / count)
            for source, loss_sum, count in zip(self._sources, *sums, strict=True)
            if count
        }
        return {ALL: float(sums[0].sum() / sums[1].sum()), **means}

    def _batches(self) -> Iterator[tuple[train_step.Batch, jax.Array]]:
        plan, size = self._plan, self._plan.global_batch_size
        rows = batches.rows_of_process(self._mesh, size)
        iterator = batches.iterate(plan, self._mesh, first_step=0)
        for step, (batch, local) in enumerate(iterator):
            groups = np.stack(
                [
                    self._groups_of_row(step * size + row, segment_ids)
                    for row, segment_ids in zip(rows, local["segment_ids"], strict=True)
                ]
            )
            placed = batches.place({"groups": groups}, rows, self._mesh, size)
            yield batch, placed["groups"]

    def _groups_of_row(self, row: int, segment_ids: np.ndarray) -> np.ndarray:
        """Index of the source of every token of a row, int32 [T]; anything for padding."""
        sources = [self._sources.index(piece.source) for piece in self._plan.segments(row)]
        return np.asarray([0, *sources], np.int32)[segment_ids]
