"""Evidence is counted as Python would count it, in the tables that it names and no others."""

from __future__ import annotations

import math
import re
import sqlite3
import statistics
from collections import Counter
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasette_llm.consultant import text_forms
from datasette_llm.consultant.evidence import (
    Aggregate,
    Condition,
    Duplicates,
    Orphans,
    Pattern,
    Rows,
    Top,
    columns_of,
    count,
    evidence_sql,
    prepare,
    problem_of,
    shown_sql,
    top,
)
from datasette_llm.consultant.profile.table import quote_identifier

NAMES = ('"', "rowid", "select", "", "é\U0001f436", "?", "a'b", "t", "o.x", "llm_mask(", "Secret")
TYPES = ("", "text", "integer", "real", "text collate nocase", "text collate rtrim", "numeric")
BIG = 2**53 + 1
CELLS = st.sampled_from(
    (
        *(None, 0, 1, -1, 1.0, 2.5, BIG, float(BIG), -(2**63), 1e300, "", "1", "1.0", " 1 ", "a"),
        *("A", "aB", "a ", "NA", "n/a", "x\0y", "é", "É", "%", "_", "2024-01-31", "31/12/2024"),
        *("24:00", "AA-12", "ab-1", b"", b"a", b"\x00", "it's", '"', "?", "null"),
    )
)
VALUES = CELLS.filter(
    lambda each: each is not None and not isinstance(each, bytes)
) | st.sampled_from((2**70, -(2**900), "a%", "%b", "_", "secret"))
OPS = {
    "value": ("=", "!=", "<", "<=", ">", ">="),
    "text": ("like", "not like", "contains", "mask is"),
    "none": ("is null", "is not null", "is empty", "is missing", "has edge spaces"),
    "length": ("length =", "length <", "length >"),
}
FORMS = {
    "number": text_forms.is_number,
    "date": lambda text: text_forms.date_format(text) is not None,
    "time": text_forms.is_time,
    "missing": text_forms.is_missing,
}
MAX_STEPS = 1_000_000


def conditions(columns):
    """All conditions on some columns that can be counted."""
    column = st.sampled_from(columns)
    texts = VALUES.filter(lambda each: isinstance(each, str))
    other = st.builds(
        Condition, column=column, op=st.sampled_from(OPS["value"]), other_column=column
    ).filter(lambda each: each.column != each.other_column)
    return st.one_of(
        st.builds(Condition, column=column, op=st.sampled_from(OPS["value"]), value=VALUES),
        st.builds(Condition, column=column, op=st.sampled_from(OPS["text"]), value=texts),
        st.builds(Condition, column=column, op=st.sampled_from(OPS["none"])),
        st.builds(
            Condition, column=column, op=st.sampled_from(OPS["length"]), value=st.integers(0, 4)
        ),
        st.builds(
            Condition,
            column=column,
            op=st.sampled_from(("parses as", "does not parse as")),
            value=st.sampled_from(tuple(FORMS)),
        ),
        st.builds(
            Condition,
            column=column,
            op=st.just("type is"),
            value=st.sampled_from(("null", "integer", "real", "text", "blob")),
        ),
        st.builds(
            Condition,
            column=column,
            op=st.just("in"),
            value=st.lists(VALUES, min_size=1, max_size=4).map(tuple),
        ),
        *([other] if len(columns) > 1 else []),
    )


@st.composite
def cases(draw):
    """A table with hostile names and cells, and evidence about it."""
    columns = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    types = [draw(st.sampled_from(TYPES)) for _ in columns]
    cells = draw(st.lists(st.tuples(*[CELLS for _ in columns]), max_size=12))
    kind = draw(st.sampled_from(("table", "without rowid", "view")))
    column = st.sampled_from(columns)
    any_of = st.lists(
        st.lists(conditions(columns), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3
    ).map(tuple)
    figures = ("count", "distinct", "min", "max", "mean", "sum")
    evidence = draw(
        st.one_of(
            st.builds(Rows, any_of=any_of, expected=st.none()),
            st.builds(
                Aggregate,
                function=st.sampled_from((*figures, "median", "share")),
                column=column,
                any_of=any_of | st.just(()),
                expected=st.none(),
            ),
            st.builds(
                Top,
                group_by=column,
                function=st.sampled_from(("count", "distinct", "sum")),
                column=column,
                any_of=any_of | st.just(()),
                order=st.sampled_from(("largest", "smallest")),
                limit=st.integers(1, 20),
                expected=st.none(),
            ),
            st.builds(
                Duplicates,
                columns=st.lists(column, min_size=1, max_size=3, unique=True).map(tuple),
                expected=st.none(),
            ),
            st.builds(Orphans, column=column, other_table=st.just("other"),
                      other_column=st.just("Secret"), expected=st.none()),
            st.builds(
                Pattern,
                column=column,
                of=st.sampled_from(("mask", "shape", "date format")),
                usual=st.lists(st.sampled_from(("a", "aA", "A-9", "9", "YYYY-MM-DD")),
                               min_size=1).map(tuple),
                expected=st.none(),
            ),
        )
    )  # fmt: skip
    return columns, types, cells, kind, evidence


def made(connection, columns, types, cells, kind):
    """The table `t`, and two others; returns the rows as they are stored."""
    names = ", ".join(map(quote_identifier, columns))
    declared = ", ".join(
        f"{quote_identifier(name)} {type_}" for name, type_ in zip(columns, types, strict=True)
    )
    if kind == "view":
        connection.execute(f"create table base ({declared})")
        connection.execute(f"create view t as select {names} from base")
    elif kind == "without rowid":
        connection.execute(f"create table t (key integer primary key, {declared}) without rowid")
    else:
        connection.execute(f"create table t ({declared})")
    target = "base" if kind == "view" else "t"
    marks = ", ".join("?" * len(columns))
    for key, each in enumerate(cells):
        if kind == "without rowid":
            connection.execute(f"insert into t values ({key}, {marks})", each)
        else:
            connection.execute(f"insert into {target} values ({marks})", each)
    connection.execute('create table other ("Secret")')
    connection.executemany("insert into other values (?)", [(1,), ("a",), ("NA",), (None,)])
    connection.execute(f"create table secret ({declared}, hidden)")
    rows = connection.execute(f"select {names} from t").fetchall()
    return [dict(zip(columns, row, strict=True)) for row in rows]


def kind_of(cell):
    return {type(None): 0, int: 1, float: 1, str: 2, bytes: 3}[type(cell)]


def is_typed(cell, value):
    return cell is not None and kind_of(cell) == kind_of(value)


def compare(op, a, b):
    return {
        "=": a == b,
        "!=": a != b,
        "<": a < b,
        "<=": a <= b,
        ">": a > b,
        ">=": a >= b,
    }[op]


def like(text, pattern):
    text, pattern = text.split("\0")[0], pattern.split("\0")[0]
    parts = {"%": ".*", "_": "."}
    regex = "".join(parts.get(char, re.escape(char)) for char in pattern)
    return re.fullmatch(regex, text, re.DOTALL | re.IGNORECASE | re.ASCII) is not None


def meets(row, condition):
    cell, op, value = row[condition.column], condition.op, condition.value
    text = cell if isinstance(cell, str) else None
    if condition.other_column is not None:
        other = row[condition.other_column]
        if cell is None or other is None:
            return False
        return (
            compare(op, *((kind_of(each), each) for each in (cell, other)))
            if is_typed(cell, other)
            else compare(op, kind_of(cell), kind_of(other))
        )
    if op in OPS["value"]:
        return is_typed(cell, value) and compare(op, cell, value)
    if op == "in":
        return any(is_typed(cell, each) and cell == each for each in value)
    if op == "type is":
        named = {type(None): "null", int: "integer", float: "real", str: "text", bytes: "blob"}
        return named[type(cell)] == value
    if op in ("is null", "is not null"):
        return (cell is None) == (op == "is null")
    if op == "is missing" and cell is None:
        return True
    if text is None:
        return False
    if op.startswith("length"):
        return compare(op.removeprefix("length "), len(text), value)
    spaces = text_forms.EDGE_SPACES
    return {
        "is empty": lambda: text == "",
        "is missing": lambda: text_forms.is_missing(text),
        "has edge spaces": lambda: text != text.strip(spaces),
        "like": lambda: like(text, value),
        "not like": lambda: not like(text, value),
        "contains": lambda: value in text,
        "mask is": lambda: text_forms.mask(text) == value,
        "parses as": lambda: FORMS[value](text),
        "does not parse as": lambda: not FORMS[value](text),
    }[op]()


def chosen(rows, any_of):
    return [row for row in rows if any(all(meets(row, c) for c in each) for each in any_of)]


def key(cell):
    return kind_of(cell), cell


def figure(function, cells):
    numbers = [each for each in cells if isinstance(each, int | float)]
    filled = [each for each in cells if each is not None]
    if function in ("count", "distinct"):
        return len(filled) if function == "count" else len(set(map(key, filled)))
    if function == "sum":
        return math.fsum(numbers)
    if not numbers:
        return None
    functions = {"min": min, "max": max, "median": statistics.median}
    return functions.get(function, lambda each: math.fsum(each) / len(each))(numbers)


def expected_of(rows, evidence):
    """What Python counts."""
    match evidence:
        case Rows():
            return len(chosen(rows, evidence.any_of))
        case Aggregate():
            some = chosen(rows, evidence.any_of) if evidence.any_of else rows
            if evidence.function == "share":
                filled = [row for row in some if row[evidence.column] is not None]
                return 100 * len(filled) / len(rows) if rows else None
            return figure(evidence.function, [row[evidence.column] for row in some])
        case Duplicates():
            names = evidence.columns
            some = [r for r in rows if len(names) > 1 or r[names[0]] is not None]
            return len(some) - len({tuple(key(row[name]) for name in names) for row in some})
        case Orphans():
            cells = [row[evidence.column] for row in rows]
            return sum(each is not None and key(each) not in {(1, 1), (2, "a"), (2, "NA")}
                       for each in cells)  # fmt: skip
        case Pattern():
            return sum(_is_unusual(row[evidence.column], evidence) for row in rows)


def _is_unusual(cell, evidence):
    if not isinstance(cell, str) or text_forms.is_missing(cell):
        return False
    found = {
        "mask": text_forms.mask,
        "shape": lambda text: text_forms.shape(text_forms.mask(text)),
        "date format": text_forms.date_format,
    }[evidence.of](cell)
    return found is not None and found not in evidence.usual


def ranked(rows, evidence):
    some = chosen(rows, evidence.any_of) if evidence.any_of else rows
    groups = {}
    for row in some:
        if row[evidence.group_by] is not None:
            groups.setdefault(key(row[evidence.group_by]), []).append(row[evidence.column])
    figures = [(group, figure(evidence.function, cells)) for group, cells in groups.items()]
    sign = -1 if evidence.order == "largest" else 1
    figures.sort(key=lambda each: (sign * each[1], each[0]))
    return figures[: evidence.limit]


def pages_read(connection, sql, params):
    """The root pages of the tables and indexes that a statement opens."""
    program = connection.execute(f"explain {sql}", params).fetchall()
    return {step[3] for step in program if step[1] == "OpenRead"}


def equal(a, b):
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=1e-12)


@settings(max_examples=60)
@given(cases())
def test_a3_evidence_agrees_with_python(case):
    """It reads the table that is asked about, or the named other one, and ends."""
    *table, evidence = case
    with closing(sqlite3.connect(":memory:")) as connection:
        rows = made(connection, *table)
        prepare(connection)
        steps = iter(range(MAX_STEPS // 1_000))
        connection.set_progress_handler(lambda: next(steps, None) is None, 1_000)
        assert problem_of(evidence) is None or isinstance(evidence, Rows | Aggregate | Top)
        names = ["t", "base", *(["other"] if isinstance(evidence, Orphans) else [])]
        sql = (
            f"select rootpage from sqlite_master where tbl_name in ({', '.join('?' * len(names))})"
        )
        allowed = {page for (page,) in connection.execute(sql, names)}
        assert pages_read(connection, *evidence_sql(evidence, "t")) <= allowed
        if isinstance(evidence, Top):
            found = [(key(value), each) for value, each in top(connection, evidence, "t")]
            assert [each for _, each in found] == pytest.approx(
                [f for _, f in ranked(rows, evidence)]
            )
            assert [group for group, _ in found] == [group for group, _ in ranked(rows, evidence)]
        elif not isinstance(evidence, Orphans) or table[1][table[0].index(evidence.column)] == "":
            assert equal(count(connection, evidence, "t"), expected_of(rows, evidence))
        shown = shown_sql(evidence, "t")
        if shown is not None:
            run = connection.execute(shown).fetchall()
            assert run == connection.execute(*evidence_sql(evidence, "t")).fetchall()


def test_a3_unknown_column_is_no_text():
    """SQLite takes a quoted name that it does not know for a text, but not behind `t.`."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("create table t (a)")
        connection.execute("insert into t values ('x')")
        prepare(connection)
        evidence = Rows(any_of=((Condition(column="ghost", op="=", value="ghost"),),))
        with pytest.raises(sqlite3.OperationalError, match="no such column"):
            count(connection, evidence, "t")
        assert columns_of(evidence) == ["ghost"]


def test_a3_json_and_case():
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("create table t (a)")
        cells = ('{"a":1}', "[1", "x", None, b"{}", "Yes", "yes", "yes", "YES")
        connection.executemany("insert into t values (?)", [(each,) for each in cells])
        prepare(connection)
        for op, rows in (("parses as", 1), ("does not parse as", 6)):
            evidence = Rows(any_of=((Condition(column="a", op=op, value="json"),),))
            assert count(connection, evidence, "t") == rows
        assert count(connection, Duplicates(columns=("a",), ignoring_case=True), "t") == 2
        assert Counter(columns_of(Duplicates(columns=("a", "a")))) == {"a": 1}


TALL = tuple((Condition(column="a", op="=", value=n),) for n in range(51))


@pytest.mark.parametrize(
    ("evidence", "problem"),
    [
        (Rows(any_of=()), "no condition"),
        (Rows(any_of=((),)), "no condition"),
        (Rows(any_of=((Condition(column="a", op="=", value=2**2000),),)), "too large"),
        (Rows(any_of=((Condition(column="a", op="is null"),),), expected=2**2000), "too large"),
        (Rows(any_of=TALL), "more than 50"),
        (Rows(any_of=((Condition(column="a", op="="),),)), "lacks a value"),
        (Rows(any_of=((Condition(column="a", op="in", value=1),),)), "no list"),
        (Rows(any_of=((Condition(column="a", op="=", value=(1,)),),)), "a list"),
        (Rows(any_of=((Condition(column="a", op="like", value=1),),)), "takes a text"),
        (Rows(any_of=((Condition(column="a", op="length =", value="x"),),)), "takes a number"),
        (Rows(any_of=((Condition(column="a", op="parses as", value="x"),),)), "takes number, date"),
        (Rows(any_of=((Condition(column="a", op="type is", value="x"),),)), "takes null, integer"),
        (Rows(any_of=((Condition(column="a", op="in", other_column="b"),),)), "another column"),
        (Rows(any_of=((Condition(column="a", op="<", other_column="a"),),)), "with itself"),
        (Aggregate(function="mean", column=None), "the mean of no column"),
        (Aggregate(function="share", column=None), "always 100 %"),
        (Top(group_by="a", function="sum", column=None), "the sum of no column"),
        (Top(group_by="a", function="count", column=None, limit=0), "from 1 to 20"),
        (Duplicates(columns=()), "names no columns"),
        (Duplicates(columns=("a", "b"), ignoring_case=True), "one column only"),
        (Pattern(column="a", of="mask", usual=()), "usual patterns"),
    ],
)
def test_a4_evidence_of_nothing_is_named(evidence, problem):
    assert problem in problem_of(evidence)
