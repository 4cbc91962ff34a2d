"""The examples and tables of `keys.md`."""

from __future__ import annotations

import asyncio
import subprocess

import yaml
from cryptography.fernet import Fernet

from datasette_llm import (
    LLM,
)
from datasette_llm.access.keys import provider_secret

from .examples import (
    claude,
    run,
    shows,
)


@shows(command="key in the environment")
async def test_key_exported_as_shown_is_used(
    command, make_datasette, register_models, tmp_path, monkeypatch
):
    (tmp_path / "anthropic.key").write_text("sk-from-the-file\n")
    name = f"DATASETTE_SECRETS_{provider_secret('anthropic')}"
    script = f'{command}\nprintf %s "${name}"'
    arguments = ["bash", "-euc", script]
    key = await asyncio.to_thread(
        subprocess.check_output, arguments, cwd=tmp_path, text=True, timeout=10
    )
    monkeypatch.setenv(name, key)
    scripted = claude("claude-haiku-4.5")
    register_models(scripted)
    await (await LLM(make_datasette()).model("claude-haiku-4.5")).prompt("x")
    assert scripted.calls[0].key == "sk-from-the-file"


@shows(config="secrets.yaml")
async def test_secrets_page_lists_secrets(config, make_datasette, register_models, monkeypatch):
    """For those who have the permission shown."""
    monkeypatch.setenv("SECRETS_ENCRYPTION_KEY", Fernet.generate_key().decode())
    register_models(claude("claude-haiku-4.5"))
    settings = yaml.safe_load(config)
    our_config = {"default_model": {"model": "x", "key": "SQL_TEAM_KEY"}}
    datasette = make_datasette(our_config, plugins=settings["plugins"])
    datasette.config["permissions"] = settings["permissions"]
    page = await datasette.client.get("/-/secrets", actor={"id": "root"})
    assert page.status_code == 200
    assert "ANTHROPIC_API_KEY" in page.text
    assert "SQL_TEAM_KEY" in page.text
    form = await datasette.client.get("/-/secrets/ANTHROPIC_API_KEY", actor={"id": "root"})
    assert form.status_code == 200
    assert (await datasette.client.get("/-/secrets")).status_code == 403


@shows(source="key_name")
async def test_key_is_chosen_by_its_name(source, make_datasette, register_models, monkeypatch):
    scripted = claude("claude-haiku-4.5")
    register_models(scripted)
    monkeypatch.setenv("DATASETTE_SECRETS_ANTHROPIC_API_KEY", "sk-everybodys")
    monkeypatch.setenv("DATASETTE_SECRETS_TEAM_KEY", "sk-of-the-team")
    config = {"purposes": {"teams": {"model": {"model": "claude-haiku-4.5", "key": "TEAM_KEY"}}}}
    await run(source, datasette=make_datasette(config))
    assert scripted.calls[0].key == "sk-of-the-team"
