"""`datasette llm log`: the record in a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click.testing
import pytest
from datasette.cli import cli
from ulid import ULID

from datasette_llm import LLM
from datasette_llm.cli import log as log_cli
from datasette_llm.log import queries
from datasette_llm.log.schema import OUTCOMES, migrate
from datasette_llm.testing import ScriptedModel

BOUND_S = 30
FIRST_MS = 1_790_000_000_000  # 2026-09-21T14:13:20Z
Run = Callable[..., click.testing.Result]


def id_of(number: int) -> str:
    """The id of a call that began so many seconds after the first."""
    return str(ULID((FIRST_MS + 1000 * number).to_bytes(6, "big") + bytes(10))).lower()


class Record:
    """A file with a record, by a connection that waits for nobody."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = sqlite3.connect(path, isolation_level=None, timeout=0)
        migrate(self.connection)

    def begin(self, number: int, **columns: Any) -> str:
        started = datetime.fromtimestamp(FIRST_MS / 1000 + number, UTC)
        row = {
            "id": id_of(number),
            "session_id": "s",
            "started_at": started.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "model_id": "scripted",
            "streaming": 1,
            "prompt_chars": 2,
            "system_chars": 0,
            "message_count": 1,
            "attachment_count": 0,
        } | columns
        places = ", ".join(f":{name}" for name in row)
        self.connection.execute(f"insert into llm_calls ({', '.join(row)}) values ({places})", row)
        return row["id"]

    def end(self, number: int, outcome: str = "ok", kind: str | None = None) -> None:
        sql = "update llm_calls set outcome = ?, failure_kind = ?, duration_ms = 10 where id = ?"
        self.connection.execute(sql, (outcome, kind, id_of(number)))

    def add(self, number: int, outcome: str = "ok", **columns: Any) -> str:
        return self.begin(number, outcome=outcome, **columns)

    def add_many(self, count: int) -> None:
        self.connection.execute("begin")
        for number in range(count):
            self.add(number)
        self.connection.execute("commit")


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    record = Record(tmp_path / "internal.db")
    yield record
    record.connection.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A function that runs `datasette llm log` on the record with some arguments."""

    def run(*arguments: str, file: Path | None = None) -> click.testing.Result:
        words = ["llm", "log", "--internal", str(file or tmp_path / "internal.db"), *arguments]
        return click.testing.CliRunner().invoke(cli, words)

    return run


def error_of(result: click.testing.Result) -> str:
    """The error message of a run that failed as it should: one line, on standard error."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), "a traceback from the depths"
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith("\n")
    return result.stderr.removeprefix("Error: ").rstrip("\n")


def ids_of(result: click.testing.Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return [row["id"] for row in json.loads(result.stdout)]


def span(text: str) -> int:
    """How many columns of a terminal a text takes."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))


# Which calls


def test_k1_tags_filter_and_are_shown(run: Run, record: Record) -> None:
    for number, tags in enumerate(({"job": 12, "row": 5}, {"job": 12}, {"job": 13}, None)):
        record.add(number, tags=tags and json.dumps(tags))

    assert ids_of(run("--json", "--tag", "job:12")) == [id_of(1), id_of(0)]
    both = run("--json", "--tag", "job:12", "--tag", "row:5")
    assert [row["tags"] for row in json.loads(both.stdout)] == [{"job": 12, "row": 5}]
    assert error_of(run("--tag", "job")) == "tag: 'job' has no value; write it like job:12"
    assert len(run("--tag", "job:a:b").stdout.splitlines()) == 1


def test_the_newest_calls_come_first(run: Run, record: Record) -> None:
    for number in (2, 0, 1):
        record.add(number)

    assert ids_of(run("--json")) == [id_of(2), id_of(1), id_of(0)]
    times = [line[:14] for line in run().stdout.splitlines()[1:]]
    assert times == ["09-21 14:13:22", "09-21 14:13:21", "09-21 14:13:20"]


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ([], 50),
        (["-n", "1"], 1),
        (["-n", "1001"], 1001),
        (["-n", "2000"], 1005),
        (["-n", "0"], 1005),
        (["-n", str(10**30)], 1005),
    ],
)
def test_default_count_and_n(run: Run, record: Record, arguments: list[str], count: int) -> None:
    """Fifty calls by default; -n sets another number."""
    record.add_many(1005)

    expected = [id_of(number) for number in range(1004, 1004 - count, -1)]
    assert ids_of(run("--json", *arguments)) == expected
    assert run(*arguments).stdout.count("\n") == count + 1


@pytest.mark.parametrize("count", ["-1", "many", "1.5", ""])
def test_invalid_count_is_a_usage_error(run: Run, record: Record, count: str) -> None:
    assert run("-n", count).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        (["--model", "a"], [2, 0]),
        (["-m", "b"], [3, 1]),
        (["--purpose", "pets"], [1]),
        (["-p", ""], [3, 2, 0]),
        (["--actor", "ana"], [2, 1]),
        (["--actor", ""], [3, 0]),
        (["--outcome", "error"], [1]),
        (["--outcome", "running"], [3]),
        (["--failure-kind", "timeout"], [1]),
        (["--finish-reason", "length"], [2]),
        (["--finish-reason", "length", "--failure-kind", "timeout"], []),
        (["--group", "g"], [0]),
        (["--since", "2026-09-21T14:13:22"], [3, 2]),
        (["--since", "2026-09-21T16:13:22+02:00"], [3, 2]),
        (["--until", "2026-09-21T14:13:22"], [1, 0]),
        (["--since", "2026-09-22"], []),
        (["--actor", "ana", "--model", "a", "--since", "2026-01-01"], [2]),
        (["--model", "nobody's"], []),
        (["-m", "a", "-m", "c"], [2, 0]),
        (["--outcome", "running", "--outcome", "error"], [3, 1]),
        (["--chain", "k"], []),
    ],
)
def test_each_filter_selects_its_calls(
    run: Run, record: Record, arguments: list[str], numbers: list[int]
) -> None:
    record.add(0, model_id="a", group_id="g")
    failed = {"failure_kind": "timeout", "purpose": "pets"}
    record.add(1, "error", model_id="b", actor_id="ana", **failed)
    record.add(2, model_id="a", actor_id="ana", finish_reason="length")
    record.begin(3, model_id="b")

    assert ids_of(run("--json", *arguments)) == [id_of(number) for number in numbers]
    assert run(*arguments).stdout.count("\n") == len(numbers) + 1


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--follow"]])
@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (["--outcome", "fine"], "There is no outcome 'fine'; use one of ok, error, "),
        (["--failure-kind", "bad"], "There is no failure kind 'bad'; use one of no_key, "),
        (["--since", "yesterday"], "since: 'yesterday' is no date or time; write it like "),
        (["--until", ""], "until: '' is no date or time"),
        (["--min-cost", "x"], "min_cost: 'x' is no number of dollars from 0 to "),
    ],
)
def test_a_bad_filter_is_told_in_one_line(
    run: Run, record: Record, arguments: list[str], bad: list[str], told: str
) -> None:
    assert error_of(run(*arguments, *bad)).startswith(told)


# The file


def test_missing_file_is_reported_and_not_created(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "nowhere.db"

    assert error_of(run(file=file)) == f"There is no file {file}"
    assert not file.exists()


def test_a_name_that_no_file_can_have_is_told(run: Run, tmp_path: Path) -> None:
    assert error_of(run(file=tmp_path / ("x" * 5000))).startswith("There is no file ")


def test_a_folder_is_told(run: Run, tmp_path: Path) -> None:
    told = f"{tmp_path} is a folder; give the file that has the call log"
    assert error_of(run(file=tmp_path)) == told


def leave_half_written(record: Record) -> None:
    """Leave the files as a process leaves them that is killed while it commits."""
    record.connection.executescript("pragma cache_size = 1; begin")
    record.connection.execute("create table other as select * from llm_calls, llm_calls as more")
    folder = record.path.parent
    for file in list(folder.glob("internal.db*")):
        (folder / file.name.replace("internal", "crashed")).write_bytes(file.read_bytes())
    record.connection.execute("rollback")


def test_half_written_file_error_says_what_to_do(run: Run, record: Record) -> None:
    record.add_many(100)
    leave_half_written(record)
    crashed = record.path.with_name("crashed.db")

    assert error_of(run(file=crashed)) == (
        f"{crashed} cannot be read: attempt to write a readonly database (its writer was killed "
        "during a write; start Datasette with it once)"
    )
    with closing(sqlite3.connect(crashed)) as connection:
        connection.execute("select 1 from llm_calls").fetchone()  # it recovers the file
    assert run(file=crashed).exit_code == 0


def test_a_file_that_is_no_database_is_told(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("Not a database, only a text of some length. " * 50)

    assert error_of(run(file=file)) == f"{file} cannot be read: file is not a database"


@pytest.mark.parametrize("statement", ["", "create table other (id)"])
def test_a_database_without_our_tables_is_told(run: Run, tmp_path: Path, statement: str) -> None:
    file = tmp_path / "other.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(statement)
    file.touch()
    before = file.read_bytes()

    assert error_of(run(file=file)) == (
        f"{file} has no LLM call log; give the file that Datasette has as --internal"
    )
    assert file.read_bytes() == before


def test_a_file_of_a_newer_version_is_told(run: Run, record: Record) -> None:
    record.connection.execute(
        "insert into _sqlite_migrations (migration_set, name, applied_at) "
        "values ('datasette_llm', 'm999_later', 'x')"
    )

    assert error_of(run()) == (
        f"{record.path} was written by a newer datasette-llm; upgrade this one to read it"
    )


def test_a_file_of_an_older_version_is_told(
    run: Run, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = SimpleNamespace(name="m999_later", fn=None, transactional=True)
    known = [*log_cli.migrations._migrations, later]
    monkeypatch.setattr(log_cli.migrations, "_migrations", known)

    assert error_of(run()) == (
        f"{record.path} was written by an older datasette-llm; start Datasette with it once"
    )


def test_other_plugins_migrations_are_ignored(run: Run, record: Record) -> None:
    record.add(0)
    record.connection.execute(
        "insert into _sqlite_migrations (migration_set, name, applied_at) "
        "values ('another', 'm999_later', 'x')"
    )

    assert ids_of(run("--json")) == [id_of(0)]


def test_a_file_that_is_locked_for_long_is_told(
    run: Run, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As it is, only without the five seconds that SQLite waits.
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, timeout=0))
    record.connection.execute("begin exclusive")

    assert error_of(run()) == f"{record.path} cannot be read: database is locked"


def test_the_file_is_opened_for_reading_only(record: Record) -> None:
    with closing(log_cli._opened(record.path)) as connection:
        for statement in ("delete from llm_log_sessions", "create table other (id)"):
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                connection.execute(statement)


@pytest.mark.parametrize("name", ["a b?mode=rw#c%20.db", "ä.db", "'; --.db"])
def test_a_file_may_have_any_name(run: Run, tmp_path: Path, name: str) -> None:
    with closing(Record(tmp_path / name).connection):
        pass

    assert ids_of(run("--json", file=tmp_path / name)) == []


def test_relative_file_name(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(record.path.parent)
    record.add(0)

    words = ["llm", "log", "--internal", record.path.name, "--json"]
    assert ids_of(click.testing.CliRunner().invoke(cli, words)) == [id_of(0)]


def test_the_file_has_to_be_named(record: Record) -> None:
    result = click.testing.CliRunner().invoke(cli, ["llm", "log"])

    assert result.exit_code == 2
    assert "Missing option '--internal'" in result.stderr


async def test_the_calls_of_a_running_site_are_there(
    run: Run, make_datasette, register_models, tmp_path: Path
) -> None:
    go_on = asyncio.Event()
    register_models(ScriptedModel("scripted", ["One ", go_on, "two"]))
    datasette = make_datasette(internal=str(tmp_path / "internal.db"))
    await datasette.invoke_startup()
    model = await LLM(datasette).model("scripted", purpose="pets", actor={"id": "ana"})

    response = await model.prompt("hi")
    [row] = json.loads((await asyncio.to_thread(run, "--json")).stdout)
    assert (row["id"], row["outcome"]) == (response.id, "running")
    assert (row["purpose"], row["actor_id"]) == ("pets", "ana")

    go_on.set()
    await response.text()
    await datasette.invoke_shutdown()
    [row] = json.loads((await asyncio.to_thread(run, "--json")).stdout)
    assert (row["id"], row["outcome"]) == (response.id, "ok")


# The table


def test_line_has_actor_model_purpose_and_outcome(
    run: Run, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    tokens = {"input_tokens": 1234, "output_tokens": 56_789}
    record.add(
        0,
        purpose="pets",
        actor_id="ana",
        duration_ms=1500.4,
        cost_nanodollars=1_234_500,
        **tokens,
    )
    record.begin(1)

    head, running, ended = run().stdout.splitlines()

    names = ["started", "(UTC)", "outcome", "model", "purpose", "actor"]
    assert head.split() == [*names, "in", "out", "cost", "took", "detail"]
    assert running.split() == ["09-21", "14:13:21", "running", "scripted", *"------"]
    assert ended.split() == [
        *("09-21", "14:13:20", "ok", "scripted", "pets", "ana"),
        *("1234", "56k", "$0.00123", "1.50s"),
    ]


@pytest.mark.parametrize(
    ("nanodollars", "shown"),
    [
        (None, "-"),
        (0, "$0.00000"),
        (1, "<$0.00001"),
        (10_000, "$0.00001"),
        (123_456_789, "$0.12346"),
        (12_345_678_901, "$12.35"),
        (99_999_000_000_000, "$99999.00"),
    ],
)
def test_cost_in_dollars_none_is_not_zero(
    run: Run, record: Record, nanodollars: int | None, shown: str
) -> None:
    record.add(0, cost_nanodollars=nanodollars)

    assert run().stdout.splitlines()[1].split()[-2] == shown


@pytest.mark.parametrize(
    ("milliseconds", "shown"),
    [(None, "-"), (0.4, "0.00s"), (98_999, "99.00s"), (99_000, "99s"), (86_400_000, "86400s")],
)
def test_a_duration_is_shown_in_seconds(
    run: Run, record: Record, milliseconds: float | None, shown: str
) -> None:
    record.add(0, duration_ms=milliseconds)

    assert run().stdout.splitlines()[1].split()[-1] == shown


LONG = "anthropic/claude-opus-with-a-very-long-name-20260131"


@pytest.mark.parametrize("width", [20, 60, 80, 100, 150, 300])
@pytest.mark.parametrize("name", ["a", LONG, "模型" * 20, "e\u0301" * 40, "x" * 5000], ids=range(5))
def test_every_line_fits_the_terminal(
    run: Run, record: Record, monkeypatch: pytest.MonkeyPatch, width: int, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    record.add(0, model_id=name, purpose=name, actor_id=name, input_tokens=10**12)
    record.add(1, "error", model_id=name, error_type="ModelError", error_message=name)
    record.add(2)

    lines = run().stdout.splitlines()

    assert len(lines) == 4
    assert max(map(span, lines)) <= width


def test_eighty_columns_without_a_terminal(
    run: Run, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    record.add(0, model_id=LONG, purpose=LONG, actor_id=LONG)

    head, line = run().stdout.splitlines()

    assert len(head) == len(line) <= 80
    assert "anthropic" in line


def test_names_are_not_cut_if_there_is_room(
    run: Run, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    record.add(0, model_id=LONG, purpose="summaries", actor_id="somebody")
    monkeypatch.setenv("COLUMNS", "130")
    assert {LONG, "summaries", "somebody"} <= set(run().stdout.split())

    monkeypatch.setenv("COLUMNS", "100")
    words = run().stdout.split()
    assert {"summaries", "somebody"} <= set(words)
    assert f"{LONG[:26]}…" in words


@pytest.mark.parametrize(
    ("outcome", "columns", "detail"),
    [
        ("error", {"error_type": "ModelError", "error_message": "no"}, "ModelError: no"),
        ("error", {"error_type": "TimeoutError", "error_message": ""}, "TimeoutError"),
        ("blocked", {"blocked_by": "budget", "error_message": "All spent"}, "budget: All spent"),
        ("lost", {"error_message": "The process ended"}, "The process ended"),
        ("error", {"failure_kind": "network", "error_message": "Refused"}, "Network: Refused"),
        ("ok", {}, ""),
        ("ok", {"finish_reason": "stop"}, ""),
        ("ok", {"finish_reason": "length"}, "length"),
    ],
)
def test_wide_terminal_shows_error_detail(
    run: Run,
    record: Record,
    monkeypatch: pytest.MonkeyPatch,
    outcome: str,
    columns: dict[str, str],
    detail: str,
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    record.add(0, outcome, **columns)

    head, line = run().stdout.splitlines()

    assert line[head.index("detail") :] == detail


def test_control_characters_are_replaced(
    run: Run, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    odd = "a\x1b[2J\r\nb\x9b1m\u202ec\tc\u2028d\x00\x07"
    columns = {"model_id": odd, "purpose": odd, "actor_id": odd, "error_type": odd}
    record.add(0, "error", error_message=odd, **columns)

    stdout = run().stdout

    assert stdout.count("\n") == len(stdout.splitlines()) == 2
    assert all(character.isprintable() or character == "\n" for character in stdout)


def test_empty_log_prints_header_only(run: Run, record: Record) -> None:
    assert run().stdout.startswith("started (UTC)  outcome ")
    assert run().stdout.count("\n") == 1


# JSON


@pytest.mark.parametrize("count", [0, 1, 3])
def test_json_is_an_array_of_rows(run: Run, record: Record, count: int) -> None:
    for number in range(count):
        record.begin(number, actor_id="ä\u2028\x1b", error_message='"')
    if count:
        record.end(0)

    rows = json.loads(run("--json").stdout)

    with closing(sqlite3.connect(record.path)) as connection:
        assert rows == queries.calls(connection, queries.Filter(), limit=10)
    assert [row["outcome"] for row in rows] == ["running"] * (count - 1) + ["ok"] * (count > 0)


@pytest.mark.parametrize("arguments", [["--json"], []])
def test_rows_are_written_page_by_page(
    run: Run, record: Record, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(queries, "BATCH_ROWS", 2)
    monkeypatch.setattr(log_cli, "SAMPLE_ROWS", 2)
    record.add_many(20)
    lines_at_page = []

    def watched(*args: Any, **kwargs: Any) -> list[Any]:
        lines_at_page.append(sys.stdout.buffer.getvalue().count(b"\n"))  # type: ignore[attr-defined]
        return calls(*args, **kwargs)

    calls = queries.calls
    monkeypatch.setattr(queries, "calls", watched)
    assert run("-n", "0", *arguments).exit_code == 0

    assert len(lines_at_page) == 11
    written = lines_at_page[2:]
    assert written == sorted(set(written))
    assert min(written) > 0


# Processes


@pytest.fixture
def process(record: Record) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """A function that starts `datasette llm log` with some arguments; over at the test's end."""
    started = []
    # With this variable every write is flushed, so that a test of flushing could not fail.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}

    def start(*arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        words = ["-m", "datasette", "llm", "log", "--internal", str(record.path), *arguments]
        started.append(
            subprocess.Popen(
                [sys.executable, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd=record.path.parent,
                env=environment | variables,
            )
        )
        return started[-1]

    yield start
    for child in started:
        child.kill()
        child.communicate()


def line_of(child: subprocess.Popen[bytes]) -> str:
    """The next line that a process writes; pytest's own timeout bounds the wait."""
    assert child.stdout is not None
    return child.stdout.readline().decode()


@pytest.mark.parametrize("arguments", [["--json"], []])
def test_site_can_write_during_slow_reading(process, record: Record, arguments: list[str]) -> None:
    """No lock is held while the output of a long list is not read."""
    record.add_many(5000)
    child = process("-n", "0", *arguments)
    line_of(child)

    record.add(5000)  # at once, or the connection would raise

    rest = child.stdout.read()
    assert rest.count(b"\n") == (5001 if arguments else 5000)
    assert child.wait(BOUND_S) == 0


@pytest.mark.parametrize("arguments", [["--json"], []])
def test_closed_pipe_ends_silently(process, record: Record, arguments: list[str]) -> None:
    record.add_many(5000)
    child = process("-n", "0", *arguments)
    line_of(child)
    child.stdout.close()

    assert child.stderr.read() == b""
    assert child.wait(BOUND_S) == 1


def test_unencodable_letter_is_replaced(process, record: Record) -> None:
    record.add(0, actor_id="模", model_id=LONG)

    stdout, stderr = process(PYTHONIOENCODING="latin-1").communicate(timeout=BOUND_S)

    assert stderr == b""
    assert stdout.count(b"\n") == 2


def interrupted(child: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    """How a process ends that gets Ctrl-C: its exit status, and what it says."""
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=BOUND_S)
    return child.returncode, stdout, stderr


def test_follow_shows_begins_and_ends(process, record: Record) -> None:
    record.add(0, model_id="before")
    record.begin(1, model_id="under-way")
    child = process("--follow")
    assert line_of(child).startswith("started (UTC) ")

    record.begin(2)
    assert line_of(child).split()[2:4] == ["running", "scripted"]
    record.end(2)
    assert line_of(child).split()[2:4] == ["ok", "scripted"]
    record.end(1, "cancelled")
    assert line_of(child).split()[2:4] == ["cancelled", "under-way"]

    assert interrupted(child) == (0, b"", b"")


def test_follow_writes_json_an_object_a_line(process, record: Record) -> None:
    record.add(0)
    child = process("--follow", "--json", "-n", "1")
    assert json.loads(line_of(child))["id"] == id_of(0)

    record.connection.execute("begin")
    record.add(1)
    record.add(2, "error")
    record.connection.execute("commit")

    rows = [json.loads(line_of(child)) for _ in range(2)]
    assert [(row["id"], row["outcome"]) for row in rows] == [(id_of(1), "ok"), (id_of(2), "error")]
    assert interrupted(child) == (0, b"", b"")


def test_follow_ends_silently_on_closed_pipe(process, record: Record) -> None:
    child = process("--follow")
    line_of(child)
    child.stdout.close()

    record.add(0)

    assert child.stderr.read() == b""
    assert child.wait(BOUND_S) == 1


async def test_follow_sees_the_calls_of_a_running_site(
    process, record: Record, make_datasette, register_models
) -> None:
    go_on = asyncio.Event()
    register_models(ScriptedModel("scripted", ["One ", go_on, "two"]))
    datasette = make_datasette(internal=str(record.path))
    await datasette.invoke_startup()
    child = process("--follow")
    await asyncio.to_thread(line_of, child)

    response = await (await LLM(datasette).model("scripted")).prompt("hi")
    assert "running" in await asyncio.to_thread(line_of, child)
    go_on.set()
    await response.text()
    assert "ok" in await asyncio.to_thread(line_of, child)

    assert (await asyncio.to_thread(interrupted, child)) == (0, b"", b"")
    await datasette.invoke_shutdown()


# Following, nap by nap


@pytest.fixture
def follow(
    run: Run, record: Record, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[tuple[int, str]]]:
    """A function that follows while the record changes as told, one step a nap.

    It gives back the number and the outcome of each call as they are told.
    """

    def follow(*arguments: str, steps: list[Callable[[], Any]]) -> list[tuple[int, str]]:
        coming = iter(steps)
        numbers = {id_of(number): number for number in range(2000)}

        def sleep(seconds: float) -> None:
            assert 0.2 <= seconds <= 5
            step = next(coming, None)
            if step is None:
                raise KeyboardInterrupt
            step()

        monkeypatch.setattr(log_cli, "time", SimpleNamespace(sleep=sleep))
        result = run("--follow", "--json", *arguments)
        assert (result.exit_code, result.stderr) == (0, "")
        rows = map(json.loads, result.stdout.splitlines())
        return [(numbers[row["id"]], row["outcome"]) for row in rows]

    return follow


def nothing() -> None:
    """A step in which nothing happens."""


def test_follow_omits_earlier_calls_until_end(follow, record: Record) -> None:
    record.add(0)
    record.begin(1)

    assert follow(steps=[nothing, lambda: record.end(1), nothing]) == [(1, "ok")]


def test_follow_with_count_shows_earlier_calls(follow, record: Record) -> None:
    for number in range(5):
        record.add(number)

    told = follow("-n", "2", steps=[lambda: record.add(5)])
    assert [number for number, _ in told] == [3, 4, 5]
    assert [number for number, _ in follow("-n", "0", steps=[nothing])] == [0, 1, 2, 3, 4, 5]


def test_follow_start_shows_each_call_once(
    follow, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that begin while following starts are neither missed nor repeated."""
    first = log_cli._first

    def first_after_another(*args: Any) -> Iterator[dict[str, Any]]:
        record.add(7)
        return first(*args)

    monkeypatch.setattr(log_cli, "_first", first_after_another)

    assert follow("-n", "3", steps=[nothing]) == [(7, "ok")]


def test_follow_shows_call_written_late(follow, record: Record) -> None:
    """A row may be written after rows of later calls; it is shown all the same."""
    # A hook may hold one up between the moment when it gets its id and its record.
    told = follow(steps=[lambda: record.begin(5), lambda: record.begin(3), lambda: record.end(3)])

    assert told == [(5, "running"), (3, "running"), (3, "ok")]


@pytest.mark.parametrize("outcome", [*OUTCOMES, "running"])
def test_follow_with_outcome_waits_for_it(follow, record: Record, outcome: str) -> None:
    """A call is shown when it gets the outcome of the filter."""
    record.begin(0)

    def end_all() -> None:
        for number, each in enumerate(OUTCOMES):
            record.end(number, each)

    steps = [lambda: [record.begin(number) for number in range(1, 5)], end_all, nothing]
    told = follow("--outcome", outcome, steps=steps)

    if outcome == "running":
        assert told == [(number, "running") for number in range(1, 5)]
    else:
        assert told == [(OUTCOMES.index(outcome), outcome)]


def test_w3_follow_waits_for_the_failure_kind(
    follow, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that runs has no kind yet, and is shown when it has the one of the filter."""
    monkeypatch.setattr(log_cli, "OVERLAP_ROWS", 2)

    def add_more() -> None:
        for number in range(1, 6):
            record.add(number, "error", failure_kind="timeout" if number > 2 else "network")

    steps = [lambda: record.begin(0), add_more, nothing, lambda: record.end(0, "error", "timeout")]
    told = follow("--failure-kind", "timeout", steps=steps)

    assert told == [(number, "error") for number in (3, 4, 5, 0)]


def test_follow_with_outcome_shows_slow_call(
    follow, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_cli, "OVERLAP_ROWS", 2)

    def add_more() -> None:
        for number in range(1, 6):
            record.add(number, "error")

    steps = [lambda: record.begin(0), add_more, nothing, lambda: record.end(0, "error")]
    told = follow("--outcome", "error", steps=steps)

    assert told == [(number, "error") for number in (1, 2, 3, 4, 5, 0)]


def test_follow_applies_other_filters(follow, record: Record) -> None:
    steps = [lambda: record.begin(0, actor_id="ana"), lambda: record.begin(1, actor_id="ben")]

    assert follow("--actor", "ben", steps=steps) == [(1, "running")]


def test_follow_waits_for_a_lock(follow, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, timeout=0))

    def lock() -> None:
        record.connection.execute("begin exclusive")
        record.begin(0)

    assert follow(steps=[lock, nothing, lambda: record.connection.execute("commit")]) == [
        (0, "running")
    ]


@pytest.mark.parametrize("there_is_another", [True, False])
def test_follow_reports_removed_file(
    run: Run, record: Record, there_is_another: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(seconds: float) -> None:
        record.path.rename(record.path.with_name("old.db"))
        if there_is_another:
            Record(record.path).connection.close()

    monkeypatch.setattr(log_cli, "time", SimpleNamespace(sleep=sleep))

    result = run("--follow")

    assert result.exit_code == 1
    assert result.stderr == f"Error: {record.path} was removed or replaced; begin again\n"


def test_follow_waits_for_crashed_site(
    follow, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, crashes = log_cli._Watch.look, iter([True])

    def half_written(watch: log_cli._Watch) -> Any:
        if next(crashes, False):
            error = sqlite3.OperationalError("attempt to write a readonly database")
            error.sqlite_errorname = log_cli.HALF_WRITTEN
            raise error
        return look(watch)

    monkeypatch.setattr(log_cli._Watch, "look", half_written)

    assert follow(steps=[lambda: record.begin(0), nothing]) == [(0, "running")]


def test_follow_reports_broken_file(
    run: Run, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps = iter([lambda: record.connection.execute("drop table llm_calls")])

    def sleep(seconds: float) -> None:
        next(naps)()  # the second nap would raise

    monkeypatch.setattr(log_cli, "time", SimpleNamespace(sleep=sleep))
    result = run("--follow")

    assert result.exit_code == 1
    assert result.stderr == f"Error: {record.path} cannot be read: no such table: llm_calls\n"


def test_follow_forgets_ended_calls(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_cli, "OVERLAP_ROWS", 5)
    with closing(log_cli._opened(record.path)) as connection:
        watch = log_cli._Watch(connection, queries.Filter())
        record.begin(0)
        for number in range(1, 50):
            record.add(number)
            watch.look()
            assert len(watch._seen) <= 7


@pytest.mark.parametrize("seed", range(20))
def test_follow_shows_each_change_once(
    follow, record: Record, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(log_cli, "OVERLAP_ROWS", 6)
    choose = random.Random(seed)
    # Calls are not recorded quite in the order of their ids.
    coming = iter([n for k in range(0, 150, 3) for n in choose.sample(range(k, k + 3), 3)])
    running: list[int] = []
    expected: list[tuple[int, str]] = []

    def traffic(events: int) -> None:
        changed = {}
        for _ in range(events):
            if running and choose.random() < 0.5:
                number = running.pop(choose.randrange(len(running)))
                record.end(number)
                changed[number] = "ok"
            else:
                number = next(coming)
                record.begin(number)
                running.append(number)
                changed[number] = "running"
        expected.extend(sorted(changed.items()))

    traffic(30)
    expected.clear()

    assert follow(steps=[partial(traffic, choose.randrange(4)) for _ in range(40)]) == expected


# Help


def test_help_has_example_on_its_own_line(run: Run) -> None:
    result = click.testing.CliRunner().invoke(cli, ["llm", "log", "--help"])

    assert result.exit_code == 0
    lines = [line.strip() for line in result.stdout.splitlines()]
    example = "datasette llm log --internal internal.db --outcome error --since 2026-01-31"
    assert example in lines
    for name in queries.Filter.names():
        assert f"--{name.replace('_', '-')} " in result.stdout
    for outcome in OUTCOMES:
        assert outcome in result.stdout


def test_the_group_lists_the_command() -> None:
    output = click.testing.CliRunner().invoke(cli, ["llm", "--help"]).stdout
    assert "Show the call log" in output


def test_line_has_attempt_and_wait(
    record: Record, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    record.begin(1)
    record.begin(2, attempt=2, prompt_id=id_of(1), waited_ms=1500.0)
    record.begin(3, waited_ms=0.0)
    lines = run().stdout.splitlines()
    assert lines[2].endswith("attempt 2: waited 1.50s")
    assert all("attempt" not in line and "waited" not in line for line in (lines[1], lines[3]))
