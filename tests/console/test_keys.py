"""The page of the keys: what depends on each secret, and what stops if it is revoked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llm
import pytest
from datasette import hookimpl
from datasette.app import Datasette

from datasette_llm import LLM, Purpose
from datasette_llm.access.keys import KeyStatus
from datasette_llm.console.keys import impacts
from datasette_llm.testing import ScriptedModel

from ..support.console import (
    HOSTILE,
    KEY,
    Page,
    Start,
    assert_gated,
    assert_harmless,
    get,
    get_json,
    store,
)

pytestmark = pytest.mark.usefixtures("no_own_purpose")

BIRD = "BIRD_API_KEY"


@pytest.fixture
def birds(register_models: Callable[..., None]) -> ScriptedModel:
    pelican = ScriptedModel("pelican", needs_key="bird", key_env_var="BIRD_TOKEN")
    register_models(pelican, ScriptedModel("heron", needs_key="bird"), ScriptedModel("free"))
    return pelican


async def secret(datasette: Datasette, name: str) -> Any:
    (found,) = [
        each for each in (await get_json(datasette, "keys"))["secrets"] if each["name"] == name
    ]
    return found


def by_effect(found: Any) -> list[tuple[str, list[str], Any]]:
    return [(group["effect"], group["model_ids"], group["purposes"]) for group in found["models"]]


async def test_only_those_who_manage_llm_see_the_keys(start: Start, birds) -> None:
    await assert_gated(start, "keys", BIRD)


async def test_all_named_secrets_are_listed(start: Start, birds) -> None:
    datasette = await start({"default_model": {"model": "pelican", "key": "MY_KEY"}})

    names = [each["name"] for each in (await get_json(datasette, "keys"))["secrets"]]
    page = await get(datasette, "keys")

    assert {BIRD, "OPENAI_API_KEY", "MY_KEY"} <= set(names)
    assert len(names) == len(set(names))
    assert all(f"<code>{name}</code>" in page.text for name in names)


async def test_model_stops_or_goes_on_without_key(start: Start, birds, monkeypatch) -> None:
    """Revoking the only key stops a model; with a key elsewhere it continues."""
    datasette = await start()
    await store(datasette, BIRD)
    monkeypatch.setenv("BIRD_TOKEN", KEY)

    found = await secret(datasette, BIRD)

    assert found["set"] == {"environment": False, "table": True}
    assert by_effect(found) == [("stops", ["heron"], None), ("goes-on", ["pelican"], None)]
    assert found["models"][1]["then"] == "environment variable BIRD_TOKEN"
    page = Page((await get(datasette, "keys")).text)
    assert (
        "will continue without it, with the key from environment variable BIRD_TOKEN" in page.text
    )
    # And so it is, once it is revoked.
    await datasette.get_internal_database().execute_write("delete from datasette_secrets")
    listed = [model.model_id for model in await LLM(datasette).models()]
    assert ("heron" in listed, "pelican" in listed) == (False, True)


@pytest.mark.parametrize(
    ("secrets", "stored", "environment", "effects"),
    [
        ((), (), (), {"OWN": "no-key", BIRD: "no-key"}),
        (("OWN",), (), (), {"OWN": "stops", BIRD: "unaffected"}),
        ((BIRD,), (), (), {"OWN": "unaffected", BIRD: "stops"}),
        (("OWN", BIRD), (), (), {"OWN": "goes-on", BIRD: "unaffected"}),
        (("OWN",), ("bird",), (), {"OWN": "goes-on", BIRD: "unaffected"}),
        ((), ("bird",), (), {"OWN": "unaffected", BIRD: "unaffected"}),
        (("OWN",), (), ("OWN",), {"OWN": "stops", BIRD: "unaffected"}),
        (("OWN",), (), (BIRD,), {"OWN": "goes-on", BIRD: "unaffected"}),
    ],
)
def test_impact_on_a_model_for_each_secret(
    monkeypatch, secrets: Any, stored: Any, environment: Any, effects: dict[str, str]
) -> None:
    for name in environment:
        monkeypatch.setenv(f"DATASETTE_SECRETS_{name}", KEY)
    status = KeyStatus(frozenset(secrets), frozenset(stored))

    found = impacts(ScriptedModel("pelican", needs_key="bird"), ("OWN",), status)

    assert {name: impact.effect for name, impact in found.items()} == effects


async def test_models_have_their_dependent_purposes(start: Start, birds) -> None:
    config = {
        "purposes": {
            "chat": {"model": {"model": "pelican", "key": "CHAT_KEY"}},
            "sql": {"blocked_models": ["pelican"]},
        }
    }
    datasette = await start(config)
    await store(datasette, "CHAT_KEY")
    await store(datasette, BIRD)

    chat, bird = await secret(datasette, "CHAT_KEY"), await secret(datasette, BIRD)

    assert by_effect(chat) == [("goes-on", ["pelican"], ["chat"])]
    assert by_effect(bird) == [
        ("stops", ["pelican"], [None]),
        ("stops", ["heron"], None),
        ("unaffected", ["pelican"], ["chat"]),
    ]


async def test_purposes_with_dependent_default(start: Start, birds, plugin) -> None:
    class Purposes:
        @hookimpl
        def register_llm_purposes(self):
            return [Purpose("summaries")]

    plugin(Purposes())
    config = {"default_model": "heron", "purposes": {"chat": {"model": "free"}}}
    datasette = await start(config)
    await store(datasette, BIRD)

    found = await secret(datasette, BIRD)

    rows = [(row["purpose"], row["model_id"], row["effect"]) for row in found["purposes"]]
    assert rows == [(None, "heron", "stops"), ("summaries", "heron", "stops")]


async def test_disallowed_model_depends_on_nothing(start: Start, birds) -> None:
    datasette = await start(
        {"models": ["free"], "default_model": "pelican", "blocked_models": ["pelican"]}
    )

    found = await secret(datasette, BIRD)

    assert (found["models"], found["purposes"]) == ([], [])
    assert "No allowed model uses it." in (await get(datasette, "keys")).text


@pytest.mark.parametrize("how", ["table", "variable", "keys.json", "token"])
async def test_no_key_is_shown_wherever_it_is(
    start: Start, birds, llm_folder: Path, monkeypatch, how: str
) -> None:
    datasette = await start()
    match how:
        case "table":
            await store(datasette, BIRD)
        case "variable":
            monkeypatch.setenv(f"DATASETTE_SECRETS_{BIRD}", KEY)
        case "keys.json":
            (llm_folder / "keys.json").write_text(json.dumps({"bird": KEY}))
        case "token":
            monkeypatch.setenv("BIRD_TOKEN", KEY)

    for page in ("keys", "keys.json"):
        assert KEY not in (await get(datasette, page)).text
    links = Page((await get(datasette, "keys")).text).links()
    assert (f"/-/secrets/{BIRD}" in links) is (how != "variable")


async def test_no_link_without_manage_secrets(start: Start, birds) -> None:
    datasette = await start(may=("manage-llm",))

    page = Page((await get(datasette, "keys")).text)

    assert not [link for link in page.links() if "/-/secrets/" in link]
    assert BIRD in page.text


async def test_missing_encryption_key_says_what_to_do(start: Start, birds) -> None:
    datasette = await start(plugins={})

    found = await get_json(datasette, "keys")

    assert (found["can_store"], found["secret_pages"]) == (False, {})
    assert "only be set as environment variables" in (await get(datasette, "keys")).text


async def test_hostile_text_stays_text(start: Start, register_models) -> None:
    register_models(ScriptedModel(HOSTILE, needs_key=HOSTILE, key_env_var=HOSTILE))
    datasette = await start({"purposes": {HOSTILE: {"model": HOSTILE}}})

    page = Page((await get(datasette, "keys")).text)

    assert_harmless(page)
    assert page.text.count(HOSTILE) >= 3


async def test_p7_every_place_of_a_key(start: Start, birds, monkeypatch) -> None:
    """The same places as in the error of a prompt, each with what sets it."""
    datasette = await start()
    monkeypatch.setenv("BIRD_TOKEN", KEY)
    places = (await secret(datasette, BIRD))["places"]
    commands = {place["label"]: place["command"] for place in places}
    assert commands == {
        f"environment variable DATASETTE_SECRETS_{BIRD}": f"export DATASETTE_SECRETS_{BIRD}=…",
        f"encrypted secret {BIRD}": None,
        "llm's keys.json, as bird": "llm keys set bird",
        "environment variable BIRD_TOKEN": "export BIRD_TOKEN=…",
    }
    assert [place["label"] for place in places if place["set"]] == [
        "environment variable BIRD_TOKEN"
    ]
    monkeypatch.delenv("BIRD_TOKEN")
    with pytest.raises(llm.NeedsKeyException) as error:
        await (await LLM(datasette).model("pelican")).prompt("x")
    for label in commands:
        assert label.split()[-1] in str(error.value)


async def test_p7_last_use_of_a_key(start: Start, register_models) -> None:
    register_models(ScriptedModel("pelican", ["x"], needs_key="bird"))
    datasette = await start(may=("manage-llm", "view-llm-log"))
    await store(datasette, BIRD)
    assert ((await secret(datasette, BIRD))["last_used"]) is None
    response = await (await LLM(datasette).model("pelican", actor={"id": "zoe"})).prompt("x")
    await response.text()
    found = await secret(datasette, BIRD)
    assert found["last_used"]["actor_id"] == "zoe"
    assert found["newest_call"]["id"] == response.id
    page = Page((await get(datasette, "keys")).text)
    assert f"/-/llm/log/{response.id}" in page.links()
    assert found["last_used"]["at"] in [each["datetime"] for each in page.all("time")]
