"""Count the evidence of claims, on a connection of ours, within a time limit."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from datasette.utils.sqlite import sqlite3

from ... import instance
from ...access.snapshot import settings_of
from .. import evidence as counting
from ..connections import own_connections
from ..evidence import Aggregate, Evidence, Opinion, Orphans, Top, columns_of, problem_of
from ..findings.time_limit import Clock, LateError, TimeLimit
from ..profile.table import columns_left_out, may_hold_excluded, quote_identifier, table_source
from ..table_access import all_viewable_tables
from .dataset import Claim, Unreadable
from .objections import Counted
from .progress import ClaimChecked, OnProgress, ignored
from .verdicts import Check, opinion, uncounted, verdict

if TYPE_CHECKING:
    from sqlite3 import Connection

    from datasette.app import Datasette
    from datasette.database import Database

    from ..table_access import Actor

# All claims of an answer take their time after it, as many times as the limit of a profile.
CHECKS_TIME = 2
LATE = "Counting it takes longer than there is time for"
HIDDEN = "It would show values, which consultant.values keeps back"
_FOREVER_S = 1e9

_SHOWS_VALUES = ("min", "max", "mean", "sum", "median")


@dataclass(frozen=True, slots=True)
class Scope:
    """What the evidence of claims may be about.

    Attributes:
        database: the name of the database.
        table: the name of the table or view.
        columns: the columns that may be read.
        left_out: those that are kept back.
        sampled: those of which the model saw figures of a sample.
        shows_values: whether values may be shown.
        others: the other tables that the actor may view.
        exclude: the setting.
    """

    database: str
    table: str
    columns: frozenset[str]
    left_out: frozenset[str] = frozenset()
    sampled: frozenset[str] = frozenset()
    shows_values: bool = True
    others: frozenset[str] = frozenset()
    exclude: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, profile: Mapping[str, Any], others: Collection[str], exclude: Collection[str]
    ) -> Scope:
        """The scope of a profile.

        Args:
            profile: the profile of the table.
            others: the tables that the actor may view.
            exclude: the setting.
        """
        columns = profile["columns"]
        return cls(
            profile["database"],
            profile["table"],
            frozenset(each["name"] for each in columns),
            frozenset(profile["left_out"]),
            frozenset(each["name"] for each in columns if _is_sampled(each)),
            profile["values"] != "none",
            frozenset(others) - {profile["table"]},
            tuple(exclude),
        )


async def check_claims(
    datasette: Datasette,
    claims: Sequence[Claim],
    profile: Mapping[str, Any],
    actor: Actor,
    *,
    unrestricted: bool = False,
    on_progress: OnProgress = ignored,
    clock: Clock = time.perf_counter,
) -> list[Check]:
    """Check claims against the table.

    Args:
        datasette: the Datasette instance.
        claims: the claims of an answer.
        profile: the profile of the table, whose columns may be read and no others.
        actor: who asks; of other tables only those that they may view are read.
        unrestricted: whether who asks may view all tables, as in a command.
        on_progress: called with each verdict.
        clock: gives the time in seconds.

    Returns:
        A verdict for each claim. One that takes too long is not checkable.
    """
    if not claims:
        return []
    settings = (await settings_of(datasette)).consultant
    db = datasette.get_database(profile["database"])
    if unrestricted:
        others = {*await db.table_names(), *await db.view_names()}
    else:
        others = await all_viewable_tables(datasette, actor, profile["database"])
    scope = Scope.of(profile, others, settings.exclude)
    limit_s = CHECKS_TIME * settings.time_limit_ms / 1_000
    loop = asyncio.get_running_loop()

    def on_check(index: int, check: Check) -> None:
        loop.call_soon_threadsafe(on_progress, ClaimChecked(index, check))

    def work(connection: Connection, clock: Clock) -> list[Check]:
        limit = TimeLimit(connection, limit_s, clock)
        return count_all(connection, claims, scope, limit, on_check)

    async with instance.of(datasette, _TwoAtATime):
        return await _in_thread(db, work, clock)


async def _in_thread(
    db: Database, work: Callable[[Connection, Clock], list[Check]], clock: Clock
) -> list[Check]:
    """Run the work in a thread, and stop it when the caller is cancelled."""
    cancelled = False
    calls = itertools.count()

    def stoppable_clock() -> float:
        # The first call sets the start of the time limit.
        return clock() + (_FOREVER_S if next(calls) and cancelled else 0.0)

    def run() -> list[Check]:
        with own_connections(db, 1) as [connection]:
            return work(connection, stoppable_clock)

    try:
        return await asyncio.to_thread(run)
    finally:
        cancelled = True


class _TwoAtATime(asyncio.Semaphore):
    """What claims are counted under, so that they leave a processor to the pages."""

    def __init__(self) -> None:
        super().__init__(2)


def count_all(
    connection: Connection,
    claims: Sequence[Claim],
    scope: Scope,
    limit: TimeLimit,
    on_check: Callable[[int, Check], None] = lambda index, check: None,
) -> list[Check]:
    """Count the evidence of claims, all in the same state of the database.

    Args:
        connection: one of ours, used for nothing else.
        claims: the claims.
        scope: what they may be about.
        limit: for all of them; each may use its share, and what others have left.
        on_check: called with each verdict.
    """
    connection.execute("pragma query_only = 1")
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    counting.prepare(connection)
    connection.execute("begin")
    of = _total(connection, scope, limit, 1 / (len(claims) + 1))
    checks = []
    for at, claim in enumerate(claims):
        share = (at + 2) / (len(claims) + 1)
        check = _checked(connection, claim, scope, limit, share, of)
        checks.append(check)
        on_check(at, check)
    return checks


def _total(connection: Connection, scope: Scope, limit: TimeLimit, share: float) -> int | None:
    try:
        with limit.until(share):
            sql = f"select count(*) from {table_source(scope.table)}"
            return int(connection.execute(sql).fetchone()[0])
    except (LateError, sqlite3.Error):
        return None


def _checked(
    connection: Connection,
    claim: Claim,
    scope: Scope,
    limit: TimeLimit,
    share: float,
    of: int | None,
) -> Check:
    evidence = claim.evidence
    if isinstance(evidence, Opinion):
        return opinion(claim)
    if isinstance(evidence, Unreadable):
        return uncounted(claim, f"Its evidence cannot be read: {evidence.problem}")
    started = time.perf_counter()
    try:
        with limit.until(share):
            problem = _problem(connection, evidence, scope)
            if problem is not None:
                return uncounted(claim, problem)
            counted = _counted(connection, evidence, scope.table, of)
    except LateError:
        return uncounted(claim, LATE, _duration_ms(started))
    except (sqlite3.Error, OverflowError) as error:
        return uncounted(claim, f"SQLite cannot count it: {error}", _duration_ms(started))
    counted = replace(counted, duration_ms=_duration_ms(started))
    columns = scope.columns | scope.left_out
    return verdict(claim, evidence, counted, columns, scope.sampled, scope.table)


def _counted(connection: Connection, evidence: Evidence, table: str, of: int | None) -> Counted:
    sql = counting.shown_sql(evidence, table)
    if isinstance(evidence, Top):
        return Counted(None, of, counting.top(connection, evidence, table), sql)
    return Counted(counting.count(connection, evidence, table), of, sql=sql)


def _duration_ms(started: float) -> float:
    return round((time.perf_counter() - started) * 1_000, 1)


def _problem(connection: Connection, evidence: Evidence, scope: Scope) -> str | None:
    """Why evidence cannot be counted, as a sentence; or None."""
    for name in columns_of(evidence):
        if name in scope.left_out:
            return f"`{name}` is left out"
        if name not in scope.columns:
            return f"There is no column `{name}`"
    problem = problem_of(evidence)
    if problem is not None:
        return f"Its evidence proves nothing: {problem}"
    shows_values = isinstance(evidence, Top) or (
        isinstance(evidence, Aggregate) and evidence.function in _SHOWS_VALUES
    )
    if shows_values and not scope.shows_values:
        return HIDDEN
    if not isinstance(evidence, Orphans):
        return None
    return problem_of_other(connection, evidence, scope.database, scope.others, scope.exclude)


def problem_of_other(
    connection: Connection,
    evidence: Orphans,
    database: str,
    viewable: Collection[str],
    exclude: Collection[str],
) -> str | None:
    """Why the other table of evidence must not be read, as a sentence; or None.

    Args:
        connection: to the database.
        evidence: the evidence.
        database: the name of the database.
        viewable: its tables that the actor may view.
        exclude: the setting.
    """
    # By its exact name, as permissions have it; SQLite would take another case too.
    table, column = evidence.other_table, evidence.other_column
    if table not in viewable:
        return f"There is no other table `{table}` that you may view"
    rows = connection.execute(f"pragma table_xinfo({quote_identifier(table)})").fetchall()
    if column not in [row[1] for row in rows]:
        return f"There is no column `{column}` in `{table}`"
    if columns_left_out(database, table, [column], exclude) or may_hold_excluded(
        connection, database, table, exclude
    ):
        return f"`{table}`.`{column}` is left out"
    return None


def _is_sampled(column: Mapping[str, Any]) -> bool:
    return not column.get("exact", True) or not (column.get("grouped") or {}).get("exact", True)
