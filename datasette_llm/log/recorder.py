"""Insert a row before each request, update it after.

A request's row is committed before the request is sent (L1), and gets its second part when the
request has finished, however it did (L2). Nothing waits for the second part: a process that dies
in between leaves a row that the next start marks as lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import instance
from ..events import RequestFinished, RequestStarted
from ..sanitize import new_id, now, storable
from . import search
from .cost import cost_columns, saved_columns
from .rows import Content, finished_row, original_row, row_bytes, started_row
from .schema import FINISHED_COLUMNS, STARTED_COLUMNS, migrate
from .sessions import Session
from .writer import Writer

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..config.settings import PriceSettings


def _insert(table: str, columns: tuple[str, ...]) -> str:
    places = ", ".join(f":{name}" for name in columns)
    return f"insert into {table} ({', '.join(columns)}) values ({places})"


_INSERT_STARTED = _insert("llm_calls", STARTED_COLUMNS)
_INSERT_WHOLE = _insert("llm_calls", STARTED_COLUMNS + FINISHED_COLUMNS)
_FINISH = (
    f"update llm_calls set {', '.join(f'{name} = :{name}' for name in FINISHED_COLUMNS)} "
    "where id = :id"
)
_HOOK_FAILED = "update llm_calls set hook_error = :hook_error where id = :id and hook_error is null"


class Recorder:
    """Writes the call log of one Datasette instance.

    Attributes:
        session_id: stands in every row that this process writes.
        writer: writes to the internal database.
    """

    @classmethod
    def of(cls, datasette: Datasette) -> Recorder:
        """The recorder of a Datasette instance; made when first asked for."""
        return instance.of(datasette, cls, partial(cls, datasette))

    def __init__(self, datasette: Datasette, clock: Callable[[], str] = now) -> None:
        """
        Args:
            datasette: the Datasette instance.
            clock: the time for the rows, in the format of the tables.
        """
        self._clock = clock
        self.session_id = new_id()
        self._session = Session(
            self.session_id, shared=not datasette.get_internal_database().is_temp_disk
        )
        self.writer = Writer.of(datasette, self._open)

    async def commit(self, request: RequestStarted) -> bool:
        """Commit the row of a request that is about to be sent.

        Returns:
            Whether it is committed, as `Writer.commit()`.
        """
        row = started_row(self.session_id, request, self._clock())
        return await self.writer.commit((_INSERT_STARTED, row), row_bytes(row))

    def finish(
        self,
        request: RequestFinished,
        *,
        model_id: str,
        price: PriceSettings | None,
        exact_price: bool,
        content: Content | None = None,
        started: RequestStarted | None = None,
    ) -> None:
        """Record how a request ended, soon.

        Args:
            request: how it ended.
            model_id: the model that was asked, for its price.
            price: its configured price, or None.
            exact_price: as for `cost_columns()`.
            content: its content; None where that is not recorded.
            started: its start; None where that is committed.
        """
        row = finished_row(request, self._clock())
        cost = partial(_cost, request, row, model_id, price, exact=exact_price)
        if started is not None:
            row = started_row(self.session_id, started, self._clock()) | row
        work = partial(_write_end, row, cost, content)
        # The row of a cached answer, for which nothing was sent, is no loss within a moment.
        self.writer.later(work, row_bytes(row), content, may_wait=started is not None)

    def never_sent(self, started: RequestStarted, finished: RequestFinished) -> None:
        """Record a request that was never sent, soon."""
        row = started_row(self.session_id, started, self._clock())
        row |= finished_row(finished, self._clock())
        if not started.waited_s:
            row["finished_at"] = row["started_at"]
        self.writer.later((_INSERT_WHOLE, row), row_bytes(row))

    def hook_failed(self, request_id: str, what: str) -> None:
        """Record that a hook failed after a request had ended, soon.

        Args:
            request_id: the id of its row.
            what: the hook, its plugin and what it raised, without keys.
        """
        self.writer.later((_HOOK_FAILED, storable({"id": request_id, "hook_error": what})))

    async def close(self) -> None:
        """Write what is still to be written; no more calls will come."""
        if self.writer.used:
            self.writer.later(self._session.close)
            await self.writer.close()
            await asyncio.to_thread(self._session.release)

    def _open(self, connection: Any) -> None:
        migrate(connection)
        search.migrate(connection)
        self._session.open(connection, now())


def _cost(
    request: RequestFinished,
    row: dict[str, Any],
    model_id: str,
    price: PriceSettings | None,
    *,
    exact: bool,
) -> dict[str, Any]:
    """What it cost, or saved."""
    if request.saved is None:
        return cost_columns(row, model_id, price, exact=exact)
    return saved_columns(row | original_row(request.saved), model_id, price, exact=exact)


def _write_end(
    row: dict[str, Any],
    cost: Callable[[], dict[str, Any]],
    content: Content | None,
    connection: Any,
) -> None:
    # In the writing thread, since prices are looked up in a table that is slow to load.
    sql = _INSERT_WHOLE if "started_at" in row else _FINISH
    finished = connection.execute(sql, storable(row | cost()))
    # Without its first part, which memory may have had no room for, content belongs to no row.
    if content is not None and finished.rowcount:
        for statement in content.statements():
            connection.execute(*statement)
        search.enqueue(connection, row["id"])
