"""What is written about a call, and when.

A request's row is committed before the request leaves (L1), and gets its second part when the
request has ended, however it did (L2). Nobody waits for the second part: a process that dies
in between leaves a row that the next start marks as lost.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from .. import instance
from ..errors import NotRecordedError
from ..sanitize import brief, new_id, now, storable
from .cost import cost_columns, may_be_own
from .rows import answer_row, content_statements, request_row, started_row
from .schema import FINISHED_COLUMNS, STARTED_COLUMNS, migrate
from .sessions import Session
from .writer import Statement, Writer

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..calls.attempt import Attempt
    from ..calls.call import Call
    from ..config.settings import PriceSettings
    from ..redaction import Keys


def _insert(table: str, columns: tuple[str, ...]) -> str:
    places = ", ".join(f":{name}" for name in columns)
    return f"insert into {table} ({', '.join(columns)}) values ({places})"


_INSERT_STARTED = _insert("llm_calls", STARTED_COLUMNS)
_INSERT_WHOLE = _insert("llm_calls", STARTED_COLUMNS + FINISHED_COLUMNS)
_FINISH = (
    f"update llm_calls set {', '.join(f'{name} = :{name}' for name in FINISHED_COLUMNS)} "
    "where id = :id"
)


class Recorder:
    """The record of one Datasette instance.

    Attributes:
        session_id: stands in every row that this process writes.
        writer: writes to the internal database.
    """

    @classmethod
    def of(cls, datasette: Datasette) -> Recorder:
        """The recorder of a Datasette instance; made when first asked for."""
        return instance.of(datasette, cls, partial(cls, datasette))

    def __init__(self, datasette: Datasette) -> None:
        self.session_id = new_id()
        self._session = Session(
            self.session_id, shared=not datasette.get_internal_database().is_temp_disk
        )
        self.writer = Writer.of(datasette, self._open)

    def refused(
        self, row: dict[str, Any], blocked_by: str, error: BaseException, key: Keys = None
    ) -> None:
        """Record a call that policy or a hook blocked, so that no request was made.

        Args:
            row: the first part of its row.
            blocked_by: the plugin, or the rule of the configuration.
            error: what the caller was told.
            key: what the caller gave as a key, or None.
        """
        self.not_made(row, "blocked", error, key, blocked_by)

    def not_made(
        self,
        row: dict[str, Any],
        outcome: str,
        error: BaseException,
        key: Keys,
        blocked_by: str | None = None,
    ) -> None:
        """Record a request that was to be made, and was not.

        Args:
            row: the first part of its row.
            outcome: `blocked`, or how the wait for its turn ended.
            error: what the caller was told.
            key: the key that may be in it, or None.
            blocked_by: who blocked it.
        """
        finished = dict.fromkeys(FINISHED_COLUMNS) | {
            "finished_at": now() if row["waited_ms"] else row["started_at"],
            "outcome": outcome,
            "blocked_by": blocked_by,
            "error_type": type(error).__name__,
            "error_message": brief(error, key),
            "duration_ms": 0.0,
        }
        self.writer.later((_INSERT_WHOLE, storable(row | finished)))

    def started_row(
        self, model_id: str, purpose: str | None, actor: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """The first part of the row of a call that has made no response."""
        return started_row(new_id(), self.session_id, model_id, purpose, actor)

    async def close(self) -> None:
        """Write what is still to be written; no more calls will come."""
        if self.writer.used:
            self.writer.later(self._session.close)
            await self.writer.close()
            await asyncio.to_thread(self._session.release)

    def _open(self, connection: Any) -> None:
        migrate(connection)
        self._session.open(connection, now())


@dataclass(frozen=True, slots=True)
class ModelLog:
    """How the calls of one model, for one purpose, are recorded.

    Attributes:
        recorder: the record of the Datasette instance.
        content: whether prompts and responses are recorded too.
        required: whether a call that cannot be recorded is refused.
        price: the configured price of the model, or None.
    """

    recorder: Recorder
    content: bool
    required: bool
    price: PriceSettings | None

    def recording(self, attempt: Attempt) -> Recording:
        """What goes around one request to a provider: `async with log.recording(...)`."""
        return Recording(self, attempt)

    def not_made(self, attempt: Attempt, error: BaseException) -> None:
        """Record an attempt that ended while it waited for its turn.

        Args:
            attempt: the attempt.
            error: what ended it.
        """
        row = request_row(self.recorder.session_id, attempt)
        outcome, told = attempt.call.outcome(error), attempt.call.public_error(error)
        self.recorder.not_made(row, outcome, told, attempt.key)

    def refused(self, call: Call, blocked_by: str, error: BaseException) -> None:
        """Record that a hook blocked a call before its first request.

        Args:
            call: the call.
            blocked_by: the plugin.
            error: what the caller was told.
        """
        response, model, group = call.result.response, call.model, call.result.group
        if response is not None:
            row = request_row(self.recorder.session_id, call.attempt_at(response))
        else:  # a chain has none before its first step
            row = self.recorder.started_row(model.model_id, model.purpose, model.actor)
            row["group_id"] = group.id if group else None
        self.recorder.refused(row, blocked_by, error, response._key if response else None)


class Recording:
    """The record of one request, from before it leaves to its end."""

    def __init__(self, log: ModelLog, attempt: Attempt) -> None:
        self._log = log
        self._attempt = attempt
        self._call = attempt.call
        self._flight = attempt.response._flight
        self._began = time.monotonic()

    async def __aenter__(self) -> Self:
        """Commit the first part.

        Raises:
            NotRecordedError: it cannot be, and the configuration requires it.
            ResponseTimeoutError: the time of the prompt was over first.
        """
        log, writer = self._log, self._log.recorder.writer
        row = request_row(log.recorder.session_id, self._attempt)
        committed = await self._committed((_INSERT_STARTED, storable(row)))
        if not committed and log.required:
            error = NotRecordedError(
                "The call was not made, because it cannot be recorded and log.required is set. "
                f"Writing failed with {writer.failure or 'a row that was not taken; see the log'}"
            )
            self._finish("blocked", error, blocked_by="configuration (log.required)")
            raise error
        self._began = time.monotonic()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        outcome = self._call.outcome(error)
        if error is not None and outcome == "cancelled":
            error = self._call.public_error(error)
        self._finish(outcome, error)

    async def _committed(self, statement: Statement) -> bool:
        try:
            async with self._attempt.while_time_is_left():
                return await self._log.recorder.writer.commit(statement)
        except BaseException as error:
            # Ended while it waits: the row may be written already, and needs its end.
            self._finish(self._call.outcome(error), self._call.public_error(error))
            raise

    def _finish(
        self, outcome: str, error: BaseException | None, blocked_by: str | None = None
    ) -> None:
        attempt, response, log = self._attempt, self._attempt.response, self._log
        key = attempt.key
        first = self._flight.first_event_at if self._flight else None
        if error is not None and first is None:
            response = copy.copy(response)  # which may be asked again before this is written
        row = answer_row(response, key) | {
            "id": attempt.id,
            "finished_at": now(),
            "outcome": outcome,
            "blocked_by": blocked_by,
            "error_type": type(error).__name__ if error else None,
            "error_message": brief(error, key) if error else None,
            "first_chunk_ms": _ms(first - self._began) if first is not None else None,
            "duration_ms": _ms(time.monotonic() - self._began),
        }
        # The response itself is held on to only for its content, since rows may have to wait;
        # contents are large, so many of them do not.
        kept = log.content and not log.recorder.writer.crowded
        content = partial(content_statements, attempt.id, response, key) if kept else _no_content
        model = attempt.model
        cost = partial(cost_columns, row, model.model_id, log.price, exact=may_be_own(model))
        log.recorder.writer.later(partial(_write_end, row, cost, content))


def _write_end(
    row: dict[str, Any],
    cost: Callable[[], dict[str, Any]],
    content: Callable[[], Sequence[Statement]],
    connection: Any,
) -> None:
    # In the writing thread, since prices are looked up in a table that is slow to load.
    finished = connection.execute(_FINISH, storable(row | cost()))
    # Where memory had no room for its first part there is no row, and content would be nobody's.
    for statement in content() if finished.rowcount else ():
        connection.execute(*statement)


def _no_content() -> Sequence[Statement]:
    return ()


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
