"""The calls of the first README, which plugins in the wild use, go on working as shown there."""

from __future__ import annotations

from contextlib import asynccontextmanager

import llm
import pytest
from datasette import hookimpl

from datasette_llm import (
    LLM,
    ModelNotAllowedError,
)
from datasette_llm.testing import ScriptedModel

from .examples import (
    fill_database,
    request_by,
)

SEED_CONFIG = {
    "default_model": "gpt-4o-mini",
    "purposes": {
        "enrichments": {"model": "gpt-4o-mini"},
        "sql-assistant": {"model": "gpt-4o"},
        "chat": {"model": "claude-3-5-sonnet"},
    },
    "models": ["gpt-4o-mini", "gpt-4o", "claude-3-5-sonnet"],
    "blocked_models": ["o1-preview"],
    "require_keys": True,
}


@pytest.fixture
def seed_site(make_datasette, register_models):
    """A Datasette with the first README's configuration and models; and the models."""
    models = {
        model_id: ScriptedModel(
            model_id, ["Par", "is", llm.Usage(input=7, output=2)], needs_key="openai"
        )
        for model_id in ("gpt-4o-mini", "gpt-4o", "claude-3-5-sonnet", "o1-preview")
    }
    register_models(*models.values())
    for model_id, model in models.items():
        # Or else a prompt would leave for the provider of the installed model with this id.
        assert llm.get_async_model(model_id) is model
    return make_datasette(SEED_CONFIG), models


@pytest.fixture
def openai_key(monkeypatch):
    monkeypatch.setenv("DATASETTE_SECRETS_OPENAI_API_KEY", "sk-openai")


async def test_basic_usage(seed_site, openai_key):
    datasette, scripted = seed_site
    facade = LLM(datasette)
    for model in (await facade.model(), await facade.model("gpt-4o-mini")):
        response = await model.prompt("What is the capital of France?")
        assert await response.text() == "Paris"
    assert [call.key for call in scripted["gpt-4o-mini"].calls] == ["sk-openai"] * 2


async def test_purposes_choose_the_model(seed_site):
    facade = LLM(seed_site[0])
    purposes = ("sql-assistant", "enrichments", "chat", "unheard-of")
    chosen = [(await facade.model(purpose=purpose)).model_id for purpose in purposes]
    assert chosen == ["gpt-4o", "gpt-4o-mini", "claude-3-5-sonnet", "gpt-4o-mini"]
    explicit = await facade.model("gpt-4o", purpose="sql-assistant")
    assert (explicit.model_id, explicit.purpose) == ("gpt-4o", "sql-assistant")


async def test_streaming_before_and_after_text(seed_site, openai_key):
    model = await LLM(seed_site[0]).model("gpt-4o-mini")
    response = await model.prompt("Tell me a story")
    assert await response.text() == "Paris"
    assert [chunk async for chunk in response] == ["Par", "is"]
    fresh = await model.prompt("Tell me a story")
    assert [chunk async for chunk in fresh] == ["Par", "is"]


async def test_group_enriches_rows(seed_site, openai_key):
    datasette, scripted = seed_site
    results = []
    async with LLM(datasette).group(purpose="enrichments") as model:
        for content in ("one", "two"):
            response = await model.prompt(f"Summarize: {content}")
            results.append(await response.text())
    assert results == ["Paris", "Paris"]
    prompts = [call.prompt for call in scripted["gpt-4o-mini"].calls]
    assert prompts == ["Summarize: one", "Summarize: two"]


async def test_lists_have_allowed_models_with_a_key(seed_site, openai_key):
    facade = LLM(seed_site[0])
    everything = [model.model_id for model in await facade.models()]
    assert everything == ["gpt-4o-mini", "gpt-4o", "claude-3-5-sonnet"]
    by_actor = await facade.models(actor=request_by({"id": "ana"}).actor)
    assert [model.model_id for model in by_actor] == everything
    by_purpose = await facade.models(purpose="enrichments")
    assert [model.model_id for model in by_purpose] == everything


async def test_lists_are_empty_without_a_key(seed_site):
    assert await LLM(seed_site[0]).models() == []


async def test_context_hook_counts_usage(seed_site, openai_key, plugin):
    seen = []

    class Plugin:
        @hookimpl
        def llm_prompt_context(self, datasette, model_id, prompt, purpose):
            @asynccontextmanager
            async def wrapper(result):
                seen.append(f"prompt {prompt!r} to {model_id} for {purpose}")
                yield

                async def on_complete(response):
                    usage = await response.usage()
                    seen.append((usage.input, usage.output))

                if result.response:
                    await result.response.on_done(on_complete)

            return wrapper

    plugin(Plugin())
    model = await LLM(seed_site[0]).model(purpose="chat")
    await (await model.prompt("Hi")).text()
    assert seen == ["prompt 'Hi' to claude-3-5-sonnet for chat", (7, 2)]


async def test_group_exit_hook_may_return_a_coroutine(seed_site, openai_key, plugin):
    seen = []

    class Plugin:
        @hookimpl
        def llm_group_exit(self, datasette, group):
            async def cleanup():
                seen.append((group.purpose, len(group._responses)))  # noqa: SLF001  # as shown there

            return cleanup()

    plugin(Plugin())
    async with LLM(seed_site[0]).group(purpose="enrichments") as model:
        await model.prompt("a")
        await model.prompt("b")
        assert seen == []
    assert seen == [("enrichments", 2)]


async def test_filter_hook_reads_the_database(seed_site, openai_key, plugin, tmp_path):
    class Plugin:
        @hookimpl
        async def llm_filter_models(self, datasette, models, actor, purpose):
            if not actor:
                return [model for model in models if model.model_id == "gpt-4o-mini"]
            rows = await datasette.get_database().execute(
                "select model_id from user_models where user_id = ?", [actor["id"]]
            )
            allowed = {row["model_id"] for row in rows.rows}
            return [model for model in models if model.model_id in allowed]

    plugin(Plugin())
    datasette, _ = seed_site
    await fill_database(
        datasette,
        tmp_path / "data.db",
        "create table user_models (user_id text, model_id text)",
        "insert into user_models values ('ana', 'gpt-4o'), ('ana', 'o1-preview')",
    )
    facade = LLM(datasette)
    listed = {
        name: [model.model_id for model in await facade.models(actor=actor)]
        for name, actor in {"anonymous": None, "ana": {"id": "ana"}, "ben": {"id": "ben"}}.items()
    }
    assert listed == {"anonymous": ["gpt-4o-mini"], "ana": ["gpt-4o"], "ben": []}
    with pytest.raises(ModelNotAllowedError):
        await facade.model("gpt-4o")
    assert (await facade.model("gpt-4o", actor={"id": "ana"})).model_id == "gpt-4o"


async def test_default_hook_reads_the_database(seed_site, plugin, tmp_path):
    class Plugin:
        @hookimpl
        async def llm_default_model(self, datasette, purpose, actor):
            if actor:
                rows = await datasette.get_database().execute(
                    "select preferred_model from user_prefs where user_id = ?", [actor["id"]]
                )
                row = rows.first()
                if row:
                    return row["preferred_model"]
            return None

    plugin(Plugin())
    datasette, _ = seed_site
    await fill_database(
        datasette,
        tmp_path / "data.db",
        "create table user_prefs (user_id text, preferred_model text)",
        "insert into user_prefs values ('ana', 'gpt-4o')",
    )
    facade = LLM(datasette)
    actors = ({"id": "ana"}, {"id": "ben"}, None)
    chosen = [(await facade.model(actor=actor)).model_id for actor in actors]
    assert chosen == ["gpt-4o", "gpt-4o-mini", "gpt-4o-mini"]
