"""The test helpers for authors of plugins."""

import asyncio
import subprocess
import sys
from typing import Any

import llm
import llm.plugins
import pytest
from llm.parts import StreamEvent

from datasette_llm import LLM
from datasette_llm.testing import ScriptedCall, ScriptedModel, registered


async def test_default_script_says_hello() -> None:
    assert await ScriptedModel().prompt("hi").text() == "Hello"


async def test_scripts_are_played_in_turn() -> None:
    """Each prompt plays the next script; the last one is used for the rest."""
    model = ScriptedModel("pelican", ["first"], ["sec", "ond"])

    texts = [await model.prompt("hi").text() for _ in range(4)]

    assert texts == ["first", "second", "second", "second"]


async def test_an_empty_script_is_an_empty_response() -> None:
    assert await ScriptedModel("pelican", []).prompt("hi").text() == ""


async def test_chunks_and_events_come_one_by_one() -> None:
    event = StreamEvent(type="reasoning", chunk="Hm", part_index=0)
    model = ScriptedModel("pelican", ["One ", event, "two"])

    chunks = [item.chunk async for item in model.prompt("hi").astream_events()]

    assert chunks == ["One ", "Hm", "two"]
    assert model.calls[0].sent == 3


async def test_events_are_awaited_numbers_are_delays() -> None:
    gate = asyncio.Event()
    model = ScriptedModel("pelican", ["One ", 0, 0.0, gate, "two"])
    response = model.prompt("hi")
    assert await anext(response) == "One "

    waiting = asyncio.ensure_future(anext(response))
    await asyncio.wait([waiting], timeout=0.01)
    assert not waiting.done()
    assert model.calls[0].outcome == "running"

    gate.set()
    assert await waiting == "two"


async def test_tool_calls_and_usage_reach_the_response() -> None:
    tool_call = llm.ToolCall(name="lookup", arguments={"id": 1})
    usage = llm.Usage(input=12, output=2, details={"cached": 3})
    response = ScriptedModel("pelican", [tool_call, usage, "done"]).prompt("hi")

    assert await response.text() == "done"
    assert [call.name for call in await response.tool_calls()] == ["lookup"]
    assert await response.usage() == usage


async def test_an_exception_is_raised_where_it_stands() -> None:
    model = ScriptedModel("pelican", ["One ", ConnectionError("gone"), "never"])
    chunks = []

    with pytest.raises(ConnectionError, match="gone"):
        async for chunk in model.prompt("hi"):
            chunks.append(chunk)

    assert chunks == ["One "]
    assert (model.calls[0].outcome, model.calls[0].sent) == ("failed", 1)


async def test_invalid_script_item_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"A script cannot hold bytes: b'One'"):
        await ScriptedModel("pelican", [b"One"]).prompt("hi").text()  # type: ignore[list-item]


async def test_a_model_notes_what_it_was_sent() -> None:
    model = ScriptedModel("pelican", needs_key="bird")
    response = model.prompt(
        "hi", system="Be brief", key="sk-1", stream=False, temperature=0.5, max_tokens=3
    )

    await response.text()

    (call,) = model.calls
    assert (call.prompt, call.key, call.stream, call.outcome) == ("hi", "sk-1", False, "complete")
    assert call.request.system == "Be brief"
    assert call.request.options.temperature == 0.5
    assert call.ended.is_set()


async def test_what_is_noted_does_not_show_the_key() -> None:
    model = ScriptedModel("pelican", needs_key="bird")

    await model.prompt("hi", key="sk-secret").text()

    assert "sk-secret" not in repr(model.calls)


async def test_stopped_call_is_cancelled() -> None:
    model = ScriptedModel("pelican", ["One ", asyncio.Event()])
    reading = asyncio.ensure_future(model.prompt("hi").text())
    call = await model.received()

    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading

    await call.ended.wait()
    assert call.outcome == "cancelled"


async def test_received_waits_for_the_requests() -> None:
    model = ScriptedModel("pelican", [asyncio.Event()])
    waiting = asyncio.ensure_future(model.received(2))
    readers = [asyncio.ensure_future(model.prompt(f"prompt {n}").text()) for n in range(2)]

    call = await waiting

    assert isinstance(call, ScriptedCall)
    assert call is model.calls[1]
    assert await model.received(1) is model.calls[0]
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)


@pytest.mark.parametrize(
    "attributes",
    [
        {"needs_key": "bird", "key_env_var": "BIRD_TOKEN"},
        {"can_stream": False},
        {"supports_schema": False, "supports_tools": False},
        {"attachment_types": {"image/png"}},
    ],
)
def test_model_has_the_given_abilities(attributes: dict[str, Any]) -> None:
    model = ScriptedModel("pelican", **attributes)

    assert {name: getattr(model, name) for name in attributes} == attributes


@pytest.mark.parametrize("options", [{"temperature": 3}, {"max_tokens": 0}, {"beak": "large"}])
def test_a_model_refuses_options_like_a_real_one(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ScriptedModel().prompt("hi", **options)


def test_registered_models_until_block_is_left() -> None:
    """Registered models are known to llm until the block is left."""
    one, other = ScriptedModel("one"), ScriptedModel("other")

    with registered(one, other):
        assert llm.get_async_model("one") is one
        assert llm.get_async_model("other") is other
    with pytest.raises(llm.UnknownModelError):
        llm.get_async_model("one")


def test_registered_models_after_an_exception() -> None:
    """Registered models are unregistered when an exception leaves the block."""
    with pytest.raises(ZeroDivisionError), registered(ScriptedModel("one")):
        raise ZeroDivisionError
    with pytest.raises(llm.UnknownModelError):
        llm.get_async_model("one")


def test_registered_blocks_may_be_nested() -> None:
    with registered(ScriptedModel("outer")):
        with registered(ScriptedModel("inner")):
            assert llm.get_async_model("inner").model_id == "inner"
            assert llm.get_async_model("outer").model_id == "outer"
        assert llm.get_async_model("outer").model_id == "outer"


def test_the_fixture_may_be_called_several_times(register_models) -> None:
    register_models(ScriptedModel("one"))
    register_models(ScriptedModel("two"), ScriptedModel("three"))

    for name in ("one", "two", "three"):
        assert llm.get_async_model(name).model_id == name


def test_llm_lists_a_registered_model_normally(register_models) -> None:
    register_models(ScriptedModel("pelican"))

    assert llm.get_model("pelican").model_id == "pelican"
    with pytest.raises(llm.ModelError, match="pelican is an async model"):
        llm.get_model("pelican").prompt("hi").text()
    assert all(plugin["name"] for plugin in llm.get_plugins())


async def test_the_example_of_the_docstring_works(make_datasette) -> None:
    datasette = make_datasette()
    model = ScriptedModel("summariser", ["Short ", "text", llm.Usage(input=12, output=2)])

    with registered(model):
        wrapped = await LLM(datasette).model("summariser")
        response = await wrapped.prompt("Summarise this")
        assert await response.text() == "Short text"

    assert model.calls[0].prompt == "Summarise this"


def test_e9_it_imports_without_pytest() -> None:
    program = """
import sys
sys.modules["pytest"] = None
from datasette_llm.testing import ScriptedModel, registered
with registered(ScriptedModel("scripted")):
    print("imported")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("imported\n", "")
