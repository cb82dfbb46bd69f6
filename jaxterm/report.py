"""Tells metrics files and people about steps, one step late: the device never waits for it."""

import concurrent.futures
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxterm import config, distributed, goodput, heldout, metrics, progress


class _PendingStep(NamedTuple):
    step: int
    values: dict[str, jax.Array]
    seconds: concurrent.futures.Future[float]


class Report:
    """The reports of one start of a run; only process 0 speaks."""

    def __init__(
        self,
        run: config.TrainConfig,
        workdir: pathlib.Path,
        ledger: goodput.Ledger,
        *,
        first_step: int,
        num_steps: int,
    ):
        self._run = run
        self._ledger = ledger
        self._first_step = first_step
        self._has_steps = first_step < num_steps
        self._pending: list[_PendingStep] = []
        self._num_positions = 0  # of the pending steps
        self._writer: metrics.MetricsWriter | None = None  # of process 0
        self._start, self._lost_seconds = 1, 0.0

        def open_writer() -> None:
            earlier = metrics.read_records(workdir)
            self._start, self._lost_seconds = goodput.next_start(earlier, first_step)
            self._writer = metrics.MetricsWriter(
                workdir, first_step=first_step, wandb_project=run.log.wandb_project,
                settings=config.to_json_dict(run),
            )  # fmt: skip

        distributed.once("metrics", open_writer)
        self._progress = progress.Progress(
            num_steps=num_steps, first_step=first_step, show=distributed.is_first()
        )
        self.say = self._progress.say

    def __enter__(self) -> "Report":
        self._progress.__enter__()
        self._since_s = time.monotonic()
        self._ledger.started()
        if self._has_steps:
            self.goodput(self._first_step)
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            self.flush()
        self._progress.__exit__()
        if self._writer is not None:
            self._writer.close()

    def step(self, step: int, values: dict[str, jax.Array], num_positions: int) -> None:
        """Take the metrics of a dispatched step of that many positions, padding included; report
        the ones before it when they are due."""
        every_steps = self._run.log.metrics_every_steps
        if self._pending and self._pending[-1].step % every_steps == 0:
            self.flush()
        self._pending.append(_PendingStep(step, values, self._ledger.watch(values)))
        self._num_positions += num_positions

    def heldout(self, step: int, means: dict[str, float]) -> None:
        """Report held-out losses; the time they took is not the steps'."""
        self.flush()
        if self._writer is not None:
            self._writer.write(step, "heldout", means)
        self.say(f"step {step}: held-out loss {means[heldout.ALL]:.4f}")
        self._since_s = time.monotonic()

    def goodput(self, step: int) -> None:
        """Report where this start's time went so far, under a step that a start may go on from."""
        if self._writer is not None:
            seconds = self._ledger.seconds() | {"lost_seconds": self._lost_seconds}
            self._writer.write(step, goodput.KIND, {"start": self._start, **seconds})

    def flush(self) -> None:
        """Report all steps taken so far.

        Raises:
            ValueError: a step's loss or gradient is not a number.
        """
        if not self._pending:
            return
        steps = [jax.device_get(pending.values) for pending in self._pending]
        now_s = time.monotonic()
        for pending, values in zip(self._pending, steps, strict=True):
            self._check_finite(pending.step, values)
        totals = {name: float(sum(values[name] for values in steps)) for name in steps[0]}
        rates = metrics.throughput(
            self._run.model,
            seconds=now_s - self._since_s,
            num_tokens=totals["tokens"],
            num_loss_tokens=totals["loss_tokens"],
            num_positions=self._num_positions,
            attention_pairs=totals["attention_pairs"],
            is_frozen=self._run.lora.rank > 0,
        )
        rates |= metrics.step_times([pending.seconds.result() for pending in self._pending])
        rates |= self._ledger.take_waits() | {"wall_seconds": self._ledger.wall_seconds()}
        last_step = self._pending[-1].step
        values = {name: float(value) for name, value in steps[-1].items()} | rates
        if self._writer is not None:
            self._writer.write(last_step, "train", values)
        self._progress.step(last_step, values)
        self._pending, self._num_positions, self._since_s = [], 0, now_s

    def _check_finite(self, step: int, values: dict[str, Any]) -> None:
        faults = [
            f"{x} is {values[x]}" for x in ("loss", "grad_norm") if not np.isfinite(values[x])
        ]
        if faults:
            optimizer = self._run.optimizer
            raise ValueError(
                f"step {step}: {', '.join(faults)}; the run ends here, its last checkpoint is "
                f"sound; lower --config.optimizer.peak_lr={optimizer.peak_lr} in another "
                "--workdir, or look at this step's rows"
            )
