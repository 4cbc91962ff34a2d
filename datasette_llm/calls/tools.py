"""Tools of a chain: plain functions run in a thread of the chain, not in the event loop.

llm calls a plain function where it stands and awaits what it returns, if that can be awaited. So
a plain function takes its place that returns an awaitable, and everything else is left to llm:
the order, the hooks, `PauseChain`, and what an exception becomes.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import llm

from ..errors import HookError
from ..hooks import dispatch
from ..providers.threads import SerialThread
from ..telemetry.spans import ToolSpan, ToolTraces, is_traced

# A tool whose function has this attribute, and it is False, runs in the event loop, as in llm.
MARK = "run_in_thread"

# By this name of a parameter llm tells a function of its call.
_TOOL_CALL = "llm_tool_call"
_UNTIED = ToolTraces()

_Tool = TypeVar("_Tool")


def tools_thread() -> SerialThread:
    """A thread for the tools of one chain; it starts with the first that needs it."""
    return SerialThread("datasette-llm tools")


def supervised_tools(
    tools: Iterable[_Tool], thread: SerialThread, traces: ToolTraces = _UNTIED
) -> list[_Tool]:
    """Tools whose functions neither block the event loop nor cancel who calls them.

    Args:
        tools: llm's; those without a function are left as they are.
        thread: runs the plain functions, one after the other.
        traces: what their spans take from the chain.
    """
    return [_supervised(tool, thread, traces) for tool in tools]


def _supervised(tool: _Tool, thread: SerialThread, traces: ToolTraces) -> _Tool:
    if not isinstance(tool, llm.Tool):
        return tool
    function = tool.implementation
    if function is None or hasattr(function, "supervised_by"):
        return tool
    run = _traced(tool.name, function, thread, traces)
    call: Callable[..., Any] = run
    if not inspect.iscoroutinefunction(function):

        def call(**arguments: Any) -> Awaitable[Any]:
            return run(**arguments)

    functools.update_wrapper(call, function)
    ours = copy.copy(tool)
    ours.implementation = call
    # Functions of ours are known by the first; llm finds the toolbox of a method by the second.
    vars(call)["supervised_by"] = "datasette-llm"
    if hasattr(function, "__self__"):
        vars(call)["__self__"] = function.__self__
    if is_traced():
        vars(call)["__signature__"] = _with_tool_call(function)
    return ours


def _started(
    function: Callable[..., Any], thread: SerialThread
) -> Callable[[dict[str, Any]], Awaitable[Any]]:
    """What begins a tool's work, in the thread where that is plain code."""
    in_thread = getattr(function, MARK, True) and not inspect.iscoroutinefunction(function)

    async def start(arguments: dict[str, Any]) -> Any:
        work = functools.partial(function, **arguments)
        result = await thread.run(work) if in_thread else work()
        return await result if inspect.isawaitable(result) else result

    return start


def _traced(
    name: str, function: Callable[..., Any], thread: SerialThread, traces: ToolTraces
) -> Callable[..., Awaitable[Any]]:
    """A tool inside a span of its own."""
    start = _started(function, thread)

    async def run(*, llm_tool_call: llm.ToolCall | None = None, **arguments: Any) -> Any:
        if llm_tool_call is not None and _TOOL_CALL in _signature(function).parameters:
            arguments[_TOOL_CALL] = llm_tool_call
        with ToolSpan(name, llm_tool_call, traces) as span:
            result = await _uncancelled(start(arguments), name)
            span.returned(result)
            return result

    return run


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # of a builtin
        return inspect.Signature()


def _with_tool_call(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a function with the parameter by which llm gives it its call."""
    signature = _signature(function)
    parameter = inspect.Parameter(_TOOL_CALL, inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters = {_TOOL_CALL: parameter, **signature.parameters}
    return signature.replace(parameters=sorted(parameters.values(), key=lambda each: each.kind))


async def _uncancelled(work: Awaitable[Any], name: str) -> Any:
    """Await what a tool does; its own cancellation or `sys.exit()` is an error of the tool."""
    try:
        return await work
    except SystemExit as error:
        raise HookError(f"Tool {name!r} raised SystemExit: {error}") from error
    except asyncio.CancelledError as error:
        raise dispatch.not_ours(error, f"Tool {name!r}") from error
