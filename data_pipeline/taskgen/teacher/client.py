"""Ask a teacher: each question is paid once, within the budget, whatever fails on the way."""

import asyncio
import collections
import dataclasses
import pathlib
import types
from collections.abc import Sequence
from typing import Self

from data_pipeline.taskgen.teacher import backoff, budget, cache, endpoint, faults
from data_pipeline.taskgen.teacher import question as question_module
from data_pipeline.taskgen.teacher import settings as settings_module
from data_pipeline.taskgen.teacher.budget import BudgetExceeded, Spend
from data_pipeline.taskgen.teacher.faults import TeacherError
from data_pipeline.taskgen.teacher.reply import Reply

__all__ = ["BudgetExceeded", "Reply", "Spend", "Teacher", "TeacherError"]


class Teacher:
    """A model behind an OpenAI-compatible endpoint; an async context manager.

        async with teacher.Teacher(settings, folder / "teacher.sqlite") as client:
            reply = await client.ask([{"role": "user", "content": "..."}])

    Leaving the context waits for what is in flight, since it is paid; a cancellation (^C) does
    not wait.

    Attributes:
        counts: how many requests ended how: "answered", or the kind of the fault; and "cached",
            the questions answered without one.
    """

    def __init__(self, settings: settings_module.Settings, cache_path: pathlib.Path):
        """Describe it; nothing is opened before the context is entered.

        Args:
            settings: checked already.
            cache_path: the SQLite file of replies and spending; one process has it at a time.
        """
        self._settings = settings
        self._cache_path = cache_path
        self._asked: dict[str, asyncio.Task[Reply]] = {}
        self._in_flight: set[asyncio.Task[Reply]] = set()
        self._slots = asyncio.Semaphore(settings.max_in_flight)
        self._quiet_until_s = 0.0  # on the loop's clock
        self._is_closing = False
        self.counts: collections.Counter[str] = collections.Counter()

    async def __aenter__(self) -> Self:
        """Open the cache and read the key.

        Raises:
            ValueError: a key that is none; a cache that is damaged or in use.
        """
        self._endpoint = endpoint.Endpoint(self._settings)
        self._store = cache.Store(self._cache_path)
        self._budget = budget.Budget(self._settings, self._store.spent)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self._is_closing = True
        is_hurried = kind is not None and not issubclass(kind, Exception)
        for task in self._asked.values():
            if is_hurried or task not in self._in_flight:
                task.cancel()
        try:
            await asyncio.gather(*self._asked.values(), return_exceptions=True)
        finally:
            await self._store.close()
            await self._endpoint.close()

    @property
    def spent(self) -> Spend:
        """What all runs with this cache spent, failed requests and repeated ones included."""
        return self._budget.spent

    async def ask(self, messages: Sequence[question_module.Message], *, salt: str = "") -> Reply:
        """The reply to a question: from the cache, from a request in flight, or by a new one.

        Args:
            messages: `role` and `content` each.
            salt: another salt asks the same question anew.

        Raises:
            BudgetExceeded: the budget is used up.
            TeacherError: no reply after the last attempt, or none to be had.
            OSError: the cache could not be written.
        """
        settings = self._settings
        question = question_module.Question(
            settings.model, question_module.check_messages(messages), settings.options, salt
        )
        asked = self._asked.get(question.key)
        if asked is not None:
            # A caller who leaves does not take the reply from the others, nor from the cache.
            return dataclasses.replace(await asyncio.shield(asked), cached=True)
        asked = asyncio.create_task(self._answer(question))
        self._asked[question.key] = asked
        asked.add_done_callback(lambda done: self._forget(question.key, done))
        return await asyncio.shield(asked)

    def _forget(self, key: str, done: asyncio.Task[Reply]) -> None:
        del self._asked[key]
        if not done.cancelled():
            done.exception()  # seen, even where every caller has left

    async def _answer(self, question: question_module.Question) -> Reply:
        if found := await self._store.find(question.key):
            self.counts["cached"] += 1
            return found
        num_attempts = 0
        while True:
            outcome = await self._attempt(question)
            num_attempts += 1
            if isinstance(outcome, Reply):
                return outcome
            if not self._tries_again(outcome, num_attempts):
                raise self._error(outcome, num_attempts)
            await asyncio.sleep(self._pause_s(num_attempts, outcome))

    def _tries_again(self, fault: faults.Fault, num_attempts: int) -> bool:
        return (
            fault.is_retried
            and num_attempts < self._settings.max_attempts
            and fault.retry_after_s <= self._settings.timeout_s
            and not self._is_closing
        )

    async def _attempt(self, question: question_module.Question) -> Reply | faults.Fault:
        """Send it once, when there is a slot; what comes of it is on the disk before anything else.

        Raises:
            BudgetExceeded: the budget is used up.
        """
        async with self._slots:
            await self._keep_quiet()
            self._budget.require_left()
            task = asyncio.current_task()
            assert task is not None
            number = await self._store.begin(question.key, self._most(question))
            self._in_flight.add(task)
            try:
                outcome = await self._endpoint.send(question)
                await self._settle(number, question, outcome)
            finally:
                self._in_flight.discard(task)
        if isinstance(outcome, faults.Fault) and outcome.kind == "cancelled":
            raise asyncio.CancelledError
        return outcome

    async def _settle(
        self, number: int, question: question_module.Question, outcome: Reply | faults.Fault
    ) -> None:
        if isinstance(outcome, Reply):
            await self._store.answer(number, question.key, outcome)
            self._budget.add(Spend(outcome.input_tokens, outcome.output_tokens, outcome.dollars))
            self.counts["answered"] += 1
        else:
            await self._store.fail(number, outcome.kind, outcome.spend)
            self._budget.add(outcome.spend)
            self.counts[outcome.kind] += 1

    def _most(self, question: question_module.Question) -> Spend:
        return budget.price(
            self._settings,
            input_tokens=question.estimated_input_tokens,
            output_tokens=self._settings.max_tokens,
        )

    async def _keep_quiet(self) -> None:
        """Wait as long as the server asked all of us to."""
        loop = asyncio.get_running_loop()
        while (left_s := self._quiet_until_s - loop.time()) > 0:
            await asyncio.sleep(left_s)

    def _pause_s(self, num_attempts: int, fault: faults.Fault) -> float:
        if fault.retry_after_s:
            until_s = asyncio.get_running_loop().time() + fault.retry_after_s
            self._quiet_until_s = max(self._quiet_until_s, until_s)
        return backoff.pause_s(
            num_attempts,
            first_pause_s=self._settings.first_pause_s,
            retry_after_s=fault.retry_after_s,
        )

    def _error(self, fault: faults.Fault, num_attempts: int) -> TeacherError:
        text = fault.text
        if fault.retry_after_s > self._settings.timeout_s:
            text += (
                f"; it asks to wait {fault.retry_after_s:.0f} s, longer than "
                f"--timeout_s={self._settings.timeout_s:g}"
            )
        if num_attempts > 1:
            text += f" (after {num_attempts} attempts)"
        return TeacherError(fault.kind, text)
