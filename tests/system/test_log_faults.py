"""The file of the call log fails under load: what callers, provider, rows and messages count."""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
import sys
from collections import Counter
from contextlib import closing

import pytest

from datasette_llm import LLM, NotRecordedError
from datasette_llm.log import writer
from datasette_llm.log.recorder import Recorder
from datasette_llm.testing import ScriptedModel

from ..support.log_faults import deleted, full, locked, pragma, read_only, replaced
from ..support.waiting import BOUND_S, until

AT_ONCE = 16
PAUSE_S = 0.005
CALLS = 80  # before the fault, at least; in it; and after it

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="open files stay where they are")


class Load:
    """Prompts again and again, and counts what came of it."""

    def __init__(self, datasette):
        self.datasette = datasette
        self.counts = Counter()
        self._going = True

    async def _prompt(self):
        model = await LLM(self.datasette).model("scripted", purpose="p" * 500)
        while self._going:
            try:
                await (await model.prompt("x" * 100)).text()
            except NotRecordedError:
                self.counts["blocked"] += 1
            else:
                self.counts["ok"] += 1
            await asyncio.sleep(PAUSE_S)  # or more would wait than the log takes

    def start(self):
        self._tasks = [asyncio.create_task(self._prompt()) for _ in range(AT_ONCE)]

    async def more(self, outcome):
        """Wait until as many calls more have ended so."""
        end = self.counts[outcome] + CALLS
        await until(lambda: self.counts[outcome] >= end)

    async def stop(self):
        self._going = False
        async with asyncio.timeout(BOUND_S):
            await asyncio.gather(*self._tasks)


@pytest.fixture
async def load(make_datasette, register_models, tmp_path, monkeypatch):
    """A function that starts a site and the load on it; gives both and the model."""
    monkeypatch.setattr(writer, "RETRY_S", 0.02)

    async def load(required):
        model = ScriptedModel("scripted", ["a"])
        register_models(model)
        settings = {"log": {"required": required, "content": True}}
        datasette = make_datasette(settings, internal=str(tmp_path / "internal.db"))
        await datasette.invoke_startup()
        await pragma(datasette, "busy_timeout = 50")
        load = Load(datasette)
        load.start()
        await load.more("ok")
        return datasette, load, model

    return load


def rows_of(path):
    """How many rows have each outcome, and how many of them have content."""
    with closing(sqlite3.connect(path)) as connection:
        outcomes = connection.execute("select outcome, count(*) from llm_calls group by 1")
        contents = "select count(distinct call_id) from llm_call_content"
        return Counter(dict(outcomes.fetchall())), connection.execute(contents).fetchone()[0]


@pytest.mark.parametrize("required", [False, True], ids=["optional", "required"])
@pytest.mark.parametrize("fault", [locked, read_only, full])
async def test_s2_fault_that_ends_loses_nothing(load, tmp_path, caplog, fault, required):
    """Each call has its row; with `required` none was sent that had none at that time."""
    path = tmp_path / "internal.db"
    datasette, load, model = await load(required)
    log = Recorder.of(datasette).writer
    async with fault(datasette, path):
        await until(lambda: log.failure is not None)
        await load.more("blocked" if required else "ok")
    await load.more("ok")
    await load.stop()
    await until(lambda: log.failure is None)
    await log.flush()
    outcomes, with_content = rows_of(path)
    assert outcomes == load.counts
    assert len(model.calls) == load.counts["ok"]
    assert bool(load.counts["blocked"]) == required
    assert with_content == outcomes.total()
    assert (log.dropped, log.dropped_contents) == (0, 0)
    await datasette.invoke_shutdown()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert said
    assert all(text.startswith("The LLM call log cannot be written: ") for text in said)


@pytest.mark.parametrize("required", [False, True], ids=["optional", "required"])
@pytest.mark.parametrize("fault", [deleted, replaced])
async def test_s2_file_that_is_gone_counts_what_is_lost(load, tmp_path, caplog, fault, required):
    """What was written is in the old file; what was not is counted when Datasette stops."""
    datasette, load, model = await load(required)
    log = Recorder.of(datasette).writer
    async with fault(datasette, tmp_path / "internal.db"):
        await until(lambda: log.failure is not None)
        await load.more("blocked" if required else "ok")
    assert "readonly" in log.failure
    await load.stop()
    await datasette.invoke_shutdown()
    outcomes, _ = rows_of(tmp_path / "kept.db")
    assert len(model.calls) == load.counts["ok"]
    whole, begun = outcomes.total() - outcomes[None], outcomes[None]
    assert whole + begun <= load.counts.total()
    # Of each call that has no row two writes are lost, of one without an end one; and the last
    # one of the session.
    lost = 2 * (load.counts.total() - whole - begun) + begun + 1
    [said] = [text for text in caplog.messages if "Datasette stopped before" in text]
    assert int(re.search(r"(\d+) writes lost", said)[1]) == log.dropped == lost
    if required:
        assert whole + begun >= len(model.calls)


@pytest.mark.parametrize("required", [False, True], ids=["optional", "required"])
async def test_s2_long_fault_drops_contents_then_rows(
    load, tmp_path, caplog, monkeypatch, required
):
    """What cannot wait is counted; with `required` only refusals are lost."""
    monkeypatch.setattr(writer, "MAX_WAITING_BYTES", 200_000)
    path = tmp_path / "internal.db"
    datasette, load, model = await load(required)
    log = Recorder.of(datasette).writer
    async with read_only(datasette, path):
        await until(lambda: log.failure is not None)
        await until(lambda: log.dropped >= CALLS)
        assert log._bytes + log._content_bytes <= 200_000
    await until(lambda: log.failure is None)
    await load.stop()
    await log.flush()
    outcomes, with_content = rows_of(path)
    assert log.dropped_contents > 0
    assert with_content < outcomes.total()
    assert outcomes.total() < load.counts.total()
    missing = load.counts.total() - outcomes.total() + outcomes[None]
    assert missing <= log.dropped <= 2 * missing
    if required:
        assert outcomes["ok"] + outcomes[None] >= len(model.calls) == load.counts["ok"]
    await datasette.invoke_shutdown()
    [warning] = [text for text in caplog.messages if "written again" in text][:1]
    assert "rows and ends of rows" in warning
