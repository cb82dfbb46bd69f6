"""Where the wall-clock time of a run goes: a ledger whose lines add up to the clock.

At any moment the devices compute a training step, or they do not and the loop is in some phase.
The ledger charges the moment to `steps` or to that phase:

    startup           from the call of train.main on: data, plan, weights or a checkpoint read
    compile           the first call of the step with each batch shape: tracing, then compiling
                      (or reading the persistent cache)
    steps             a step runs
    input_stall       none runs, for its batch is not there yet
    evaluation        held-out losses, the compiling of their own program included
    checkpoint_stall  the loop is held up by a save; writing goes on behind the next steps
    other             the loop's own work: metrics, profiles, signals

One record of metrics.jsonl, of kind "goodput", has a start's seconds so far. It is written before
the first step and with each checkpoint, under that checkpoint's step, so that the last one of each
start is there even if the start was killed. What a killed start did after it is lost: the next
start finds the reports of that time, drops them, and notes their seconds as `lost_seconds`. A kill
leaves no word of the time between its last report and its end: lost seconds are at least those.
"""

import concurrent.futures
import contextlib
import datetime
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

KIND = "goodput"  # of the records

STARTUP, COMPILE, STEPS = "startup", "compile", "steps"
INPUT, EVALUATION, CHECKPOINT = "input_stall", "evaluation", "checkpoint_stall"
OTHER = "other"
PHASES = (STARTUP, COMPILE, STEPS, INPUT, EVALUATION, CHECKPOINT, OTHER)


class Ledger:
    """The time of one start, from the making of this object on; for the one thread of a loop.

    Steps run behind the loop's back, so a thread waits for each and looks at the clock. Neither
    the loop nor the devices wait for that.
    """

    def __init__(self):
        self._begun_s = self._charged_s = self._idle_since_s = time.monotonic()
        self._seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        # Of the loop, whether a step ran meanwhile or not; since they were last taken.
        self._held_seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._phase = STARTUP
        self._compiled_shapes: set[tuple[int, ...]] = set()
        self._dispatched_s = self._begun_s
        self._newest_step: concurrent.futures.Future[float] | None = None
        self._waiter = concurrent.futures.ThreadPoolExecutor(1, "step-clock")

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *exception: object) -> None:
        self._waiter.shutdown(cancel_futures=True)

    def started(self) -> None:
        """Say that the start-up is over and the loop begins."""
        self._enter(OTHER)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What the loop does inside, one of PHASES; charged where no step runs meanwhile."""
        outer, begun_s = self._phase, self._enter(name)
        try:
            yield
        finally:
            self._held_seconds[name] += self._enter(outer) - begun_s

    @contextlib.contextmanager
    def dispatch(self, shape: tuple[int, ...]) -> Iterator[None]:
        """Around the call that queues a step on a batch of this shape; a new shape compiles."""
        is_new = shape not in self._compiled_shapes
        self._compiled_shapes.add(shape)
        with self.phase(COMPILE if is_new else STEPS):
            self._dispatched_s = self._charged_s
            yield
        if is_new:
            self._dispatched_s = self._charged_s

    def watch(self, values: Any) -> concurrent.futures.Future[float]:
        """Take the outputs of the step dispatched last.

        Returns:
            The step's seconds, once it is done: from the end of the step before it to its own end;
            from its dispatch (when compiled) where the devices had nothing to do by then, as after
            late input, an evaluation or a save, which have lines of their own.
        """
        self._newest_step = self._waiter.submit(self._wait, values, self._dispatched_s)
        return self._newest_step

    def take_waits(self) -> dict[str, float]:
        """What held the loop up since this was last asked, in seconds.

        `input_wait_seconds` is the time in next(rows), `checkpoint_stall_seconds` that in save().
        Running steps hide input waits: those that cost something are the ledger's `input_stall`.
        """
        taken = {
            "input_wait_seconds": self._held_seconds[INPUT],
            "checkpoint_stall_seconds": self._held_seconds[CHECKPOINT],
        }
        self._held_seconds = dict.fromkeys(PHASES, 0.0)
        return taken

    def wall_seconds(self) -> float:
        """Since this object was made."""
        return time.monotonic() - self._begun_s

    def seconds(self) -> dict[str, float]:
        """`PHASE_seconds` of every phase so far, and their sum, `wall_seconds`."""
        now_s = self._enter(self._phase)
        seconds = {f"{phase}_seconds": self._seconds[phase] for phase in PHASES}
        return seconds | {"wall_seconds": now_s - self._begun_s}

    def _enter(self, phase: str) -> float:
        """Charge the time since the last call; returns the clock."""
        now_s = time.monotonic()
        busy_until_s = self._busy_until(now_s)
        self._seconds[STEPS] += busy_until_s - self._charged_s
        self._seconds[self._phase] += now_s - busy_until_s
        self._charged_s, self._phase = now_s, phase
        return now_s

    def _busy_until(self, now_s: float) -> float:
        """When the devices ran out of steps, between the last charge and now."""
        if self._newest_step is not None and not self._newest_step.done():
            return now_s
        return min(max(self._idle_since_s, self._charged_s), now_s)

    def _wait(self, values: Any, dispatched_s: float) -> float:
        """Runs in the thread, for one step after the other."""
        jax.block_until_ready(values)
        begun_s = max(dispatched_s, self._idle_since_s)
        self._idle_since_s = time.monotonic()
        return max(self._idle_since_s - begun_s, 0.0)


def next_start(records: Iterable[Mapping[str, Any]], first_step: int) -> tuple[int, float]:
    """The number of a start, from 1, and the seconds that it finds lost.

    Args:
        records: all that the run's earlier starts left in metrics.jsonl, as it stands there.
        first_step: steps done in the checkpoint that the start goes on from.
    """
    start, kept, reached = 0, {}, {}  # seconds since the beginning of each start
    for record in records:
        if "wall_seconds" not in record:
            continue
        # A report belongs to the start whose ledger stands above it.
        start = record.get("start", start)
        if record["step"] > first_step:
            reached[start] = record["wall_seconds"]
        elif record["kind"] == KIND:
            kept[start] = record["wall_seconds"]
    lost = sum((max(reached[x] - kept.get(x, 0.0), 0.0) for x in reached), 0.0)
    return max(kept, default=0) + 1, lost


def total(records: Iterable[Mapping[str, Any]]) -> dict[str, float] | None:
    """The seconds of all starts, None where there are none.

    Args:
        records: of KIND, in the order they were written.

    Returns:
        `starts`, their number; `PHASE_seconds` and `lost_seconds`; `wall_seconds`, the sum of
        these. The time between two starts is in none.
    """
    starts = {record["start"]: record for record in records}
    if not starts:
        return None
    names = [*(f"{phase}_seconds" for phase in PHASES), "lost_seconds"]
    seconds = {name: sum(record[name] for record in starts.values()) for name in names}
    return {"starts": len(starts), **seconds, "wall_seconds": sum(seconds.values())}


def line(seconds: Mapping[str, float]) -> str:
    """What `total` returned as one line: the steps' share, then the others', the largest first."""
    wall = seconds["wall_seconds"]
    shares = {phase: seconds[f"{phase}_seconds"] / wall for phase in (*PHASES, "lost")}
    steps = shares.pop(STEPS)
    others = [
        f"{phase.replace('_', ' ')} {share:.1%}"
        for phase, share in sorted(shares.items(), key=lambda item: -item[1])
        if share >= 0.0005  # the rest would read 0.0%
    ]
    starts = "" if seconds["starts"] == 1 else f" in {seconds['starts']} starts"
    whole = datetime.timedelta(seconds=round(wall))
    return f"time {whole}{starts}: {', '.join([f'steps {steps:.1%}', *others])}"
