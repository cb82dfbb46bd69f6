"""The engine of `seeds` and `skills`: a recipe and a teacher in, task folders out.

Orders are made side by side, a window at a time, and settled in their order: decontaminated,
compared with the tasks before them, written, logged. So the output does not depend on which reply
came first, and memory not on the number of orders. A run that was stopped goes on at the first
order without a line in attempts.jsonl, and pays for no reply twice.
"""

import asyncio
import collections
import concurrent.futures
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any, Literal

from rich import console as rich_console
from rich import progress as rich_progress

from data_pipeline import cli, manifest
from data_pipeline.curation import benchmark_tasks, decontamination
from data_pipeline.sandbox import sandbox
from data_pipeline.taskgen import (
    attempts,
    checking,
    funnel,
    making,
    novelty_options,
    recipe,
    seen_prompts,
    teacher,
)
from data_pipeline.taskgen import task as task_module

TASKS_FOLDER, SEEN_FILE = "tasks", "seen.sqlite"
CACHE_SUFFIX = ".teacher.sqlite"  # beside OUTPUT: what was paid for outlives --overwrite
_WINDOW = 8  # orders under way, as a multiple of the requests in flight: one may take long
_PATIENCE = 3  # orders in a row, as the same multiple, whose teacher does not answer: it is gone


Check = Literal["sandbox", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateOptions(novelty_options.NoveltyOptions):
    """What the engine is told beside the recipe and the teacher."""

    max_repairs: int = dataclasses.field(
        default=2, metadata=cli.flag("further questions about a task whose reply is faulty")
    )
    check: Check = dataclasses.field(
        default="sandbox",
        metadata=cli.flag(
            "try each task in the local sandbox: its tests must fail where nothing was done, and "
            "pass after its solution where it has one"
        ),
    )
    check_workers: int = dataclasses.field(
        default=2, metadata=cli.flag("tasks tried at a time", changes_output=False)
    )
    cache: str = dataclasses.field(
        default="",
        metadata=cli.flag(
            "the file of the teacher's replies, which several outputs may share; "
            f"OUTPUT{CACHE_SUFFIX} when left out",
            changes_output=False,
        ),
    )

    def __post_init__(self):
        super().__post_init__()
        cli.require_choice("check", self.check, Check)
        cli.require(self.max_repairs >= 0, f"--max_repairs={self.max_repairs} must be at least 0")
        cli.require(
            self.check_workers > 0, f"--check_workers={self.check_workers} must be positive"
        )


class StoppedError(ValueError):
    """Orders are left; the same command goes on with them."""


def generate(
    orders: recipe.Recipe,
    *,
    name: str,
    inputs: dict[str, str],
    told: dict[str, Any],
    output_dir: pathlib.Path,
    settings: teacher.Settings,
    options: GenerateOptions,
    overwrite: bool = False,
) -> pathlib.Path:
    """Make the recipe's tasks; returns the folder that holds them.

    Args:
        orders: what is wanted.
        name: of the stage, "seeds" or "skills".
        inputs: file -> SHA-256 of what the recipe was made from.
        told: the recipe's own options.
        output_dir: gets tasks/, attempts.jsonl, funnel.json and manifest.json.
        settings: of the teacher.
        options: of the engine.
        overwrite: replace what was made with other settings.

    Raises:
        ValueError: a bad setting.
        StoppedError: the budget is used up, or the teacher does not answer.
    """
    benchmark = benchmark_tasks.read(options.benchmarks)
    check = checking.SandboxCheck(options.check_workers) if options.check == "sandbox" else None
    stage = manifest.Stage(
        f"taskgen.{name}",
        output_dir,
        inputs,
        told
        | manifest.options_of(options)
        | settings.identity()
        | {"benchmark_instructions": manifest.digest_json(benchmark)},
    )
    console = rich_console.Console(stderr=True)
    if manifest.begin(stage, overwrite=overwrite):
        console.print(f"taskgen {name}: {output_dir} is done already", soft_wrap=True, markup=False)
        return output_dir / TASKS_FOLDER
    settler = _Settler(output_dir, attempts.Log(output_dir, len(orders)), benchmark, options)
    cache = pathlib.Path(options.cache or f"{output_dir}{CACHE_SUFFIX}")
    engine = _Engine(orders, settings, options, check, settler, cache)
    shown = funnel.Shown(is_checked=check is not None, is_decontaminated=bool(benchmark))
    try:
        asyncio.run(engine.run(console))
    except KeyboardInterrupt:
        raise StoppedError("stopped; the same command goes on") from None
    finally:
        settler.close()
        if not options.cache:
            shown = dataclasses.replace(shown, spent=engine.spent)
        console.print(funnel.table(name, settler.log.totals, shown))
    report = funnel.report(settler.log.totals, shown)
    manifest.write_json(output_dir / funnel.FILE, report)
    settler.forget_seen()
    manifest.complete(stage, {step["step"]: step["left"] for step in report["steps"]})
    return output_dir / TASKS_FOLDER


class _Settler:
    """Ends orders one after another: what the tasks before them decide, and the disk."""

    def __init__(
        self,
        output_dir: pathlib.Path,
        log: attempts.Log,
        benchmark: tuple[tuple[str, str], ...],
        options: GenerateOptions,
    ):
        self.log = log
        self._folder = output_dir / TASKS_FOLDER
        self._folder.mkdir(exist_ok=True)
        self._decontaminator = decontamination.Decontaminator(
            benchmark, ngram=options.ngram, normalisation="words"
        )
        self._seen_path = output_dir / SEEN_FILE
        self._seen = seen_prompts.SeenPrompts(self._seen_path, threshold=options.near_duplicates)

    def settle(self, index: int, name: str, made: making.Made) -> None:
        """Write the task where it is kept, then its line.

        In the loop's own thread: a handful of small files takes less than to hand them to another.
        """
        ending, reason = made.ending, made.reason
        if made.task is not None:
            ending, reason = self._judge(made.task)
            if ending == "kept":
                reason = made.reason
                task_module.write_task(made.task, self._folder)
                self._seen.commit()
        if ending != "kept":  # a kill may have left it, before another verdict
            task_module.remove_task(name, self._folder)
        self.log.append(
            attempts.Attempt(
                index=index,
                name=name,
                ending=ending,
                reason=reason,
                num_replies=len(made.replies),
                input_tokens=sum(reply.input_tokens for reply in made.replies),
                output_tokens=sum(reply.output_tokens for reply in made.replies),
                dollars=sum(reply.dollars for reply in made.replies),
            )
        )

    def _judge(self, made: task_module.Task) -> tuple[attempts.Ending, str]:
        if found := self._decontaminator.find(made.instruction):
            return "contaminated", found
        like = self._seen.add(made.name, made.instruction)
        # A task that a kill kept from its line is seen, and made again.
        if like is not None and like[0] != made.name:
            return "repeated", f"its instruction is like that of {like[0]} ({like[1]:.2f})"
        return "kept", ""

    def close(self) -> None:
        """Close the files."""
        self._seen.close()
        self.log.close()

    def forget_seen(self) -> None:
        """Remove what is of use while orders are left."""
        for path in self._seen_path.parent.glob(f"{SEEN_FILE}*"):
            path.unlink()


type _UnderWay = collections.deque[tuple[int, recipe.Order, asyncio.Task[making.Made]]]


@dataclasses.dataclass
class _Engine:
    """Keeps a window of orders under way and settles the oldest."""

    orders: recipe.Recipe
    settings: teacher.Settings
    options: GenerateOptions
    check: checking.SandboxCheck | None
    settler: _Settler
    cache: pathlib.Path
    stopped: str = ""  # why no more orders are begun
    num_silent: int = 0  # orders since the last reply for which there was none
    spent: teacher.Spend | None = None  # by all runs with this cache

    async def run(self, console: rich_console.Console) -> None:
        """Until every order is settled, or none may be begun and those under way have ended.

        Raises:
            StoppedError: orders are left.
        """
        log, under_way = self.settler.log, collections.deque()
        todo = self.orders.orders(log.is_settled)
        threads = concurrent.futures.ThreadPoolExecutor(self.options.check_workers)
        bench = making.Bench(self.check, threads, self.options.max_repairs)
        async with teacher.Teacher(self.settings, self.cache) as client:
            with _bar(console) as bar:
                shown = bar.add_task("tasks", total=len(self.orders), kept=0)
                try:
                    while self._fill(under_way, todo, client, bench):
                        await self._settle_oldest(under_way)
                        kept = log.totals.endings["kept"]
                        bar.update(shown, completed=log.num_settled, kept=kept)
                finally:
                    self.spent = client.spent
                    for *_, made in under_way:
                        made.cancel()
                    threads.shutdown(wait=False, cancel_futures=True)
                    if self.check is not None:
                        self.check.cancel()
        left = len(self.orders) - log.num_settled
        if left:
            why = self.stopped or f"the teacher at {self.settings.base_url} gave no reply for them"
            raise StoppedError(
                f"{left:,} of {len(self.orders):,} tasks are left: {why}; the same command goes on "
                "with them"
            )

    def _fill(
        self,
        under_way: _UnderWay,
        todo: Iterator[tuple[int, recipe.Order]],
        client: teacher.Teacher,
        bench: making.Bench,
    ) -> bool:
        """Begin orders until the window is full; False where none is under way."""
        while not self.stopped and len(under_way) < _WINDOW * self.settings.max_in_flight:
            index, order = next(todo, (-1, None))
            if order is None:
                break
            made = asyncio.create_task(making.make(order, client, bench))
            under_way.append((index, order, made))
        return bool(under_way)

    async def _settle_oldest(self, under_way: _UnderWay) -> None:
        index, order, making_it = under_way.popleft()
        try:
            made = await making_it
        except teacher.BudgetExceeded as error:
            self.stopped = f"{error}; raise it first"
        except sandbox.SandboxError as error:
            self.stopped = f"the sandbox fails ({error}); see to it, or add --check=none"
        except teacher.TeacherError as error:
            self._note_silence(index, order, error)
        else:
            self.num_silent = 0
            self.settler.settle(index, order.name, made)

    def _note_silence(self, index: int, order: recipe.Order, error: teacher.TeacherError) -> None:
        """No reply: what will not pass is the order's end, what may pass leaves it open."""
        if error.is_final:
            refused = making.Made(ending="refused", reason=str(error))
            self.settler.settle(index, order.name, refused)
            return
        self.num_silent += 1
        if error.affects_all or self.num_silent >= _PATIENCE * self.settings.max_in_flight:
            self.stopped = f"the teacher at {self.settings.base_url} does not answer ({error})"


def _bar(console: rich_console.Console) -> rich_progress.Progress:
    return rich_progress.Progress(
        *rich_progress.Progress.get_default_columns(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[kept]:,} kept"),
        console=console,
        transient=True,
    )
