"""Which key a prompt uses, which models have one, and that no message holds one."""

import asyncio
import dataclasses
import itertools
import json
import re
import sqlite3
import threading
import traceback
import urllib.parse
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasette_secrets
import httpx2
import llm
import pytest
from cryptography.fernet import Fernet
from datasette import hookimpl
from datasette.app import Datasette
from datasette.database import Database

from datasette_llm import LLM
from datasette_llm.access.keys import KeyStatus, find_key, provider_secret, read_status
from datasette_llm.redaction import REDACTED, redact, without_key
from datasette_llm.testing import ScriptedModel
from tests.support.call_log import flushed_rows
from tests.support.exceptions import all_texts

ENCRYPTION_KEY = Fernet.generate_key().decode()
SECRETS = {"datasette-secrets": {"encryption-key": ENCRYPTION_KEY}}
KEY = "sk-" + "0123456789abcdef"


@pytest.fixture
def pelican(register_models: Callable[..., None]) -> ScriptedModel:
    """A model that needs a key."""
    model = ScriptedModel("pelican", needs_key="bird", key_env_var="BIRD_TOKEN")
    register_models(model)
    return model


@pytest.fixture
def make_started(make_datasette: Callable[..., Datasette]) -> Callable[..., Awaitable[Datasette]]:
    """A function that makes a started Datasette, whose encrypted table can hold secrets."""

    async def make(config: object = None) -> Datasette:
        datasette = make_datasette(config, plugins=SECRETS)
        await datasette.invoke_startup()
        return datasette

    return make


async def store(datasette: Datasette, name: str, key: str, encryption_key: str = "") -> None:
    """Store a secret with the form at /-/secrets."""
    encrypted = Fernet((encryption_key or ENCRYPTION_KEY).encode()).encrypt(key.encode())
    await datasette.get_internal_database().execute_write(
        "insert into datasette_secrets (name, encrypted, encryption_key_name) values (?, ?, ?)",
        [name, encrypted, "default"],
    )


async def used(datasette: Datasette) -> list[tuple[str, bool, str | None]]:
    """For each stored secret: its name, whether it was used, and who used it last."""
    rows = await datasette.get_internal_database().execute(
        "select name, last_used_at is not null, last_used_by from datasette_secrets order by id"
    )
    return [tuple(row) for row in rows.rows]


# The order of the places


EVERY_REFERENCE = {
    "models": [{"model": "pelican", "key": "LIST_KEY"}],
    "default_model": {"model": "pelican", "key": "DEFAULT_KEY"},
    "purposes": {
        "chat": {
            "model": {"model": "pelican", "key": "CHAT_KEY"},
            "models": [{"model": "pelican", "key": "CHAT_LIST_KEY"}],
        },
        "other": {"models": [{"model": "pelican", "key": "OTHER_KEY"}]},
    },
}
# The places where the key of a prompt for the purpose "chat" is looked for, the first one first.
PLACES = [
    ("secret in the environment", "CHAT_LIST_KEY"),
    ("secret in the table", "CHAT_LIST_KEY"),
    ("secret in the environment", "CHAT_KEY"),
    ("secret in the table", "CHAT_KEY"),
    ("secret in the environment", "LIST_KEY"),
    ("secret in the table", "LIST_KEY"),
    ("secret in the environment", "DEFAULT_KEY"),
    ("secret in the table", "DEFAULT_KEY"),
    ("secret in the environment", "BIRD_API_KEY"),
    ("secret in the table", "BIRD_API_KEY"),
    ("keys.json", "bird"),
    ("environment", "BIRD_TOKEN"),
    ("model", "pelican"),
]


@pytest.mark.parametrize("first", range(len(PLACES)), ids=[" ".join(place) for place in PLACES])
async def test_key_comes_from_the_first_place(
    make_started, pelican, llm_folder: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    datasette = await make_started(EVERY_REFERENCE)
    for number, (place, name) in enumerate(PLACES[first:], first):
        if place == "secret in the environment":
            monkeypatch.setenv(f"DATASETTE_SECRETS_{name}", f"key-{number}")
        elif place == "secret in the table":
            await store(datasette, name, f"key-{number}")
        elif place == "keys.json":
            (llm_folder / "keys.json").write_text(json.dumps({name: f"key-{number}"}))
        elif place == "environment":
            monkeypatch.setenv(name, f"key-{number}")
        else:
            monkeypatch.setattr(pelican, "key", f"key-{number}")

    model = await LLM(datasette).model("pelican", purpose="chat")
    await (await model.prompt("hi")).text()

    assert pelican.calls[0].key == f"key-{first}"
    assert "pelican" in {m.model_id for m in await LLM(datasette).models(purpose="chat")}


@pytest.mark.parametrize(
    ("purpose", "key"),
    [(None, "default"), ("chat", "chat"), ("other", "other"), ("unheard of", "default")],
)
async def test_the_key_of_another_purpose_is_never_used(
    make_datasette, pelican, monkeypatch: pytest.MonkeyPatch, purpose: str | None, key: str
) -> None:
    for name in ("CHAT", "OTHER", "DEFAULT"):
        monkeypatch.setenv(f"DATASETTE_SECRETS_{name}_KEY", name.lower())
    models = LLM(make_datasette(EVERY_REFERENCE))

    await (await models.model("pelican", purpose=purpose)).prompt("hi")

    assert pelican.calls[0].key == key


async def test_reference_by_alias_gives_its_key(
    make_datasette, pelican, llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (llm_folder / "aliases.json").write_text('{"big": "pelican"}')
    monkeypatch.setenv("DATASETTE_SECRETS_TEAM_KEY", "the team's")
    models = LLM(make_datasette({"default_model": {"model": "big", "key": "TEAM_KEY"}}))

    await (await models.model("pelican")).prompt("hi")

    assert pelican.calls[0].key == "the team's"


@pytest.mark.parametrize(
    ("given", "used_key"),
    [("sk-given", "sk-given"), (" sk-given\n", "sk-given")],
    ids=["a key", "a pasted key"],
)
async def test_a_key_that_the_caller_gives_wins(
    make_datasette,
    pelican,
    llm_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: str,
    used_key: str,
) -> None:
    monkeypatch.setenv("DATASETTE_SECRETS_BIRD_API_KEY", "the secret")
    (llm_folder / "keys.json").write_text('{"work": "sk-of-work", "bird": "sk-of-bird"}')
    model = await LLM(make_datasette()).model("pelican")

    await (await model.prompt("hi", key=given)).text()

    assert pelican.calls[0].key == used_key


class Resolves(llm.AsyncKeyModel):
    """Looks up the key that it is given, as llm's models do, when a key of this name has come."""

    model_id = "resolves"
    needs_key = "bird"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: list[str | None] = []

    async def execute(self, prompt: Any, stream: Any, response: Any, conversation: Any, key: Any):
        self.path.write_text(json.dumps({str(key): "sk-stored"}))
        self.keys += [self.get_key(key), llm.get_key(key, "bird"), llm.get_key(input=key)]
        yield f"Bearer {key}"


async def test_s4_name_that_appears_selects_no_key(
    make_datasette, register_models, llm_folder: Path
) -> None:
    """Not in llm's own code either, which takes a key for a name."""
    model = Resolves(llm_folder / "keys.json")
    register_models(model)
    ours = await LLM(make_datasette()).model("resolves")

    assert await (await ours.prompt("hi", key="work")).text() == "Bearer work"
    assert model.keys == ["work"] * 3

    with pytest.raises(llm.NeedsKeyException, match="is the name of a stored key"):
        await ours.prompt("hi", key="work")
    assert model.keys == ["work"] * 3


async def test_s4_unreadable_secrets_refuse_no_key(make_datasette, pelican, monkeypatch) -> None:
    async def unreadable(datasette: Datasette) -> KeyStatus:
        raise sqlite3.DatabaseError("file is not a database")

    monkeypatch.setattr("datasette_llm.access.keys.read_status", unreadable)
    model = await LLM(make_datasette({"require_keys": False})).model("pelican")

    await (await model.prompt("hi", key="sk-given")).text()

    assert pelican.calls[0].key == "sk-given"


# Names of keys


@pytest.fixture
def named(make_started, pelican, llm_folder: Path, monkeypatch) -> Callable[[], Awaitable[Any]]:
    """A function that gives the model of a site with a key in each place."""

    async def make() -> Any:
        config = {"purposes": {"chat": {"model": {"model": "pelican", "key": "CHAT_KEY"}}}}
        datasette = await make_started(config)
        monkeypatch.setenv("DATASETTE_SECRETS_BIRD_API_KEY", "sk-provider")
        await store(datasette, "CHAT_KEY", "sk-chat")
        (llm_folder / "keys.json").write_text('{"work": "sk-work"}')
        return await LLM(datasette).model("pelican")

    return make


@pytest.mark.parametrize(
    ("name", "key"),
    [("BIRD_API_KEY", "sk-provider"), ("CHAT_KEY", "sk-chat"), ("work", "sk-work")],
)
async def test_e12_key_name_selects_a_stored_key(named, pelican, name: str, key: str) -> None:
    model = await named()

    response = await model.prompt("hi", key_name=name)
    await (await response.reply("And?")).text()
    await model.chain("hi", key_name=name).text()
    await (await model.conversation().prompt("hi", key_name=name)).text()
    await model.conversation().chain("hi", key_name=name).text()
    assert [call.key for call in pelican.calls] == [key] * 5

    await (await response.reply("And?", key_name="work")).text()
    await (await response.reply("And?", key="sk-other", key_name=None)).text()
    assert [call.key for call in pelican.calls[5:]] == ["sk-work", "sk-other"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nonsense", "The key 'nonsense' is unknown. key_name= takes the name of a secret that"),
        ("FOREIGN", "The key 'FOREIGN' is unknown."),
        ("OPENAI_API_KEY", "The key 'OPENAI_API_KEY' is not set. Set it at /-/secrets/OPENAI_"),
        ("", "The key '' is unknown."),
    ],
)
async def test_e12_unknown_key_name_is_refused(
    named, pelican, plugin, monkeypatch, name: str, reason: str
) -> None:
    class Registers:
        @hookimpl
        def register_secrets(self) -> Any:
            return [datasette_secrets.Secret("FOREIGN")]

    plugin(Registers())
    monkeypatch.setenv("DATASETTE_SECRETS_FOREIGN", "of another plugin")
    model = await named()

    with pytest.raises(llm.NeedsKeyException, match=re.escape(reason)):
        await model.prompt("hi", key_name=name)
    assert not pelican.calls


@pytest.mark.parametrize("name", ["BIRD_API_KEY", "CHAT_KEY", "work", " work\n"])
async def test_s4_name_given_as_key_is_refused(named, pelican, name: str) -> None:
    model = await named()
    reason = "What the caller passed as key= is the name of a stored key, and not a key. Pass a key"
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    conversation = model.conversation()
    started = [
        lambda: model.prompt("hi", key=name),
        lambda: conversation.prompt("hi", key=name),
        lambda: model.chain("hi", key=name).text(),
        lambda: model.structured("hi", schema=schema, key=name),
    ]

    for start in started:
        with pytest.raises(llm.NeedsKeyException, match=f"^{reason}, or the name as key_name=$"):
            await start()

    assert not pelican.calls


@pytest.mark.parametrize("arguments", [{"key": "sk", "key_name": "work"}, {"key_name": 7}])
async def test_e12_key_name_excludes_key(named, pelican, arguments: dict[str, Any]) -> None:
    model = await named()

    with pytest.raises(TypeError, match="key_name= is the name of a stored key"):
        await model.prompt("hi", **arguments)


# White space, and what no header can have


def put(place: str, key: str, llm_folder: Path, monkeypatch, pelican) -> dict[str, str]:
    """Set a key in a place; what to give to a prompt."""
    match place:
        case "key=":
            return {"key": key}
        case "'bird' in llm's keys.json":
            (llm_folder / "keys.json").write_text(json.dumps({"bird": key}))
        case "its llm plugin":
            monkeypatch.setattr(pelican, "key", key)
        case variable:
            monkeypatch.setenv(variable.rpartition(" ")[2], key)
    return {}


HELD_BY = [
    "key=",
    "the environment variable DATASETTE_SECRETS_BIRD_API_KEY",
    "'bird' in llm's keys.json",
    "the environment variable BIRD_TOKEN",
    "its llm plugin",
]


@pytest.mark.parametrize("place", HELD_BY)
async def test_e7_keys_are_stripped(
    make_datasette, pelican, llm_folder: Path, monkeypatch, place: str
) -> None:
    given = put(place, f" {KEY}\r\n", llm_folder, monkeypatch, pelican)
    model = await LLM(make_datasette()).model("pelican")

    await (await model.prompt("hi", **given)).text()

    assert pelican.calls[0].key == KEY


@pytest.mark.parametrize("place", HELD_BY[1:])
async def test_e7_white_space_is_no_key(
    make_datasette, pelican, llm_folder: Path, monkeypatch, place: str
) -> None:
    put(place, " \n", llm_folder, monkeypatch, pelican)
    models = LLM(make_datasette())

    assert "pelican" not in {model.model_id for model in await models.models()}
    with pytest.raises(llm.NeedsKeyException, match="No key for model"):
        await (await models.model("pelican")).prompt("hi")


@pytest.mark.parametrize("odd", ["\n", "\x00", "\x7f", "é", "\u2028", "\ud800"])
@pytest.mark.parametrize("place", HELD_BY)
async def test_e7_unsendable_key_is_refused(
    make_datasette, pelican, llm_folder: Path, monkeypatch, caplog, place: str, odd: str
) -> None:
    if "environment" in place and odd in "\x00\ud800":
        return  # it has no such characters
    key = f"sk-012345{odd}6789abcdef"
    given = put(place, key, llm_folder, monkeypatch, pelican)
    datasette = make_datasette()
    model = await LLM(datasette).model("pelican")

    with pytest.raises(llm.NeedsKeyException) as raised:
        await model.prompt("hi", **given)

    assert "characters that an HTTP header cannot have" in str(raised.value)
    assert f"It comes from {place.replace('key=', 'what the caller passed as key=')}; set it " in (
        str(raised.value)
    )
    recorded = await flushed_rows(datasette)
    assert len(recorded) == 1
    assert not pelican.calls
    assert "sk-012345" not in all_texts(raised.value) + caplog.text + str(recorded)


async def test_e7_model_without_header_gets_any_key(make_datasette, register_models) -> None:
    """One that names no key is in this process."""
    model = ScriptedModel("local")
    register_models(model)

    await (await (await LLM(make_datasette()).model("local")).prompt("hi", key="clé")).text()

    assert model.calls[0].key == "clé"


async def test_e7_keyless_endpoint_gets_a_header(make_datasette) -> None:
    endpoint = {"model": "near", "api_base": "http://127.0.0.1:9/v1"}
    model = await LLM(make_datasette({"endpoints": [endpoint]})).model("near")

    with pytest.raises(llm.NeedsKeyException, match="HTTP header"):
        await model.prompt("hi", key="clé")


async def test_an_empty_key_counts_as_none(
    make_datasette, pelican, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATASETTE_SECRETS_BIRD_API_KEY", "the secret")
    model = await LLM(make_datasette()).model("pelican")

    await (await model.prompt("hi", key="")).text()

    assert pelican.calls[0].key == "the secret"


async def test_model_without_key_is_prompted_directly(
    make_datasette, register_models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that needs no key is prompted without looking for one."""
    free = ScriptedModel("free")
    register_models(free)
    model = await LLM(make_datasette()).model("free")
    monkeypatch.setattr(datasette_secrets, "get_secret", None)
    monkeypatch.setattr(llm, "load_keys", None)

    await (await model.prompt("hi")).text()

    assert free.calls[0].key is None


async def test_model_that_ignores_keys_accepts_one(make_datasette) -> None:
    model = await LLM(make_datasette()).model("echo")

    response = await model.prompt("hi", key="sk-given")

    assert "hi" in await response.text()


async def test_key_is_never_set_on_the_shared_model(
    make_datasette, pelican, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is never set on llm's model object, which others share."""
    monkeypatch.setenv("DATASETTE_SECRETS_BIRD_API_KEY", "the secret")
    model = await LLM(make_datasette()).model("pelican")

    await asyncio.gather(*[model.prompt("hi", key=f"key-{n}") for n in range(5)])

    assert pelican.key is None
    assert model.key is None
    assert sorted(call.key for call in pelican.calls) == [f"key-{n}" for n in range(5)]


# No key


async def test_missing_key_error_lists_all_places(make_datasette, pelican) -> None:
    reference = {"model": "pelican", "key": "TEAM_KEY"}
    model = await LLM(make_datasette({"default_model": reference})).model()

    with pytest.raises(llm.NeedsKeyException) as raised:
        await model.prompt("hi")

    assert str(raised.value) == (
        "No key for model 'pelican'. Set one in any of: "
        "the secret TEAM_KEY at /-/secrets/TEAM_KEY, "
        "the secret BIRD_API_KEY at /-/secrets/BIRD_API_KEY, "
        "the environment variable DATASETTE_SECRETS_TEAM_KEY, "
        "the environment variable DATASETTE_SECRETS_BIRD_API_KEY, "
        "'llm keys set bird', "
        "the environment variable BIRD_TOKEN"
    )
    assert pelican.calls == []


async def test_secret_of_another_encryption_key(make_started, pelican) -> None:
    """A secret that was stored with another encryption key gives an error of its own."""
    datasette = await make_started()
    await store(datasette, "BIRD_API_KEY", KEY, Fernet.generate_key().decode())
    model = await LLM(datasette).model("pelican")

    with pytest.raises(llm.NeedsKeyException) as raised:
        await model.prompt("hi")

    assert str(raised.value) == (
        "The secret BIRD_API_KEY was stored with another encryption key and cannot be read; "
        "set it again at /-/secrets/BIRD_API_KEY"
    )


@pytest.mark.parametrize("content", ["{not json", "[]", "null", ""])
async def test_malformed_keys_json_has_no_keys(
    make_datasette, pelican, llm_folder: Path, content: str
) -> None:
    (llm_folder / "keys.json").write_text(content)

    listed = {model.model_id for model in await LLM(make_datasette()).models()}

    assert "echo" in listed
    assert "pelican" not in listed


@pytest.mark.parametrize("content", ["{not json", "[]", "null", ""])
async def test_malformed_keys_json_is_named_in_error(
    make_datasette, pelican, llm_folder: Path, content: str
) -> None:
    """A prompt that needs a key from a malformed keys.json has the file in its error."""
    (llm_folder / "keys.json").write_text(content)
    model = await LLM(make_datasette()).model("pelican")

    with pytest.raises(llm.NeedsKeyException, match=r"keys\.json"):
        await model.prompt("hi")


@pytest.mark.parametrize("content", ["{not json", "[]", "null", ""])
async def test_explicit_key_ignores_malformed_keys_json(
    make_datasette, pelican, llm_folder: Path, content: str
) -> None:
    (llm_folder / "keys.json").write_text(content)
    model = await LLM(make_datasette()).model("pelican")

    await (await model.prompt("hi", key="sk-given")).text()

    assert pelican.calls[0].key == "sk-given"


async def test_secret_ignores_malformed_keys_json(
    make_datasette, pelican, llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (llm_folder / "keys.json").write_text("{not json")
    monkeypatch.setenv("DATASETTE_SECRETS_BIRD_API_KEY", "the secret")
    model = await LLM(make_datasette()).model("pelican")

    await (await model.prompt("hi")).text()

    assert pelican.calls[0].key == "the secret"


# Listing, and using


async def test_listing_and_using_agree_on_keys(
    make_started, pelican, llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasette = await make_started()
    some, any_value = [None, "a key"], [None, "", "a key"]
    for case in itertools.product(any_value, some, any_value, any_value, some):
        in_environment, in_table, in_json, in_own_variable, on_model = case
        set_or_delete(monkeypatch, "DATASETTE_SECRETS_BIRD_API_KEY", in_environment)
        set_or_delete(monkeypatch, "BIRD_TOKEN", in_own_variable)
        await datasette.get_internal_database().execute_write("delete from datasette_secrets")
        if in_table:
            await store(datasette, "BIRD_API_KEY", in_table)
        keys = {} if in_json is None else {"bird": in_json}
        (llm_folder / "keys.json").write_text(json.dumps(keys))
        monkeypatch.setattr(pelican, "key", on_model)

        source = (await read_status(datasette)).source(pelican, ())
        try:
            key = await find_key(datasette, pelican, explicit=None, secret_names=(), actor=None)
        except llm.NeedsKeyException:
            key = None

        assert key == ("a key" if "a key" in case else None), case
        assert (source is None) == (key is None), case


def set_or_delete(monkeypatch: pytest.MonkeyPatch, name: str, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv(name, raising=False)
    else:
        monkeypatch.setenv(name, value)


async def test_listing_neither_writes_nor_decrypts(
    make_started, pelican, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasette = await make_started()
    await store(datasette, "BIRD_API_KEY", KEY)
    monkeypatch.setattr(Fernet, "decrypt", None)
    monkeypatch.setattr(Database, "execute_write", None)
    models = LLM(datasette)

    listed = {model.model_id for model in await models.models()}
    decision = await models.explain("pelican")
    await models.model("pelican")

    assert "pelican" in listed
    assert decision.listed
    assert await used(datasette) == [("BIRD_API_KEY", False, None)]


async def test_listing_reads_the_secrets_once(
    make_started, register_models, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_models(*[ScriptedModel(f"m{n}", needs_key=f"provider-{n}") for n in range(20)])
    datasette = await make_started()
    for number in range(20):
        await store(datasette, f"PROVIDER_{number}_API_KEY", KEY)
    reads: list[Any] = []

    def counted(read: Callable[..., Any]) -> Callable[..., Any]:
        async def counting(self: Database, *args: Any, **kwargs: Any) -> Any:
            reads.append(args)
            return await read(self, *args, **kwargs)

        return counting

    for way in ("execute", "execute_fn"):
        monkeypatch.setattr(Database, way, counted(getattr(Database, way)))
    listed = {model.model_id for model in await LLM(datasette).models()}

    assert {f"m{n}" for n in range(20)} <= listed
    assert len(reads) == 1


@pytest.mark.parametrize("actor", [None, {"id": "simon"}, {"name": "no id"}])
async def test_using_a_key_records_time_and_actor(
    make_started, pelican, actor: dict[str, str] | None
) -> None:
    datasette = await make_started()
    await store(datasette, "BIRD_API_KEY", KEY)
    await store(datasette, "OTHER_API_KEY", KEY)
    model = await LLM(datasette).model("pelican", actor=actor)

    await (await model.prompt("hi")).text()

    who = (actor or {}).get("id")
    assert await used(datasette) == [("BIRD_API_KEY", True, who), ("OTHER_API_KEY", False, None)]
    assert pelican.calls[0].key == KEY


@pytest.mark.parametrize(
    ("source", "detail"),
    [
        ("DATASETTE_SECRETS_BIRD_API_KEY", "Model 'pelican' has a key (secret environment)"),
        ("BIRD_TOKEN", "Model 'pelican' has a key (environment)"),
    ],
)
async def test_decision_names_the_source_of_the_key(
    make_datasette, pelican, monkeypatch: pytest.MonkeyPatch, source: str, detail: str
) -> None:
    """A decision has the kind of place that the key is from, and not the key."""
    monkeypatch.setenv(source, KEY)

    decision = await LLM(make_datasette()).explain("pelican")

    assert [step.detail for step in decision.steps if step.rule == "key"] == [detail]
    assert KEY not in repr(decision)


async def test_a_key_set_between_two_calls_is_seen(
    make_datasette, pelican, llm_folder: Path
) -> None:
    models = LLM(make_datasette())
    assert "pelican" not in {model.model_id for model in await models.models()}

    (llm_folder / "keys.json").write_text('{"bird": "sk-new"}')

    assert "pelican" in {model.model_id for model in await models.models()}
    await (await models.model("pelican")).prompt("hi")
    assert pelican.calls[0].key == "sk-new"


async def test_c8_keys_json_is_read_off_the_event_loop(
    make_datasette, pelican, llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (llm_folder / "keys.json").write_text('{"bird": "sk-stored"}')
    threads: list[int] = []
    load_keys = llm.load_keys

    def noted() -> dict[str, str]:
        threads.append(threading.get_ident())
        return load_keys()

    monkeypatch.setattr(llm, "load_keys", noted)
    models = LLM(make_datasette())
    await models.models()
    model = await models.model("pelican")
    await (await model.prompt("hi")).text()
    with pytest.raises(llm.NeedsKeyException, match="key_name="):
        await model.prompt("hi", key="bird")
    await (await model.prompt("hi", key_name="bird")).text()
    await model.chain("hi").text()

    assert len(threads) == 5
    assert threading.get_ident() not in threads


def test_a_status_holds_names_only() -> None:
    assert set(KeyStatus.__slots__) == {"secrets", "stored"}


# What /-/secrets lists


async def test_secrets_of_providers_and_configuration(make_datasette, pelican) -> None:
    """datasette-secrets lists secrets for the installed providers and the configured names."""
    datasette = make_datasette(EVERY_REFERENCE)

    secrets = {secret.name: secret for secret in await datasette_secrets.get_secrets(datasette)}

    openai = secrets["OPENAI_API_KEY"]
    assert openai.description == "API key for OpenAI models"
    assert openai.obtain_url == "https://platform.openai.com/api-keys"
    assert openai.obtain_label == "Get a key from OpenAI"
    assert secrets["BIRD_API_KEY"].description == "API key for bird models"
    assert secrets["BIRD_API_KEY"].obtain_url is None
    custom = ["DEFAULT_KEY", "CHAT_KEY", "CHAT_LIST_KEY", "OTHER_KEY"]
    assert {secrets[name].description for name in custom} == {
        "API key named in the datasette-llm configuration"
    }


async def test_secrets_need_the_manage_permission(make_started, pelican) -> None:
    """Secrets are shown to actors who may manage them."""
    datasette = await make_started({"default_model": {"model": "pelican", "key": "TEAM_KEY"}})
    datasette.root_enabled = True

    page = await datasette.client.get("/-/secrets", actor={"id": "root"})

    assert page.status_code == 200
    assert "https://platform.openai.com/api-keys" in page.text
    assert "BIRD_API_KEY" in page.text
    assert "TEAM_KEY" in page.text
    assert (await datasette.client.get("/-/secrets")).status_code == 403


@pytest.mark.parametrize(
    ("needs_key", "name"),
    [
        ("openai", "OPENAI_API_KEY"),
        ("echo-needs-key", "ECHO_NEEDS_KEY_API_KEY"),
        ("acme.ai v2", "ACME_AI_V2_API_KEY"),
    ],
)
def test_provider_secret_name(needs_key: str, name: str) -> None:
    assert provider_secret(needs_key) == name


# No message holds a key


class ProviderError(Exception):
    def __init__(self, message: str, body: object = None) -> None:
        super().__init__(message)
        self.body = body


class FixedTextError(Exception):
    """Its text cannot be changed from outside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._parts = iter(())  # nothing that can be searched
        self._text = lambda: text

    def __str__(self) -> str:
        return self._text()


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    text: str


def with_note(error: Exception, note: str) -> Exception:
    error.add_note(note)
    return error


def caused(error: Exception, cause: Exception, attribute: str = "__cause__") -> Exception:
    setattr(error, attribute, cause)
    return error


class SlottedError(Exception):
    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        super().__init__("refused")
        self.text = text


LEAKS: dict[str, Callable[[str], Exception]] = {
    "its arguments": lambda text: ValueError("refused", text),
    "bytes in its arguments": lambda text: ValueError(text.encode()),
    "lists in its arguments": lambda text: ValueError([text, (text,)]),
    "a note": lambda text: with_note(ValueError("refused"), text),
    "an attribute": lambda text: ProviderError("refused", text),
    "a mapping in an attribute": lambda text: ProviderError("refused", {"error": {text: [text]}}),
    "its cause": lambda text: caused(ValueError("refused"), ValueError(text)),
    "its context": lambda text: caused(ValueError("refused"), ValueError(text), "__context__"),
    "the cause of its cause": lambda text: caused(
        ValueError("refused"), caused(ValueError("refused"), ProviderError("refused", text))
    ),
    "a group's member": lambda text: ExceptionGroup("refused", [ValueError(text)]),
    "a group's message": lambda text: ExceptionGroup(text, [ValueError("refused")]),
    "a group in a group": lambda text: ExceptionGroup(
        "refused", [ExceptionGroup("refused", [ValueError(text)])]
    ),
    "text that cannot be changed": FixedTextError,
    "an OSError's text": lambda text: OSError(111, text),
    "an OSError's file name": lambda text: OSError(2, "No such file", text),
    "a frozen error": FrozenError,
    "the text that cannot be encoded": lambda text: UnicodeEncodeError(
        "ascii", f"{text}é", len(text), len(text) + 1, "ordinal not in range(128)"
    ),
    "the bytes that cannot be decoded": lambda text: UnicodeDecodeError(
        "ascii", text.encode(), 1, 2, "ordinal not in range(128)"
    ),
    "a slot": SlottedError,
    "the line of a syntax error": lambda text: SyntaxError("bad", ("f.py", 1, 2, text)),
    "the value of an iterator": StopIteration,
    "a bytearray": lambda text: ProviderError("refused", bytearray(text.encode())),
    "a set": lambda text: ProviderError("refused", {text}),
    "an object of a client": lambda text: ProviderError("refused", SimpleNamespace(key=text)),
    "a mapping of another type": lambda text: ProviderError("refused", Counter([text])),
    "an exception in an attribute": lambda text: ProviderError("refused", ValueError(text)),
    "a cause whose text cannot be changed": lambda text: caused(
        ValueError("refused"), FixedTextError(text)
    ),
    "a cause that is an OSError": lambda text: caused(ValueError("refused"), OSError(111, text)),
    "a cause that is a group": lambda text: caused(
        ValueError("refused"), ExceptionGroup(text, [ValueError("refused")])
    ),
}


@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS)
def test_key_is_removed_from_exceptions(leak: Callable[[str], Exception]) -> None:
    """A key is removed from every part of an exception."""
    try:
        raise leak(f"Incorrect API key provided: {KEY}. Check it.")
    except Exception as error:
        clean = redact(error, KEY)

    everything = [str(clean), repr(clean), repr(vars(clean)), *traceback.format_exception(clean)]
    everything += [repr(getattr(clean, name, None)) for name in dir(clean)]
    assert KEY not in "\n".join(everything)
    assert isinstance(clean, Exception)


@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS)
def test_exception_without_key_is_unchanged(leak: Callable[[str], Exception]) -> None:
    error = leak("Rate limit reached")
    before = traceback.format_exception(error)

    assert redact(error, KEY) is error
    assert traceback.format_exception(error) == before


@pytest.mark.parametrize("key", [None, "", "x", "short"])
def test_placeholder_key_does_not_garble_messages(key: str | None) -> None:
    error = ValueError("x is too short")

    assert redact(error, key) is error
    assert str(error) == "x is too short"


def test_self_referential_exception_is_handled() -> None:
    """An exception that is its own context causes no endless loop."""
    first, second = ValueError(KEY), ValueError("second")
    first.__context__, second.__context__ = second, first

    assert KEY not in str(redact(first, KEY))


def test_exception_with_broken_str_is_unchanged() -> None:
    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    error = UnprintableError("refused")

    assert redact(error, KEY) is error


async def test_key_in_a_provider_message_is_removed(
    make_datasette, register_models, plugin, caplog: pytest.LogCaptureFixture
) -> None:
    failing = ScriptedModel("failing", ["One ", ProviderError(f"bad key {KEY}", {"key": KEY})])
    register_models(failing)
    model = await LLM(make_datasette()).model("failing")
    response = await model.prompt("hi", key=KEY)

    with pytest.raises(ProviderError) as raised:
        await response.text()

    assert str(raised.value) == "bad key [key removed]"
    assert KEY not in repr(vars(raised.value)) + caplog.text + repr(model) + repr(response)


def test_key_is_removed_from_http_messages() -> None:
    request = httpx2.Request(
        "POST", f"http://127.0.0.1/?key={KEY}", headers={"Authorization": f"Bearer {KEY}"}
    )
    response = httpx2.Response(401, text=f"bad key {KEY}", request=request)
    assert KEY in response.text
    error = httpx2.HTTPStatusError("refused", request=request, response=response)

    assert redact(error, KEY) is error
    everything = [
        response.text,
        response.content.decode(),
        str(request.url),
        repr(request),
        str(request.headers["authorization"]),
    ]
    assert KEY not in "".join(everything)


async def test_a_malformed_encryption_key_is_clean(make_datasette, pelican, monkeypatch) -> None:
    plugins = {"datasette-secrets": {"encryption-key": "too short"}}
    datasette = make_datasette(plugins=plugins)
    await datasette.invoke_startup()
    await datasette.get_internal_database().execute_write(
        "insert into datasette_secrets (name, encrypted, encryption_key_name) "
        "values ('BIRD_API_KEY', 'x', 'default')"
    )
    model = await LLM(datasette).model("pelican")
    with pytest.raises(llm.NeedsKeyException, match="encryption-key setting"):
        await model.prompt("hi")


def test_http_error_without_request_is_unchanged() -> None:
    error = httpx2.ReadTimeout("slow")
    assert redact(error, KEY) is error


def test_headers_without_the_key_are_unchanged() -> None:
    cookies = [("Set-Cookie", "a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT"), ("Set-Cookie", "b=2")]
    request = httpx2.Request("POST", "http://127.0.0.1/")
    response = httpx2.Response(429, headers=cookies, request=request)
    error = httpx2.HTTPStatusError(f"refused {KEY}", request=request, response=response)
    before = response.headers.raw
    assert KEY not in str(redact(error, KEY))
    assert response.headers.raw == before


def test_recursive_list_in_exception_is_cleaned() -> None:
    """An exception with a list that contains itself is cleaned too."""
    endless: list[Any] = [KEY]
    endless.append(endless)
    assert KEY not in repr(redact(ValueError(endless), KEY))


@pytest.mark.parametrize(
    "write",
    [
        str,
        json.dumps,
        lambda key: json.dumps(key, ensure_ascii=False),
        lambda key: json.dumps(json.dumps({"key": key})),
        lambda key: urllib.parse.quote(key, safe=""),
        urllib.parse.quote_plus,
        lambda key: re.sub("%..", lambda code: code[0].lower(), urllib.parse.quote_plus(key)),
    ],
)
@pytest.mark.parametrize("key", ["sk/0123+456=", 'sk "0\\12é34', "sk-\n0123456", "sk-plain.key_1~"])
def test_key_is_found_in_every_spelling(key, write):
    assert without_key(f"({write(key)})", key).count(REDACTED) == 1
    error = redact(ValueError(f"({write(key)})"), key)
    assert write(key).strip('"') not in str(error)


@pytest.mark.parametrize("key", [None, "", "short"])
def test_what_is_no_key_is_not_looked_for(key):
    assert without_key("a short text", key) == "a short text"


async def test_replaced_error_does_not_chain_the_key(make_datasette, register_models) -> None:
    """The exception with the key is not the context of the error in its place."""
    register_models(ScriptedModel("failing", [FixedTextError(f"bad key {KEY}")]))
    model = await LLM(make_datasette()).model("failing")

    with pytest.raises(llm.ModelError) as raised:
        await model.prompt("hi", key=KEY)

    assert (raised.value.__cause__, raised.value.__context__) == (None, None)


def test_key_is_removed_from_request_stream() -> None:
    request = httpx2.Request("POST", "http://127.0.0.1/", json={"prompt": KEY})
    redact(httpx2.ConnectError(f"refused {KEY}", request=request), KEY)

    assert KEY.encode() not in request.content + b"".join(request.stream)  # type: ignore[arg-type]
