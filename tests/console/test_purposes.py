"""The page of the purposes, its JSON twin, its POST and its commands."""

from __future__ import annotations

import asyncio
import html
import json
import re
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click.testing
import pytest
import yaml
from datasette import hookimpl
from datasette.app import Datasette
from datasette.cli import cli

from datasette_llm import LLM, Purpose, instance
from datasette_llm.access import assignments
from datasette_llm.access.assignments import Assignments
from datasette_llm.testing import ScriptedModel

pytestmark = pytest.mark.usefixtures("no_own_purpose")

ANA = {"id": "ana"}
BEN = {"id": "ben"}
PAGE = "/-/llm/purposes"
ASSIGN = "/-/llm/assign"
FORM = "application/x-www-form-urlencoded"
BROWSER = {"accept": "text/html,*/*", "content-type": FORM}
HOSTILE = "<img src=x onerror=alert(1)>\"'&amp;"
NO_CALLS = {"log": False}
Start = Callable[..., Awaitable[Datasette]]
Run = Callable[..., click.testing.Result]


class Registers:
    """A plugin with purposes."""

    def __init__(self, *purposes: Purpose) -> None:
        self.purposes = purposes

    @hookimpl
    def register_llm_purposes(self) -> list[Purpose]:
        return list(self.purposes)


@pytest.fixture(autouse=True)
def models(register_models: Callable[..., None], llm_folder: Path) -> None:
    (llm_folder / "aliases.json").write_text(json.dumps({"grey": "heron"}))
    register_models(
        ScriptedModel("pelican"),
        ScriptedModel("heron"),
        ScriptedModel("stork", needs_key="storks"),
        ScriptedModel(HOSTILE),
        ScriptedModel("half \ud83d"),
    )


@pytest.fixture
def start(make_datasette: Callable[..., Datasette]) -> Start:
    """A function that starts a Datasette whose models ana and zoe may manage."""

    async def start(config: dict[str, Any] | None = None, **kwargs: Any) -> Datasette:
        ours = {"purposes": {"chat": {}}, "default_model": "pelican"} if config is None else config
        datasette = make_datasette(ours, **kwargs)
        datasette.config["permissions"] = {"manage-llm": {"id": ["ana", "zoe"]}}
        await datasette.invoke_startup()
        return datasette

    return start


async def shown(datasette: Datasette) -> Any:
    response = await datasette.client.get(f"{PAGE}.json", actor=ANA)
    assert response.status_code == 200, response.text
    return response.json()


async def row(datasette: Datasette, purpose: str = "chat") -> Any:
    (found,) = [r for r in (await shown(datasette))["purposes"] if r["purpose"] == purpose]
    return found


async def page(datasette: Datasette) -> str:
    response = await datasette.client.get(PAGE, actor=ANA)
    assert response.status_code == 200
    return response.text


async def post(datasette: Datasette, status: int = 200, actor: Any = ANA, **fields: Any) -> Any:
    headers = {"content-type": "application/json"}
    body = json.dumps(fields)
    response = await datasette.client.post(ASSIGN, content=body, headers=headers, actor=actor)
    assert response.status_code == status, response.text
    return response.json()


async def submitted(datasette: Datasette, **fields: str) -> Any:
    return await datasette.client.post(ASSIGN, data=fields, headers=BROWSER, actor=ANA)


def menu(payload: Any, purpose: str) -> Any:
    (found,) = [each for each in payload["purposes"] if each["purpose"] == purpose]
    return payload["menus"][found["menu"]]


# Who may


@pytest.mark.parametrize("actor", [None, BEN])
@pytest.mark.parametrize("address", [PAGE, f"{PAGE}.json", ASSIGN])
async def test_nobody_and_the_wrong_actor_see_nothing(
    start: Start, actor: Any, address: str
) -> None:
    datasette = await start({"purposes": {"secret-purpose": {"model": "pelican"}}})

    response = await datasette.client.get(address, actor=actor)

    assert response.status_code == 403
    assert "secret-purpose" not in response.text
    assert "pelican" not in response.text
    assert PAGE not in (await datasette.client.get("/", actor=actor)).text


@pytest.mark.parametrize("actor", [None, BEN])
@pytest.mark.parametrize("purpose", ["chat", "no-such-purpose"])
async def test_no_actor_and_wrong_actor_are_refused(start: Start, actor: Any, purpose: str) -> None:
    datasette = await start()

    response = await datasette.client.post(
        ASSIGN, json={"purpose": purpose, "model_id": "heron"}, actor=actor
    )

    assert response.status_code == 403
    assert purpose not in response.text
    assert instance.of(datasette, Assignments).current == {}


async def test_permitted_actor_sees_page_json_and_menu(start: Start) -> None:
    datasette = await start()

    assert "pelican" in await page(datasette)
    assert (await row(datasette))["resolves_to"] == "pelican"
    assert 'href="/-/llm"' in (await datasette.client.get("/", actor=ANA)).text
    assert f'href="{PAGE}"' in (await datasette.client.get("/-/llm", actor=ANA)).text


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_a_post_from_another_site_is_refused(start: Start, site: str) -> None:
    datasette = await start()

    response = await datasette.client.post(
        ASSIGN,
        data={"purpose": "chat", "model": "heron"},
        headers={"Sec-Fetch-Site": site},
        actor=ANA,
    )

    assert response.status_code == 403
    assert instance.of(datasette, Assignments).current == {}


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
async def test_only_post_assigns(start: Start, method: str) -> None:
    datasette = await start()

    response = await datasette.client.request(
        method, f"{ASSIGN}?purpose=chat&model_id=heron", actor=ANA
    )

    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert instance.of(datasette, Assignments).current == {}


# What it shows


async def test_all_kinds_of_purposes_are_shown(start: Start, plugin: Callable[..., Any]) -> None:
    plugin(Registers(Purpose("sql", "Writes queries"), Purpose("pets")))
    config = {"default_model": "pelican", "purposes": {"pets": {}, "chat": {"model": "heron"}}}
    datasette = await start(config)
    chosen = instance.of(datasette, Assignments)
    await chosen.assign(datasette, "old", "heron", "ana")

    rows = (await shown(datasette))["purposes"]

    names = ("purpose", "description", "registered", "configured", "resolves_to", "rule")
    assert [tuple(each[name] for name in names) for each in rows] == [
        ("chat", None, False, True, "heron", "plugins.datasette-llm.purposes.chat.model"),
        ("old", None, False, False, "heron", "assignment"),
        ("pets", None, True, True, "pelican", "plugins.datasette-llm.default_model"),
        ("sql", "Writes queries", True, False, "pelican", "plugins.datasette-llm.default_model"),
    ]
    text = html.unescape(await page(datasette))
    assert "Writes queries" in text
    assert "plugins.datasette-llm.purposes.chat.model" in text
    assert text.count('name="model"') == 3
    assert text.count('name="reset"') == 1


async def test_menu_has_allowed_models_by_key(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Allowed models without a key are in a group of their own."""
    purposes = {"chat": {"models": ["stork"], "blocked_models": ["pelican"]}, "sql": {}}
    datasette = await start({"models": ["pelican", "grey"], "purposes": purposes})

    payload = await shown(datasette)
    assert menu(payload, "chat") == {"with_key": ["heron"], "without_key": ["stork"]}
    assert menu(payload, "sql") == {"with_key": ["pelican", "heron"], "without_key": []}
    assert re.findall(
        r'(?:<option value="\w+">|<optgroup label=")([^<"]+)', await page(datasette)
    ) == [
        *("heron", "Without a key", "stork"),
        *("pelican", "heron"),
    ]

    monkeypatch.setenv("DATASETTE_SECRETS_STORKS_API_KEY", "sk-of-the-storks")
    assert menu(await shown(datasette), "chat")["with_key"] == ["stork", "heron"]


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"purposes": {"chat": {}}}, "There is no default model"),
        ({"purposes": {"chat": {"model": "stork"}}}, "Model 'stork' has no key"),
        ({"purposes": {"chat": {"model": "stork"}}, "require_keys": False}, "has no key"),
        ({"purposes": {"chat": {"model": "gone"}}}, "Unknown model: 'gone'"),
        ({"purposes": {"chat": {"model": "heron"}}, "blocked_models": ["grey"]}, "it is blocked"),
    ],
)
async def test_unusable_default_has_a_reason(
    start: Start, config: dict[str, Any], problem: str
) -> None:
    datasette = await start(config)

    assert problem in (await row(datasette))["problem"]
    assert problem in html.unescape(await page(datasette))


async def test_default_hooks_are_named_not_called(start: Start, plugin: Callable[..., Any]) -> None:
    class Chooses:
        @hookimpl
        def llm_default_model(self) -> str:
            raise AssertionError("asked")

    plugin(Chooses(), name="my-chooser")
    datasette = await start()

    assert (await shown(datasette))["default_hooks"] == ["my-chooser"]
    assert "my-chooser" in await page(datasette)
    assert (await post(datasette, purpose="chat", model_id="heron"))["ok"]


async def test_failing_purposes_hook_is_a_warning(start: Start, plugin: Callable[..., Any]) -> None:
    class Fails:
        @hookimpl
        def register_llm_purposes(self) -> Any:
            raise ValueError(HOSTILE)

    plugin(Fails())
    datasette = await start()

    (warning,) = (await shown(datasette))["warnings"]
    assert HOSTILE in warning
    assert HOSTILE not in await page(datasette)
    assert (await post(datasette, purpose="chat", model_id="heron"))["ok"]


@pytest.mark.parametrize("kept", [True, False])
async def test_the_page_says_whether_choices_last(start: Start, kept: bool, tmp_path: Path) -> None:
    datasette = await start(internal=str(tmp_path / "internal.db") if kept else None)

    assert (await shown(datasette))["last_until_restart"] is not kept
    assert ("kept only until Datasette stops" in await page(datasette)) is not kept


async def test_without_any_purpose_the_page_says_so(start: Start) -> None:
    datasette = await start({})

    assert "No plugin registers a purpose" in await page(datasette)


# Choosing


async def test_json_assigns_by_alias_and_resets(start: Start) -> None:
    datasette = await start()

    assert await post(datasette, purpose="chat", model_id="grey") == {
        "ok": True,
        "purpose": "chat",
        "model_id": "heron",
        "resolves_to": "heron",
        "rule": "assignment",
        "refused_by": None,
    }
    assert (await LLM(datasette).model(purpose="chat")).model_id == "heron"
    back = {
        "ok": True,
        "purpose": "chat",
        "model_id": None,
        "resolves_to": "pelican",
        "rule": "plugins.datasette-llm.default_model",
        "refused_by": None,
    }
    assert await post(datasette, purpose="chat", reset=True) == back
    assert await post(datasette, purpose="chat", model_id="", reset="1") == back
    assert (await LLM(datasette).model(purpose="chat")).model_id == "pelican"


async def test_form_redirects_with_a_message(start: Start) -> None:
    datasette = await start(settings={"base_url": "/sub/"})

    response = await submitted(datasette, purpose="chat", model_id="heron")

    assert response.status_code == 303
    assert response.headers["location"] == f"/sub{PAGE}"
    assert response.cookies["ds_messages"]
    cookies = {
        "ds_messages": response.cookies["ds_messages"],
        "ds_actor": datasette.client.actor_cookie(ANA),
    }
    text = (await datasette.client.get(PAGE, cookies=cookies)).text
    assert "Purpose chat now uses heron." in text
    assert f'action="/sub{ASSIGN}"' in text
    response = await submitted(datasette, purpose="chat", reset="true")
    assert response.status_code == 303
    assert (await row(datasette))["assignment"] is None


async def test_assignment_has_actor_time_and_history(start: Start) -> None:
    datasette = await start()
    await post(datasette, purpose="chat", model_id="heron")
    await post(datasette, purpose="chat", model_id="pelican", actor={"id": "zoe"})

    payload = await shown(datasette)

    assignment = payload["purposes"][0]["assignment"]
    assert (assignment["model_id"], assignment["actor_id"]) == ("pelican", "zoe")
    assert assignment["ignored_because"] is None
    past = [(each["purpose"], each["model_id"], each["actor_id"]) for each in payload["history"]]
    assert past == [("chat", "pelican", "zoe"), ("chat", "heron", "ana")]
    assert payload["history"][0]["assigned_at"] == assignment["assigned_at"]
    assert "by zoe" in await page(datasette)


async def test_the_history_is_bounded(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignments, "HISTORY_ROWS", 3)
    datasette = await start()
    for model_id in ["heron", "pelican", "heron", "pelican", "heron"]:
        await post(datasette, purpose="chat", model_id=model_id)

    past = (await shown(datasette))["history"]

    assert [each["model_id"] for each in past] == ["heron", "pelican", "heron"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"purpose": "chat", "model_id": "heron"}, "it is blocked. Remove it from plugins."),
    ({"purpose": "chat", "model_id": "stork"}, "it is not on the allowlist"),
    ({"purpose": "chat", "model_id": "gone"}, "Unknown model: 'gone'"),
    ({"purpose": "chat", "model_id": "half \ud83d"}, "not on the allowlist"),
    ({"purpose": "nothing", "model_id": "pelican"}, "Unknown purpose: nothing"),
    ({"purpose": "nothing", "reset": True}, "Unknown purpose: nothing"),
    ({"purpose": "x" * 50_000, "model_id": "pelican"}, "Unknown purpose: xxx"),
    ({"model_id": "pelican"}, "Give purpose"),
    ({"purpose": "", "model_id": "pelican"}, "Give purpose"),
    ({"purpose": "chat"}, "Give either model,"),
    ({"purpose": "chat", "model_id": ""}, "Give either model,"),
    ({"purpose": "chat", "model_id": "pelican", "reset": True}, "Give either model,"),
    ({}, "Give either model,"),
    ({"purpose": "chat", "model_id": ["pelican"]}, "model_id: expected text"),
    ({"purpose": "chat", "model_id": 7}, "model_id: expected text"),
]


@pytest.mark.parametrize(("fields", "why"), REFUSED)
async def test_invalid_choice_is_refused_with_reason(
    start: Start, fields: dict[str, Any], why: str
) -> None:
    config = {"models": ["pelican", "heron"], "purposes": {"chat": {"blocked_models": ["heron"]}}}
    datasette = await start(config)

    answer = await post(datasette, 400, **fields)

    assert (answer["ok"], answer["status"]) == (False, 400)
    assert why in answer["error"]
    assert len(answer["error"]) < 1_000
    assert (await shown(datasette))["history"] == []


async def test_a_browser_sees_the_reason_on_the_page(start: Start) -> None:
    datasette = await start({"models": ["pelican"], "purposes": {"chat": {}}})

    response = await submitted(datasette, purpose="chat", model_id="heron")

    assert response.status_code == 400
    assert 'role="alert"' in response.text
    assert "is not on the allowlist" in response.text
    assert "Choose a model" in response.text


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b"\xff", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"purpose=\xff&model_id=heron", FORM),
        (b"", FORM),
        (b"", "multipart/form-data"),
    ],
)
async def test_a_body_that_is_none_is_refused(start: Start, body: bytes, kind: str) -> None:
    datasette = await start()

    response = await datasette.client.post(
        ASSIGN, content=body, headers={"content-type": kind}, actor=ANA
    )

    assert response.status_code == 400
    assert response.json()["error"]


async def test_lone_surrogate_cannot_be_assigned(start: Start, plugin: Callable[..., Any]) -> None:
    plugin(Registers(Purpose("odd \ud83d", "\udc00")))
    datasette = await start()

    answer = await post(datasette, 400, purpose="chat", model_id="half \ud83d")
    assert "not valid Unicode" in answer["error"]
    answer = await post(datasette, 400, purpose="odd \ud83d", model_id="heron")
    assert "not valid Unicode" in answer["error"]
    assert "odd ?" in await page(datasette)


async def test_hostile_names_stay_text(start: Start, plugin: Callable[..., Any]) -> None:
    plugin(Registers(Purpose(HOSTILE, HOSTILE)), name=HOSTILE)
    plugin(Chooser(), name=f"{HOSTILE} too")
    datasette = await start()
    await post(datasette, purpose=HOSTILE, model_id=HOSTILE)
    cookie = (await submitted(datasette, purpose=HOSTILE, model_id=HOSTILE)).cookies["ds_messages"]

    cookies = {"ds_messages": cookie, "ds_actor": datasette.client.actor_cookie(ANA)}
    text = (await datasette.client.get(PAGE, cookies=cookies)).text

    assert "<img" not in text
    assert (
        text.count(html.escape(HOSTILE).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")) > 8
    )
    refusal = await submitted(datasette, purpose=f"{HOSTILE}x", model_id="heron")
    assert "<img" not in refusal.text


class Chooser:
    """A plugin with a hook that chooses."""

    @hookimpl
    def llm_default_model(self) -> None:
        return None


@pytest.mark.parametrize("purpose", ["", "a/b?c=d#e", "x" * 5_000, "."])
async def test_any_name_can_be_assigned_and_reset(
    start: Start, plugin: Callable[..., Any], purpose: str
) -> None:
    plugin(Registers(Purpose(purpose)))
    datasette = await start()

    response = await submitted(datasette, purpose=purpose, model_id="heron")
    assert response.status_code == 303
    assert len(response.headers["set-cookie"]) < 4_000
    assert (await row(datasette, purpose))["resolves_to"] == "heron"
    assert (await submitted(datasette, purpose=purpose, reset="true")).status_code == 303
    assert (await row(datasette, purpose))["resolves_to"] == "pelican"


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"blocked_models": ["heron"]}, "it is blocked"),
        ({"models": ["pelican"]}, "it is not on the allowlist"),
    ],
)
async def test_disallowed_choice_is_shown_as_ignored(
    start: Start, config: dict[str, Any], why: str
) -> None:
    datasette = await start()
    await post(datasette, purpose="chat", model_id="heron")
    datasette.config["plugins"]["datasette-llm"] |= config

    found = await row(datasette)

    assert (found["resolves_to"], found["assignment"]["model_id"]) == ("pelican", "heron")
    assert why in found["assignment"]["ignored_because"]
    assert "is ignored: Model" in html.unescape(await page(datasette))
    back = await post(datasette, purpose="chat", reset=True)
    assert back["resolves_to"] == "pelican"


async def test_choice_of_missing_model_is_ignored(start: Start) -> None:
    datasette = await start()
    await instance.of(datasette, Assignments).assign(datasette, "chat", "gone", "ana")

    assert "Unknown model: 'gone'" in (await row(datasette))["assignment"]["ignored_because"]


async def test_a_purpose_that_is_gone_can_only_go_back(start: Start) -> None:
    datasette = await start()
    await instance.of(datasette, Assignments).assign(datasette, "gone", "heron", "ana")

    await post(datasette, 400, purpose="gone", model_id="pelican")
    assert (await post(datasette, purpose="gone", reset=True))["resolves_to"] == "pelican"
    assert [each["purpose"] for each in (await shown(datasette))["purposes"]] == ["chat"]


async def test_concurrent_assignments_in_history(start: Start, tmp_path: Path) -> None:
    datasette = await start(internal=str(tmp_path / "internal.db"))
    choices = [("ana", "heron"), ("zoe", "pelican")] * 5

    answers = await asyncio.gather(
        *[post(datasette, actor={"id": i}, purpose="chat", model_id=m) for i, m in choices]
    )

    assert all(answer["ok"] for answer in answers)
    payload = await shown(datasette)
    past = [(each["actor_id"], each["model_id"]) for each in payload["history"]]
    assert sorted(past) == sorted(choices)
    assert payload["purposes"][0]["resolves_to"] == past[0][1]
    await datasette.invoke_shutdown()


async def test_unwritable_database_changes_nothing(start: Start, tmp_path: Path) -> None:
    datasette = await start(internal=str(tmp_path / "internal.db"))

    def refuse(connection: sqlite3.Connection) -> None:
        connection.execute("pragma query_only = on")

    await datasette.get_internal_database().execute_write_fn(refuse, transaction=False)

    answer = await post(datasette, 503, purpose="chat", model_id="heron")
    assert "cannot be written, so nothing has changed: attempt to write" in answer["error"]
    response = await submitted(datasette, purpose="chat", model_id="heron")
    assert response.status_code == 503
    assert "nothing has changed" in response.text
    assert (await row(datasette))["resolves_to"] == "pelican"
    await datasette.invoke_shutdown()


async def test_without_its_table_the_page_says_why(start: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "internal.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("create table llm_assignments (other text)")
        connection.commit()
    datasette = await start({**NO_CALLS, "purposes": {"chat": {}}}, internal=path)

    assert "already exists" in (await shown(datasette))["warnings"][0]
    assert "already exists" in await page(datasette)
    assert (
        "already exists" in (await post(datasette, 503, purpose="chat", model_id="heron"))["error"]
    )
    await datasette.invoke_shutdown()


# In a terminal


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A function that runs a command of `datasette llm`, with a config where there is one."""
    config = {"default_model": "pelican", "purposes": {"chat": {}}, "blocked_models": ["stork"]}

    def run(*arguments: str, ours: Any = config) -> click.testing.Result:
        path = tmp_path / "datasette.yaml"
        path.write_text(yaml.safe_dump({"plugins": {"datasette-llm": ours}}))
        words = ["llm", *arguments, "-c", str(path)]
        return click.testing.CliRunner().invoke(cli, words)

    return run


def test_command_assigns_and_prints_result(run: Run, tmp_path: Path) -> None:
    path = str(tmp_path / "internal.db")

    assert run("assign", "chat", "grey", "--internal", path).output == (
        f"Purpose chat now uses heron.\nWritten to {path}, which is new.\n"
    )
    assert run("purposes", "--internal", path).output == "chat: heron (assignment)\n"
    assert json.loads(run("assign", "chat", "pelican", "--internal", path, "--json").output) == {
        "ok": True,
        "purpose": "chat",
        "model_id": "pelican",
        "resolves_to": "pelican",
        "rule": "assignment",
        "refused_by": None,
    }
    assert run("assign", "chat", "--reset", "--internal", path).output == (
        "Purpose chat is back to the configuration: it uses pelican "
        f"(plugins.datasette-llm.default_model).\nWritten to {path}.\n"
    )
    payload = json.loads(run("purposes", "--internal", path, "--json").output)
    assert [each["model_id"] for each in payload["history"]] == [None, "pelican", "heron"]
    assert payload["last_until_restart"] is False


@pytest.mark.parametrize("ours", [None, {}])
async def test_command_keeps_running_sites_tables(run: Run, tmp_path: Path, ours: object) -> None:
    """A command on the internal database of a running site removes nothing of it."""
    path, harbour = str(tmp_path / "internal.db"), tmp_path / "harbour.db"
    with closing(sqlite3.connect(harbour)) as connection:
        connection.execute("create table ships (name text)")
    databases = {"harbour": {"queries": {"one": {"sql": "select 1"}}}}
    site = Datasette([str(harbour)], internal=path, config={"databases": databases})
    await site.invoke_startup()
    tables = "select * from catalog_columns", "select * from queries", "select * from column_types"
    with closing(sqlite3.connect(path)) as connection:
        before = [connection.execute(table).fetchall() for table in tables]
        await asyncio.to_thread(run, "models", "--internal", path, ours=ours)
        assert before == [connection.execute(table).fetchall() for table in tables]
        assert before[0]
        assert before[1]
    await site.invoke_shutdown()


@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        (["chat", "stork"], 1, "it is blocked"),
        (["chat", "gone"], 1, "Unknown model: 'gone'"),
        (["nothing", "heron"], 1, "Unknown purpose: nothing"),
        (["chat"], 2, "Give either a MODEL, or --reset"),
        (["chat", "heron", "--reset"], 2, "Give either a MODEL, or --reset"),
    ],
)
def test_the_command_refuses_with_the_reason(
    run: Run, tmp_path: Path, words: list[str], status: int, why: str
) -> None:
    path = str(tmp_path / "internal.db")

    result = run("assign", *words, "--internal", path)

    assert (result.exit_code, result.stdout) == (status, "")
    assert why in " ".join(result.stderr.split())
    result = run("assign", *words, "--internal", path, "--json")
    assert result.exit_code == status
    if status == 1:
        assert why in json.loads(result.stdout)["error"]


def test_command_requires_internal_database(run: Run) -> None:
    result = run("assign", "chat", "heron")

    assert result.exit_code == 2
    assert "Give --internal: without it the choice would be lost at once" in result.stderr


def test_command_shows_problems_and_escapes_names(run: Run, tmp_path: Path) -> None:
    path = str(tmp_path / "internal.db")
    run("assign", "chat", "heron", "--internal", path)
    ours = {"models": ["pelican"], "purposes": {"chat": {}, "\x1b[31mred": {"model": "gone"}}}

    lines = run("purposes", "--internal", path, ours=ours).output.splitlines()

    assert (
        lines[0] == '\ufffd[31mred: gone (plugins.datasette-llm.purposes["\\u001b[31mred"].model)'
    )
    assert lines[1].startswith("  Unknown model: 'gone'")
    assert lines[2] == "chat: no model"
    assert lines[3].startswith("  Ignores heron, which was chosen ")
    assert lines[4].startswith("  There is no default model")


def test_command_without_purposes_says_so(run: Run) -> None:
    result = run("purposes", ours={})

    assert result.output == "No plugin registers a purpose, and the configuration has none\n"


# Many purposes, pages of purposes, and filters


class Refuses:
    """A filter that does not let an actor use some models."""

    def __init__(self, *model_ids: str, error: Exception | None = None) -> None:
        self.model_ids, self.error, self.actors = model_ids, error, []

    @hookimpl
    def llm_filter_models(self, models, actor):
        self.actors.append(actor)
        if self.error:
            raise self.error
        return [model for model in models if model.model_id not in self.model_ids]


async def test_p7_filters_are_asked_for_who_assigns(start: Start, plugin) -> None:
    """The menu names the plugin beside the models that it refuses; a choice of one is warned of."""
    asked = plugin(Refuses("heron"))
    datasette = await start()

    text = await page(datasette)

    assert {(actor or {}).get("id") for actor in asked.actors} == {"ana"}
    assert (
        '<optgroup label="The plugin Refuses does not let you use"><option value="heron">' in text
    )
    answer = await post(datasette, purpose="chat", model_id="heron")
    assert (answer["ok"], answer["refused_by"]) == (True, "Refuses")
    assert "The plugin Refuses does not let you use it." in await page(datasette)
    assert (await post(datasette, purpose="chat", model_id="pelican"))["refused_by"] is None


async def test_p7_failing_filter_breaks_no_menu(start: Start, plugin) -> None:
    plugin(Refuses(error=ValueError("no")))
    datasette = await start()
    assert '<option value="heron">' in await page(datasette)


async def test_p7_three_thousand_purposes(start: Start) -> None:
    """They come in pages, and can be searched and sorted; each has a page of its own."""
    names = [f"purpose {number:04}" for number in range(3_000)]
    datasette = await start({"default_model": "pelican", "purposes": {name: {} for name in names}})

    async def listed(status: int = 200, **arguments: str) -> Any:
        query = urlencode(arguments)
        path = f"/-/llm/purposes.json?{query}"
        response = await datasette.client.get(path, actor=ANA)
        assert response.status_code == status, response.text
        return response.json()

    first = await listed()
    assert (first["known"], first["pages"], len(first["purposes"])) == (3_000, 60, 50)
    last = await listed(page="60", sort="-purpose")
    assert last["purposes"][-1]["purpose"] == "purpose 0000"
    found = await listed(q="2999")
    assert [row["purpose"] for row in found["purposes"]] == ["purpose 2999"]
    assert (await listed(page="61"))["purposes"] == []
    for wrong in ({"sort": "colour"}, {"page": "0"}, {"page": "x" * 5_000}):
        assert "expected" in (await listed(400, **wrong))["error"]
    text = (await datasette.client.get("/-/llm/purposes?page=2", actor=ANA)).text
    assert "Page 2 of 60" in text
    own = await datasette.client.get("/-/llm/purposes/purpose~202999", actor=ANA)
    assert own.status_code == 200
    assert "purpose 2999" in own.text


async def test_p7_choice_on_a_purposes_page(start: Start) -> None:
    """It leads back there, and the page has its history and no other."""
    datasette = await start()
    fields = {"purpose": "chat", "model": "heron", "back": "purpose"}
    answer = await datasette.client.post(ASSIGN, data=fields, headers=BROWSER, actor=ANA)
    assert (answer.status_code, answer.headers["location"]) == (303, "/-/llm/purposes/chat")
    own = (await datasette.client.get("/-/llm/purposes/chat.json", actor=ANA)).json()
    assert [each["model_id"] for each in own["history"]] == ["heron"]
    assert own["purpose"]["resolves_to"] == "heron"
    for actor in (None, {"id": "ben"}):
        for twin in ("", ".json"):
            path = f"/-/llm/purposes/chat{twin}"
            assert (await datasette.client.get(path, actor=actor)).status_code == 403
    assert (await datasette.client.get("/-/llm/purposes/none", actor=ANA)).status_code == 404
