"""Check claims about the data, each by the query that came with it.

The query is untrusted: a model wrote it, and the data that the model read may contain
instructions. So it runs on a connection of its own that is read-only, has no functions of plugins,
and reads only tables that the actor may view, within Datasette's time limit. An actor without the
permission execute-sql cannot run a model's query either.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasette.resources import DatabaseResource
from datasette.utils import InvalidSql, validate_sql_select

from ..profile.table import columns_left_out
from ..table_access import Access
from .dataset import Claim, plain
from .sql_sandbox import FUNCTION_TABLES, MAX_ROWS, Query, Read, SandboxBusyError, Tables, sentence

if TYPE_CHECKING:
    from datasette.app import Datasette

SUPPORTED, UNSUPPORTED, UNCHECKED = "supported", "unsupported", "unchecked"

MAX_CLAIMS = 20
MAX_SQL_CHARS = 5_000

_WITH = re.compile(r"\bwith\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Check:
    """The result of checking one claim.

    Attributes:
        status: supported (its query returned something), unsupported (it failed, or returned
            nothing), or unchecked (it was not run for a reason that says nothing of the claim).
        reason: why it is not supported, or None.
        columns: the names of the result's columns.
        rows: its first rows, with long values truncated.
        more: whether there are more rows.
        tables: the tables that it read; only actors who may view them all may see the rows.
        duration_ms: how long it ran.
    """

    status: str
    reason: str | None = None
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    more: bool = False
    tables: Sequence[str] = ()
    duration_ms: float = 0.0

    def payload(self) -> dict[str, Any]:
        """The check as JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


async def check(
    datasette: Datasette,
    database: str,
    claims: Sequence[Claim],
    access: Access,
    on_claim: Callable[[int], None] = lambda number: None,
    exclude: Collection[str] = (),
) -> list[Check]:
    """Check claims, one after the other.

    Args:
        datasette: the Datasette instance.
        database: where their queries run.
        claims: the claims; queries beyond the first `MAX_CLAIMS` are not run.
        access: the actor's permissions.
        on_claim: called with the index of each claim before it is checked.
        exclude: the columns left out of the profile, in the forms of the configuration; a query
            that reads one is not run, so that its values are not stored either.

    Returns:
        A check for each claim, in order.
    """
    if not await access.may("execute-sql", DatabaseResource(database)):
        reason = f"you may not run SQL on the database {database} (execute-sql)"
        return [_check_without_query(claim) or Check(UNCHECKED, reason) for claim in claims]
    checks = []
    for number, claim in enumerate(claims):
        on_claim(number)
        if number >= MAX_CLAIMS:
            beyond = Check(UNCHECKED, f"only the first {MAX_CLAIMS} claims are checked")
            checks.append(_check_without_query(claim) or beyond)
        else:
            checks.append(await _checked(datasette, database, claim, access, exclude))
    return checks


def _check_without_query(claim: Claim) -> Check | None:
    """The check of a claim whose query need not be run; None for the others."""
    if claim.refused is not None:
        return Check(UNSUPPORTED, claim.refused)
    if not claim.sql.strip():
        return Check(UNSUPPORTED, "it came without a query")
    return None


async def _checked(
    datasette: Datasette, database: str, claim: Claim, access: Access, exclude: Collection[str]
) -> Check:
    check = _check_without_query(claim)
    if check is not None:
        return check
    started = time.monotonic()
    tables = None
    try:
        tables = await _allowed_tables(datasette, database, claim.sql, access)
        excluded = _excluded_column(database, tables, exclude)
        if excluded is not None:
            return Check(
                UNCHECKED, f"its query reads the column {plain(excluded)}, which is left out"
            )
        query = Query(datasette.get_database(database), claim.sql, _limit_ms(datasette))
        columns, rows = await query.rows(tables)
    except InvalidSql as error:
        # SQLite's message may quote a value of these tables.
        read = sorted(tables.needed) if tables is not None else ()
        return Check(UNSUPPORTED, sentence(str(error)), tables=read)
    except SandboxBusyError:
        return Check(UNCHECKED, "earlier queries are still running, and cannot be stopped")
    except KeyError:
        return Check(UNCHECKED, f"the database {database} is gone")
    duration = round((time.monotonic() - started) * 1000, 1)
    names = sorted(tables.needed)
    if _is_empty(rows):
        return Check(UNSUPPORTED, "its query returned nothing", columns, (), False, names, duration)
    more = len(rows) > MAX_ROWS
    return Check(SUPPORTED, None, columns, rows[:MAX_ROWS], more, names, duration)


async def _allowed_tables(datasette: Datasette, database: str, sql: str, access: Access) -> Tables:
    """The tables that a query reads; the actor may view them all.

    Raises:
        InvalidSql: it reads other tables, or cannot be run.
    """
    if len(sql) > MAX_SQL_CHARS:
        raise InvalidSql(f"its query is longer than {MAX_SQL_CHARS:,} characters")
    validate_sql_select(sql)
    db = datasette.get_database(database)
    schema, reads = await Query(db, sql, _limit_ms(datasette)).reads()
    needed = needed_tables(reads, schema, has_with=_WITH.search(sql) is not None)
    for name in sorted(needed):
        # A name that is no table, such as sqlite_master, has no permissions.
        is_table = schema.get(name) in ("table", "view") and not name.lower().startswith("sqlite_")
        if not is_table or not await access.may_view(database, name):
            raise InvalidSql(f"its query reads {name}, which it may not")
    tables_of = await db.derived_table_dependencies()
    shadow_tables = frozenset(name for name, table in tables_of.items() if table in needed)
    return Tables(needed, reads, shadow_tables)


def _excluded_column(database: str, tables: Tables, exclude: Collection[str]) -> str | None:
    """A column that the query reads although it is excluded; or None."""
    for table, column, _ in sorted(tables.reads, key=lambda read: read[:2]):
        if columns_left_out(database, table, [column], exclude):
            return column
    return None


def needed_tables(
    reads: Iterable[Read], schema: Mapping[str, str], *, has_with: bool
) -> frozenset[str]:
    """The tables and views that an actor must be allowed to view for some reads.

    Args:
        reads: the reads; the reader of each is a view, or None.
        schema: the kind (table, view or module) of each name that can be read.
        has_with: whether the query has a WITH. SQLite reports the name of a CTE as a reader just
            as that of a view, so that with one no read counts as a view's.
    """
    needed = set()
    for read in reads:
        by_view = not has_with and read.reader is not None and schema.get(read.reader) == "view"
        name = read.reader if by_view and read.reader is not None else read.table
        function = name in FUNCTION_TABLES and schema.get(name) in (None, "module")
        if not function and not (has_with and _is_cte(read, schema)):
            needed.add(name)
    return frozenset(needed)


def _is_cte(read: Read, schema: Mapping[str, str]) -> bool:
    """True for a CTE, which SQLite reports only where no column of it is read."""
    known = read.table in schema or read.table.lower().startswith(("sqlite_", "pragma_"))
    return not read.column and not known and "module" in schema.values()


def _limit_ms(datasette: Datasette) -> float:
    return float(datasette.setting("sql_time_limit_ms"))


def _is_empty(rows: Sequence[Sequence[Any]]) -> bool:
    """True for a result without rows, or with one row of nulls, or a count of 0."""
    if len(rows) != 1:
        return not rows
    (row,) = rows
    return all(value is None for value in row) or list(row) == [0]
