"""The examples and tables of `configuration.md`."""

from __future__ import annotations

import re

import pytest

from datasette_llm import (
    LLM,
    ConfigError,
    ModelNotAllowedError,
)
from datasette_llm.access.config_warnings import warnings
from datasette_llm.access.snapshot import snapshot_of
from datasette_llm.config.parse import parse_settings
from datasette_llm.config.references import CallSettings
from datasette_llm.config.settings import settings_table
from datasette_llm.testing import ScriptedModel

from .examples import (
    between,
    claude,
    ours,
    shows,
)


@shows(text="datasette.yaml")
async def test_configuration_does_what_comments_say(
    text, make_datasette, register_models, monkeypatch, anthropic_key
):
    config = ours(text)
    sonnet = claude("claude-sonnet-4.5")
    register_models(
        sonnet,
        *map(claude, ("claude-haiku-4.5", "claude-opus-4.5")),
        *map(ScriptedModel, ("gemini-2.5-flash", "gemini-2.5-pro", "other")),
    )
    monkeypatch.setenv("DATASETTE_SECRETS_SQL_TEAM_KEY", "sk-of-the-sql-team")
    datasette = make_datasette(config)
    models = LLM(datasette)

    async def listed(purpose: str | None) -> list[str]:
        return [model.model_id for model in await models.models(purpose=purpose)]

    assert await listed(None) == ["claude-haiku-4.5", "gemini-2.5-flash"]
    assert await listed("pets") == ["claude-haiku-4.5", "gemini-2.5-pro"]
    assert await listed("sql") == ["claude-sonnet-4.5", "claude-haiku-4.5", "gemini-2.5-flash"]
    with pytest.raises(ModelNotAllowedError):
        await models.model("claude-opus-4.5", purpose="sql")
    await (await models.model(purpose="sql")).prompt("x")
    assert sonnet.calls[0].key == "sk-of-the-sql-team"
    assert sonnet.calls[0].request.options.temperature == 0
    view = await snapshot_of(datasette)
    assert warnings(view.settings, view.catalog) == []


@shows(config="resilience.yaml")
def test_call_settings_are_explained(config):
    settings = parse_settings(ours(config))
    sql, stories = settings.purposes["sql"], settings.purposes["stories"]
    assert (settings.timeout, settings.idle_timeout) == (120, 30)
    assert settings.endpoints[0].max_concurrency == 8
    assert sql.models is not None
    assert (sql.models[1].idle_timeout, sql.models[1].retries) == (90, 4)
    assert sql.fallbacks is not None
    assert [each.model for each in sql.fallbacks] == ["qwen", "claude-opus-4.5"]
    assert sql.fallbacks[1].plain_options() == {"max_tokens": 2000}
    assert (stories.timeout, stories.retries, stories.max_concurrency) == (600, 0, 2)
    section = between("configuration", "## Timeouts, retries, fallbacks and limits", "\n## ")
    explained = re.findall(r"\*\*`(\w+)`\*\*", section)
    assert sorted(explained) == sorted([*CallSettings.model_fields, "threads"])


@shows(config="cache.yaml")
async def test_cache_settings_do_what_comments_say(config, make_datasette, register_models):
    ids = ("claude-haiku-4.5", "claude-opus-4.5")
    register_models(*map(ScriptedModel, ids))
    snapshot = await snapshot_of(make_datasette(ours(config)))

    def policy(purpose, model_id):
        return snapshot.for_purpose(purpose).call_policy(model_id).cache

    haiku, opus = ids
    shared, own = policy("enrichments", haiku), policy("explain", haiku)
    assert (shared.keep_days, shared.max_bytes, shared.of_actor) == (30, 2 * 10**9, False)
    assert (own.keep_days, own.max_bytes, own.of_actor) == (7, 500 * 10**6, True)
    assert policy(None, haiku) is policy("enrichments", opus) is None


def test_settings_table_is_generated():
    def cell(default: str) -> str:
        return default if default in ("not set", "required") else f"`{default}`"

    rows = [
        f"| `{path}` | {kind} | {cell(default)} | {meaning} |"
        for path, kind, default, meaning in settings_table()
    ]
    table = ["| setting | type | default | meaning |", "| --- | --- | --- | --- |", *rows]
    shown = between("configuration", "<!-- settings -->\n\n", "\n\n<!-- /settings -->")
    assert shown.splitlines() == table


@shows(config="bad datasette.yaml", output="bad datasette.yaml output")
async def test_bad_configuration_stops_datasette(config, output, make_datasette):
    """With the message shown."""
    with pytest.raises(ConfigError) as caught:
        await make_datasette(ours(config)).invoke_startup()
    assert str(caught.value) + "\n" == output
