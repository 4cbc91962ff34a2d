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

# A tool whose function has this attribute, and it is False, runs in the event loop, as in llm.
MARK = "run_in_thread"

_Tool = TypeVar("_Tool")


def tools_thread() -> SerialThread:
    """A thread for the tools of one chain; it starts with the first that needs it."""
    return SerialThread("datasette-llm tools")


def supervised_tools(tools: Iterable[_Tool], thread: SerialThread) -> list[_Tool]:
    """Tools whose functions neither block the event loop nor cancel who calls them.

    Args:
        tools: llm's; those without a function are left as they are.
        thread: runs the plain functions, one after the other.
    """
    return [_supervised(tool, thread) for tool in tools]


def _supervised(tool: _Tool, thread: SerialThread) -> _Tool:
    if not isinstance(tool, llm.Tool):
        return tool
    function = tool.implementation
    if function is None or hasattr(function, "supervised_by"):
        return tool
    call: Callable[..., Any]
    if inspect.iscoroutinefunction(function):
        call = _awaited(function, tool.name)
    elif getattr(function, MARK, True):
        call = _in_thread(function, tool.name, thread)
    else:
        call = _in_loop(function, tool.name)
    functools.update_wrapper(call, function)
    ours = copy.copy(tool)
    ours.implementation = call
    # Functions of ours are known by the first; llm finds the toolbox of a method by the second.
    vars(call)["supervised_by"] = "datasette-llm"
    if hasattr(function, "__self__"):
        vars(call)["__self__"] = function.__self__
    return ours


def _awaited(function: Callable[..., Awaitable[Any]], name: str) -> Callable[..., Awaitable[Any]]:
    async def call(**arguments: Any) -> Any:
        return await _uncancelled(function(**arguments), name)

    return call


def _in_thread(
    function: Callable[..., Any], name: str, thread: SerialThread
) -> Callable[..., Awaitable[Any]]:
    async def run(arguments: dict[str, Any]) -> Any:
        result = await thread.run(functools.partial(function, **arguments))
        return await result if inspect.isawaitable(result) else result

    def call(**arguments: Any) -> Awaitable[Any]:
        return _uncancelled(run(arguments), name)

    return call


def _in_loop(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    def call(**arguments: Any) -> Any:
        result = function(**arguments)
        return _uncancelled(result, name) if inspect.isawaitable(result) else result

    return call


async def _uncancelled(work: Awaitable[Any], name: str) -> Any:
    """Await what a tool does; its own cancellation or `sys.exit()` is an error of the tool."""
    try:
        return await work
    except SystemExit as error:
        raise HookError(f"Tool {name!r} raised SystemExit: {error}") from error
    except asyncio.CancelledError as error:
        raise dispatch.not_ours(error, f"Tool {name!r}") from error
