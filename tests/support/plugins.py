"""Plugins for tests: one that notes what its contexts see, and one that reserves a budget."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

from datasette import hookimpl


class Observer:
    """Takes part in every call, and notes what happens at each side of its `yield`.

    Args:
        name: what stands before each of its events.
        events: the list to write to, which several observers may share.
        before: called before the `yield`, with the PromptResult; may be async.
        after: called after the `yield` of a call that succeeded; may be async.
        cleanup: called however the call ended; may be async.
    """

    def __init__(
        self,
        name: str = "hook",
        events: list[str] | None = None,
        *,
        before: Callable[[Any], Any] | None = None,
        after: Callable[[Any], Any] | None = None,
        cleanup: Callable[[Any], Any] | None = None,
    ) -> None:
        self.__name__ = name
        self.name = name
        self.events = events if events is not None else []
        self.results: list[Any] = []
        self.errors: list[BaseException] = []
        self.tasks: list[tuple[Any, Any]] = []
        self.left = asyncio.Event()
        self._steps = {"before": before, "after": after, "cleanup": cleanup}

    @hookimpl
    def llm_prompt_context(self, model_id, prompt, purpose, actor):
        @asynccontextmanager
        async def context(result):
            self.results.append(result)
            self.events.append(f"{self.name} opens")
            opened_in = asyncio.current_task()
            await self._run("before", result)
            try:
                yield
            except BaseException as error:
                self.errors.append(error)
                self.events.append(f"{self.name} sees {type(error).__name__}")
                raise
            else:
                self.events.append(f"{self.name} succeeds")
                await self._run("after", result)
            finally:
                self.tasks.append((opened_in, asyncio.current_task()))
                await self._run("cleanup", result)
                self.left.set()

        return context

    async def _run(self, step: str, result: Any) -> None:
        work = self._steps[step]
        outcome = work(result) if work else None
        if asyncio.iscoroutine(outcome):
            await outcome


class Accountant:
    """A budget plugin as third parties write it: rolls back on `Exception`, and only on that."""

    __name__ = "accountant"

    def __init__(self) -> None:
        self.reserved = 0
        self.settled = 0
        self.released = 0

    @hookimpl
    def llm_prompt_context(self):
        @asynccontextmanager
        async def context(result):
            self.reserved += 1
            try:
                yield
                for response in result.responses:
                    await response.usage()
                self.settled += 1
            except Exception:
                self.released += 1
                raise

        return context

    @property
    def open(self) -> int:
        return self.reserved - self.settled - self.released


def raises(error: BaseException) -> Callable[[Any], Any]:
    """A step of an Observer that raises."""

    def step(result: Any) -> None:
        raise error

    return step
