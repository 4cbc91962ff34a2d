"""Calling the hooks: their order and arguments, and that no coroutine is left unawaited."""

import gc
import itertools
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from datasette import hookimpl
from datasette.app import Datasette
from datasette.plugins import pm

from datasette_llm import LLM, Group, HookError, Purpose, get_purposes
from datasette_llm.calls import hook_contexts as contexts
from datasette_llm.hooks import dispatch
from datasette_llm.testing import ScriptedModel


@pytest.fixture
def pelican(register_models: Any) -> ScriptedModel:
    """A model that says Hello."""
    model = ScriptedModel("pelican")
    register_models(model)
    return model


@pytest.fixture
def datasette(make_datasette: Callable[..., Datasette], pelican: ScriptedModel) -> Datasette:
    """A Datasette whose default is this model."""
    return make_datasette({"default_model": "pelican"})


def module_with(hook: str, function: Callable[..., Any], **options: bool) -> Any:
    """A plugin with one function, as a module would have it."""

    class Module:
        pass

    module = Module()
    setattr(module, hook, hookimpl(**options)(function))
    return module


HOOKS = {
    "llm_prompt_context": ("datasette", "model_id", "prompt", "purpose", "actor"),
    "llm_group_exit": ("datasette", "group"),
    "llm_filter_models": ("datasette", "models", "actor", "purpose"),
    "llm_default_model": ("datasette", "purpose", "actor"),
    "register_llm_purposes": ("datasette",),
}


def test_these_are_the_hooks_and_their_arguments() -> None:
    hooks = {name: getattr(pm.hook, name).spec.argnames for name in HOOKS}

    assert hooks == HOOKS
    assert all(getattr(pm.hook, name).spec.function.__doc__ for name in HOOKS)


@pytest.mark.parametrize(
    ("hook", "argument_names"),
    [
        (hook, subset)
        for hook, names in HOOKS.items()
        for count in range(len(names) + 1)
        for subset in itertools.combinations(names, count)
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value) or "nothing",
)
async def test_hook_may_take_any_subset_of_arguments(
    datasette: Datasette, plugin, hook: str, argument_names: tuple[str, ...]
) -> None:
    asked: list[dict[str, Any]] = []
    source = f"lambda {', '.join(argument_names)}: asked.append(dict({{}}, **{{"
    source += ", ".join(f"{name!r}: {name}" for name in argument_names) + "})) or answer"
    answer = [] if hook == "register_llm_purposes" else None
    plugin(module_with(hook, eval(source, {"asked": asked, "answer": answer})))
    actor = {"id": "simon"}

    async with LLM(datasette).group(purpose="chat", actor=actor) as model:
        await (await model.prompt("hi")).text()
    await get_purposes(datasette)

    expected = {
        "datasette": datasette,
        "model_id": "pelican",
        "prompt": "hi",
        "purpose": "chat",
        "actor": actor,
    }
    assert asked
    for arguments in asked:
        assert tuple(arguments) == argument_names
        group, models = arguments.pop("group", None), arguments.pop("models", None)
        assert arguments == {name: expected[name] for name in arguments}
        assert group is None or (isinstance(group, Group) and group.purpose == "chat")
        assert models is None or "pelican" in {each.model_id for each in models}


# Every coroutine is awaited or closed


@pytest.mark.parametrize("later_ones", ["coroutine functions", "functions with a coroutine"])
@pytest.mark.parametrize("earlier", ["function", "coroutine function"])
@pytest.mark.parametrize("hook", HOOKS)
async def test_raising_hook_leaves_no_coroutine(
    datasette: Datasette, plugin, hook: str, earlier: str, later_ones: str
) -> None:
    """No coroutine is left unawaited when an earlier hook raises."""

    async def asynchronous() -> Any:
        return [] if hook == "register_llm_purposes" else None

    def with_a_coroutine() -> Any:
        return asynchronous()

    def raises() -> Any:
        raise RuntimeError("an earlier hook")

    async def raises_later() -> Any:
        raise RuntimeError("an earlier hook")

    later = asynchronous if later_ones == "coroutine functions" else with_a_coroutine
    plugin(module_with(hook, later), name="before")
    plugin(module_with(hook, raises if earlier == "function" else raises_later), name="raises")
    plugin(module_with(hook, later), name="after")
    models = LLM(datasette)

    async def everything() -> None:
        async with models.group() as model:
            await model.prompt("hi")
        await get_purposes(datasette)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(RuntimeError, match="an earlier hook"):
            await everything()
        gc.collect()

    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("hook", ["llm_default_model", "llm_filter_models", "llm_prompt_context"])
async def test_invalid_result_leaves_no_coroutine(datasette: Datasette, plugin, hook: str) -> None:
    """No coroutine is left unawaited when an earlier hook returns something invalid."""

    async def asynchronous() -> None:
        return None

    plugin(module_with(hook, asynchronous), name="later")
    plugin(module_with(hook, lambda: 7), name="earlier")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(HookError, match="plugin 'earlier'"):
            await (await LLM(datasette).model()).prompt("hi")
        gc.collect()

    assert [str(warning.message) for warning in caught] == []


async def test_first_default_leaves_no_coroutine(datasette: Datasette, plugin) -> None:
    """No coroutine is left unawaited when the first default is used."""

    async def never_asked() -> str:
        raise AssertionError("the first answer was used")

    plugin(module_with("llm_default_model", never_asked), name="later")
    plugin(module_with("llm_default_model", lambda: "pelican"), name="earlier")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await LLM(datasette).model()
        gc.collect()

    assert [str(warning.message) for warning in caught] == []


# Order


class Ordered:
    """Takes part in every hook, and records that it was called."""

    def __init__(self, name: str, asked: list[str], **options: bool) -> None:
        self.name = name
        for hook in HOOKS:
            setattr(self, hook, hookimpl(**options)(self.noting(hook, asked)))

    def noting(self, hook: str, asked: list[str]) -> Callable[[], Any]:
        def implementation() -> Any:
            asked.append(self.name)
            return [Purpose(self.name)] if hook == "register_llm_purposes" else None

        return implementation


def register_in_order(plugin: Callable[..., Any], asked: list[str]) -> None:
    """Four plugins, of which pluggy calls the last registered one first, but for two."""
    plugin(Ordered("first", asked, tryfirst=True), name="first")
    plugin(Ordered("third", asked), name="third")
    plugin(Ordered("second", asked), name="second")
    plugin(Ordered("last", asked, trylast=True), name="last")


@pytest.mark.parametrize("hook", HOOKS)
async def test_hooks_are_called_in_pluggy_order(datasette: Datasette, plugin, hook: str) -> None:
    asked: list[str] = []
    register_in_order(plugin, asked)
    others: dict[str, Any] = dict.fromkeys(HOOKS[hook][1:])
    getattr(pm.hook, hook)(datasette=datasette, **others)
    assert asked == ["first", "second", "third", "last"]
    asked.clear()

    match hook:
        case "llm_prompt_context":
            for name, call in dispatch.context_hooks(datasette, **others):
                await contexts.make_factory(name, call)
        case "llm_group_exit":
            for _, work in dispatch.group_exits(datasette, LLM(datasette).group()):
                await work()
        case "llm_filter_models":
            await dispatch.filter_models(datasette, [], None, None)
        case "llm_default_model":
            await dispatch.default_model(datasette, None, None)
        case "register_llm_purposes":
            await get_purposes(datasette)

    assert asked == ["first", "second", "third", "last"]


async def test_contexts_are_nested_in_hook_order(datasette: Datasette, plugin) -> None:
    """Contexts are entered in hook order and left in reverse."""
    events: list[str] = []

    def context_of(name: str) -> Callable[[], Any]:
        @asynccontextmanager
        async def context(result: Any) -> AsyncIterator[None]:
            events.append(f"enter {name}")
            yield
            events.append(f"leave {name}")

        return lambda: context

    for name, options in {
        "last": {"trylast": True},
        "second": {},
        "first": {"tryfirst": True},
    }.items():
        plugin(module_with("llm_prompt_context", context_of(name), **options), name=name)

    await (await (await LLM(datasette).model()).prompt("hi")).text()

    assert events == [f"enter {n}" for n in ("first", "second", "last")] + [
        f"leave {n}" for n in ("last", "second", "first")
    ]


async def test_hook_registered_between_calls_is_seen(datasette: Datasette, plugin) -> None:
    """A hook that is registered or unregistered between two calls is noticed."""
    models = LLM(datasette)
    await models.model("pelican")
    refuse = plugin(module_with("llm_filter_models", lambda: []))
    assert not await models.explain("pelican")

    pm.unregister(refuse)
    assert await models.explain("pelican")
    pm.register(refuse)  # for the fixture, which unregisters it


async def test_a_wrapper_of_a_hook_is_not_called(datasette: Datasette, plugin) -> None:
    def wrapper() -> Iterator[Any]:
        raise AssertionError("not called")
        yield

    for hook in HOOKS:
        plugin(module_with(hook, wrapper, wrapper=True), name=f"wraps {hook}")

    async with LLM(datasette).group() as model:
        assert await (await model.prompt("hi")).text() == "Hello"
    assert await get_purposes(datasette) == []


# What hooks may return


async def test_hook_may_return_a_function(datasette: Datasette, plugin, register_models) -> None:
    """A hook may return a function, as Datasette's own may."""
    register_models(ScriptedModel("heron"))

    async def heron() -> str:
        return "heron"

    closed = []
    plugin(module_with("llm_default_model", lambda: heron))
    plugin(module_with("llm_filter_models", lambda: lambda: ["heron"]), name="filter")
    plugin(module_with("llm_group_exit", lambda group: lambda: closed.append(group)), name="exit")

    group = LLM(datasette).group()
    async with group as model:
        assert model.model_id == "heron"
    assert closed == [group]


@pytest.mark.parametrize("returned", [7, "text", object(), [print]])
async def test_invalid_context_hook_blocks_the_call(
    datasette: Datasette, pelican: ScriptedModel, plugin, returned: object
) -> None:
    """A prompt context that is no function blocks the call; the error names the plugin."""
    plugin(module_with("llm_prompt_context", lambda: returned), name="tracing")
    model = await LLM(datasette).model()

    with pytest.raises(HookError) as raised:
        await model.prompt("hi")

    assert str(raised.value) == (
        f"llm_prompt_context of plugin 'tracing' returned {type(returned).__name__}; return None, "
        "or a function that takes a PromptResult and returns an async context manager"
    )
    assert pelican.calls == []


async def undecorated(result: Any) -> AsyncIterator[None]:
    yield


@contextmanager
def synchronous(result: Any) -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("factory", "made"),
    [
        (undecorated, "async_generator"),
        (synchronous, "_GeneratorContextManager"),
        (lambda result: None, "NoneType"),
        (lambda result: "text", "str"),
    ],
)
async def test_invalid_context_factory_blocks_the_call(
    datasette: Datasette, pelican, plugin, factory: Callable[..., Any], made: str
) -> None:
    """A factory that makes no context manager blocks the call; the error names the plugin."""
    plugin(module_with("llm_prompt_context", lambda: factory), name="tracing")
    model = await LLM(datasette).model()

    with pytest.raises(HookError) as raised:
        await model.prompt("hi")

    assert str(raised.value) == (
        f"The function that llm_prompt_context of plugin 'tracing' returned gave {made}, not an "
        "async context manager; decorate it with contextlib.asynccontextmanager"
    )
    assert pelican.calls == []


@pytest.mark.parametrize("hook_is_async", [False, True])
@pytest.mark.parametrize("factory_is_async", [False, True])
async def test_context_hook_and_factory_may_be_async(
    datasette: Datasette, plugin, hook_is_async: bool, factory_is_async: bool
) -> None:
    events: list[str] = []

    @asynccontextmanager
    async def context() -> AsyncIterator[None]:
        events.append("enter")
        yield
        events.append("leave")

    async def async_factory(result: Any) -> Any:
        return context()

    factory = async_factory if factory_is_async else lambda result: context()

    async def async_hook() -> Any:
        return factory

    plugin(module_with("llm_prompt_context", async_hook if hook_is_async else lambda: factory))

    await (await (await LLM(datasette).model()).prompt("hi")).text()

    assert events == ["enter", "leave"]


async def test_every_group_exit_hook_runs(datasette: Datasette, plugin) -> None:
    """Every group exit hook runs, also if others raise."""
    asked: list[str] = []

    def hook_of(name: str) -> Callable[[], None]:
        def implementation() -> None:
            asked.append(name)
            raise RuntimeError(name)

        return implementation

    for name in "abc":
        plugin(module_with("llm_group_exit", hook_of(name)), name=name)

    with pytest.raises(ZeroDivisionError) as raised:
        async with LLM(datasette).group():
            raise ZeroDivisionError

    assert asked == ["c", "b", "a"]
    failed = "An llm_group_exit hook failed too: RuntimeError('{}')"
    assert raised.value.__notes__ == [failed.format(name) for name in asked]
