"""Calling the hooks: their order and arguments, and that no coroutine is left unawaited."""

import asyncio
import base64
import gc
import itertools
import json
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasette import hookimpl
from datasette.app import Datasette
from datasette.plugins import get_plugins, pm
from datasette.utils.asgi import Request

from datasette_llm import LLM, Group, HookError, Purpose, get_purposes, instance
from datasette_llm.access.hook_failures import HookFailures
from datasette_llm.calls import hook_contexts as contexts
from datasette_llm.console.overview import overview
from datasette_llm.hooks import dispatch
from datasette_llm.testing import ScriptedModel
from tests.support.call_log import flushed_rows


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
        with pytest.raises((RuntimeError, HookError), match="an earlier hook"):
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


# Failures are told


def broken(hook: str, error: Exception) -> Any:
    """A plugin whose hook raises."""

    def implementation() -> None:
        raise error

    return module_with(hook, implementation)


@pytest.mark.parametrize("hook", ["llm_filter_models", "llm_default_model"])
@pytest.mark.parametrize("how", ["model", "models", "group"])
async def test_e2_caller_gets_the_plugins_name(
    datasette: Datasette, plugin, caplog, hook: str, how: str
) -> None:
    await datasette.invoke_startup()
    refused = ConnectionError("Connection refused")
    plugin(broken(hook, refused), name="prices")
    models = LLM(datasette)
    ask = {"model": models.model, "models": models.models, "group": models.group().__aenter__}

    with pytest.raises(HookError) as raised:
        await ask[how]()

    assert (raised.value.hook, raised.value.plugin) == (hook, "prices")
    assert raised.value.__cause__ is refused
    said = f"{hook} of plugin 'prices' raised ConnectionError: Connection refused"
    assert str(raised.value) == said
    assert said in caplog.text
    shown: dict[str, Any] = await overview(datasette, Request.fake("/-/llm"))
    assert any(warning.startswith(said) for warning in shown["warnings"])


@pytest.mark.parametrize("hook", ["llm_filter_models", "llm_default_model"])
@pytest.mark.parametrize("model_id", [None, "pelican"])
async def test_e2_call_of_failed_hook_has_a_row(
    datasette: Datasette, plugin, hook: str, model_id: str | None
) -> None:
    await datasette.invoke_startup()
    plugin(broken(hook, ConnectionError("Connection refused")), name="prices")
    fails = model_id is None or hook == "llm_filter_models"
    with pytest.raises(HookError) if fails else nullcontext():
        await LLM(datasette).model(model_id, purpose="chat", actor={"id": "ana"})

    recorded = await flushed_rows(datasette)
    assert len(recorded) == fails
    for row in recorded:
        assert (row["outcome"], row["blocked_by"]) == ("blocked", "prices")
        assert (row["model_id"], row["purpose"], row["actor_id"]) == ("pelican", "chat", "ana")
        assert "Connection refused" in row["error_message"]


async def test_e2_failed_default_without_a_name(make_datasette, plugin) -> None:
    """The row has a placeholder where not even the name of a model is known."""
    plugin(broken("llm_default_model", ConnectionError("No")), name="prices")
    datasette = make_datasette()
    with pytest.raises(HookError):
        await LLM(datasette).model()

    assert [row["model_id"] for row in await flushed_rows(datasette)] == ["(default)"]


async def test_e2_context_error_is_kept_and_named(datasette: Datasette, plugin, caplog) -> None:
    """What `llm_prompt_context` raises reaches the caller as it is, with the plugin in a note."""
    used_up = PermissionError("Used up")
    plugin(broken("llm_prompt_context", used_up), name="budget")
    model = await LLM(datasette).model()
    for _ in range(2):
        with pytest.raises(PermissionError) as raised:
            await model.prompt("hi")

    assert raised.value is used_up
    assert raised.value.__notes__ == ["Raised by llm_prompt_context of plugin 'budget'"]
    said = "llm_prompt_context of plugin 'budget' raised PermissionError: Used up"
    assert caplog.text.count(said) == 2
    (warning,) = instance.of(datasette, HookFailures).warnings()
    assert warning.startswith(said)
    assert warning.endswith(", 2 times since the start)")


async def test_s4_error_of_a_hook_shows_no_key(datasette, plugin, caplog, monkeypatch) -> None:
    """Such as of its own request to a provider, in the header that it sends."""
    key = "sk-" + "0a1B2c3D4e5F6g7H8"
    monkeypatch.setenv("DATASETTE_SECRETS_BUDGET_API_KEY", key)
    header = base64.b64encode(f"budget:{key}".encode()).decode()
    plugin(broken("llm_prompt_context", ValueError(f"Basic {header} is refused")), name="budget")
    model = await LLM(datasette).model()
    with pytest.raises(ValueError, match="is refused"):
        await model.prompt("hi")

    (row,) = await flushed_rows(datasette)
    (warning,) = instance.of(datasette, HookFailures).warnings()
    for told in (str(row), caplog.text, warning):
        assert "is refused" in told
        assert header[10:20] not in told


@pytest.mark.parametrize("when", ["before", "after", "at the exit"])
async def test_e7_keys_in_errors_of_hooks(
    datasette: Datasette, plugin, caplog, llm_folder: Path, when: str
) -> None:
    """A hook may have read any key of the site; its error has none, wherever it is told."""
    (llm_folder / "keys.json").write_text('{"prices": "sk-of-the-site"}')
    refusal = ValueError("No prices with sk-of-the-site")

    @asynccontextmanager
    async def context(result: Any) -> AsyncIterator[None]:
        if when == "before":
            raise refusal
        yield
        raise refusal

    exits = broken("llm_group_exit", refusal)
    plugin(exits if when == "at the exit" else module_with("llm_prompt_context", lambda: context))

    with pytest.raises(ValueError, match="No prices with") as raised:
        async with LLM(datasette).group() as model:
            await (await model.prompt("hi")).text()

    rows = await flushed_rows(datasette)
    warnings = instance.of(datasette, HookFailures).warnings()
    assert "sk-of-the-site" not in f"{raised.value!r} {rows} {warnings} {caplog.text}"
    assert len(warnings) == 1


@pytest.mark.parametrize("hook", ["llm_prompt_context", "llm_group_exit"])
async def test_e2_late_failures_are_told_too(
    datasette: Datasette, plugin, caplog, hook: str
) -> None:
    """Those after a good answer."""

    @asynccontextmanager
    async def context(result: Any) -> AsyncIterator[None]:
        yield
        raise ValueError("No table")

    late = module_with(hook, lambda: context)
    plugin(late if hook == "llm_prompt_context" else broken(hook, ValueError("No table")), "usage")

    with pytest.raises(ValueError, match="No table") as raised:
        async with LLM(datasette).group() as model:
            await (await model.prompt("hi")).text()

    assert raised.value.__notes__ == [f"Raised by {hook} of plugin 'usage'"]
    assert f"{hook} of plugin 'usage' raised ValueError: No table" in caplog.text


async def test_e2_plugin_has_its_name_of_the_page(
    datasette: Datasette, plugin, monkeypatch
) -> None:
    """A plugin of a distribution has the distribution's name, as at `/-/plugins`."""
    prices = plugin(broken("llm_filter_models", ValueError("No")), name="entry_point")
    distribution = SimpleNamespace(name="datasette-prices", project_name="x", version="1")
    monkeypatch.setattr(pm, "list_plugin_distinfo", lambda: [(prices, distribution)])
    shown = [each["name"] for each in get_plugins()]

    with pytest.raises(HookError, match="plugin 'datasette-prices'"):
        await LLM(datasette).model()
    assert "datasette-prices" in shown


async def test_e2_key_in_a_hooks_error_is_removed(
    datasette: Datasette, plugin, caplog, llm_folder
) -> None:
    key = "sk-0123456789"
    (llm_folder / "keys.json").write_text(json.dumps({"prices": key}))
    plugin(broken("llm_filter_models", ConnectionError(f"No {key}\n!")), name="prices")

    with pytest.raises(HookError) as raised:
        await LLM(datasette).model()

    shown = [*(await flushed_rows(datasette)), *instance.of(datasette, HookFailures).warnings()]
    assert key not in f"{raised.value} {raised.value.__cause__} {caplog.text} {shown}"
    assert "No [key removed] !" in caplog.text


async def test_e2_inner_cancellation_is_a_failure(datasette: Datasette, plugin) -> None:
    async def awaits_a_cancelled_task() -> None:
        raise asyncio.CancelledError

    plugin(module_with("llm_filter_models", awaits_a_cancelled_task), name="prices")

    with pytest.raises(HookError, match="llm_filter_models of plugin 'prices' was cancelled"):
        await LLM(datasette).model()


async def test_e2_plugin_may_be_any_object(datasette: Datasette) -> None:
    """One without a name has its class's; one that takes no weak reference works too."""

    class Slotted:
        __slots__ = ()

        @hookimpl
        def llm_filter_models(self) -> list[str]:
            return []

    class Plain(Slotted):
        pass

    for implementations in Plain(), Slotted():
        pm.register(implementations)
        try:
            decision = await LLM(datasette).explain("pelican")
        finally:
            pm.unregister(implementations)
        assert not decision
        named = isinstance(implementations, Plain)
        assert decision.steps[-1].plugin == ("Plain" if named else str(id(implementations)))
