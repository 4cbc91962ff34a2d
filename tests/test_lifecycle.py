"""Datasette starts and stops: a bad configuration, a provider that hangs, running calls."""

import asyncio
import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import llm
import llm.plugins
import pytest
from datasette import hookimpl
from datasette.utils import StartupError
from datasette.utils.asgi import Request

from datasette_llm import LLM, ConfigError, ResponseCancelledError, instance, lifecycle
from datasette_llm.access.config_warnings import StartupCheck
from datasette_llm.calls.call import RunningCalls
from datasette_llm.console.overview import overview
from datasette_llm.testing import ScriptedModel

BAD_CONFIG = {
    "default_model": 7,
    "modles": ["a"],
    "purposes": {"chat": {"modle": "a"}},
}
ITS_PROBLEMS = [
    "plugins.datasette-llm.default_model: ",
    "plugins.datasette-llm.modles: unknown setting (did you mean ",
    'plugins.datasette-llm.purposes.chat.modle: unknown setting (did you mean "model"?)',
]


class Contexts:
    """Takes part in every call, and notes how it ended."""

    def __init__(self, cleanup: Callable[[], Any] | None = None) -> None:
        self.ended_with: list[BaseException | None] = []
        self.cleanup = cleanup

    @hookimpl
    def llm_prompt_context(self) -> Any:
        @asynccontextmanager
        async def context(result: Any) -> AsyncIterator[None]:
            try:
                yield
            except Exception as error:
                self.ended_with.append(error)
                if self.cleanup is not None:
                    await self.cleanup()
                raise
            self.ended_with.append(None)

        return context


def endless(model_id: str) -> ScriptedModel:
    """A model that says One and then never ends."""
    return ScriptedModel(model_id, ["One ", asyncio.Event()])


# Starting


async def test_bad_config_stops_startup(make_datasette) -> None:
    """A bad configuration stops Datasette, with all of its problems in the message."""
    with pytest.raises(ConfigError) as raised:
        await make_datasette(BAD_CONFIG).invoke_startup()

    assert isinstance(raised.value, StartupError)
    problems = raised.value.problems
    assert len(problems) == 3
    for problem, expected in zip(sorted(problems), sorted(ITS_PROBLEMS), strict=True):
        assert problem.startswith(expected)
    heading, *lines = str(raised.value).splitlines()
    assert heading == "datasette-llm cannot start: 3 problems in its configuration"
    assert lines == [f"  {problem}" for problem in problems]


@pytest.mark.parametrize("config", [[], "gpt-4o", 7, {"models": "a"}, {"require_keys": "yes"}])
async def test_config_of_another_shape_stops_startup(make_datasette, config: Any) -> None:
    with pytest.raises(ConfigError, match=r"plugins\.datasette-llm"):
        await make_datasette(config).invoke_startup()


async def test_warnings_are_logged_and_shown_in_console(
    make_datasette, register_models, caplog: pytest.LogCaptureFixture
) -> None:
    register_models(ScriptedModel("pelican"))
    config = {"default_model": "pelican", "blocked_models": ["pelican", "heron"]}
    datasette = make_datasette(config)

    with caplog.at_level(logging.WARNING, "datasette_llm"):
        await datasette.invoke_startup()

    warnings = instance.of(datasette, StartupCheck).warnings
    assert [line.partition(": ")[0] for line in warnings] == [
        "plugins.datasette-llm.blocked_models[1]",
        "plugins.datasette-llm.default_model",
    ]
    assert [message for message in caplog.messages if "plugins." in message] == list(warnings)


async def test_valid_config_starts_without_a_message(
    make_datasette, register_models, caplog: pytest.LogCaptureFixture
) -> None:
    register_models(ScriptedModel("pelican"))
    datasette = make_datasette({"default_model": "pelican"})

    await datasette.invoke_startup()

    assert instance.of(datasette, StartupCheck).warnings == ()
    assert caplog.messages == []


class HangingProvider:
    """An llm plugin that does not come back while it lists its models."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.may_answer = threading.Event()

    @llm.hookimpl
    def register_models(self) -> None:
        self.asked.set()
        assert self.may_answer.wait(20), "the test never released the provider"


@pytest.fixture
def hanging() -> Iterator[HangingProvider]:
    provider = HangingProvider()
    llm.plugins.pm.register(provider)
    yield provider
    llm.plugins.pm.unregister(provider)
    provider.may_answer.set()


async def test_hanging_model_list_allows_startup(
    make_datasette, hanging: HangingProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider that hangs while it lists its models does not prevent startup."""
    monkeypatch.setattr(lifecycle, "CATALOG_WAIT_S", 0.01)
    datasette = make_datasette({"default_model": "pelican"})

    await datasette.invoke_startup()

    assert await asyncio.to_thread(hanging.asked.wait, 20)
    assert (await datasette.client.get("/-/versions.json")).status_code == 200
    assert instance.of(datasette, StartupCheck).warnings == ()

    hanging.may_answer.set()
    await instance.of(datasette, StartupCheck).task
    assert len(instance.of(datasette, StartupCheck).warnings) == 1


async def test_shutdown_works_while_a_provider_hangs(
    make_datasette, hanging: HangingProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "CATALOG_WAIT_S", 0.01)
    datasette = make_datasette()
    await datasette.invoke_startup()

    await datasette.invoke_shutdown()

    hanging.may_answer.set()
    await instance.of(datasette, StartupCheck).task


# Stopping


async def test_shutdown_cancels_running_calls(
    make_datasette, register_models, plugin, caplog: pytest.LogCaptureFixture
) -> None:
    model = endless("endless")
    register_models(model)
    contexts = plugin(Contexts())
    datasette = make_datasette()
    wrapped = await LLM(datasette).model("endless")
    responses = [await wrapped.prompt(f"prompt {number}") for number in range(3)]

    await datasette.invoke_shutdown()

    assert [type(error) for error in contexts.ended_with] == [ResponseCancelledError] * 3
    assert {str(error) for error in contexts.ended_with} == {"Datasette is shutting down"}
    assert [call.outcome for call in model.calls] == ["cancelled"] * 3
    assert instance.of(datasette, RunningCalls) == set()
    for response in responses:
        with pytest.raises(ResponseCancelledError, match="shutting down"):
            await response.text()
    assert "shutdown hook failed" not in caplog.text


async def test_shutdown_reaches_readers(make_datasette, register_models) -> None:
    scripted = endless("endless")
    register_models(scripted)
    datasette = make_datasette()
    model = await LLM(datasette).model("endless")
    response = await model.prompt("hi")
    readers = [asyncio.create_task(response.text()) for _ in range(2)]
    chain = asyncio.create_task(model.chain("hi").text())
    await scripted.received(2)

    await datasette.invoke_shutdown()

    for reader in (*readers, chain):
        with pytest.raises(ResponseCancelledError):
            await reader


async def test_shutdown_ends_group_and_exit_hooks_run(
    make_datasette, register_models, plugin
) -> None:
    class Settle:
        groups: list[Any] = []  # noqa: RUF012

        @hookimpl
        def llm_group_exit(self, group: Any) -> None:
            self.groups.append(group)

    settle = plugin(Settle())
    scripted = endless("endless")
    register_models(scripted)
    datasette = make_datasette()

    async def batch() -> None:
        async with LLM(datasette).group("endless") as model:
            await (await model.prompt("row")).text()

    running = asyncio.create_task(batch())
    await scripted.received()
    await datasette.invoke_shutdown()

    with pytest.raises(ResponseCancelledError):
        await running
    assert len(settle.groups) == 1


async def test_contexts_can_write_during_shutdown(make_datasette, register_models, plugin) -> None:
    register_models(endless("endless"))
    datasette = make_datasette()
    database = datasette.get_internal_database()
    await database.execute_write("create table spent (cents integer)")
    written = asyncio.Event()

    async def settle() -> None:
        await database.execute_write("insert into spent values (0)")
        written.set()

    plugin(Contexts(settle))
    await (await LLM(datasette).model("endless")).prompt("hi")

    await datasette.invoke_shutdown()

    assert written.is_set()


async def test_hanging_cleanup_does_not_block_shutdown(
    make_datasette, register_models, plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "SHUTDOWN_S", 0.01)
    register_models(endless("endless"))
    began, may_end = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        began.set()
        await may_end.wait()

    plugin(Contexts(hang))
    datasette = make_datasette()
    await (await LLM(datasette).model("endless")).prompt("hi")
    (call,) = instance.of(datasette, RunningCalls)

    await datasette.invoke_shutdown()

    await began.wait()
    assert not call.closed.is_set()
    may_end.set()
    await call.closed.wait()


async def test_shutdown_without_running_calls_is_quiet(
    make_datasette, register_models, plugin, caplog: pytest.LogCaptureFixture
) -> None:
    register_models(ScriptedModel("pelican"))
    contexts = plugin(Contexts())
    datasette = make_datasette()
    await datasette.invoke_startup()
    response = await (await LLM(datasette).model("pelican")).prompt("hi")
    await response.text()

    await datasette.invoke_shutdown()

    assert await response.text() == "Hello"
    assert contexts.ended_with == [None]
    assert caplog.messages == []


async def test_shutdown_leaves_other_instances_alone(make_datasette, register_models) -> None:
    goes_on = asyncio.Event()
    register_models(ScriptedModel("slow", ["One ", goes_on, "two"]))
    stays, stops = make_datasette(), make_datasette()
    response = await (await LLM(stays).model("slow")).prompt("hi")
    await (await LLM(stops).model("slow")).prompt("hi")

    await stops.invoke_shutdown()
    goes_on.set()

    assert await response.text() == "One two"


HANGING = """
import threading
import llm.plugins


class Hanging:
    @llm.hookimpl
    def register_models(self, register):
        threading.Event().wait()


llm.plugins.pm.register(Hanging())
"""


async def test_hanging_provider_does_not_block_exit(
    tmp_path,
):
    """A provider that hangs for good does not keep the process from ending."""
    (tmp_path / "hanging.py").write_text(HANGING)
    program = (
        "import asyncio, hanging\n"
        "from datasette.app import Datasette\n"
        "from datasette_llm import LLM\n"
        "async def ask():\n"
        "    async with asyncio.timeout(0.2):\n"
        "        await LLM(Datasette(memory=True)).models()\n"
        "asyncio.run(ask())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, cwd=tmp_path, stderr=asyncio.subprocess.PIPE
    )
    _, output = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    assert output.decode().splitlines()[-1] == "TimeoutError"


async def test_e2_failed_startup_check_is_told(make_datasette, monkeypatch, caplog) -> None:
    def fails(*args: Any) -> Any:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(lifecycle, "warnings", fails)
    datasette = make_datasette()

    await datasette.invoke_startup()

    said = "The check of the configuration failed: ZeroDivisionError: of ours"
    assert said in (await overview(datasette, Request.fake("/")))["warnings"]
    (record,) = [each for each in caplog.records if each.message == said]
    assert record.exc_info


async def test_e3_overview_knows_new_models(make_datasette, register_models) -> None:
    datasette = make_datasette({"default_model": "heron"})
    await datasette.invoke_startup()
    request = Request.fake("/")
    assert "Unknown model: 'heron'" in str((await overview(datasette, request))["warnings"])

    register_models(ScriptedModel("heron"))

    assert (await overview(datasette, request))["warnings"] == []
