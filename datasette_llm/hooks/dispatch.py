"""Calls of the plugin hooks; no other module calls them.

Each implementation is called separately rather than through `pm.hook`, because messages name
the plugin, because one that raises must not keep the others from being called, and because a
coroutine must be awaited before the next implementation is called. Hook wrappers
(`hookimpl(wrapper=True)`) are therefore not supported, and not called.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from ..errors import HookError
from ..sanitize import message_of

if TYPE_CHECKING:
    import llm
    from datasette.app import Datasette
    from pluggy import HookImpl

    AnyModel = llm.AsyncModel | llm.AsyncKeyModel


_T = TypeVar("_T")
# For each plugin what its implementation of a hook answered.
Answers = list[tuple[str, Any]]
# By plugin, since reading the name of a distribution opens a file.
_names: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
# How long a plugin may keep a page waiting, in seconds.
PAGE_WAITS_S = 10.0
# The hooks that have kept a page waiting for too long, with their plugins; None outside of pages,
# where a plugin may take as long as it likes.
_too_slow: ContextVar[set[tuple[str, str]] | None] = ContextVar(
    "datasette_llm_too_slow", default=None
)
_asking_for_default: ContextVar[Sequence[bool]] = ContextVar("datasette_llm_default", default=())


@contextmanager
def answered_in_time() -> Iterator[None]:
    """In the block a plugin that takes longer than `PAGE_WAITS_S` to answer has failed.

    It is not waited for again, however often the block asks.
    """
    token = _too_slow.set(set())
    try:
        yield
    finally:
        _too_slow.reset(token)


def page_waits_s() -> float | None:
    """How many seconds a plugin may take here: those of a page, or None for any number."""
    return None if _too_slow.get() is None else PAGE_WAITS_S


def implemented(datasette: Datasette, hook: str) -> bool:
    """Whether any plugin implements a hook."""
    return bool(_caller(datasette, hook).get_hookimpls())


def plugins_with(datasette: Datasette, hook: str) -> list[str]:
    """The names of the plugins that implement a hook, in hook order."""
    return [plugin for plugin, _ in _implementations(datasette, hook, {})]


def collect(datasette: Datasette, hook: str, **arguments: object) -> Answers:
    """Call every implementation of a hook.

    Returns:
        (plugin name, answer) for each answer that is not None, in hook order. Those of
        asynchronous hooks are still to be awaited, or discarded.

    Raises:
        HookError: the first implementation to fail raised something; later ones are not called.
    """
    answers: Answers = []
    for plugin, call in _implementations(datasette, hook, arguments):
        try:
            answer = _called(call())
        except Exception as error:  # third-party code
            discard(answers)
            raise failed(hook, plugin, error) from error
        if answer is not None:
            answers.append((plugin, answer))
    return answers


async def resolve(hook: str, answers: Answers) -> Answers:
    """The answers of a hook with those of asynchronous implementations awaited.

    Raises:
        HookError: the first implementation to fail raised something; later ones are discarded.
    """
    resolved = []
    try:
        for number, (plugin, answer) in enumerate(answers):
            answers[number] = (plugin, None)
            resolved.append((plugin, await _named(hook, plugin, _resolved(answer))))
    finally:
        discard(answers)
    return [(plugin, answer) for plugin, answer in resolved if answer is not None]


def discard(answers: Answers) -> list[str]:
    """Drop answers that would have to be awaited, and tell the names of their plugins."""
    waiting = [(plugin, answer) for plugin, answer in answers if inspect.isawaitable(answer)]
    for _, answer in waiting:
        end = getattr(answer, "close", None) or getattr(answer, "cancel", None)
        if end is not None:
            end()  # or Python would warn that it was never awaited
    return [plugin for plugin, _ in waiting]


def context_hooks(
    datasette: Datasette, **arguments: object
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(plugin name, call) for each implementation of `llm_prompt_context`, in hook order."""
    return _implementations(datasette, "llm_prompt_context", arguments)


async def default_model(
    datasette: Datasette, purpose: str | None, actor: Mapping[str, Any] | None
) -> tuple[str, str] | None:
    """The first default that a plugin names, as (plugin name, model id), or None.

    Inside one of these hooks it is None, so that the hook may list models.

    Raises:
        HookError: a plugin raised something, or returned something other than a model id.
    """
    answer = await try_default_model(datasette, purpose, actor)
    if answer is None:
        return None
    plugin, model_id = answer
    if isinstance(model_id, Exception):
        raise failed("llm_default_model", plugin, model_id) from model_id
    return plugin, model_id


async def try_default_model(
    datasette: Datasette, purpose: str | None, actor: Mapping[str, Any] | None
) -> tuple[str, str | Exception] | None:
    """As `default_model`, but an exception or a timeout of a plugin is returned as its result."""
    if any(_asking_for_default.get()):
        return None
    # A list that is cleared at the end, because tasks started by the hook keep the variable.
    asking = [True]
    token = _asking_for_default.set(asking)
    try:
        arguments = {"purpose": purpose, "actor": actor}
        for plugin, call in _implementations(datasette, "llm_default_model", arguments):
            answer = await _bounded("llm_default_model", plugin, _default_of(plugin, call))
            if answer is not None:
                return plugin, answer
        return None
    finally:
        asking.clear()
        _asking_for_default.reset(token)


async def filter_models(
    datasette: Datasette,
    models: Sequence[AnyModel],
    purpose: str | None,
    actor: Mapping[str, Any] | None,
) -> list[tuple[str, frozenset[str]]]:
    """The models that each filter keeps.

    Returns:
        (plugin name, ids of the models it keeps) for each plugin with an opinion, in hook
        order; every plugin got the whole list.

    Raises:
        HookError: the first plugin to fail raised something, or returned something other than
            models; later ones are not called.
    """
    kept = []
    for plugin, work in _filters(datasette, models, purpose, actor):
        answer = await _named("llm_filter_models", plugin, work())
        if answer is not None:
            kept.append((plugin, answer))
    return kept


async def try_filter_models(
    datasette: Datasette,
    models: Sequence[AnyModel],
    purpose: str | None,
    actor: Mapping[str, Any] | None,
) -> list[tuple[str, frozenset[str] | Exception]]:
    """As `filter_models`, but an exception is a plugin's result, and all plugins are called."""
    answers = []
    for plugin, work in _filters(datasette, models, purpose, actor):
        answer = await _bounded("llm_filter_models", plugin, work())
        if answer is not None:
            answers.append((plugin, answer))
    return answers


def group_exits(
    datasette: Datasette, group: object
) -> Iterator[tuple[str, Callable[[], Coroutine[Any, Any, Any]]]]:
    """(plugin name, work) for each implementation of `llm_group_exit`, in hook order."""
    for plugin, call in _implementations(datasette, "llm_group_exit", {"group": group}):
        yield plugin, partial(_awaited, call)


def failed(hook: str, plugin: str, error: Exception) -> HookError:
    """The error that says which plugin raised another one, to be raised from that.

    Args:
        hook: the hook.
        plugin: the plugin's name.
        error: what it raised; an error that names hook and plugin already is returned as it is.
    """
    if isinstance(error, HookError) and (error.hook, error.plugin) == (hook, plugin):
        return error
    why = f"{type(error).__name__}: {message_of(error)}".removesuffix(": ")
    return HookError(f"{hook} of plugin {plugin!r} raised {why}", hook, plugin)


def too_late(hook: str, plugin: str) -> HookError:
    """The error that says which plugin has kept a page waiting for too long."""
    who = f"{hook} of plugin {plugin!r}"
    return HookError(f"{who} gave no answer in {PAGE_WAITS_S:g} s", hook, plugin)


def not_ours(error: asyncio.CancelledError, who: str) -> HookError:
    """The error of third-party code that raised CancelledError without us being cancelled.

    Raises:
        CancelledError: the current task is being cancelled.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise error
    return HookError(f"{who} was cancelled from inside: it awaited something that was")


async def _default_of(plugin: str, call: Callable[[], Any]) -> str | None:
    answer = await _resolved(call())
    if answer is None:
        return None
    model_id = getattr(answer, "model_id", answer)
    if not isinstance(model_id, str):
        raise HookError(
            f"llm_default_model of plugin {plugin!r} returned {type(answer).__name__}; return "
            "a model id, or None",
            "llm_default_model",
            plugin,
        )
    return model_id


def _filters(
    datasette: Datasette,
    models: Sequence[AnyModel],
    purpose: str | None,
    actor: Mapping[str, Any] | None,
) -> Iterator[tuple[str, Callable[[], Coroutine[Any, Any, frozenset[str] | None]]]]:
    known = frozenset(model.model_id for model in models)
    arguments = {"purpose": purpose, "actor": actor}
    for plugin, call in _implementations(datasette, "llm_filter_models", arguments):
        # A new list for each plugin, since a plugin may modify its argument.
        yield plugin, partial(_filtered_ids, plugin, partial(call, models=list(models)), known)


async def _filtered_ids(
    plugin: str, call: Callable[[], Any], known: frozenset[str]
) -> frozenset[str] | None:
    answer = await _resolved(call())
    return None if answer is None else _ids_of(plugin, answer) & known


async def _named(hook: str, plugin: str, work: Coroutine[Any, Any, _T]) -> _T:
    """What a plugin answers.

    Raises:
        HookError: it raised something.
    """
    answer = await _bounded(hook, plugin, work)
    if isinstance(answer, Exception):
        raise failed(hook, plugin, answer) from answer
    return answer


async def _bounded(hook: str, plugin: str, work: Coroutine[Any, Any, _T]) -> _T | Exception:
    who, too_slow = f"{hook} of plugin {plugin!r}", _too_slow.get()
    try:
        if too_slow is None:
            return await work
        return await _in_time(work, (hook, plugin), too_slow)
    except asyncio.CancelledError as error:
        return HookError(str(not_ours(error, who)), hook, plugin)
    except _TooSlowError:
        return too_late(hook, plugin)
    except Exception as error:  # third-party code
        return error


class _TooSlowError(Exception):
    """A plugin has not answered in time."""


async def _in_time(
    work: Coroutine[Any, Any, _T], who: tuple[str, str], too_slow: set[tuple[str, str]]
) -> _T:
    """What a plugin answers in time; in a task, which a plugin may keep from being cancelled.

    Raises:
        _TooSlowError: it does not.
    """
    if who in too_slow:
        work.close()
        raise _TooSlowError
    task = asyncio.create_task(work)
    try:
        done, _ = await asyncio.wait([task], timeout=PAGE_WAITS_S)
    finally:
        task.cancel()
    if not done:
        too_slow.add(who)
        raise _TooSlowError
    return task.result()


async def _awaited(call: Callable[[], Any]) -> Any:
    return await _resolved(call())


def _ids_of(plugin: str, answer: object) -> frozenset[str]:
    ids = []
    iterable = not isinstance(answer, str) and hasattr(answer, "__iter__")
    for item in answer if iterable else [None]:  # type: ignore[attr-defined]  # checked above
        model_id = getattr(item, "model_id", item)
        if not isinstance(model_id, str):
            raise HookError(
                f"llm_filter_models of plugin {plugin!r} returned {type(answer).__name__} "
                f"with {type(item).__name__}; return a list of the models to keep, or None",
                "llm_filter_models",
                plugin,
            )
        ids.append(model_id)
    return frozenset(ids)


async def _resolved(value: Any) -> Any:
    """The final value of a hook's result: as in Datasette it may be a function or awaitable."""
    value = _called(value)
    return await value if inspect.isawaitable(value) else value


def _called(value: Any) -> Any:
    return value() if callable(value) else value


def _caller(datasette: Datasette, hook: str) -> Any:
    return getattr(datasette.pm.hook, hook)


def _implementations(
    datasette: Datasette, hook: str, arguments: Mapping[str, object]
) -> Iterator[tuple[str, Callable[..., Any]]]:
    """(plugin name, call) for each implementation, in the order in which pluggy calls them."""
    everything = {"datasette": datasette, **arguments}
    for implementation in reversed(_caller(datasette, hook).get_hookimpls()):
        if not (implementation.wrapper or implementation.hookwrapper):
            plugin = _name_of(datasette, implementation)
            yield plugin, partial(_call, implementation, everything)


def _name_of(datasette: Datasette, implementation: HookImpl) -> str:
    """The name of a plugin as Datasette shows it at `/-/plugins`."""
    plugin = implementation.plugin
    try:
        name = _names.get(plugin)
    except TypeError:  # an object that no weak reference can be made to
        return implementation.plugin_name
    if name is None:
        name = _names[plugin] = _distribution(datasette, plugin) or implementation.plugin_name
        if name == str(id(plugin)):  # pluggy's name for an object that was registered without one
            name = _names[plugin] = type(plugin).__name__
    return name


def _distribution(datasette: Datasette, plugin: object) -> str | None:
    for installed, distribution in datasette.pm.list_plugin_distinfo():
        if installed is plugin:
            name: str = distribution.name or distribution.project_name
            return name
    return None


def _call(implementation: HookImpl, arguments: Mapping[str, object], **more: object) -> Any:
    given = {**arguments, **more}
    return implementation.function(*[given[name] for name in implementation.argnames])
