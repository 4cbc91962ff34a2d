"""Models without an async version: what plugins get from them, and the threads they run in."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import llm
import llm.plugins
import openai
import pytest
from llm.parts import StreamEvent
from pydantic import Field

from datasette_llm import LLM, GroupError, ModelNotAllowedError, ResponseCancelledError, instance
from datasette_llm.access.snapshot import SnapshotSource, find_model
from datasette_llm.calls.call import RunningCalls
from datasette_llm.calls.limiter import ConcurrencyLimiter, LimiterRegistry
from datasette_llm.errors import ResponseTimeoutError
from datasette_llm.providers.sync_adapter import ThreadedModel
from datasette_llm.providers.threads import ThreadStream
from datasette_llm.testing import ScriptedModel

from ..access.test_keys import SECRETS, store
from ..support.call_log import rows_of
from ..support.openai_server import OpenAIServer, Refuse, write_model
from ..support.plugins import Accountant, Observer
from ..support.waiting import BOUND_S, happens, until

KEY = "sk-local-0123456789"
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}

who: ContextVar[str] = ContextVar("who", default="default")


class Request:
    """A request to a model, and its state."""

    def __init__(self, prompt: llm.Prompt, response: Any, conversation: Any, key: Any) -> None:
        self.prompt = prompt
        self.response = response
        self.conversation = conversation
        self.key = key
        self.thread = threading.current_thread()
        self.context = who.get()
        self.blocked = threading.Event()  # it waits for an event of its script
        self.ended = threading.Event()


class Played:
    """Plays a script for each prompt, the last one for all further ones.

    In a script a threading.Event is waited for, a function is called with llm's response,
    an exception is raised, and anything else is a chunk.
    """

    class Options(llm.Options):
        temperature: float | None = Field(default=None, ge=0, le=2)

    can_stream = True
    supports_schema = True
    supports_tools = True
    attachment_types = frozenset({"image/png"})

    def __init__(self, model_id: str, *scripts: Any) -> None:
        self.model_id = model_id
        self.scripts = scripts
        self.requests: list[Request] = []
        self._arrived = threading.Condition()

    def received(self, count: int = 1) -> Request:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.requests) >= count, BOUND_S)
        return self.requests[count - 1]

    def play(self, prompt: Any, response: Any, conversation: Any, key: Any = None) -> Iterator[Any]:
        request = Request(prompt, response, conversation, key)
        with self._arrived:
            script = self.scripts[min(len(self.requests), len(self.scripts) - 1)]
            self.requests.append(request)
            self._arrived.notify_all()
        try:
            for item in script:
                if isinstance(item, threading.Event):
                    request.blocked.set()
                    assert item.wait(BOUND_S), "the test never let the model go on"
                elif isinstance(item, BaseException):
                    raise item
                elif callable(item):
                    item(response)
                else:
                    yield item
        finally:
            request.ended.set()


class Local(Played, llm.Model):
    def execute(self, prompt, stream, response, conversation):
        return self.play(prompt, response, conversation)


class Keyed(Played, llm.KeyModel):
    needs_key = "bird"
    key_env_var = "BIRD_TOKEN"

    def execute(self, prompt, stream, response, conversation, key):
        return self.play(prompt, response, conversation, key)


class Remembering(Played, llm.Model):
    """Reads its history as the plugins for local models do: turn by turn."""

    def execute(self, prompt, stream, response, conversation):
        turns = conversation.responses if conversation else []
        assert all(isinstance(turn, llm.Response) for turn in turns)
        history = [(turn.prompt.system, turn.prompt.prompt, turn.text()) for turn in turns]
        yield f"{[*history, (prompt.system, prompt.prompt)]}"
        response.set_usage(input=len(turns), output=1)


# Those of a Datasette of another test, which last as long as it does.
OTHERS = ("datasette-llm catalog", "datasette-llm response cache")


def our_threads() -> list[threading.Thread]:
    named = [t for t in threading.enumerate() if t.name.startswith("datasette-llm ")]
    return [thread for thread in named if thread.name not in OTHERS]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    for thread in our_threads():
        thread.join(BOUND_S)
    assert our_threads() == []


@pytest.fixture
def provide() -> Iterator[Callable[..., None]]:
    """A function that registers models without an async version with llm."""
    with contextlib.ExitStack() as stack:

        def provide(*models: Any) -> None:
            class Plugin:
                @llm.hookimpl
                def register_models(self, register):
                    for model in models:
                        register(model)

            plugin = Plugin()
            llm.plugins.pm.register(plugin)
            stack.callback(llm.plugins.pm.unregister, plugin)

        yield provide


@pytest.fixture
def local(provide, make_datasette):
    """Makes a model that plays some scripts; its Datasette is `local.datasette` afterwards."""

    async def local(*scripts: Any, kind: Any = Local, config: Any = None) -> tuple[Any, Any]:
        """The model and its wrapper."""
        model = kind("local", *scripts)
        provide(model)
        made.datasette = make_datasette(config)
        return model, await LLM(made.datasette).model("local")

    made: Any = local
    return local


def cancel_all(datasette: Any) -> None:
    for call in list(instance.of(datasette, RunningCalls)):
        call.cancel("enough")


async def arrived(model: Any, count: int = 1) -> Request:
    request: Request = await asyncio.to_thread(model.received, count)
    return request


# Chunk by chunk


async def test_chunk_is_readable_before_the_next(local) -> None:
    go_on = threading.Event()
    plain, model = await local(["one", go_on, "two"])

    chunks = aiter(await model.prompt("Hi"))
    first = await anext(chunks)
    await happens(plain.requests[0].blocked)
    assert (first, go_on.is_set()) == ("one", False)

    go_on.set()
    assert [chunk async for chunk in chunks] == ["two"]


async def test_event_loop_runs_while_model_computes(local) -> None:
    go_on = threading.Event()
    plain, model = await local([go_on, "done"])

    prompting = asyncio.create_task(model.prompt("Hi"))
    await happens((await arrived(plain)).blocked)
    for _ in range(100):  # each is a turn of the loop, which would hang until the model's bound
        await asyncio.sleep(0)
    assert not prompting.done()

    go_on.set()
    assert await (await prompting).text() == "done"


async def test_request_runs_in_one_thread_of_its_own(local) -> None:
    threads = set()

    def note(response: Any) -> None:
        threads.add(threading.current_thread())

    plain, model = await local([note, "a", note, "b", note])

    assert await (await model.prompt("Hi")).text() == "ab"
    assert threads == {plain.requests[0].thread}
    assert plain.requests[0].thread.daemon
    assert plain.requests[0].thread is not threading.current_thread()


async def test_context_variables_are_seen_in_the_thread(local) -> None:
    plain, model = await local(["ok"])
    who.set("ana")

    await (await model.prompt("Hi")).text()

    assert plain.requests[0].context == "ana"


async def test_events_come_as_the_model_made_them(local) -> None:
    reasoning = StreamEvent(type="reasoning", chunk="Hm. ")
    _, model = await local([reasoning, "Yes", StreamEvent(type="text", chunk="!")])

    response = await model.prompt("Hi")
    events = [(event.type, event.chunk) async for event in response.astream_events()]

    assert events == [("reasoning", "Hm. "), ("text", "Yes"), ("text", "!")]
    assert await response.text() == "Yes!"


async def test_a_model_may_return_a_list(provide, make_datasette) -> None:
    class Listing(Local):
        def execute(self, prompt, stream, response, conversation):
            response.set_usage(input=1, output=2)
            return ["a", "b"]

    provide(Listing("listing"))
    response = await (await LLM(make_datasette()).model("listing")).prompt("Hi")

    assert await response.text() == "ab"
    assert (await response.usage()).output == 2


async def test_model_without_streaming_is_not_streamed(provide, make_datasette) -> None:
    asked = []

    class Whole(Local):
        can_stream = False

        def execute(self, prompt, stream, response, conversation):
            asked.append(stream)
            yield "whole"

    provide(Whole("whole"))
    response = await (await LLM(make_datasette()).model("whole")).prompt("Hi")

    assert (response.text_or_raise(), asked) == ("whole", [False])


# What the model sets on its response


def leave_everything(response: llm.Response) -> None:
    response.set_usage(input=3, output=4, details={"warm": 1})
    response.set_resolved_model("local-q4")
    response.response_json = {"finish_reason": "stop"}
    response._prompt_json = {"messages": ["Hi"]}


async def test_response_has_what_the_model_set(local) -> None:
    _, model = await local(["ok", leave_everything])

    response = await model.prompt("Hi")

    assert await response.text() == "ok"
    assert await response.usage() == llm.Usage(input=3, output=4, details={"warm": 1})
    assert response.resolved_model == "local-q4"
    assert await response.json() == {"finish_reason": "stop"}
    assert response._prompt_json == {"messages": ["Hi"]}


@pytest.mark.parametrize("how", ["failed", "cancelled"])
async def test_unfinished_response_has_what_is_known(local, how: str) -> None:
    go_on = threading.Event()
    after = [RuntimeError("out of memory")] if how == "failed" else [go_on]
    plain, model = await local([leave_everything, "half", *after])

    response = await model.prompt("Hi")
    if how == "cancelled":
        await happens(plain.requests[0].blocked)
        cancel_all(local.datasette)
    with pytest.raises((RuntimeError, ResponseCancelledError)):
        await response.text()

    go_on.set()
    assert (response.input_tokens, response.resolved_model) == (3, "local-q4")


async def test_abandoned_thread_cannot_change_response(local) -> None:
    go_on = threading.Event()
    plain, model = await local(["half", go_on, leave_everything, "rest"])

    response = await model.prompt("Hi")
    await happens(plain.requests[0].blocked)
    cancel_all(local.datasette)
    with pytest.raises(ResponseCancelledError):
        await response.text()
    go_on.set()
    await happens(plain.requests[0].ended)

    assert response.input_tokens is None
    assert [event.chunk for event in response._stream_events] == ["half"]


# What the model is given


async def test_a_conversation_carries_its_history(local) -> None:
    _, model = await local(kind=Remembering)
    conversation = model.conversation()

    texts = []
    for number, system in enumerate(("Be brief", None, None)):
        response = await conversation.prompt(f"turn {number}", system=system)
        texts.append(await response.text())

    first = "[('Be brief', 'turn 0')]"
    assert texts[0] == first
    # The system prompt of a conversation holds for its later turns.
    assert texts[1] == f"{[('Be brief', 'turn 0', first), ('Be brief', 'turn 1')]}"
    assert (await response.usage()).input == 2
    assert "turn 0" in texts[2]
    assert "turn 1" in texts[2]


async def test_reply_sends_the_exchange_as_messages(local) -> None:
    plain, model = await local(["Pat"], ["Again"])

    response = await model.prompt("A name")
    again = await response.reply("Another")

    assert await again.text() == "Again"
    messages = plain.requests[1].prompt.messages
    assert [message.role for message in messages] == ["user", "assistant", "user"]


async def test_chain_runs_the_models_tool_calls(local) -> None:
    asked = []

    def weigh(name: str) -> str:
        """Weigh an animal."""
        asked.append(name)
        return "90 kg"

    def call(response: llm.Response) -> None:
        response.add_tool_call(llm.ToolCall(name="weigh", arguments={"name": "Pat"}))

    plain, model = await local(["Let me see. ", call], ["Pat weighs 90 kg"])

    text = await model.chain("How heavy is Pat?", tools=[weigh]).text()

    assert (text, asked) == ("Let me see. Pat weighs 90 kg", ["Pat"])
    results = plain.requests[1].prompt.tool_results
    assert [result.output for result in results] == ["90 kg"]
    assert len(plain.requests[1].conversation.responses) == 1


async def test_schema_attachments_options_and_system(local) -> None:
    plain, model = await local(['{"name": "Pat"}'])
    picture = llm.Attachment(type="image/png", content=b"\x89PNG")

    found = await model.structured(
        "A name", schema=SCHEMA, attachments=[picture], system="Invent", temperature=0.5
    )

    prompt = plain.requests[0].prompt
    assert found.value == {"name": "Pat"}
    assert prompt.schema["required"] == ["name"]
    assert prompt.attachments == [picture]
    assert (prompt.system, prompt.options.temperature) == ("Invent", 0.5)


async def test_c1_unsupported_input_is_refused_early(local, plugin) -> None:
    """Unsupported input is refused before any hook runs."""
    seen = plugin(Observer())
    plain, model = await local(["never"])

    with pytest.raises(ValueError, match="temperature"):
        await model.prompt("Hi", temperature=7)
    with pytest.raises(ValueError, match="does not support attachments of type"):
        await model.prompt("Hi", attachments=[llm.Attachment(type="audio/wav", content=b"x")])
    assert (seen.events, plain.requests) == ([], [])


async def test_keyed_model_gets_datasette_secrets_key(provide, make_datasette) -> None:
    plain = Keyed("local", ["ok"])
    provide(plain)
    datasette = make_datasette(plugins=SECRETS)
    await datasette.invoke_startup()
    model = await LLM(datasette).model("local")

    with pytest.raises(llm.NeedsKeyException, match="BIRD_API_KEY"):
        await model.prompt("Hi")
    assert "local" not in {each.model_id for each in await LLM(datasette).models()}
    await store(datasette, "BIRD_API_KEY", KEY)

    assert "local" in {each.model_id for each in await LLM(datasette).models()}
    await (await model.prompt("Hi")).text()
    await (await model.prompt("Hi", key="sk-explicit")).text()
    assert [request.key for request in plain.requests] == [KEY, "sk-explicit"]


async def test_plain_model_is_called_without_a_key(local) -> None:
    plain, model = await local(["ok"])

    await (await model.prompt("Hi", key="sk-unused")).text()

    assert plain.requests[0].key is None
    assert plain.requests[0].response._key is None


async def test_the_wrapped_model_is_like_the_model(local) -> None:
    plain, model = await local(["ok"], kind=Keyed)
    _, entry = await find_model(local.datasette, "local")
    adapter = entry.model

    assert isinstance(adapter, ThreadedModel)
    for name in (
        *("model_id", "can_stream", "attachment_types", "supports_schema", "supports_tools"),
        *("supports_conversation", "needs_key", "key_env_var", "Options"),
        "supported_server_side_tools",
    ):
        assert getattr(model, name) == getattr(adapter, name) == getattr(plain, name)
    assert str(model) == str(plain)
    assert adapter.get_key("sk-x") == "sk-x"


async def test_policy_holds_for_it(local) -> None:
    with pytest.raises(ModelNotAllowedError):
        await local(["no"], config={"blocked_models": ["local"]})


# When the catalog is refreshed


class Uncomparable:
    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value is ambiguous")

    __hash__ = None  # type: ignore[assignment]  # as of what cannot be compared


@pytest.mark.parametrize(
    ("paths", "loads"),
    [
        (["a.gguf", "a.gguf"], 1),
        (["a.gguf", "b.gguf"], 2),
        ([Uncomparable(), Uncomparable()], 2),
        ([threading.Lock(), threading.Lock()], 1),
    ],
    ids=["same", "changed", "uncomparable", "a lock of its own"],
)
async def test_loaded_model_is_kept_while_unchanged(make_datasette, paths, loads) -> None:
    """A model that has loaded its weights is kept as long as it is the same."""
    loaded = []

    class Lazy(llm.Model):
        model_id = "lazy"
        weights = None

        def __init__(self, path: Any) -> None:
            self.path = path

        def execute(self, prompt, stream, response, conversation):
            if self.weights is None:
                loaded.append(self.path)
                self.weights = "many"
            yield "ok"

    class Plugin:
        @llm.hookimpl
        def register_models(self, register):
            register(Lazy(paths.pop(0)))

    plugin = Plugin()
    llm.plugins.pm.register(plugin)
    try:
        models = LLM(make_datasette())
        await (await (await models.model("lazy")).prompt("Hi")).text()
        await instance.of(models.datasette, SnapshotSource).catalogs.refresh()
        await (await (await models.model("lazy")).prompt("Hi")).text()
    finally:
        llm.plugins.pm.unregister(plugin)

    assert (paths, len(loaded)) == ([], loads)


async def test_client_of_sync_model_does_not_retry(make_datasette) -> None:
    _, entry = await find_model(make_datasette(), "gpt-3.5-turbo-instruct")
    assert isinstance(entry.model, ThreadedModel)
    sync_model: Any = entry.model.sync_model

    assert sync_model.get_client("sk-x").max_retries == 0


@pytest.mark.parametrize("how", ["complete", "refused", "dropped"])
async def test_sync_openai_model_leaves_no_connection(
    make_datasette, llm_folder, monkeypatch, how: str
) -> None:
    monkeypatch.setattr("datasette_llm.calls.response.RESUME_S", 0.01)
    go_on = asyncio.Event()
    async with OpenAIServer(lingers=True) as server:
        write_model(llm_folder, server.url, completion=True, api_key_name=None)
        half = ["Hel", go_on, "lo", asyncio.Event()]
        server.play({"complete": ["Hello"], "refused": [Refuse(401)], "dropped": half}[how])
        datasette = make_datasette()
        model = await LLM(datasette).model("wire")
        gc.disable()  # which would close them at some time
        try:
            if how == "refused":
                with pytest.raises(openai.AuthenticationError):
                    await model.prompt("Hi")
            elif how == "dropped":
                async for _ in await model.prompt("Hi"):
                    break
                while running := instance.of(datasette, RunningCalls):
                    await next(iter(running)).closed.wait()
                go_on.set()
            else:
                assert await (await model.prompt("Hi")).text() == "Hello"
            await server.closed()
        finally:
            gc.enable()


# How it ends


@pytest.mark.parametrize("before", [[], ["half "]])
@pytest.mark.parametrize("error", [ValueError("no such token"), OSError("out of memory")])
async def test_h4_failure_is_raised_at_yield_and_caller(local, plugin, before, error) -> None:
    seen = plugin(Observer())
    _, model = await local([*before, error])

    with pytest.raises(type(error)) as raised:
        await (await model.prompt("Hi")).text()

    assert raised.value is error
    assert seen.errors == [error]


async def test_a_failure_says_where_in_the_model_it_was(local) -> None:
    _, model = await local([ValueError("here")])

    with pytest.raises(ValueError, match="here") as raised:
        await model.prompt("Hi")

    assert "play" in [entry.name for entry in raised.traceback]


async def test_a_key_in_a_failure_is_taken_out(provide, make_datasette, monkeypatch) -> None:
    monkeypatch.setenv("BIRD_TOKEN", KEY)
    provide(Keyed("local", [ValueError(f"refused {KEY}")]))
    model = await LLM(make_datasette()).model("local")

    with pytest.raises(ValueError, match="refused") as raised:
        await model.prompt("Hi")
    assert KEY not in str(raised.value)


async def test_hanging_model_is_left_after_idle_timeout(local, plugin) -> None:
    seen, go_on = plugin(Observer()), threading.Event()
    plain, model = await local([go_on, "late"], config={"idle_timeout": 0.05, "retries": 0})

    with pytest.raises(ResponseTimeoutError):
        await model.prompt("Hi")

    assert [type(error) for error in seen.errors] == [ResponseTimeoutError]
    assert not plain.requests[0].ended.is_set()
    go_on.set()


@pytest.mark.parametrize("of_purpose", [{}, {"max_concurrency": 1}])
async def test_computing_model_is_not_retried(
    provide, make_datasette, register_models, monkeypatch, of_purpose
) -> None:
    """A model that still computes is not asked again; its purpose's fallbacks are."""
    monkeypatch.setattr("datasette_llm.calls.retry.WAIT_INITIAL_S", 0)
    monkeypatch.setattr("datasette_llm.calls.retry.WAIT_JITTER_S", 0)
    go_on = threading.Event()
    hung = Local("hung", [go_on, "late"], ["asked twice"])
    provide(hung)
    register_models(ScriptedModel("spare", [ConnectionError("refused")], ["ok"]))
    purpose = of_purpose | {
        "model": {"model": "hung", "max_concurrency": 1, "retries": 1},
        "fallbacks": [{"model": "spare", "retries": 1}],
    }
    config = {"idle_timeout": 0.05, "threads": 1, "purposes": {"pets": purpose}}
    datasette = make_datasette(config)

    async with asyncio.timeout(BOUND_S):
        response = await (await LLM(datasette).model(purpose="pets")).prompt("Hi")

    assert await response.text() == "ok"
    assert len(hung.requests) == 1
    busy = instance.of(datasette, LimiterRegistry).busy()
    assert {name: gate.running for name, gate in busy.items()} == {
        ("model", "hung"): 1,
        ("threads", ""): 1,
    }
    go_on.set()


async def test_failed_attempt_leaves_nothing_behind(local) -> None:
    """A failed attempt leaves nothing on the response of the next."""

    def call(response: llm.Response) -> None:
        response.add_tool_call(llm.ToolCall(name="weigh", arguments={}))

    refused = ConnectionError("refused")
    plain, model = await local([leave_everything, call, refused], ["ok"], config={"retries": 1})

    response = await model.prompt("Hi")

    assert await response.text() == "ok"
    assert len(plain.requests) == 2
    assert await response.usage() == llm.Usage(input=None, output=None, details=None)
    assert (await response.tool_calls(), response.resolved_model) == ([], None)


@pytest.mark.parametrize("way", ["caller", "dropped", "group", "shutdown"])
async def test_h4_cancelled_caller_is_not_held_up(local, plugin, way: str, monkeypatch) -> None:
    """A caller who stops is not held up, and the model stops at its next chunk."""
    monkeypatch.setattr("datasette_llm.calls.response.RESUME_S", 0.01)
    budget, seen, go_on = plugin(Accountant()), plugin(Observer()), threading.Event()
    went_on: list[Any] = []
    plain, model = await local(["one", go_on, "two", went_on.append, "three"])

    await GOING_AWAY[way](local.datasette, model, plain)
    async with asyncio.timeout(BOUND_S):
        await seen.left.wait()

    assert [type(error) for error in seen.errors] == [ResponseCancelledError]
    assert (budget.released, budget.open) == (1, 0)
    assert not plain.requests[0].ended.is_set()  # it still computes, and the caller does not wait
    go_on.set()
    await happens(plain.requests[0].ended)
    assert went_on == []
    assert instance.of(local.datasette, RunningCalls) == set()


async def cancelled_by_the_caller(datasette: Any, model: Any, plain: Any) -> None:
    async def read() -> str:
        text: str = await (await model.prompt("Hi")).text()
        return text

    reading = asyncio.create_task(read())
    await happens((await arrived(plain)).blocked)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def dropped_half_read(datasette: Any, model: Any, plain: Any) -> None:
    async for _ in await model.prompt("Hi"):
        break
    await happens(plain.requests[0].blocked)


async def left_with_a_group(datasette: Any, model: Any, plain: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        async with LLM(datasette).group("local") as grouped:
            await grouped.prompt("Hi")
            await happens(plain.requests[0].blocked)
            raise ZeroDivisionError


async def shut_down(datasette: Any, model: Any, plain: Any) -> None:
    response = await model.prompt("Hi")
    await happens(plain.requests[0].blocked)
    await datasette.invoke_shutdown()
    with pytest.raises(ResponseCancelledError):
        await response.text()


GOING_AWAY = {
    "caller": cancelled_by_the_caller,
    "dropped": dropped_half_read,
    "group": left_with_a_group,
    "shutdown": shut_down,
}


async def test_g1_and_g2_hold_in_a_group(local) -> None:
    await local(["a", "b"], ["half", ValueError("no")])

    with pytest.raises(GroupError) as raised:
        async with LLM(local.datasette).group("local") as grouped:
            fine = await grouped.prompt("Hi")
            await grouped.prompt("Hi")

    assert fine.text_or_raise() == "ab"
    assert [str(error) for error in raised.value.exceptions] == ["no"]


def test_event_loop_may_close_while_computing(provide, make_datasette) -> None:
    go_on = threading.Event()
    plain = Local("local", ["one", go_on, "two"])
    provide(plain)

    async def main() -> None:
        response = await (await LLM(make_datasette()).model("local")).prompt("Hi")
        assert await anext(aiter(response)) == "one"

    asyncio.run(main())
    assert not plain.requests[0].ended.is_set()
    go_on.set()
    assert plain.requests[0].ended.wait(BOUND_S)


# How many at once


@pytest.fixture
def queued(monkeypatch) -> Callable[[int], Any]:
    """A function that waits until requests have come to so many limiters, each to two."""
    came: list[ConcurrencyLimiter] = []
    changed = asyncio.Event()
    enter = ConcurrencyLimiter.acquire

    async def noted(gate: ConcurrencyLimiter, *arguments: Any) -> None:
        came.append(gate)
        changed.set()
        await enter(gate, *arguments)

    async def queued(count: int) -> None:
        while len(came) < count:
            changed.clear()
            await changed.wait()

    monkeypatch.setattr(ConcurrencyLimiter, "acquire", noted)
    return queued


async def test_e5_sync_model_is_asked_one_by_one(local, queued) -> None:
    """Also where a limit for all models allows more; its own reference may say otherwise."""
    doors = [threading.Event() for _ in range(2)]
    plain, model = await local(*([door, "ok"] for door in doors), config={"max_concurrency": 5})
    prompts = [asyncio.create_task(model.prompt("x")) for _ in doors]
    await queued(3)
    await happens((await arrived(plain)).blocked)
    assert len(plain.requests) == 1
    for door in doors:
        door.set()
    for prompt in prompts:
        assert await (await prompt).text() == "ok"


async def test_e5_reference_lets_more_run_at_once(local) -> None:
    both = threading.Barrier(2)
    config = {"default_model": {"model": "local", "max_concurrency": 2}}
    _, model = await local([lambda _: both.wait(BOUND_S), "ok"], config=config)
    for response in await asyncio.gather(model.prompt("x"), model.prompt("y")):
        assert await response.text() == "ok"


async def test_e5_one_by_one_in_all_event_loops(local) -> None:
    """Also for a plugin that prompts in a thread with an event loop of its own."""
    go_on = threading.Event()
    plain, model = await local([go_on, "ok"])

    async def ask() -> str:
        return await (await model.prompt("x")).text()

    first = asyncio.create_task(ask())
    await happens((await arrived(plain)).blocked)
    second = asyncio.create_task(asyncio.to_thread(asyncio.run, ask()))
    await until(lambda: len(our_threads()) == 2)
    assert len(plain.requests) == 1
    go_on.set()
    assert await asyncio.gather(first, second) == ["ok", "ok"]
    assert len(plain.requests) == 2


async def test_e5_cancelled_in_another_loop_asks_nothing(local, monkeypatch) -> None:
    """A request that waits for the thread of another loop, and is cancelled meanwhile."""
    monkeypatch.setattr("datasette_llm.providers.sync_adapter.LOOP_CHECK_S", 0.01)
    go_on = threading.Event()
    plain, model = await local([go_on, "ok"])
    first = asyncio.create_task(model.prompt("x"))
    await happens((await arrived(plain)).blocked)

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(model.prompt("y"), 0.05)

    await asyncio.to_thread(asyncio.run, give_up())
    await until(lambda: len(our_threads()) == 1)
    go_on.set()
    assert await (await first).text() == "ok"
    assert len(plain.requests) == 1


async def test_threads_limits_requests_in_fifo_order(local) -> None:
    doors = [threading.Event() for _ in range(3)]
    plain, model = await local(*([door, "ok"] for door in doors), config={"threads": 1})

    prompts = [asyncio.create_task(model.prompt(f"prompt {number}")) for number in range(3)]
    for number, door in enumerate(doors, start=1):
        await happens((await arrived(plain, number)).blocked)
        assert len(plain.requests) == number
        door.set()
    await asyncio.gather(*prompts)

    asked = [request.prompt.prompt for request in plain.requests]
    assert asked == ["prompt 0", "prompt 1", "prompt 2"]


async def test_models_share_the_threads_of_an_instance(provide, make_datasette, queued) -> None:
    go_on = threading.Event()
    one, other = Local("one", [go_on, "1"]), Local("other", ["2"])
    provide(one, other)
    models = LLM(make_datasette({"threads": 1}))

    first = asyncio.create_task((await models.model("one")).prompt("Hi"))
    await arrived(one)
    second = asyncio.create_task((await models.model("other")).prompt("Hi"))
    await queued(2)
    assert other.requests == []

    go_on.set()
    assert await (await first).text() + await (await second).text() == "12"


async def test_cancelled_request_keeps_its_permit(local, queued) -> None:
    """A cancelled request keeps its permit until its thread has ended."""
    go_on = threading.Event()
    plain, model = await local(["one", go_on, "two"], ["next"], config={"threads": 1})
    gate = instance.of(local.datasette, LimiterRegistry).named(("threads", ""))

    await cancelled_by_the_caller(local.datasette, model, plain)
    following = asyncio.create_task(model.prompt("Hi"))
    await queued(3)
    assert len(plain.requests) == 1

    go_on.set()
    assert await (await following).text() == "next"
    assert gate.idle


async def test_cancelled_while_waiting_sends_nothing(local, plugin, queued) -> None:
    go_on, seen = threading.Event(), plugin(Observer())
    plain, model = await local([go_on, "ok"], config={"threads": 1})

    first = asyncio.create_task(model.prompt("first"))
    await arrived(plain)
    waiting = asyncio.create_task(model.prompt("waiting"))
    await queued(3)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    go_on.set()
    assert await (await first).text() == "ok"
    assert len(plain.requests) == 1
    assert sorted(seen.events) == sorted(
        ["hook opens", "hook opens", "hook sees ResponseCancelledError", "hook succeeds"]
    )
    assert instance.of(local.datasette, LimiterRegistry).named("threads").idle


async def test_nested_prompt_does_not_wait_for_itself(provide, make_datasette) -> None:
    """A model that prompts another one does not wait for its own permit."""
    loop = asyncio.get_running_loop()
    models = LLM(make_datasette({"threads": 1}))

    def ask(model_id: str) -> str:
        async def asked() -> str:
            return await (await (await models.model(model_id)).prompt("Hi")).text()

        return asyncio.run_coroutine_threadsafe(asked(), loop).result(BOUND_S)

    class Asking(Local):
        def execute(self, prompt, stream, response, conversation):
            yield f"{self.model_id} says {ask(self.scripts[0])}"

    provide(Asking("one", "two"), Asking("two", "three"), Local("three", ["three"]))
    response = await (await models.model("one")).prompt("Hi")

    assert await response.text() == "one says two says three"
    assert instance.of(models.datasette, LimiterRegistry).named("threads").idle


async def test_tool_may_prompt_a_threaded_model(provide, make_datasette) -> None:
    def call(response: llm.Response) -> None:
        response.add_tool_call(llm.ToolCall(name="weigh", arguments={}))

    provide(Local("one", [call], ["done"]), Local("other", ["90 kg"]))
    models = LLM(make_datasette({"threads": 1}))
    other = await models.model("other")

    async def weigh() -> str:
        """Weigh."""
        return await (await other.prompt("Hi")).text()

    assert await (await models.model("one")).chain("Hi", tools=[weigh]).text() == "done"


async def test_thread_that_cannot_start_frees_permit(local, monkeypatch) -> None:
    plain, model = await local(["ok"], config={"threads": 1})

    def refuse(stream: ThreadStream[Any], name: str) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(ThreadStream, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            await model.prompt("Hi")

    assert await (await model.prompt("Hi")).text() == "ok"
    assert len(plain.requests) == 1


async def test_async_models_do_not_count_as_threads(
    provide, make_datasette, register_models
) -> None:
    go_on = threading.Event()
    plain = Local("local", [go_on, "ok"])
    provide(plain)
    register_models(ScriptedModel("scripted", ["at once"]))
    models = LLM(make_datasette({"threads": 1}))

    first = asyncio.create_task((await models.model("local")).prompt("Hi"))
    await arrived(plain)

    assert await (await (await models.model("scripted")).prompt("Hi")).text() == "at once"
    go_on.set()
    await first


# The call log


async def test_its_calls_are_on_record(provide, make_datasette, tmp_path) -> None:
    path = tmp_path / "internal.db"
    provide(Local("local", ["a", "b", leave_everything], ["half", ValueError("no")]))
    datasette = make_datasette({"log": True}, internal=str(path))
    await datasette.invoke_startup()
    model = await LLM(datasette).model("local")

    await (await model.prompt("Hi")).text()
    with pytest.raises(ValueError, match="no"):
        await (await model.prompt("Hi")).text()
    await datasette.invoke_shutdown()

    rows = rows_of(path)
    assert [(row["model_id"], row["outcome"]) for row in rows] == [
        ("local", "ok"),
        ("local", "error"),
    ]
    assert (rows[0]["input_tokens"], rows[0]["output_tokens"]) == (3, 4)
    assert (rows[1]["error_type"], rows[1]["error_message"]) == ("ValueError", "ValueError: no")
