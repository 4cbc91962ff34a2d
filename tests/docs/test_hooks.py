"""The examples and tables of `hooks.md`."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import threading

import llm
import pytest

from datasette_llm import (
    LLM,
    Decision,
    Group,
    ModelNotAllowedError,
    PromptResult,
)
from datasette_llm.hooks import specs as hookspecs
from datasette_llm.testing import ScriptedCall, ScriptedModel

from ..support.openai_server import BOUND_S
from .examples import (
    DOCS,
    between,
    fill_database,
    shows,
)


def test_headings_are_the_hooks_with_arguments():
    hooks = [
        f"{name}({', '.join(inspect.signature(function).parameters)})"
        for name, function in vars(hookspecs).items()
        if hasattr(function, "datasette_spec")
    ]
    assert hooks
    assert re.findall(r"^## `(.+)`$", DOCS["hooks"], re.M) == hooks


def test_prompt_result_table_is_complete():
    section = between("hooks", "## `llm_prompt_context", "\n## ")
    cells = " ".join(re.findall(r"^\| (`.+?) \| ", section, re.M))
    shown = re.findall(r"`(?:await )?(\w+)", cells)
    result = PromptResult(None, None, None, False)
    internal = ("add", "begin", "end")
    public = [name for name in dir(result) if not name.startswith(("_", *internal))]
    assert sorted(shown) == sorted(public)


@pytest.mark.parametrize(
    ("text", "documented"),
    [
        (between("hooks", "The `Group`\nhas", "retries, fallbacks"), Group),
        (between("testing", "`model.calls` has", "`await model.received"), ScriptedCall),
        (between("models", "A `Decision` has", "Its truth value"), Decision),
    ],
    ids=["Group", "ScriptedCall", "Decision"],
)
def test_attributes_named_exist(text, documented):
    named = re.findall(r"`(\w+)`", text)
    assert len(named) >= 4
    attributes = inspect.cleandoc(documented.__doc__ or "").partition("Attributes:\n")[2]
    for name in named:
        assert hasattr(documented, name) or f"    {name}: " in attributes, name


@shows(source="budget.py")
async def test_budget_hook_counts_tokens_and_blocks(source, site, register_models):
    scripted = ScriptedModel("scripted", ["a", llm.Usage(input=30_000, output=20_000)])
    register_models(scripted)
    datasette = site(None, budget=source)
    await datasette.invoke_startup()
    model = await LLM(datasette).model("scripted", actor={"id": "ana"})
    assert await (await model.prompt("x")).text() == "a"
    rows = await datasette.get_internal_database().execute("select user, tokens from spent")
    assert [tuple(row) for row in rows] == [("ana", 50_000)]
    with pytest.raises(Exception, match="Your tokens are used up"):
        await model.prompt("y")
    assert len(scripted.calls) == 1
    others = await LLM(datasette).model("scripted")
    assert await (await others.prompt("z")).text() == "a"


@shows(source="budget.py")
async def test_s7_budget_is_reserved_and_settled(source, site, register_models):
    """By prompts at once, by one that fails, by one whose reader hangs up."""
    many = ScriptedModel("many", ["a", llm.Usage(input=1_000)])
    slow = ScriptedModel("slow", ["half an answer", asyncio.Event()])
    register_models(many, slow, ScriptedModel("bad", [RuntimeError("It is down")]))
    datasette = site(None, budget=source.replace("50_000", "1_000"))
    await datasette.invoke_startup()

    async def spent(user):
        sql = "select tokens from spent where user = ?"
        return [row[0] for row in await datasette.get_internal_database().execute(sql, [user])]

    async def prompt(model_id, user):
        model = await LLM(datasette).model(model_id, actor={"id": user})
        return await model.prompt("x" * 30)

    answers = await asyncio.gather(
        *(prompt("many", "ana") for _ in range(50)), return_exceptions=True
    )
    (answered,) = [each for each in answers if not isinstance(each, Exception)]
    await answered.text()
    assert (len(many.calls), await spent("ana")) == (1, [1_000])
    with pytest.raises(RuntimeError):
        await prompt("bad", "ben")
    assert await spent("ben") == [0]
    response = await prompt("slow", "cid")
    assert await spent("cid") == [1_000]
    async for _ in response:
        break
    del response
    await slow.calls[0].ended.wait()
    async with asyncio.timeout(BOUND_S):
        while await spent("cid") == [1_000]:  # noqa: ASYNC110  # the plugin sets no event
            await asyncio.sleep(0.01)
    assert await spent("cid") == [12]


@shows(source="budget.py")
async def test_s7_budget_is_settled_if_hung_up_early(source, site, register_models):
    """By a caller who goes away while the reservation is written, too."""
    slow = ScriptedModel("slow", [asyncio.Event()])
    register_models(slow)
    datasette = site(None, budget=source)
    await datasette.invoke_startup()
    internal, written = datasette.get_internal_database(), threading.Event()
    model = await LLM(datasette).model("slow", actor={"id": "ana"})
    before = asyncio.create_task(internal.execute_write_fn(lambda _: written.wait(BOUND_S)))
    prompt = asyncio.create_task(model.prompt("x"))
    await asyncio.sleep(0.05)  # the reservation waits for the write before it
    prompt.cancel()
    await asyncio.sleep(0)
    written.set()
    with pytest.raises(asyncio.CancelledError):
        await prompt
    await before
    async with asyncio.timeout(BOUND_S):
        while await reserved(internal):  # noqa: ASYNC110  # the plugin sets no event
            await asyncio.sleep(0.01)
    assert not slow.calls


async def reserved(internal):
    found = await internal.execute("select coalesce(max(tokens), 1000) from spent")
    return found.single_value() == 1_000


@shows(source="budget.py", view="greet.py")
async def test_view_over_budget_is_forbidden(source, view, site, register_models):
    register_models(ScriptedModel("scripted", ["a", llm.Usage(input=50_000)]))
    datasette = site({"default_model": "scripted"}, budget=source, greet=view)
    statuses = [(await datasette.client.get("/-/greet")).status_code for _ in range(2)]
    assert statuses == [200, 403]


@shows(source="batches.py")
async def test_group_exit_hook_logs_the_outcome(source, site, register_models, caplog):
    caplog.set_level(logging.INFO, "batches")
    register_models(ScriptedModel("scripted"))
    datasette = site({"default_model": "scripted"}, batches=source)
    async with LLM(datasette).group(purpose="pets") as model:
        await model.prompt("x")
        await model.prompt("y")
    with pytest.raises(ZeroDivisionError):
        async with LLM(datasette).group(purpose="sql"):
            raise ZeroDivisionError
    messages = [record.message for record in caplog.records if record.name == "batches"]
    assert messages == ["pets: 2 responses, done", "sql: 0 responses, failed"]


@shows(source="filter.py")
async def test_filter_hook_is_enforced(source, site, register_models):
    register_models(*map(ScriptedModel, ("claude-haiku-4.5", "gemini-2.5-flash", "secret")))
    models = LLM(
        site({"models": ["secret", "gemini-2.5-flash", "claude-haiku-4.5"]}, filter=source)
    )
    for_anonymous = [model.model_id for model in await models.models()]
    assert for_anonymous == ["gemini-2.5-flash", "claude-haiku-4.5"]
    staff = {"id": "ana", "role": "staff"}
    for_staff = [model.model_id for model in await models.models(actor=staff)]
    assert for_staff == ["secret", "gemini-2.5-flash", "claude-haiku-4.5"]
    assert (await models.model("secret", actor=staff)).model_id == "secret"
    with pytest.raises(ModelNotAllowedError, match=r"Plugin 'filter\.py' does not allow"):
        await models.model("secret", actor={"id": "ben"})


@shows(source="favourite.py")
async def test_default_hook_reads_favourites(source, site, register_models, tmp_path):
    register_models(ScriptedModel("a"), ScriptedModel("b"))
    datasette = site({"default_model": "a"}, favourite=source)
    await fill_database(
        datasette,
        tmp_path / "data.db",
        "create table favourites (user text, model_id text)",
        "insert into favourites values ('ana', 'b')",
    )
    actors = ({"id": "ana"}, {"id": "ben"}, None)
    ids = [(await LLM(datasette).model(actor=actor)).model_id for actor in actors]
    assert ids == ["b", "a", "a"]
