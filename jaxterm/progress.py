"""What a person sees of a run: a live bar on a terminal, sober lines elsewhere."""

import sys
import time
from collections.abc import Mapping

import rich.console
import rich.progress


class Progress:
    """The progress of the steps of a run; silent in all processes but the first."""

    def __init__(self, *, num_steps: int, first_step: int, show: bool, line_every_s: float = 10.0):
        """Begin.

        Args:
            num_steps: of the whole run.
            first_step: steps done before this start.
            show: False in processes that say nothing.
            line_every_s: pause between lines where there is no terminal.
        """
        self._num_steps = num_steps
        self._first_step = first_step
        self._show = show
        self._line_every_s = line_every_s
        self._last_line_s = -float("inf")
        self._begin_s = time.monotonic()
        console = rich.console.Console(file=sys.stderr)
        self._bar = _make_bar(console) if show and console.is_terminal else None

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(
                "training", total=self._num_steps, completed=self._first_step,
                loss="-", tokens="-", loss_tokens="-",
            )  # fmt: skip
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Show that `step` steps are done; `values` are the metrics of the last one."""
        if self._bar is not None:
            self._bar.update(
                self._task, completed=step, loss=f"{values['loss']:.4f}",
                tokens=f"{values['tokens_per_s']:,.0f}",
                loss_tokens=f"{values['loss_tokens_per_s']:,.0f}",
            )  # fmt: skip
            return
        now_s = time.monotonic()
        if now_s - self._last_line_s >= self._line_every_s or step == self._num_steps:
            self._last_line_s = now_s
            self.say(
                f"step {step}/{self._num_steps}  loss {values['loss']:.4f}  "
                f"tokens/s {values['tokens_per_s']:,.0f}  "
                f"loss tokens/s {values['loss_tokens_per_s']:,.0f}  "
                f"learning rate {values['learning_rate']:.2e}  "
                f"left {self._seconds_left(step, now_s):,.0f} s"
            )

    def say(self, text: str) -> None:
        """One line, above the bar where there is one."""
        if not self._show:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def _seconds_left(self, step: int, now_s: float) -> float:
        done = max(step - self._first_step, 1)
        return (now_s - self._begin_s) / done * (self._num_steps - step)


def _make_bar(console: rich.console.Console) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("loss {task.fields[loss]}"),
        rich.progress.TextColumn("{task.fields[tokens]} tokens/s"),
        rich.progress.TextColumn("{task.fields[loss_tokens]} loss tokens/s"),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("left"),
        rich.progress.TimeRemainingColumn(),
        console=console,
    )
