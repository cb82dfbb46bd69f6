"""Tells metrics files and people about steps, one step late: the device never waits for it."""

import pathlib
import time

import jax

from jaxterm import config, distributed, heldout, metrics, progress


class Report:
    """The reports of one start of a run; only process 0 speaks."""

    def __init__(
        self, run: config.TrainConfig, workdir: pathlib.Path, *, first_step: int, num_steps: int
    ):
        self._run = run
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        first = distributed.is_first()
        self._writer = (
            metrics.MetricsWriter(workdir, first_step=first_step,
                                  wandb_project=run.log.wandb_project,
                                  settings=config.to_json_dict(run))
            if first else None
        )  # fmt: skip
        self._progress = progress.Progress(num_steps=num_steps, first_step=first_step, show=first)
        self.say = self._progress.say

    def __enter__(self) -> "Report":
        self._progress.__enter__()
        self._since_s = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            self._flush()
        self._progress.__exit__()
        if self._writer is not None:
            self._writer.close()

    def step(self, step: int, values: dict[str, jax.Array]) -> None:
        """Take the metrics of a dispatched step; report the ones before it when they are due."""
        every_steps = self._run.log.metrics_every_steps
        if self._pending and self._pending[-1][0] % every_steps == 0:
            self._flush()
        self._pending.append((step, values))

    def heldout(self, step: int, means: dict[str, float]) -> None:
        """Report held-out losses; the time they took is not the steps'."""
        self._flush()
        if self._writer is not None:
            self._writer.write(step, "heldout", means)
        self.say(f"step {step}: held-out loss {means[heldout.ALL]:.4f}")
        self._since_s = time.monotonic()

    def _flush(self) -> None:
        if not self._pending:
            return
        steps = [jax.device_get(values) for _, values in self._pending]
        now_s = time.monotonic()
        totals = {name: float(sum(values[name] for values in steps)) for name in steps[0]}
        data = self._run.data
        rates = metrics.throughput(
            self._run.model,
            seconds=now_s - self._since_s,
            num_tokens=totals["tokens"],
            num_loss_tokens=totals["loss_tokens"],
            num_positions=len(steps) * data.global_batch_size * data.row_length,
            attention_pairs=totals["attention_pairs"],
        )
        last_step = self._pending[-1][0]
        values = {name: float(value) for name, value in steps[-1].items()} | rates
        if self._writer is not None:
            self._writer.write(last_step, "train", values)
        self._progress.step(last_step, values)
        self._pending, self._since_s = [], now_s
