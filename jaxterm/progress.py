"""What a person sees of a run: a live bar on a terminal, sober lines elsewhere."""

import datetime
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
        # Of the first report: what came before it compiled and evaluated.
        self._first_report: tuple[int, float] | None = None
        console = rich.console.Console(file=sys.stderr)
        self._bar = _make_bar(console) if show and console.is_terminal else None

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(
                "training", total=self._num_steps, completed=self._first_step,
                loss="-", tokens="-", loss_tokens="-", left="-",
            )  # fmt: skip
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Show that `step` steps are done; `values` are the metrics of the last one."""
        now_s = time.monotonic()
        left = self._time_left(step, now_s)
        if self._bar is not None:
            self._bar.update(
                self._task, completed=step, loss=f"{values['loss']:.4f}",
                tokens=f"{values['tokens_per_s']:,.0f}",
                loss_tokens=f"{values['loss_tokens_per_s']:,.0f}", left=left,
            )  # fmt: skip
            return
        if now_s - self._last_line_s >= self._line_every_s or step == self._num_steps:
            self._last_line_s = now_s
            self.say(
                f"step {step}/{self._num_steps}  loss {values['loss']:.4f}  "
                f"tokens/s {values['tokens_per_s']:,.0f}  "
                f"loss tokens/s {values['loss_tokens_per_s']:,.0f}  "
                f"learning rate {values['learning_rate']:.2e}  "
                f"left {left}"
            )

    def say(self, text: str) -> None:
        """One line, above the bar where there is one."""
        if not self._show:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def _time_left(self, step: int, now_s: float) -> str:
        """By the pace since the first report; `-` at the first, which tells no pace."""
        if self._first_report is None:
            self._first_report = (step, now_s)
        first_step, first_s = self._first_report
        if step == first_step:
            return "-"
        seconds = (now_s - first_s) / (step - first_step) * (self._num_steps - step)
        return str(datetime.timedelta(seconds=round(seconds)))


def _make_bar(console: rich.console.Console) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("loss {task.fields[loss]}"),
        rich.progress.TextColumn("{task.fields[tokens]} tokens/s"),
        rich.progress.TextColumn("{task.fields[loss_tokens]} loss tokens/s"),
        rich.progress.TimeElapsedColumn(),
        # Not rich's own estimate: it forgets reports older than 30 s, and a step may take longer.
        rich.progress.TextColumn("left {task.fields[left]}"),
        console=console,
    )
