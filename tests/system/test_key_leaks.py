"""Keys are planted wherever they can stand, every path that fails is driven, and all is searched.

What openai's and httpx's own loggers write at DEBUG is not ours: they are silent unless someone
turns them on, and they print the requests that they send, headers included.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import logging
import re
import traceback
import urllib.parse
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import click.testing
import llm
import pytest
from cryptography.fernet import Fernet
from datasette.app import Datasette
from datasette.cli import cli
from datasette.telemetry_testing import (
    otel_meter_provider,
    otel_metrics,
    otel_provider,
    otel_spans,
)

from datasette_llm import LLM
from datasette_llm.access.snapshot import snapshot_of
from datasette_llm.config.parse import parse_settings
from datasette_llm.errors import ConfigError, GroupError
from datasette_llm.telemetry import spans as telemetry
from datasette_llm.testing import ScriptedModel

from ..providers.test_sync_adapter import provide
from ..support.openai_server import Drop, OpenAIServer, Refuse
from ..support.plugins import Observer

pytestmark = [
    # The clients of providers leave connections of broken streams to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
FIXTURES = (otel_provider, otel_meter_provider, otel_spans, otel_metrics, provide)

# One for each place, some with what JSON and URLs write in another way.
KEYS = {
    "environment": "sk-environment/A1b2+C3d4E5f6G7h8=",
    "table": "sk-table-9z8y7x6w5v4u3t2s1r",
    "keys.json": 'sk-"file\\9q8w7e6r5t4z3u2i1o',
    "model": "sk-variable-1a2s3d4f5g6h7j8k9l",
    "header": "gateway-token-5p6o7i8u9z0t1r2e3w",
    "explicit": "sk-explicit-4m5n6b7v8c9x0y1a2s",
    "pasted": "sk-proj-0p9o8i7u6z5t4r3e2w1q0a",
}
ANA = {"id": "ana"}
ENCRYPTION_KEY = Fernet.generate_key().decode()
BOUND_S = 20
HTTP_PACKAGES = ("httpx", "openai", "httpcore", "tests")


def spellings(key: str) -> Iterator[str]:
    """How a text may write a key: plain, in JSON, in a URL, in a repr, in hex, in base64."""
    yield from (key.encode().hex(), key.encode().hex().upper())
    yield from (key, json.dumps(key)[1:-1], json.dumps(json.dumps(key)[1:-1])[1:-1])
    yield from (urllib.parse.quote(key, safe=""), urllib.parse.quote_plus(key), repr(key)[1:-1])
    for shift in range(3):  # by where the key begins in what is encoded
        coded = base64.b64encode(b"\0" * shift + key.encode()).decode().rstrip("=")
        yield coded[4 if shift else 0 : -2]


SPELLINGS = {name: {each.encode() for each in spellings(key)} for name, key in KEYS.items()}


def keys_in(text: str | bytes) -> list[str]:
    """The planted keys that a text has in some spelling."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return [name for name, ways in SPELLINGS.items() if any(way in data for way in ways)]


def texts_of(thing: Any, seen: dict[int, Any], levels: int = 7) -> Iterator[str | bytes]:
    """All texts in an exception, what stands behind it, and what it carries along."""
    if isinstance(thing, str | bytes):
        yield thing
    if id(thing) in seen or not levels or isinstance(thing, type):
        return
    seen[id(thing)] = thing
    if isinstance(thing, dict):
        for pair in list(thing.items()):
            yield from texts_of(pair, seen, levels)
    elif isinstance(thing, list | tuple | set | frozenset):
        for each in list(thing):
            yield from texts_of(each, seen, levels - 1)
    elif isinstance(thing, BaseException):
        yield from _said_by(thing)
        behind = [thing.__cause__, thing.__context__, *getattr(thing, "exceptions", ())]
        carried = {name: each for name, each in vars(thing).items() if name != "responses"}
        yield from texts_of([thing.args, carried], seen, levels)
        for each in behind:
            yield from texts_of(each, seen)
    elif type(thing).__module__.partition(".")[0].startswith(HTTP_PACKAGES):
        yield repr(thing)
        yield from texts_of(getattr(thing, "__dict__", None), seen, levels - 1)
        if type(thing).__name__ == "Headers":  # whose repr hides some
            yield from texts_of(thing.raw, seen, levels - 1)


def _said_by(error: BaseException) -> Iterator[str]:
    yield str(error)
    yield repr(error)
    yield from traceback.format_exception_only(error)  # with its notes


class Search:
    """Everything that was seen, by where; a key in any of it is a finding."""

    def __init__(self) -> None:
        self.findings: list[str] = []
        self.searched = 0

    def text(self, where: str, *texts: str | bytes) -> None:
        for text in texts:
            self.searched += 1
            for name in keys_in(text):
                shown = text if isinstance(text, str) else text.decode("latin-1")
                at = min((i for s in spellings(KEYS[name]) if (i := shown.find(s)) >= 0), default=0)
                self.findings.append(f"{where}: {name}: …{shown[max(0, at - 80) : at + 90]!r}")

    def error(self, where: str, error: BaseException) -> None:
        self.text(where, *texts_of(error, {}), *traceback.format_exception(error))

    async def failure(self, where: str, work: Awaitable[Any]) -> BaseException:
        """Do what must fail, and look at what it raises."""
        try:
            async with asyncio.timeout(BOUND_S):
                await work
        except BaseException as error:
            self.error(where, error)
            return error
        raise AssertionError(f"{where} did not fail")

    def done(self, least: int) -> None:
        assert not self.findings, "\n".join(self.findings[:20])
        assert self.searched >= least, "little was looked at, so that this proves nothing"


@pytest.fixture
def search() -> Search:
    return Search()


@pytest.fixture
async def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with OpenAIServer() as server:
        yield server


@pytest.fixture
def config(server: OpenAIServer) -> dict[str, Any]:
    """Endpoints whose keys come from each of the places; all is recorded."""

    def endpoint(name: str, **more: Any) -> dict[str, Any]:
        supports = {"supports_schema": True, "supports_tools": True, "retries": 0}
        return {"model": name, "api_base": server.url} | supports | more

    return {
        "endpoints": [
            endpoint("environment", key="PLANTED_ENVIRONMENT"),
            endpoint("table", key="PLANTED_TABLE"),
            endpoint("keys.json", key="planted_file"),
            endpoint("explicit", key="PLANTED_ENVIRONMENT"),
            endpoint("whole", key="PLANTED_ENVIRONMENT", can_stream=False),
            endpoint(
                "header",
                key="PLANTED_ENVIRONMENT",
                headers={
                    "X-Gateway-Token": f"Bearer {KEYS['header']}",
                    "Cookie": KEYS["header"],
                },
            ),
            endpoint("retried", key="PLANTED_ENVIRONMENT", retries=1),
            endpoint("nowhere", key="PLANTED_TABLE", api_base="http://127.0.0.1:9/v1"),
        ],
        "purposes": {"chat": {"models": ["environment", "table"], "model": "environment"}},
        "log": {"content": True},
        "telemetry": {"content": True, "actor": True},
    }


@pytest.fixture
async def site(
    config: dict[str, Any],
    make_datasette: Callable[..., Datasette],
    llm_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Datasette:
    """A started Datasette on a file, with a key planted at each of the places."""
    monkeypatch.setenv("DATASETTE_SECRETS_PLANTED_ENVIRONMENT", KEYS["environment"])
    monkeypatch.setenv("PLANTED_VARIABLE", KEYS["model"])
    (llm_folder / "keys.json").write_text(json.dumps({"planted_file": KEYS["keys.json"]}))
    plugins = {"datasette-secrets": {"encryption-key": ENCRYPTION_KEY}}
    permissions = dict.fromkeys(("manage-llm", "view-llm-log", "manage-secrets"), ANA)
    whole = {"plugins": plugins | {"datasette-llm": config}, "permissions": permissions}
    (tmp_path / "datasette.json").write_text(json.dumps(whole))
    datasette = make_datasette(config, plugins=plugins, internal=str(tmp_path / "internal.db"))
    datasette.config["permissions"] = permissions
    await datasette.invoke_startup()
    encrypted = Fernet(ENCRYPTION_KEY.encode()).encrypt(KEYS["table"].encode())
    await datasette.get_internal_database().execute_write(
        "insert into datasette_secrets (name, encrypted, encryption_key_name) values (?, ?, ?)",
        ["PLANTED_TABLE", encrypted, "default"],
    )
    return datasette


@pytest.fixture
def everything_else(site, search, caplog, tmp_path, otel_spans, otel_metrics):
    """A function that searches what remains of failures: pages, rows, logs, spans, files."""
    for name in ("datasette_llm", "datasette"):
        caplog.set_level(logging.DEBUG, logger=name)

    async def look() -> None:
        await look_at_pages(site, search)
        await look_at_rows(site, search)
        telemetry.flush()
        search.text("spans", *(span.to_json() for span in otel_spans.get_finished_spans()))
        otel_metrics.collect()
        search.text("metrics", repr(otel_metrics.collected))
        await look_at_command(search, tmp_path, "log", "--json", "-n", "0")
        search.text("log", *map(logging.Formatter().format, caplog.records))
        search.text("log", *(repr(vars(each)) for each in caplog.records))
        files = [each for each in tmp_path.glob("internal.db*") if each.is_file()]
        assert files
        search.text("files", *(each.read_bytes() for each in files))

    return look


async def look_at_pages(site: Datasette, search: Search) -> None:
    ids = [row["id"] for row in (await ask(site, "/-/llm/log.json?limit=500"))["rows"]]
    names = ["", "/models", "/purposes", "/test", "/explain", "/keys", "/log"]
    paths = [f"/-/llm{name}{end}" for name in names for end in ("", ".json?model=table")]
    paths += ["/-/llm/explain?model=header&purpose=chat", "/-/llm/log?outcome=error"]
    paths += [f"/-/llm/log/{each}{end}" for each in ids[:10] for end in ("", ".json")]
    for path in (*paths, "/-/llm/log.csv", "/-/secrets", "/-/llm/log.json?limit=500"):
        page = await site.client.get(path, actor=ANA)
        search.text(f"page {path}", page.text, repr(page.headers))


async def ask(site: Datasette, path: str) -> Any:
    answer = await site.client.get(path, actor=ANA)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def look_at_rows(site: Datasette, search: Search) -> None:
    database = site.get_internal_database()
    names = (await database.execute("select name from sqlite_master where type = 'table'")).rows
    for (name,) in names:
        rows = (await database.execute(f"select * from [{name}]")).rows
        search.text(f"table {name}", *(repr(tuple(row)) for row in rows))


async def look_at_command(search: Search, folder: Path, *words: str) -> None:
    options = ["--internal", str(folder / "internal.db")]
    if words[0] != "log":
        options += ["--config", str(folder / "datasette.json")]
    arguments = ["llm", *words, *options]
    result = await asyncio.to_thread(click.testing.CliRunner().invoke, cli, arguments)
    assert result.exit_code in (0, 1), result.output
    search.text(f"datasette llm {words[0]}", result.output, repr(result.exception))


def refusals(key: str) -> Iterator[list[Any]]:
    """What a server may answer, the credentials of the request repeated."""
    echo = {"x-should-retry": "false", "x-echo": f"Bearer {key}", "location": f"/?key={key}"}
    text = f"Bearer {key} is bad: {{key}}, {json.dumps(key)}, {urllib.parse.quote(key, safe='')}"
    text += f", {key.encode().hex()}, Basic {base64.b64encode(f'user:{key}'.encode()).decode()}"
    for status in (400, 401, 403, 404, 408, 409, 422, 429, 500, 503):
        yield [Refuse(status, text, echo)]
    yield ["po", Refuse(429, text)]
    yield [f"data: {{no json {key}\n\n".encode()]
    yield [f'data: {{"choices": "{key}"}}\n\n'.encode()]
    yield ["po", b"data: \xff" + key.encode() + b"\n\n"]
    if key == KEYS["environment"]:
        yield [Drop.CLOSE]  # which the provider's own client may try again, with a pause
    yield ["po", Drop.RESET]


PLACES = ["environment", "table", "keys.json", "explicit", "whole", "header"]


async def prompted(model: Any, text: str = "hi", **kwargs: Any) -> str:
    return await (await model.prompt(text, **kwargs)).text()


async def test_no_key_leaks_from_provider_errors(server, site, search, everything_else) -> None:
    for place in PLACES:
        model = await LLM(site).model(place, actor=ANA)
        explicit = {"key": KEYS["explicit"]} if place == "explicit" else {}
        key = KEYS["environment" if place == "whole" else place]
        # Every call makes a client, which takes its time: all of them for one place.
        scripts = list(refusals(key))[:: 1 if place == "environment" else 4]
        for script in scripts:
            server.play(script)
            # A model that does not stream takes some of these for an answer.
            work = prompted(model, f"my key is {server_key(place)}", **explicit)
            await search.failure(f"{place}: {script}"[:60], stubborn(work))
    assert {request.key for request in server.requests} == {
        KEYS[place] for place in ("environment", "table", "keys.json", "explicit")
    }
    await everything_else()
    search.done(least=600)


def server_key(place: str) -> str:
    """The key that a place's requests carry."""
    return KEYS[place if place in ("table", "keys.json", "explicit") else "environment"]


async def stubborn(work: Awaitable[str]) -> None:
    """Fails also where a broken answer passes for an empty one."""
    await work
    raise ValueError("There was an answer")


async def test_no_key_leaks_from_chains_and_groups(
    server, site, search, everything_else, plugin
) -> None:
    plugin(Observer())
    models = LLM(site)
    for place in ("table", "keys.json", "retried"):
        model = await models.model(place, purpose="x", actor=ANA)
        key = server_key(place)
        refuse = Refuse(400, f"{{key}} {json.dumps(key)} is bad")
        server.play([refuse])
        await search.failure("structured", model.structured("x", schema={"type": "object"}))
        await search.failure("conversation", prompted(model.conversation()))
        chain = model.chain("x", tools=[weather])
        search.text("repr", repr(chain))
        await search.failure("chain", chain.text())
        await search.failure("group", group(models, place, search))
        server.play([llm.ToolCall("weather", {"city": "Paris"}, "1")], ["po", refuse])
        server.requests.clear()
        await search.failure("second step", model.chain("x", tools=[weather]).text())
        # 500 with Retry-After, then another failure: the retried failure leaks nowhere.
        later = {"retry-after": "0", "x-echo": key, "x-should-retry": "false"}
        server.play([Refuse(500, f"Not now, {key}", later)])
        await search.failure("retried", prompted(model))
        server.play(["po", asyncio.Event()])
        await search.failure("cancelled", cancelled(model))
        server.play([refuse])
        await look_at_objects(site, models, model, search)
    await search.failure("nowhere", prompted(await models.model("nowhere", actor=ANA)))
    await everything_else()
    search.done(least=400)


def weather(city: str) -> str:
    """The weather in a city."""
    return "Rain"


async def group(models: LLM, place: str, search: Search) -> None:
    try:
        async with models.group(place, actor=ANA) as model:
            search.text("repr", repr(model))
            for text in ("one", "two"):
                with_failure = asyncio.ensure_future(model.prompt(text))
                await asyncio.wait([with_failure])
                search.error("in a group", with_failure.exception() or ValueError())
            raise ValueError("left by an exception")
    except GroupError as error:
        search.text("GroupError", error.message)
        raise


async def cancelled(model: Any) -> None:
    response = await model.prompt("x")
    reader = asyncio.create_task(response.text())
    await asyncio.sleep(0)
    reader.cancel()
    await reader


async def look_at_objects(site: Datasette, models: LLM, model: Any, search: Search) -> None:
    """What we hand out, or keep, as a debugger or a careless log line shows it."""
    view = await snapshot_of(site)
    conversation = model.conversation()
    response = None
    try:
        response = await conversation.prompt("x")
        await response.text()
    except Exception as error:
        search.error("conversation", error)
    handed = [models, model, conversation, conversation.call, response, view, view.settings]
    handed += [view.catalog, await models.explain(model.model_id)]
    handed += [*view.catalog.entries.values(), view.for_purpose(None), view.for_purpose("chat")]
    handed += [vars(models), *(each.model for each in view.catalog.entries.values())]
    search.text("repr", *map(repr, handed), *map(str, handed))


async def test_no_key_leaks_from_console_and_commands(
    server, site, search, everything_else, tmp_path
) -> None:
    for place in ("environment", "table", "keys.json", "header"):
        server.play([Refuse(401, f"{{key}} and {KEYS[place]} are bad")])
        await try_on_the_page(site, search, {"model_id": place})
        if place in ("table", "header"):
            await look_at_command(search, tmp_path, "test", place)
            await look_at_command(search, tmp_path, "test", place, "--json")
            await look_at_command(search, tmp_path, "prompt", "hi", "-m", place)
        server.play([f"pong {{{server_key(place)}}}"])
        await try_on_the_page(site, search, {"model_id": place})
    server.play([Refuse(403, "{key}")])
    await try_on_the_page(site, search, {"purpose": "chat"})
    for words in (["explain", "table"], ["log"], ["models"], ["purposes"]):
        await look_at_command(search, tmp_path, *words)
    await everything_else()
    search.done(least=200)


async def try_on_the_page(site: Datasette, search: Search, fields: dict[str, str]) -> None:
    html = {"accept": "text/html"}
    for more in ({"json": fields}, {"data": fields, "headers": html}):
        page = await site.client.post("/-/llm/test", actor=ANA, **more)
        assert page.status_code == 200, page.text
        search.text("/-/llm/test", page.text)


class StatusError(Exception):
    """A third-party exception that carries all its arguments."""

    def __init__(self, key: str) -> None:
        super().__init__(f"bad key {key}", {"headers": {"authorization": f"Bearer {key}"}})
        self.key = self.__cause__ = None
        self.request = {"headers": [("authorization", f"Bearer {key}")], "body": key.encode()}
        self.body = [{"error": (key, json.dumps({"key": key}))}]
        self.add_note(f"while {key} was used")


class StubbornError(Exception):
    """One whose texts cannot be changed."""

    def __init__(self, key: str) -> None:
        super().__init__("refused")
        self._text = lambda: f"bad key {key}"

    def __str__(self) -> str:
        return self._text()

    def __repr__(self) -> str:
        return f"StubbornError({self._text()!r})"


def behind(outer: Exception, inner: BaseException, how: str) -> Exception:
    setattr(outer, how, inner)
    return outer


def exceptions(key: str) -> Iterator[Exception]:
    yield StatusError(key)
    yield StubbornError(key)
    yield behind(ValueError("refused"), StatusError(key), "__cause__")
    yield behind(ValueError("refused"), StubbornError(key), "__context__")
    yield behind(behind(ValueError(1), ValueError(2), "__cause__"), OSError(1, key), "__context__")
    yield OSError(2, key, f"/{key}")
    yield UnicodeDecodeError("utf-8", key.encode() + b"\xff", 0, 1, key)
    yield ExceptionGroup(key, [StatusError(key), ExceptionGroup("b", [ValueError(key)])])
    yield KeyError(key)
    yield ValueError([{"a": {("b", key): {key}}}])
    yield llm.ModelError(f"?{urllib.parse.urlencode({'key': key})}")


@pytest.mark.parametrize("chunks", [[], ["One "]], ids=["before", "after"])
async def test_no_key_leaks_from_exceptions_of_models(
    site, search, everything_else, register_models, chunks
) -> None:
    key = KEYS["model"]
    scripts = [[*chunks, each] for each in exceptions(key)]
    names = [f"raising-{number}" for number in range(len(scripts))]
    variable = {"needs_key": "bird", "key_env_var": "PLANTED_VARIABLE"}
    raising = [
        ScriptedModel(name, script, **variable) for name, script in zip(names, scripts, strict=True)
    ]
    register_models(*raising)
    for scripted in raising:
        model = await LLM(site).model(scripted.model_id, actor=ANA)
        await search.failure(repr(scripted.scripts), prompted(model))
        await search.failure(repr(scripted.scripts), group(LLM(site), model.model_id, search))
        await try_on_the_page(site, search, {"model_id": scripted.model_id})
        assert scripted.calls[0].key == key
    await everything_else()
    search.done(least=200)


class Threaded(llm.KeyModel):
    """Without an async version; raises one thing after another, each of which says its key."""

    model_id = "threaded"
    needs_key, key_env_var = "bird", "PLANTED_VARIABLE"
    can_stream = True

    def __init__(self) -> None:
        self.errors = itertools.cycle(exceptions(KEYS["model"]))
        self.keys: list[str | None] = []

    def execute(self, prompt, stream, response, conversation, key):
        self.keys.append(key)
        response.response_json = {"text": key}
        yield from ()
        raise next(self.errors)


@pytest.mark.parametrize("place", ["threaded", "explicit"])
async def test_no_key_leaks_from_retries_and_fallbacks(
    server, config, site, search, everything_else, provide, monkeypatch, place
) -> None:
    """Nor from the thread of a synchronous model."""
    monkeypatch.setattr("datasette_llm.calls.retry.WAIT_INITIAL_S", 0)
    monkeypatch.setattr("datasette_llm.calls.retry.WAIT_JITTER_S", 0)
    threaded = Threaded()
    provide(threaded)
    spare = [{"model": "table", "retries": 1}, {"model": "keys.json", "retries": 0}]
    chat = config["purposes"]["chat"] | {"fallbacks": spare}
    chat["models"] = [{"model": "threaded", "retries": 1}, *chat["models"], "keys.json"]
    site.config["plugins"]["datasette-llm"] = config | {"purposes": {"chat": chat}}
    key = KEYS["model" if place == "threaded" else place]
    explicit = {"key": key} if place == "explicit" else {}
    model_id = place if place == "threaded" else "environment"

    model = await LLM(site).model(model_id, purpose="chat", actor=ANA)
    # The fallbacks also get the key of the requested model, and repeat it.
    echo = {"x-echo": key, "retry-after": "0"}
    refuse = Refuse(500, f"{{key}}, {json.dumps(key)}, {urllib.parse.quote(key, safe='')}", echo)
    for script in ([refuse], [Refuse(401, refuse.message, echo)], [Drop.RESET]):
        server.play(script)
        await search.failure(place, prompted(model, f"my key is {key}", **explicit))
    await try_on_the_page(site, search, {"purpose": "chat"})
    server.play_for(f"my key is {key}", *([refuse] * 3), [f"I know {key}", Drop.CLOSE])
    await search.failure(place, stubborn(prompted(model, f"my key is {key}", **explicit)))
    assert {request.key for request in server.requests} >= {KEYS["table"], KEYS["keys.json"]}
    assert set(threaded.keys) == {KEYS["model"]}
    await everything_else()
    search.done(least=200)


@pytest.mark.parametrize("step", ["before", "after", "cleanup"])
async def test_no_key_leaks_from_failing_hooks(
    server, site, search, everything_else, plugin, step
) -> None:
    def fail(result: Any) -> None:
        # All that a plugin can know is what the provider's error says.
        known = [each for error in hook.errors for each in texts_of(error, {})]
        raise StatusError(f"{result!r} {result.responses!r} {known}")

    hook = plugin(Observer(**{step: fail}))
    model = await LLM(site).model("table", actor=ANA)
    await search.failure(step, prompted(model, key=None))
    server.play(["po", Refuse(500, "{key}")])
    await search.failure(step, prompted(model))
    await try_on_the_page(site, search, {"model_id": "table"})
    await everything_else()
    search.done(least=100)


def wrong_places(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    key = KEYS["pasted"]
    endpoint = config["endpoints"][0]
    for name in itertools.chain(
        config, ["default_model", "models", "fallbacks", "timeout", "keys"]
    ):
        yield {name: key}
        yield {name: [key]}
        yield {name: {key: key}}
        yield {"purposes": {"chat": {name: [key, {"key": key}]}}}
    for name in (*endpoint, "headers", "fallbacks", key):
        yield {"endpoints": [endpoint | {name: key}, endpoint | {name: {key: f"ä{key}"}}]}
        yield {"endpoints": [endpoint | {name: [key]}]}
    yield {"default_model": {"model": "x", "key": key, key: key}}
    yield {"endpoints": [endpoint | {"api_base": f"http://user:{key}@127.0.0.1/v1"}]}
    yield {"endpoints": [endpoint | {"api_base": f"http://127.0.0.1/v1?key={key}"}]}


async def test_no_key_leaks_from_a_failed_startup(
    config, make_datasette, search, caplog, tmp_path
) -> None:
    caplog.set_level(logging.DEBUG)
    refused = 0
    for raw in wrong_places(config):
        try:
            parse_settings(raw)
        except ConfigError as error:
            search.error(repr(list(raw)), error)
            refused += 1
    assert refused > 40
    bad = {"endpoints": [{"model": "x", "key": KEYS["pasted"]}], KEYS["pasted"]: 1}
    await search.failure("startup", make_datasette(bad).invoke_startup())
    path = tmp_path / "datasette.json"
    path.write_text(json.dumps({"plugins": {"datasette-llm": bad}}))
    await look_at_command(search, tmp_path, "models")
    search.text("log", caplog.text)
    search.done(least=100)


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize(
    "write",
    [
        str,
        json.dumps,
        lambda key: json.dumps(json.dumps(key)),
        urllib.parse.quote_plus,
        lambda key: base64.b64encode(f"user:{key}".encode()).decode(),
        lambda key: base64.b64encode(f"Basic {key}@".encode()).decode(),
    ],
)
def test_search_finds_every_spelling_of_a_key(name: str, write: Any) -> None:
    assert keys_in(f"x{write(KEYS[name])}y") == [name]
    search = Search()
    status_error = StatusError(write(KEYS[name]))
    search.error(
        "here",
        ValueError([behind(ValueError("x"), ExceptionGroup("g", [status_error]), "__cause__")]),
    )
    assert search.findings


def test_planted_keys_are_unique() -> None:
    every = [spelling for key in KEYS.values() for spelling in set(spellings(key))]
    assert min(map(len, every)) > 20
    assert keys_in(re.sub(r"[0-9]", "", " ".join(KEYS.values()))) == []
