"""One order becomes a task: asked, parsed, validated, tried in the sandbox; faults go back to the
teacher, who may repair the reply a few times."""

import asyncio
import dataclasses
from collections.abc import Callable

from data_pipeline.taskgen import attempts, prompts, tagged, validation
from data_pipeline.taskgen import task as task_module
from data_pipeline.taskgen.recipe import Message, Order
from data_pipeline.taskgen.teacher import client

# Runs a task in a sandbox, in a thread of its own; raises Rejected.
Check = Callable[[task_module.Task], None]


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
    """What came of an order."""

    task: task_module.Task | None = None
    ending: attempts.Ending = "kept"
    reason: str = ""
    replies: list[client.Reply] = dataclasses.field(default_factory=list)


async def make(
    order: Order, teacher: client.Teacher, *, check: Check | None, max_repairs: int
) -> Made:
    """Ask until a reply makes a task, at most 1 + max_repairs times.

    Raises:
        client.TeacherError: the teacher gave no reply; the order stays open where that may pass.
        client.BudgetExceeded: nothing more may be asked.
    """
    made = Made()
    messages: list[Message] = list(order.messages)
    for round_number in range(1 + max_repairs):
        reply = await teacher.ask(messages, salt=f"{order.name}/{round_number}")
        made.replies.append(reply)
        try:
            made.task = await _task_from(reply, order, check)
        except Rejected as error:
            made.ending, made.reason = error.ending, str(error)
            messages += [
                {"role": "assistant", "content": reply.text},
                {"role": "user", "content": prompts.repair(str(error))},
            ]
        else:
            made.ending, made.reason = "kept", ""
            break
    return made


async def _task_from(reply: client.Reply, order: Order, check: Check | None) -> task_module.Task:
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
    if faults := validation.faults(task):
        raise Rejected("invalid", "; ".join(faults))
    if check is not None:
        await asyncio.to_thread(check, task)
    return task


def task_of(order: Order, draft: tagged.Draft) -> task_module.Task:
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
        info={**order.info, **draft.info},
    )


def _installing(requirements: tuple[str, ...]) -> str:
    """What tests need beside the domain's environment; tagged.py has checked each name==version."""
    if not requirements:
        return ""
    return f"\n# What the tests need.\nRUN python3 -m pip install {' '.join(requirements)}\n"
