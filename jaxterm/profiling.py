"""--profile=FIRST:LAST: an xprof trace of some steps of a run, in WORKDIR/profile."""

import dataclasses
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax

from jaxterm import distributed

FOLDER = "profile"  # in the run's


@dataclasses.dataclass(frozen=True)
class Steps:
    """Which steps of a run are profiled, by their numbers from 1; both ends are."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"--profile={self.first}:{self.last}"

    def check(self, num_steps: int) -> None:
        """ValueError unless a run of that many steps has them all."""
        if self.last > num_steps:
            raise ValueError(f"{self}: the run has {num_steps} steps; LAST must be one of them")


def parse(text: str | None) -> Steps | None:
    """The value of --profile; None where the flag is not given.

    Raises:
        ValueError: it is no FIRST:LAST with 1 <= FIRST <= LAST.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]+):([0-9]+)", text)
    steps = Steps(int(match[1]), int(match[2])) if match else None
    if steps is None or not 1 <= steps.first <= steps.last:
        raise ValueError(
            f"--profile={text}: must be FIRST:LAST, numbers of steps of the run with "
            "1 <= FIRST <= LAST; --profile=10:12 traces three steps"
        )
    return steps


def step_marker(step: int) -> jax.profiler.StepTraceAnnotation:
    """Around what the loop does for a step: shows the trace's reader where steps begin."""
    return jax.profiler.StepTraceAnnotation("train", step_num=step)


class Profiler:
    """Traces those of the given steps that this start does; process 0 does it, for its devices.

    One process is enough, as all run the same program; two on a machine would write one file.
    """

    def __init__(
        self,
        steps: Steps | None,
        workdir: pathlib.Path,
        *,
        first_step: int,
        say: Callable[[str], None],
    ):
        """Make ready.

        Args:
            steps: what to trace, None for nothing.
            workdir: folder of the run.
            first_step: steps done before this start.
            say: shows a line to people.
        """
        if steps and steps.last <= first_step:
            say(f"{steps}: an earlier start did these steps; nothing is traced")
        self._steps = steps if distributed.is_first() else None
        self._folder = workdir / FOLDER
        self._say = say
        self._is_tracing = False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()  # where the run stops in the midst of them

    def before(self, step: int, state: Any) -> None:
        """Begin the trace if it is due, once `state`, and so the step before, is computed."""
        if self._steps and not self._is_tracing and self._steps.first <= step <= self._steps.last:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._is_tracing = True

    def after(self, step: int, values: Any) -> None:
        """End the trace if `step` is the last, once its outputs `values` are computed."""
        if self._is_tracing and self._steps and step == self._steps.last:
            jax.block_until_ready(values)
            self._stop()

    def _stop(self) -> None:
        if not self._is_tracing:
            return
        self._is_tracing = False
        jax.profiler.stop_trace()
        self._say(
            f"{self._steps}: the trace is in {self._folder}; open it by "
            f"`uvx xprof --logdir={self._folder}`, or TensorBoard with xprof installed"
        )
