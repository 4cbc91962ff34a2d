"""Whether the data bears a claim out: each is checked by the query that came with it.

The query is a stranger's: a model wrote it, and what the model read may have told it what to
write. So it is run on a connection of its own that can only read, knows no function of any
plugin, and reads nothing but tables that the actor may view, within Datasette's time limit.
Whoever may not run SQL of their own on a database does not get to run a model's.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasette.resources import DatabaseResource
from datasette.utils import InvalidSql, validate_sql_select

from ..profile.table import left_out
from ..table_access import Access
from .dataset import Claim, plain
from .sql_sandbox import FUNCTION_TABLES, MAX_ROWS, BusyError, Query, Read, Tables, sentence

if TYPE_CHECKING:
    from datasette.app import Datasette

SUPPORTED, UNSUPPORTED, UNCHECKED = "supported", "unsupported", "unchecked"

MAX_CLAIMS = 20
MAX_SQL_CHARS = 5_000

_WITH = re.compile(r"\bwith\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Check:
    """What came of one claim's query.

    Attributes:
        status: supported (it returned something), unsupported (it failed, or returned nothing),
            or unchecked (it was not run for a reason that is not the claim's fault).
        reason: why not supported; None where it is.
        columns: the names of the result's columns.
        rows: its first rows, with long values cut.
        more: whether there are more rows.
        tables: the tables that it read, which whoever looks at the rows must be allowed to view.
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
        """The check as JSON gives it."""
        return {name: getattr(self, name) for name in self.__slots__}


async def check(
    datasette: Datasette,
    database: str,
    claims: Sequence[Claim],
    access: Access,
    told: Callable[[int], None] = lambda number: None,
    unwanted: Collection[str] = (),
) -> list[Check]:
    """Check claims, one after the other.

    Args:
        datasette: the Datasette instance.
        database: where their queries are run.
        claims: the claims; of those beyond `MAX_CLAIMS` no query is run.
        access: what the actor may do.
        told: called with the number of each claim before it is checked.
        unwanted: the columns that were left out of the profile, in the forms of the configuration;
            a query that reads one is not run, so that its values are not recorded either.

    Returns:
        A check for each claim, in their order.
    """
    if not await access.may("execute-sql", DatabaseResource(database)):
        reason = f"you may not run SQL on the database {database} (execute-sql)"
        return [_told(claim) or Check(UNCHECKED, reason) for claim in claims]
    checks = []
    for number, claim in enumerate(claims):
        told(number)
        if number >= MAX_CLAIMS:
            late = Check(UNCHECKED, f"only the first {MAX_CLAIMS} claims are checked")
            checks.append(_told(claim) or late)
        else:
            checks.append(await _checked(datasette, database, claim, access, unwanted))
    return checks


def _told(claim: Claim) -> Check | None:
    """The check of a claim that needs no query to be found unsupported."""
    if claim.refused is not None:
        return Check(UNSUPPORTED, claim.refused)
    if not claim.sql.strip():
        return Check(UNSUPPORTED, "it came without a query")
    return None


async def _checked(
    datasette: Datasette, database: str, claim: Claim, access: Access, unwanted: Collection[str]
) -> Check:
    known = _told(claim)
    if known is not None:
        return known
    began = time.monotonic()
    tables = None
    try:
        tables = await _allowed_tables(datasette, database, claim.sql, access)
        private = _left_out(database, tables, unwanted)
        if private is not None:
            return Check(
                UNCHECKED, f"its query reads the column {plain(private)}, which is left out"
            )
        query = Query(datasette.get_database(database), claim.sql, _limit_ms(datasette))
        columns, rows = await query.rows(tables)
    except InvalidSql as error:
        # What SQLite says of a failure may quote a value of these tables.
        failed_on = sorted(tables.needed) if tables is not None else ()
        return Check(UNSUPPORTED, sentence(str(error)), tables=failed_on)
    except BusyError:
        return Check(UNCHECKED, "earlier queries are still running, and cannot be stopped")
    except KeyError:
        return Check(UNCHECKED, f"the database {database} is gone")
    duration = round((time.monotonic() - began) * 1000, 1)
    names = sorted(tables.needed)
    if _is_nothing(rows):
        return Check(UNSUPPORTED, "its query returned nothing", columns, (), False, names, duration)
    more = len(rows) > MAX_ROWS
    return Check(SUPPORTED, None, columns, rows[:MAX_ROWS], more, names, duration)


async def _allowed_tables(datasette: Datasette, database: str, sql: str, access: Access) -> Tables:
    """The tables that a query reads, all of which the actor may view.

    Raises:
        InvalidSql: it reads another, or cannot be run.
    """
    if len(sql) > MAX_SQL_CHARS:
        raise InvalidSql(f"its query is longer than {MAX_SQL_CHARS:,} characters")
    validate_sql_select(sql)
    db = datasette.get_database(database)
    schema, reads = await Query(db, sql, _limit_ms(datasette)).reads()
    needed = needed_tables(reads, schema, has_with=_WITH.search(sql) is not None)
    for name in sorted(needed):
        # Of a name that is no table, such as sqlite_master, nobody can be allowed to see anything.
        real = schema.get(name) in ("table", "view") and not name.lower().startswith("sqlite_")
        if not real or not await access.may_view(database, name):
            raise InvalidSql(f"its query reads {name}, which it may not")
    kept_in = await db.derived_table_dependencies()
    inner = frozenset(name for name, table in kept_in.items() if table in needed)
    return Tables(needed, reads, inner)


def _left_out(database: str, tables: Tables, unwanted: Collection[str]) -> str | None:
    """A column that is read although it is to be left out, if there is one."""
    for table, column, _ in sorted(tables.reads, key=lambda read: read[:2]):
        if left_out(database, table, [column], unwanted):
            return column
    return None


def needed_tables(
    reads: Iterable[Read], schema: Mapping[str, str], *, has_with: bool
) -> frozenset[str]:
    """What somebody has to be allowed to view, to read some tables.

    Args:
        reads: what is read; its reader is a view, or None.
        schema: the kind, table, view or module, of each name that can be read.
        has_with: whether the query has a WITH. SQLite tells the name of what WITH defines just
            as it does a view's, so then nothing counts as read by a view.
    """
    needed = set()
    for read in reads:
        by_view = not has_with and read.reader is not None and schema.get(read.reader) == "view"
        name = read.reader if by_view and read.reader is not None else read.table
        function = name in FUNCTION_TABLES and schema.get(name) in (None, "module")
        if not function and not (has_with and _is_defined_there(read, schema)):
            needed.add(name)
    return frozenset(needed)


def _is_defined_there(read: Read, schema: Mapping[str, str]) -> bool:
    """Whether it is what a WITH defines, of which SQLite tells only where no column is read."""
    known = read.table in schema or read.table.lower().startswith(("sqlite_", "pragma_"))
    return not read.column and not known and "module" in schema.values()


def _limit_ms(datasette: Datasette) -> float:
    return float(datasette.setting("sql_time_limit_ms"))


def _is_nothing(rows: Sequence[Sequence[Any]]) -> bool:
    """Whether a result says nothing: no row, or a single one of nulls, or a count of none."""
    if len(rows) != 1:
        return not rows
    (row,) = rows
    return all(value is None for value in row) or list(row) == [0]
