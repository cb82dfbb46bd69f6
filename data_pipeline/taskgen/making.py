"""One order becomes a task: asked, parsed, validated, tried in the sandbox; faults go back to the
teacher, who may repair the reply a few times."""

import asyncio
import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator

from data_pipeline.taskgen import attempts, leaks, prompts, recipe, tagged, teacher, validation
from data_pipeline.taskgen import task as task_module

# Runs a task in a sandbox; raises Rejected, or tells why it could not be tried here.
Check = Callable[[task_module.Task], str]


class Rejected(ValueError):
    """A reply that makes no task.

    Attributes:
        ending: the step at which it fell out.
    """

    def __init__(self, ending: attempts.Ending, reason: str):
        super().__init__(reason)
        self.ending: attempts.Ending = ending


@dataclasses.dataclass
class Made:
    """What came of an order.

    Attributes:
        reason: why it failed; of a kept one why it could not be tried here.
    """

    task: task_module.Task | None = None
    ending: attempts.Ending = "kept"
    reason: str = ""
    replies: list[teacher.Reply] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Bench:
    """What replies are tried with.

    Attributes:
        check: None: tasks are not run.
        threads: those that checks run in, which a disk or a server must not wait for.
    """

    check: Check | None
    threads: concurrent.futures.Executor
    max_repairs: int


async def make(order: recipe.Order, client: teacher.Teacher, bench: Bench) -> Made:
    """Ask until a reply makes a task, at most 1 + max_repairs times.

    Raises:
        teacher.TeacherError: the teacher gave no reply; the order stays open where that may pass.
        teacher.BudgetExceeded: nothing more may be asked.
    """
    made = Made()
    messages: list[recipe.Message] = list(order.messages)
    for round_number in range(1 + bench.max_repairs):
        try:
            reply = await client.ask(messages, salt=f"{order.name}/{round_number}")
        except teacher.TeacherError as error:
            if error.is_final and made.replies:  # the history has grown too long, say
                break
            raise
        made.replies.append(reply)
        try:
            made.task, made.reason = await _tried(_task_from(reply, order), bench)
        except Rejected as error:
            made.ending, made.reason = error.ending, str(error)
            messages += [
                {"role": "assistant", "content": reply.text},
                {"role": "user", "content": prompts.repair(str(error))},
            ]
        else:
            made.ending = "kept"
            break
    return made


async def _tried(task: task_module.Task, bench: Bench) -> tuple[task_module.Task, str]:
    """The task, and why it could not be tried here."""
    if bench.check is None:
        return task, ""
    loop = asyncio.get_running_loop()
    return task, await loop.run_in_executor(bench.threads, bench.check, task)


def _task_from(reply: teacher.Reply, order: recipe.Order) -> task_module.Task:
    if reply.finish_reason == "length":
        raise Rejected("unparsed", "the reply was cut at the limit of tokens; write a shorter one")
    try:
        draft = tagged.parse(reply.text, takes_solution=order.takes_solution)
    except ValueError as error:
        raise Rejected("unparsed", str(error)) from error
    try:
        task = task_of(order, draft)
    except ValueError as error:
        raise Rejected("invalid", str(error)) from error
    if faults := [*validation.faults(task), *_leaks_of(order.reference, task)]:
        raise Rejected("invalid", "; ".join(faults))
    return task


def _leaks_of(reference: str, task: task_module.Task) -> Iterator[str]:
    return leaks.find(instruction=task.instruction, files=task.files, code=None, solution=reference)


def task_of(order: recipe.Order, draft: tagged.Draft) -> task_module.Task:
    """The task that a parsed reply describes."""
    return task_module.Task(
        name=order.name,
        instruction=draft.instruction,
        dockerfile=order.dockerfile + _installing(draft.test_requirements),
        source=order.source,
        domain=order.domain,
        difficulty=order.difficulty,
        skills=order.skills,
        files=draft.files,
        tests=draft.tests,
        weights=draft.weights,
        solution=draft.solution,
        info={**draft.info, **order.info},
    )


def _installing(requirements: tuple[str, ...]) -> str:
    """What tests need beside the domain's environment; tagged.py has checked each name==version."""
    if not requirements:
        return ""
    return f"\n# What the tests need.\nRUN python3 -m pip install {' '.join(requirements)}\n"
