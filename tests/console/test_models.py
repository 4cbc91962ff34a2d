"""The page of the models, its JSON, and `datasette llm models`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llm
import llm.plugins
import pytest
import yaml
from click.testing import CliRunner
from datasette import hookimpl
from datasette.app import Datasette
from datasette.cli import cli

from datasette_llm import LLM, Purpose
from datasette_llm.console.models import matching, models
from datasette_llm.providers.names import provider_of
from datasette_llm.testing import ScriptedModel

from ..support.call_log import flushed_rows
from ..support.console import (
    ANA,
    CONSOLE,
    HOSTILE,
    KEY,
    Page,
    Start,
    assert_framed,
    assert_gated,
    assert_harmless,
    get,
    get_json,
    store,
)

pytestmark = pytest.mark.usefixtures("no_own_purpose")


@pytest.fixture
def birds(register_models: Callable[..., None]) -> None:
    """A model without a key, and one with."""
    register_models(
        ScriptedModel("heron", supports_tools=False, attachment_types=("image/png", "audio/wav")),
        ScriptedModel("pelican", needs_key="bird", key_env_var="BIRD_TOKEN", can_stream=False),
    )


async def row_of(datasette: Datasette, model_id: str, **arguments: str) -> Any:
    rows = (await get_json(datasette, "models", **arguments))["models"]
    return next(row for row in rows if row["model_id"] == model_id)


async def test_only_those_who_manage_llm_see_the_models(start: Start, birds) -> None:
    await assert_gated(start, "models", "pelican")


async def test_half_a_character_in_an_id_spoils_no_page(start: Start, register_models) -> None:
    register_models(ScriptedModel("half \ud83d"))
    response = await (await start()).client.get("/-/llm/models", actor={"id": "ana"})
    assert response.status_code == 200
    assert "half ?" in response.text


async def test_every_known_model_is_listed_once(start: Start, birds) -> None:
    datasette = await start({"models": ["heron"]})

    rows = (await get_json(datasette, "models"))["models"]

    names = [row["model_id"] for row in rows]
    assert len(names) == len(set(names))
    known = {(item.async_model or item.model).model_id for item in llm.get_models_with_aliases()}
    assert set(names) == known
    page = await get(datasette, "models")
    assert all(f">{name}</a>" in page.text for name in names)


async def test_what_a_model_can_do_is_told(start: Start, birds) -> None:
    datasette = await start()

    heron, pelican = [await row_of(datasette, name) for name in ("heron", "pelican")]

    assert (heron["streams"], heron["schemas"], heron["tools"]) == (True, True, False)
    assert heron["attachments"] == ["audio/wav", "image/png"]
    assert (pelican["streams"], pelican["attachments"]) == (False, [])
    assert "audio/wav, image/png" in (await get(datasette, "models", q="heron")).text


async def test_sync_model_is_marked_as_threaded(start: Start, birds) -> None:
    datasette = await start()

    row = await row_of(datasette, "gpt-3.5-turbo-instruct")

    assert (row["threaded"], row["state"], row["provider"]) == (True, "no-key", "OpenAI")
    assert row["aliases"] == ["3.5-instruct", "chatgpt-instruct"]
    assert not (await row_of(datasette, "heron"))["threaded"]
    said = "runs in a thread: it has no async version"
    assert said in (await get(datasette, "models", q="3.5-instruct")).text
    assert said not in (await get(datasette, "models", q="heron")).text


@pytest.mark.parametrize(
    ("config", "purpose", "rule"),
    [
        ({}, "", None),
        ({"models": ["pelican"]}, "", "allowlist"),
        ({"blocked_models": ["heron"]}, "", "blocklist"),
        ({"purposes": {"chat": {"blocked_models": ["heron"]}}}, "", None),
        ({"purposes": {"chat": {"blocked_models": ["heron"]}}}, "chat", "blocklist"),
        ({"models": ["pelican"], "purposes": {"chat": {"models": ["heron"]}}}, "chat", None),
    ],
)
async def test_removal_rule_is_the_same_as_in_explain(
    start: Start, birds, config: object, purpose: str, rule: str | None
) -> None:
    datasette = await start(config)

    row = await row_of(datasette, "heron", purpose=purpose)
    decision = await LLM(datasette).explain("heron", purpose or None)

    assert (row["state"] == "available") is decision.available
    assert (row["refusal"] or {}).get("rule") == rule
    if rule:
        assert row["refusal"]["detail"] == decision.reason
        page = Page((await get(datasette, "models", purpose=purpose, q="heron")).text)
        assert FOLDS[rule] in page.text


FOLDS = {"allowlist": "1 model not on the allowlist", "blocklist": "1 model blocked by plugins."}
KEYS = [
    ("nothing", "missing", None),
    ("variable", "environment", "environment variable BIRD_TOKEN"),
    ("keys.json", "keys.json", "llm's keys.json, as bird"),
    ("table", "secret", "encrypted secret BIRD_API_KEY"),
    (
        "secret variable",
        "secret environment",
        "environment variable DATASETTE_SECRETS_BIRD_API_KEY",
    ),
]


@pytest.mark.parametrize(("how", "source", "place"), KEYS, ids=[how for how, *_ in KEYS])
async def test_key_source_is_shown_but_not_the_key(
    start: Start, birds, llm_folder: Path, monkeypatch, how: str, source: str, place: str | None
) -> None:
    datasette = await start()
    match how:
        case "variable":
            monkeypatch.setenv("BIRD_TOKEN", KEY)
        case "keys.json":
            (llm_folder / "keys.json").write_text(json.dumps({"bird": KEY}))
        case "table":
            await store(datasette, "BIRD_API_KEY")
        case "secret variable":
            monkeypatch.setenv("DATASETTE_SECRETS_BIRD_API_KEY", KEY)

    row = await row_of(datasette, "pelican")
    page = await get(datasette, "models", q="pelican")
    twin = await get(datasette, "models.json", q="pelican")
    own = await get(datasette, "models/pelican")

    assert (row["key"]["source"], row["key"]["place"]) == (source, place)
    assert row["state"] == ("no-key" if how == "nothing" else "available")
    assert KEY not in page.text
    assert KEY not in twin.text
    assert any((place or "missing") in cell for cell in Page(page.text).cells)
    assert KEY not in own.text
    settable = "/-/secrets/BIRD_API_KEY" in Page(own.text).links()
    assert settable is (how != "secret variable")
    assert [row["model_id"] for row in (await get_json(datasette, "models", key=source))["models"]]


@pytest.mark.parametrize(
    "site", [{"may": ("manage-llm",)}, {"plugins": {}}], ids=["no permission", "no encryption key"]
)
async def test_no_link_if_secret_cannot_be_set(start: Start, birds, site: dict[str, Any]) -> None:
    datasette = await start(**site)

    page = Page((await get(datasette, "models", q="pelican")).text)

    assert not [link for link in page.links() if "/-/secrets/" in link]
    assert "BIRD_API_KEY" in page.text
    assert (await get_json(datasette, "models"))["secret_pages"] == {}


async def test_secret_link_is_page_of_datasette_secrets(start: Start, birds) -> None:
    datasette = await start()
    address = (await get_json(datasette, "models"))["secret_pages"]["BIRD_API_KEY"]

    response = await datasette.client.get(address, actor=ANA)

    assert response.status_code == 200
    assert "BIRD_API_KEY" in response.text


async def test_the_default_of_the_purpose_is_marked(start: Start, birds) -> None:
    datasette = await start({"default_model": "heron", "purposes": {"chat": {"model": "pelican"}}})

    assert (await row_of(datasette, "heron"))["default"]
    assert (await row_of(datasette, "pelican", purpose="chat"))["default"]
    assert not (await row_of(datasette, "heron", purpose="chat"))["default"]


async def test_filter_hooks_are_mentioned_not_called(start: Start, birds, plugin) -> None:
    datasette = await start()
    assert "asks them" not in (await get(datasette, "models")).text

    class Filter:
        @hookimpl
        def llm_filter_models(self):
            raise AssertionError("asked")

    plugin(Filter())
    page = await get(datasette, "models")

    assert "Plugins may hide further models from some actors" in page.text
    assert f"{CONSOLE}/explain" in Page(page.text).links()


ROWS = [
    {
        "model_id": name,
        "aliases": [alias],
        "provider": provider,
        "state": state,
        "key": {"source": "missing"},
    }
    for name, alias, provider, state in [
        ("gpt-4o", "4o", "OpenAI", "no-key"),
        ("claude", "Sonnet", "Anthropic", "available"),
    ]
]


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ({}, ["gpt-4o", "claude"]),
        ({"q": "GPT"}, ["gpt-4o"]),
        ({"q": "sonnet anthropic"}, ["claude"]),
        ({"q": "sonnet openai"}, []),
        ({"provider": "OpenAI"}, ["gpt-4o"]),
        ({"provider": "Open"}, []),
        ({"availability": "available"}, ["claude"]),
        ({"key": "missing", "q": "4o"}, ["gpt-4o"]),
        ({"key": "secret"}, []),
    ],
)
def test_search_matches_all_criteria(search: dict[str, str], found: list[str]) -> None:
    assert [row["model_id"] for row in matching(ROWS, **search)] == found


async def test_the_form_keeps_what_was_searched_for(start: Start, birds) -> None:
    datasette = await start()
    search = {
        "q": "pel",
        "purpose": "any & all",
        "provider": "datasette-llm",
        "availability": "no-key",
        "key": "missing",
        "sort": "-price",
    }

    page = Page((await get(datasette, "models", **search)).text)

    assert page.form() == search
    (twin,) = [link for link in page.links() if link.startswith(f"{CONSOLE}/models.json")]
    found = (await datasette.client.get(twin, actor=ANA)).json()
    assert (found["filter"], [row["model_id"] for row in found["models"]]) == (search, ["pelican"])


@pytest.mark.parametrize("name", ["availability", "key", "sort"])
async def test_unknown_menu_value_keeps_the_form(start: Start, birds, name: str) -> None:
    datasette = await start()

    page = Page((await get(datasette, "models", 400, q="heron", **{name: HOSTILE})).text)
    twin = await get_json(datasette, "models", 400, **{name: "x"})

    assert page.form()["q"] == "heron"
    assert f"{name}: expected one of" in page.text
    assert (twin["ok"], twin["models"]) == (False, [])
    assert_harmless(page)


async def test_purposes_and_plugin_failure_are_shown(start: Start, birds, plugin) -> None:
    class Purposes:
        @hookimpl
        def register_llm_purposes(self):
            if fails:
                raise ValueError(HOSTILE)
            return [Purpose("summaries")]

    fails = False
    plugin(Purposes())
    datasette = await start({"purposes": {"chat": {}}})
    assert (await get_json(datasette, "models"))["choices"]["purpose"] == ["summaries", "chat"]

    fails = True
    page = Page((await get(datasette, "models")).text)

    assert HOSTILE in page.text
    assert_harmless(page)


async def test_hostile_text_stays_text(start: Start, register_models) -> None:
    model = ScriptedModel(HOSTILE, needs_key=HOSTILE, attachment_types=(HOSTILE,))
    register_models(model)
    datasette = await start({"blocked_models": [HOSTILE]})

    page = Page((await get(datasette, "models", q="img", purpose=HOSTILE)).text)

    assert_harmless(page)
    assert HOSTILE in page.cells[0]
    (link,) = [link for link in page.links() if link.startswith(f"{CONSOLE}/models/")]
    own = Page((await datasette.client.get(link, actor=ANA)).text)
    assert HOSTILE in own.text
    assert_harmless(own)
    (link,) = [link for link in own.links() if link.startswith(f"{CONSOLE}/explain?")]
    assert HOSTILE in Page((await datasette.client.get(link, actor=ANA)).text).text


async def test_links_respect_base_url(start: Start, birds) -> None:
    datasette = await start(settings={"base_url": "/prefix/"})

    for page in ("models", "explain?model=pelican&purpose=x", "keys"):
        await assert_framed(datasette, f"{CONSOLE}/{page}")


async def test_keys_are_read_once_for_all_models(
    start: Start, register_models, monkeypatch
) -> None:
    register_models(*[ScriptedModel(f"bird-{n}", needs_key="bird") for n in range(100)])
    datasette = await start()
    await models(datasette)
    reads = []
    database = datasette.get_internal_database()
    execute_fn = database.execute_fn

    async def counted(work):
        reads.append(work)
        return await execute_fn(work)

    monkeypatch.setattr(database, "execute_fn", counted)

    assert len((await models(datasette))["models"]) > 100
    assert len(reads) == 1


@pytest.mark.parametrize(
    ("attributes", "provider"),
    [
        ({"needs_key": "anthropic"}, "Anthropic"),
        ({"needs_key": "anthropic", "api_base": "https://x.example"}, "Anthropic"),
        ({"needs_key": "openai", "api_base": "http://me:pw@127.0.0.1:9/v1"}, "127.0.0.1:9"),
        ({"api_base": "http://[broken"}, "datasette-llm"),
        ({"needs_key": "bird"}, "datasette-llm"),
        ({}, "datasette-llm"),
    ],
)
def test_provider_is_host_key_issuer_or_plugin(attributes: dict[str, str], provider: str) -> None:
    model = ScriptedModel("x", needs_key=attributes.get("needs_key"))
    model.api_base = attributes.get("api_base")

    assert provider_of(model) == provider


# The command


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    """A function that runs `datasette llm` with our configuration and some arguments."""

    def run(config: object, *arguments: str) -> Any:
        path = tmp_path / "datasette.yaml"
        path.write_text(yaml.safe_dump({"plugins": {"datasette-llm": config}}))
        return CliRunner().invoke(cli, ["llm", *arguments, "-c", str(path)])

    return run


def test_the_command_lists_what_the_page_lists(run, birds) -> None:
    config = {"blocked_models": ["heron"], "default_model": "pelican"}

    plain = run(config, "models", "datasette-llm")
    as_json = run(config, "models", "--json", "--key", "missing", "--provider", "datasette-llm")

    assert plain.exit_code == 0
    assert plain.stdout.startswith("heron: not allowed\n    datasette-llm; streams, schemas, att")
    assert "Remove it from plugins.datasette-llm.blocked_models" in plain.stdout
    (row,) = json.loads(as_json.stdout)["models"]
    assert (row["model_id"], row["default"]) == ("pelican", True)
    assert "key: set BIRD_API_KEY" in run(config, "models", "pelican").stdout


def test_command_escapes_control_characters(run, register_models) -> None:
    register_models(ScriptedModel("pel\x1b[31mican"))

    assert "\x1b" not in run({}, "models", "pel").stdout


# Use, order and pages of models


async def test_p7_usable_first_the_rest_folded(start: Start, birds) -> None:
    datasette = await start({"blocked_models": ["heron"], "models": ["heron", "pelican", "echo"]})

    found = await get_json(datasette, "models")
    page = Page((await get(datasette, "models")).text)

    folds = [row["fold"] for row in found["models"]]
    assert (found["models"][0]["model_id"], folds[0]) == ("echo", None)
    assert folds[1:] == sorted(folds[1:])
    texts = [each["text"] for each in found["folded"]]
    assert [each["count"] for each in found["folded"]] == [
        folds.count(number) for number in range(len(texts))
    ]
    assert "1 model without a key: set BIRD_API_KEY" in texts
    assert "1 model blocked by plugins.datasette-llm.blocked_models" in texts
    assert all(text in page.text for text in texts)
    assert len([each for each in page.all("details") if "open" in each]) == 0


@pytest.mark.parametrize(
    ("sort", "first"),
    [
        ("-calls", "pelican"),
        ("calls", "heron"),
        ("-failures", "pelican"),
        ("-model", "pelican"),
        ("latency", "heron"),
        ("price", "heron"),
    ],
)
async def test_p7_sorted_within_its_part(start: Start, register_models, sort, first) -> None:
    """Those without a value come last, whichever the direction."""
    register_models(
        ScriptedModel("heron", ["x"]),
        ScriptedModel("pelican", ["x"], [llm.ModelError("no")]),
        ScriptedModel("unused"),
    )
    config = {
        "models": ["unused", "pelican", "heron"],
        "retries": 0,
        "log": {"prices": {"heron": {"input": 1, "output": 2}}},
    }
    datasette = await start(config, may=("manage-llm", "view-llm-log"))
    for name in ("heron", "pelican", "pelican"):
        try:
            response = await (await LLM(datasette).model(name)).prompt("x")
            await response.text()
        except llm.ModelError:
            pass

    await flushed_rows(datasette)
    rows = (await get_json(datasette, "models", sort=sort, availability="available"))["models"]
    by_id = {row["model_id"]: row for row in rows}

    values = {"calls": ("calls",), "failures": ("failures",), "latency": ("median_ms",)}
    for name in values.get(sort.removeprefix("-"), ()):
        assert by_id["unused"]["figures"][name] in (0, None)
    ranked = [row["model_id"] for row in rows if row["model_id"] != "unused"]
    if sort != "latency":
        assert ranked[0] == first
    page = Page((await get(datasette, "models", sort=sort, availability="available")).text)
    assert [each["aria-sort"] for each in page.all("th") if each.get("aria-sort")] == [
        "descending" if sort.startswith("-") else "ascending"
    ]


async def test_p7_price_and_context_are_shown(start: Start, register_models) -> None:
    """A configured price comes first; a model that may be self-hosted needs its exact name."""
    register_models(*[ScriptedModel(name) for name in ("gpt-4o", "o3", "my-gpt-4o")])
    datasette = await start({"log": {"prices": {"o3": {"input": 7, "output": 0.5}}}})

    rows = {row["model_id"]: row for row in (await get_json(datasette, "models"))["models"]}

    assert rows["gpt-4o"]["price"] == {
        "input_dollars": 2.5,
        "output_dollars": 10.0,
        "source": "genai-prices openai/gpt-4o",
    }
    assert rows["gpt-4o"]["context_window"] == 128_000
    assert rows["o3"]["price"]["source"] == "configuration"
    assert rows["my-gpt-4o"]["price"]["source"] is None
    page = Page((await get(datasette, "models", q="gpt-4o")).text)
    assert {"$2.50 / $10.00", "128k"} <= {cell.strip() for cell in page.cells}


@pytest.mark.parametrize(
    "model_id", ["org/a.b:c~d", "x y?&#", "ümläut", HOSTILE, "m" * 3_000], ids=range(5)
)
async def test_p7_each_model_has_a_page(start: Start, register_models, model_id: str) -> None:
    register_models(ScriptedModel(model_id, needs_key="bird"))
    datasette = await start(
        {
            "default_model": model_id,
            "purposes": {"chat": {}, "sql": {"blocked_models": [model_id]}},
        },
        settings={"base_url": "/prefix/"},
    )
    page = Page((await get(datasette, "models", q=model_id[:20])).text)
    (link,) = [link for link in page.links() if link.startswith("/prefix/-/llm/models/")]
    address = link.removeprefix("/prefix")

    own = Page((await datasette.client.get(address, actor=ANA)).text)
    assert_harmless(own)
    twin = (await datasette.client.get(f"{address}.json", actor=ANA)).json()

    assert twin["model"]["model_id"] == model_id
    assert twin["purposes"]["default_of"] == ["chat", "sql"]
    assert twin["purposes"]["refused_for"] == ["sql"]
    assert [each["label"] for each in twin["places"]] == [
        "environment variable DATASETTE_SECRETS_BIRD_API_KEY",
        "encrypted secret BIRD_API_KEY",
        "llm's keys.json, as bird",
    ]
    assert "llm keys set bird" in own.text
    for actor in (None, {"id": "ben"}):
        for twin_of in ("", ".json"):
            refused = await datasette.client.get(address + twin_of, actor=actor)
            assert refused.status_code == 403


async def test_p7_unknown_model_is_not_found(start: Start, birds) -> None:
    datasette = await start()
    assert (await datasette.client.get(f"{CONSOLE}/models/gone", actor=ANA)).status_code == 404
    assert (await datasette.client.get(f"{CONSOLE}/models/gone.json", actor=ANA)).status_code == 404


async def test_p7_five_hundred_models(start: Start, register_models) -> None:
    register_models(*[ScriptedModel(f"bird-{n}", needs_key="bird") for n in range(500)])
    datasette = await start()
    page = Page((await get(datasette, "models")).text)
    assert "500 models without a key: set BIRD_API_KEY" in page.text
