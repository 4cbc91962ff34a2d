"""Scripted models for the tests of plugins.

    from datasette_llm.testing import ScriptedModel, registered

    model = ScriptedModel("summariser", ["Short ", "text", llm.Usage(input=12, output=2)])
    with registered(model):
        ...  # LLM(datasette).model("summariser") now works
    assert model.calls[0].prompt == "Summarise this"

With `pytest_plugins = ["datasette_llm.testing"]` in a `conftest.py` there is also the fixture
`register_models`, which unregisters at the end of the test.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import llm
import llm.plugins
from llm.parts import StreamEvent
from pydantic import Field

# What a script may hold; see ScriptedModel.
Item = str | StreamEvent | float | asyncio.Event | llm.ToolCall | llm.Usage | BaseException
Outcome = Literal["running", "complete", "failed", "cancelled"]


@dataclass(slots=True)
class ScriptedCall:
    """One request that a scripted model received.

    Attributes:
        prompt: the text of the prompt.
        key: the key that came with it, or None.
        stream: whether the caller wanted a stream.
        request: llm's prompt object, with system prompt, options, messages and so on.
        sent: the number of chunks and events that were yielded so far.
        outcome: how it ended; "cancelled" if the caller stopped it.
        ended: set when it has ended.
    """

    prompt: str
    key: str | None = field(repr=False)
    stream: bool
    request: llm.Prompt = field(repr=False)
    sent: int = 0
    outcome: Outcome = "running"
    ended: asyncio.Event = field(default_factory=asyncio.Event, repr=False)


class ScriptedModel(llm.AsyncKeyModel):
    """An async model that plays a script for each prompt.

    Args:
        model_id: its id.
        *scripts: one for each prompt in turn; the last is used for all further prompts. A
            script is a sequence, played from first to last, of:
            a string or an `llm.parts.StreamEvent`, which is a chunk of the response;
            a number, a delay in seconds; an `asyncio.Event`, which is waited for;
            an `llm.ToolCall`, which the model calls; an `llm.Usage`, which it reports;
            an exception, which it raises.
        needs_key: the name of the key that it needs, as in `llm keys set NAME`.
        key_env_var: the environment variable that may hold the key.
        can_stream: whether it streams.
        supports_schema: whether it takes schemas.
        supports_tools: whether it takes tools.
        attachment_types: the media types it takes.

    Attributes:
        calls: a `ScriptedCall` for each request received, in order.
    """

    class Options(llm.Options):
        """The options that every scripted model takes."""

        temperature: float | None = Field(default=None, ge=0, le=2)
        max_tokens: int | None = Field(default=None, ge=1)

    def __init__(
        self,
        model_id: str = "scripted",
        *scripts: Sequence[Item],
        needs_key: str | None = None,
        key_env_var: str | None = None,
        can_stream: bool = True,
        supports_schema: bool = True,
        supports_tools: bool = True,
        attachment_types: Sequence[str] = (),
    ) -> None:
        self.model_id = model_id
        self.scripts = scripts or (["Hello"],)
        self.needs_key = needs_key
        self.key_env_var = key_env_var
        self.can_stream = can_stream
        self.supports_schema = supports_schema
        self.supports_tools = supports_tools
        self.attachment_types = frozenset(attachment_types)
        self.calls: list[ScriptedCall] = []
        self._arrived = asyncio.Event()

    async def received(self, count: int = 1) -> ScriptedCall:
        """Wait until this many requests have been received, and return the last of these."""
        while len(self.calls) < count:
            await self._arrived.wait()
        return self.calls[count - 1]

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None,
        key: str | None = None,
    ) -> AsyncGenerator[str | StreamEvent, None]:
        """Play the next script."""
        script = self.scripts[min(len(self.calls), len(self.scripts) - 1)]
        call = ScriptedCall(prompt.prompt, key, stream, prompt)
        self.calls.append(call)
        self._arrived.set()
        self._arrived.clear()
        try:
            for item in script:
                if isinstance(item, str | StreamEvent):
                    call.sent += 1
                    yield item
                else:
                    await _act(item, response)
            call.outcome = "complete"
        except (asyncio.CancelledError, GeneratorExit):
            call.outcome = "cancelled"
            raise
        except BaseException:
            call.outcome = "failed"
            raise
        finally:
            call.ended.set()


@contextlib.contextmanager
def registered(*models: llm.AsyncModel | llm.AsyncKeyModel) -> Iterator[None]:
    """Register models with llm, as a plugin does, until the block is left."""

    class Plugin:
        __name__ = "datasette_llm.testing"

        @llm.hookimpl(trylast=True)  # to replace a model with the same id
        def register_models(self, register: Callable[..., None]) -> None:
            for model in models:
                register(_SyncTwin(model.model_id), model)

    plugin = Plugin()
    llm.plugins.pm.register(plugin, name=f"{Plugin.__name__} {id(plugin)}")
    try:
        yield
    finally:
        llm.plugins.pm.unregister(plugin)


try:
    import pytest
except ImportError:  # all but the fixture is of use without it
    pass
else:

    @pytest.fixture
    def register_models() -> Iterator[Callable[..., None]]:
        """A function that registers models with llm until the end of the test."""
        with contextlib.ExitStack() as stack:
            yield lambda *models: stack.enter_context(registered(*models))


async def _act(item: Item, response: llm.AsyncResponse) -> None:
    match item:
        case llm.ToolCall():
            response.add_tool_call(item)
        case llm.Usage():
            response.set_usage(input=item.input, output=item.output, details=item.details)
        case asyncio.Event():
            await item.wait()
        case BaseException():
            raise item
        case int() | float():
            await asyncio.sleep(item)
        case _:
            raise TypeError(f"A script cannot hold {type(item).__name__}: {item!r}")


class _SyncTwin(llm.Model):
    """llm lists a model by its sync version; this one only provides its id."""

    def __init__(self, model_id: str) -> None:
        self.model_id = model_id

    def execute(self, *args: Any, **kwargs: Any) -> Iterator[str]:
        raise llm.ModelError(f"{self.model_id} is an async model")
