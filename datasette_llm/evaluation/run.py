"""Run a stored evaluation: start, stop, resume; nothing is asked twice."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING

from datasette.utils.sqlite import sqlite3

from .. import instance
from ..access.quoting import quoted_error
from ..events import Outcome
from ..facade import LLM
from ..lifecycle import UnfinishedTasks
from ..log.sessions import lock_beside
from . import store
from .definition import EvaluationError
from .engine import GROUP_CASES, Actor, Engine, How, Work
from .judge import judge
from .store import Evaluation

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger("datasette_llm")

What = Callable[[], Awaitable[None]]


class Run:
    """An evaluation that runs in this process, or its judge.

    Attributes:
        answered: how many answers have been stored since it was started.
        failure: why it ended early, or None.
    """

    def __init__(self, engine: Engine | None = None) -> None:
        """
        Args:
            engine: what asks; None for a judge.
        """
        self.answered = 0
        self.failure: str | None = None
        self._engine = engine
        self._task: asyncio.Task[None] | None = None
        self._working: asyncio.Task[None] | None = None

    @property
    def is_judge(self) -> bool:
        """Whether it is the judge that runs."""
        return self._engine is None

    def start(self, datasette: Datasette, evaluation: Evaluation, work: What) -> None:
        """Begin, in a task of its own."""
        # Not in the context of the request that starts it, which has limits and tags of its own.
        self._task = asyncio.create_task(
            self._guarded(datasette, evaluation, work), context=Context()
        )

    async def stop(self) -> None:
        """Stop what runs, and wait until what has come is stored."""
        self._halt()
        await self.ended()

    async def ended(self) -> None:
        """Wait for the end."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def _halt(self) -> None:
        if self._engine is not None:
            self._engine.stop()
        elif self._working is not None:
            self._working.cancel()

    async def _guarded(self, datasette: Datasette, evaluation: Evaluation, work: What) -> None:
        self._working = asyncio.create_task(_alone(datasette, evaluation.id, work))
        runs = instance.of(datasette, Runs)
        with instance.of(datasette, UnfinishedTasks).current():
            try:
                await asyncio.shield(self._working)
            except asyncio.CancelledError:
                self._halt()
                await asyncio.wait([self._working])
                raise
            except Exception as error:  # a plugin's, or the database's; the answers are stored
                self.failure = await quoted_error(datasette, error)
                runs.failures[evaluation.id] = self.failure
                logger.error("Evaluation %s has ended early: %s", evaluation.id, self.failure)
            finally:
                runs.running.pop(evaluation.id, None)

    async def ask(self, datasette: Datasette, evaluation: Evaluation, engine: Engine) -> None:
        """Ask what has no answer, and store the answers as they come."""
        async with contextlib.aclosing(
            engine.batches(_unanswered(datasette, evaluation))
        ) as batches:
            async for batch in batches:
                # One that was cancelled has no answer yet.
                kept = [each for each in batch if each.answer.outcome is not Outcome.CANCELLED]
                await store.add_answers(datasette, evaluation.id, kept)
                self.answered += len(kept)


class Runs:
    """The evaluations that run in this process.

    Attributes:
        running: by the id of the evaluation.
        failures: why the last run of an evaluation ended early, by its id.
    """

    def __init__(self) -> None:
        self.running: dict[str, Run] = {}
        self.failures: dict[str, str] = {}


def start(datasette: Datasette, evaluation: Evaluation, actor: Actor) -> Run:
    """Ask what has no answer yet.

    Args:
        datasette: the Datasette instance.
        evaluation: the evaluation, whose start the actor has confirmed.
        actor: who asks.

    Raises:
        EvaluationError: it runs already.
    """
    definition = evaluation.definition
    how = How(
        definition.check_list,
        definition.purpose,
        actor,
        {"evaluation": evaluation.id},
        definition.concurrency,
        definition.timeout,
        definition.response_cache,
    )
    engine = Engine(LLM(datasette), how)
    run = _entered(datasette, evaluation, Run(engine))
    run.start(datasette, evaluation, partial(run.ask, datasette, evaluation, engine))
    return run


def start_judge(datasette: Datasette, evaluation: Evaluation, actor: Actor, rubric: str) -> Run:
    """Have the judge compare what it has not compared yet.

    Args:
        datasette: the Datasette instance.
        evaluation: the evaluation; the actor has confirmed the requests.
        actor: who asks.
        rubric: what makes an answer better.

    Raises:
        EvaluationError: the evaluation or its judge runs already.
    """
    run = _entered(datasette, evaluation, Run())
    run.start(datasette, evaluation, partial(judge, datasette, evaluation, actor, rubric))
    return run


def _entered(datasette: Datasette, evaluation: Evaluation, run: Run) -> Run:
    runs = instance.of(datasette, Runs)
    if evaluation.id in runs.running:
        raise EvaluationError("The evaluation is running already")
    runs.failures.pop(evaluation.id, None)
    runs.running[evaluation.id] = run
    return run


async def _alone(datasette: Datasette, evaluation_id: str, work: What) -> None:
    """Do the work, unless another process does it."""
    database = datasette.get_internal_database()
    if database.is_temp_disk:  # of this process alone
        return await work()
    try:
        lock = await database.execute_fn(lambda connection: lock_beside(connection, evaluation_id))
    except sqlite3.OperationalError as error:
        message = f"It runs in another process, or its lock cannot be made: {error}"
        raise EvaluationError(message) from None
    try:
        await work()
    finally:
        await asyncio.to_thread(lock.release)


async def stop(datasette: Datasette, evaluation_id: str) -> bool:
    """Stop an evaluation; False if it does not run in this process."""
    run = instance.of(datasette, Runs).running.get(evaluation_id)
    if run is not None:
        await run.stop()
    return run is not None


async def _unanswered(datasette: Datasette, evaluation: Evaluation) -> AsyncIterator[Work]:
    after = 0
    while after < evaluation.case_count:
        cases, answered = await store.unanswered(datasette, evaluation, after, GROUP_CASES)
        for position, candidate in enumerate(evaluation.definition.asked, 1):
            left = [each for each in cases if (each[0], position) not in answered]
            if left:
                yield Work(position, candidate, left)
        after += GROUP_CASES
