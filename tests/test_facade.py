"""LLM, the class for plugin authors: models, defaults, policy, options."""

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llm
import pydantic
import pytest
from datasette import hookimpl
from datasette.app import Datasette

from datasette_llm import (
    LLM,
    ConfigError,
    HookError,
    LLMError,
    ModelNotAllowedError,
    ModelNotFoundError,
    WrappedAsyncModel,
)
from datasette_llm.testing import ScriptedModel

ABC = {"models": ["a", "b", "c"]}


@pytest.fixture(autouse=True)
def scripted(register_models: Callable[..., None]) -> dict[str, ScriptedModel]:
    """The models a, b, c and d, and k, which needs a key that it does not have."""
    models = {name: ScriptedModel(name) for name in "abcd"}
    models["k"] = ScriptedModel("k", needs_key="bird")
    register_models(*models.values())
    return models


class Filter:
    """Answers llm_filter_models with a value, or with what a function makes of the models."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.seen: list[dict[str, Any]] = []

    @hookimpl
    def llm_filter_models(
        self, datasette: Datasette, models: list[Any], actor: Any, purpose: Any
    ) -> Any:
        self.seen.append(
            {"datasette": datasette, "models": models, "actor": actor, "purpose": purpose}
        )
        return self.answer(models) if callable(self.answer) else self.answer


class AsyncFilter:
    """The same as a coroutine function."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    @hookimpl
    async def llm_filter_models(self, models: list[Any]) -> Any:
        await asyncio.sleep(0)
        return self.answer(models) if callable(self.answer) else self.answer


class Default:
    """Answers llm_default_model."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.seen: list[tuple[Any, Any]] = []

    @hookimpl
    def llm_default_model(self, purpose: Any, actor: Any) -> Any:
        self.seen.append((purpose, actor))
        return self.answer


class AsyncDefault:
    """The same as a coroutine function."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    @hookimpl
    async def llm_default_model(self) -> Any:
        await asyncio.sleep(0)
        return self.answer


async def ids(models: LLM, **kwargs: Any) -> str:
    """What models() lists, as one word."""
    return "".join(model.model_id for model in await models.models(**kwargs))


async def refused(models: LLM, model_id: str | None = None, **kwargs: Any) -> str:
    """The sentence with which model() refuses a model."""
    with pytest.raises(ModelNotAllowedError) as raised:
        await models.model(model_id, **kwargs)
    return str(raised.value)


def keep(*names: str) -> Callable[[list[Any]], list[Any]]:
    """A filter's function, in the words of the README."""
    return lambda models: [model for model in models if model.model_id in names]


# The four ways agree


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"require_keys": False},
        ABC,
        {**ABC, "default_model": "d"},
        {**ABC, "blocked_models": ["b"]},
        {"blocked_models": ["a", "k"]},
        {"models": ["a", "k"], "require_keys": False},
        {"models": ["a"], "purposes": {"chat": {"models": ["b"], "blocked_models": ["a"]}}},
        {"purposes": {"chat": {"model": "c", "models": ["k"]}}},
    ],
)
@pytest.mark.parametrize("kept", [None, ("a", "b", "k"), ()])
@pytest.mark.parametrize("purpose", [None, "chat"])
async def test_all_ways_agree_on_what_is_available(
    make_datasette,
    plugin,
    config: dict[str, Any],
    kept: tuple[str, ...] | None,
    purpose: str | None,
) -> None:
    """model(), models(), group() and explain() agree on which models are available."""
    if kept is not None:
        plugin(Filter(keep(*kept)))
    models = LLM(make_datasette(config))
    listed = {model.model_id for model in await models.models(purpose=purpose)}

    for name in ("a", "b", "c", "d", "k", "echo", "gpt-4o", "unknown"):
        decision = await models.explain(name, purpose)
        assert decision.listed == (name in listed)
        assert await is_given(models.model(name, purpose)) == decision.available
        assert await is_given(models.group(name, purpose).__aenter__()) == decision.available


async def is_given(pending: Any) -> bool:
    try:
        return isinstance(await pending, WrappedAsyncModel)
    except ModelNotFoundError:
        return False


async def test_unavailable_id_from_a_form_is_refused(
    make_datasette,
) -> None:
    models = LLM(make_datasette({**ABC, "purposes": {"chat": {"blocked_models": ["b"]}}}))

    with pytest.raises(ModelNotAllowedError) as raised:
        await models.model("b", purpose="chat", actor={"id": "simon"})

    error = raised.value
    assert error.decision == await models.explain("b", "chat", {"id": "simon"})
    assert error.decision.actor == {"id": "simon"}
    for kind in (ModelNotFoundError, llm.UnknownModelError, LLMError):
        assert isinstance(error, kind)
    # A KeyError's text is the repr of its message; ours is the message.
    assert str(error) == error.decision.reason
    assert str(error) == (
        "Model 'b' is not allowed for purpose 'chat': it is blocked. "
        "Remove it from plugins.datasette-llm.purposes.chat.blocked_models"
    )


async def test_unknown_model_error_is_llms_own_too(make_datasette) -> None:
    with pytest.raises(ModelNotFoundError) as raised:
        await LLM(make_datasette()).model("pelican")

    assert isinstance(raised.value, llm.UnknownModelError)
    assert not isinstance(raised.value, ModelNotAllowedError)
    assert str(raised.value).startswith("Unknown model: 'pelican'. ")


async def test_model_carries_the_purpose_and_the_actor(make_datasette, scripted) -> None:
    actor = {"id": "simon"}

    model = await LLM(make_datasette()).model("a", purpose="chat", actor=actor)

    assert model.route.model is scripted["a"]
    assert (model.model_id, model.purpose, model.actor) == ("a", "chat", actor)


async def test_listed_models_are_ready_to_prompt(make_datasette, scripted) -> None:
    models = await LLM(make_datasette(ABC)).models(actor={"id": "simon"}, purpose="chat")

    for model in models:
        assert await (await model.prompt("hi")).text() == "Hello"
    assert [model.purpose for model in models] == ["chat"] * 3
    assert [len(scripted[name].calls) for name in "abcd"] == [1, 1, 1, 0]


async def test_concurrent_users_keep_their_actors(make_datasette) -> None:
    models = LLM(make_datasette())
    actors = [{"id": str(number)} for number in range(20)]

    found = await asyncio.gather(*[models.model("a", actor=actor) for actor in actors])

    assert [model.actor for model in found] == actors


async def test_model_needs_no_startup_to_have_run(make_datasette, scripted) -> None:
    datasette = make_datasette({"default_model": "a"})

    response = await (await LLM(datasette).model()).prompt("hi")

    assert await response.text() == "Hello"
    assert not datasette._startup_invoked  # noqa: SLF001  # Datasette's


# Explaining


async def test_decision_lists_every_rule_in_order(make_datasette, plugin) -> None:
    plugin(Filter(keep("a", "k")), name="teams")
    plugin(Filter(None), name="no-opinion")
    models = LLM(make_datasette({"models": ["a", "k"]}))

    decision = await models.explain("a", "chat", {"id": "simon"})

    assert [(step.rule, step.passed, step.plugin) for step in decision.steps] == [
        ("known", True, None),
        ("allowlist", True, None),
        ("blocklist", True, None),
        ("key", True, None),
        ("filter", True, "teams"),
    ]
    assert decision.steps[0].detail == "Model 'a' is known to llm"
    assert (decision.model_id, decision.purpose, decision.actor) == ("a", "chat", {"id": "simon"})
    assert decision.reason == "Model 'a' is available for purpose 'chat'"


async def test_decision_about_an_unknown_model(make_datasette) -> None:
    decision = await LLM(make_datasette()).explain("pelican", "chat", None)

    assert not decision
    assert [(step.rule, step.passed) for step in decision.steps] == [("known", False)]
    assert decision.reason.startswith("Unknown model: 'pelican'")


async def test_missing_key_hides_but_does_not_forbid(make_datasette) -> None:
    """A missing key hides a model, and does not forbid it."""
    models = LLM(make_datasette())

    decision = await models.explain("k")

    assert decision.available
    assert not decision.listed
    assert decision.reason == (
        "Model 'k' has no key, so it is not listed, and a prompt will fail. Set BIRD_API_KEY"
    )
    model = await models.model("k")
    with pytest.raises(llm.NeedsKeyException):
        await model.prompt("hi")


async def test_filters_not_run_for_removed_models(make_datasette, plugin) -> None:
    asked = plugin(Filter(None))
    models = LLM(make_datasette(ABC))

    assert [step.rule for step in (await models.explain("d")).steps] == ["known", "allowlist"]
    await refused(models, "d")

    assert asked.seen == []


# Keys, purposes, actors


@pytest.mark.parametrize(("require_keys", "listed"), [(True, "a"), (False, "ak")])
async def test_require_keys_hides_models_without_a_key(
    make_datasette, require_keys: bool, listed: str
) -> None:
    config = {"models": ["a", "k"], "require_keys": require_keys}

    assert await ids(LLM(make_datasette(config))) == listed


async def test_unregistered_purpose_is_allowed(make_datasette) -> None:
    models = LLM(make_datasette({**ABC, "default_model": "b"}))

    assert (await models.model(purpose="never heard of")).purpose == "never heard of"
    assert await ids(models, purpose="never heard of") == "bac"


async def test_a_purpose_has_its_own_models_and_default(make_datasette) -> None:
    config = {**ABC, "default_model": "b", "purposes": {"chat": {"model": "c", "models": ["d"]}}}
    models = LLM(make_datasette(config))

    assert await ids(models) == "bac"
    assert await ids(models, purpose="chat") == "cdab"
    assert (await models.model()).model_id == "b"
    assert (await models.model(purpose="chat")).model_id == "c"
    assert (await models.model("d", purpose="chat")).model_id == "d"
    assert await refused(models, "d") == (
        "Model 'd' is not allowed: it is not on the allowlist. "
        "Add it to the models setting of datasette-llm"
    )


@pytest.mark.parametrize("actor", [None, {}, {"name": "no id"}, {"id": 7}])
async def test_an_actor_without_an_id_is_as_good_as_any(
    make_datasette, plugin, actor: dict[str, Any] | None
) -> None:
    asked = plugin(Filter(None))
    models = LLM(make_datasette({**ABC, "default_model": "a"}))

    model = await models.model(actor=actor)
    async with models.group(actor=actor) as grouped:
        assert await (await grouped.prompt("hi")).text() == "Hello"

    assert await (await model.prompt("hi")).text() == "Hello"
    assert await ids(models, actor=actor) == "abc"
    assert (await models.explain("a", None, actor)).actor == actor
    assert [call["actor"] for call in asked.seen] == [actor] * 4


# Filters


@pytest.mark.parametrize("kind", [Filter, AsyncFilter])
@pytest.mark.parametrize(
    ("answer", "listed"),
    [
        (None, "abc"),
        ([], ""),
        (keep("b", "c"), "bc"),
        (["c", "a"], "ac"),
        (("a",), "a"),
        ({"a", "b"}, "ab"),
        (lambda models: (model for model in models[1:]), "bc"),
        (lambda models: models[::-1], "abc"),
        (lambda models: models + models, "abc"),
        (lambda models: [*models, ScriptedModel("unknown")], "abc"),
        (lambda models: [ScriptedModel("a")], "a"),
        (["unknown", "d", "echo"], ""),
        (lambda models: models.clear(), "abc"),
        (lambda models: [models.pop(), models.clear()][:1], "c"),
    ],
)
async def test_a_filter_may_answer_in_any_of_these_ways(
    make_datasette, plugin, kind: Any, answer: Any, listed: str
) -> None:
    plugin(kind(answer))
    models = LLM(make_datasette(ABC))

    assert await ids(models) == listed
    for name in "abcd":
        assert (await models.explain(name)).available == (name in listed)


@pytest.mark.parametrize("kind", [Filter, AsyncFilter])
@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("a", "returned str with NoneType"),
        (True, "returned bool with NoneType"),
        (7, "returned int with NoneType"),
        ([7], "returned list with int"),
        (["a", None], "returned list with NoneType"),
        ([b"a"], "returned list with bytes"),
    ],
)
async def test_invalid_filter_result_names_the_plugin(
    make_datasette, plugin, kind: Any, answer: Any, problem: str
) -> None:
    plugin(kind(answer), name="teams")
    models = LLM(make_datasette(ABC))

    for ask in (models.models, lambda: models.model("a"), lambda: models.explain("a")):
        with pytest.raises(HookError) as raised:
            await ask()
        assert str(raised.value) == (
            f"llm_filter_models of plugin 'teams' {problem}; "
            "return a list of the models to keep, or None"
        )


async def test_what_a_filter_raises_reaches_the_caller(make_datasette, plugin) -> None:
    class Broken:
        @hookimpl
        def llm_filter_models(self) -> None:
            raise ConnectionError("no database")

    plugin(Broken())
    models = LLM(make_datasette(ABC))

    for ask in (models.models, lambda: models.model("a"), lambda: models.group("a").__aenter__()):
        with pytest.raises(HookError, match="plugin 'Broken' raised ConnectionError: no database"):
            await ask()


@pytest.mark.parametrize("order", [*itertools.permutations(["ab", "bc", "abcd"])])
async def test_filters_only_narrow_whatever_their_order(
    make_datasette, plugin, order: tuple[str, ...]
) -> None:
    for kept in order:
        plugin(Filter(list(kept)), name=kept)
    models = LLM(make_datasette(ABC))

    assert await ids(models) == "b"
    assert "does not allow model 'a' for this actor" in await refused(models, "a")


async def test_hooks_cannot_restore_removed_models(make_datasette, plugin) -> None:
    """A hook can never bring back what the configuration removed."""
    plugin(Filter(["a", "b", "c", "d", "echo", "k"]))
    plugin(Default("d"))
    models = LLM(make_datasette({"models": ["a", "b", "d"], "blocked_models": ["d"]}))

    assert await ids(models) == "ab"
    await refused(models)
    await refused(models, "d")
    await refused(models, "echo")


async def test_filters_see_llms_models_as_listed(make_datasette, plugin, scripted) -> None:
    """Every filter sees llm's own models, in the very list that models() would show."""
    first = plugin(Filter(lambda models: models.clear()), name="first")
    second = plugin(Filter(["a"]), name="second")
    config = {"models": ["k", "a", "b", "c"], "default_model": "c"}
    datasette = make_datasette(config)

    await LLM(datasette).models(actor={"id": "simon"}, purpose="chat")

    assert len(first.seen) == len(second.seen) == 1
    for asked in (first, second):
        assert asked.seen[0]["datasette"] is datasette
        assert asked.seen[0]["actor"] == {"id": "simon"}
        assert asked.seen[0]["purpose"] == "chat"
    shown = second.seen[0]["models"]
    assert len(shown) == 3
    assert all(model is scripted[name] for model, name in zip(shown, "cab", strict=True))


@pytest.mark.parametrize(("asked_for", "shown"), [("b", "cab"), ("k", "cabk")])
async def test_filter_sees_the_model_in_question_too(
    make_datasette, plugin, asked_for: str, shown: str
) -> None:
    config = {"models": ["k", "a", "b", "c"], "default_model": "c"}
    asked = plugin(Filter(None))
    models = LLM(make_datasette(config))

    await models.model(asked_for)
    await models.explain(asked_for)

    assert ["".join(m.model_id for m in call["models"]) for call in asked.seen] == [shown] * 2


async def test_default_removed_by_a_filter_is_refused(make_datasette, plugin) -> None:
    plugin(Filter(["b"]), name="teams")
    models = LLM(make_datasette({**ABC, "default_model": "a"}))

    assert await refused(models, purpose="chat") == (
        "Plugin 'teams' does not allow model 'a' for purpose 'chat' for this actor"
    )
    assert await ids(models) == "b"


# Defaults


@pytest.mark.parametrize("kind", [Default, AsyncDefault])
@pytest.mark.parametrize("purpose", [None, "chat", "other"])
async def test_hook_default_precedes_configured_ones(
    make_datasette, plugin, kind: Any, purpose: str | None
) -> None:
    plugin(kind("c"))
    config = {**ABC, "default_model": "b", "purposes": {"chat": {"model": "a"}}}
    models = LLM(make_datasette(config))

    assert (await models.model(purpose=purpose)).model_id == "c"
    assert (await ids(models, purpose=purpose))[0] == "c"
    async with models.group(purpose=purpose) as model:
        assert model.model_id == "c"


async def test_first_hook_default_wins(make_datasette, plugin) -> None:
    """The first default that is not None is used, and later plugins are not asked."""
    never_asked = plugin(Default("a"), name="third")
    plugin(AsyncDefault("c"), name="second")
    asked = plugin(Default(None), name="first")  # plugins registered later are asked first
    models = LLM(make_datasette(ABC))

    model = await models.model(purpose="chat", actor={"id": "simon"})

    assert model.model_id == "c"
    assert asked.seen == [("chat", {"id": "simon"})]
    assert never_asked.seen == []


async def test_hooks_may_leave_default_to_the_config(make_datasette, plugin) -> None:
    plugin(Default(None))
    plugin(AsyncDefault(None))

    assert (await LLM(make_datasette({"default_model": "b"})).model()).model_id == "b"


async def test_hook_default_may_be_an_alias_or_a_model(
    make_datasette, plugin, scripted, llm_folder: Path
) -> None:
    (llm_folder / "aliases.json").write_text('{"bee": "b"}')
    models = LLM(make_datasette(ABC))
    default = plugin(Default("bee"))

    assert (await models.model()).model_id == "b"
    assert await ids(models) == "bac"
    default.answer = scripted["c"]
    assert (await models.model()).model_id == "c"


async def test_default_hooks_only_without_a_model_id(make_datasette, plugin) -> None:
    """Hooks are not asked for a default where a model is named."""
    asked = plugin(Default("c"))

    assert (await LLM(make_datasette(ABC)).model("a")).model_id == "a"
    assert asked.seen == []


async def test_unknown_hook_default_allows_listing(make_datasette, plugin) -> None:
    """An unknown default from a hook fails model(), and does not stop listing."""
    plugin(Default("pelican"))
    models = LLM(make_datasette({**ABC, "default_model": "b"}))

    with pytest.raises(ModelNotFoundError, match="Unknown model: 'pelican'"):
        await models.model()
    assert await ids(models) == "abc"


@pytest.mark.parametrize("default", ["d", "b"])
async def test_hook_default_is_subject_to_policy(make_datasette, plugin, default: str) -> None:
    plugin(Default(default))
    models = LLM(make_datasette({**ABC, "blocked_models": ["b"]}))

    assert f"Model {default!r} is not allowed" in await refused(models)
    assert await ids(models) == "ac"


@pytest.mark.parametrize("kind", [Default, AsyncDefault])
@pytest.mark.parametrize(("answer", "name"), [(7, "int"), (["a"], "list"), (True, "bool")])
async def test_invalid_hook_default_names_the_plugin(
    make_datasette, plugin, kind: Any, answer: Any, name: str
) -> None:
    plugin(kind(answer), name="prefs")

    with pytest.raises(HookError) as raised:
        await LLM(make_datasette()).model()

    assert str(raised.value) == (
        f"llm_default_model of plugin 'prefs' returned {name}; return a model id, or None"
    )


@pytest.mark.parametrize(
    ("purpose", "message"),
    [
        (
            None,
            "No model was named and there is no default. Name one, or set default_model in the "
            "configuration of datasette-llm",
        ),
        (
            "chat",
            "No model was named for purpose 'chat' and there is no default. Name one, or set "
            "default_model in the configuration of datasette-llm",
        ),
    ],
)
@pytest.mark.parametrize("model_id", [None, ""])
async def test_missing_default_error_says_what_to_do(
    make_datasette, purpose: str | None, message: str, model_id: str | None
) -> None:
    models = LLM(make_datasette())

    for ask in (models.model(model_id, purpose), models.group(model_id, purpose).__aenter__()):
        with pytest.raises(ModelNotFoundError) as raised:
            await ask
        assert str(raised.value) == message
    assert not await models.has_default(purpose)


async def test_empty_model_id_means_the_default(make_datasette) -> None:
    models = LLM(make_datasette({"default_model": "b"}))

    assert (await models.model("")).model_id == "b"
    assert await models.has_default()


# Configured options


OPTIONS = {"default_model": {"model": "a", "options": {"temperature": 0.5, "max_tokens": 10}}}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, (0.5, 10)),
        ({"temperature": 1}, (1, 10)),
        ({"options": {"temperature": 1}}, (1, 10)),
        ({"options": {"temperature": 1}, "max_tokens": 3}, (1, 3)),
        ({"options": None}, (0.5, 10)),
        ({"temperature": None}, (None, 10)),
        ({"temperature": 0, "max_tokens": 1}, (0, 1)),
    ],
)
@pytest.mark.parametrize("way", ["prompt", "conversation", "chain", "conversation's chain"])
async def test_options_of_the_caller_win_in_either_form(
    make_datasette, scripted, given: dict[str, Any], sent: tuple[float, int], way: str
) -> None:
    """Configured options are defaults, and the caller's win in either form."""
    model = await LLM(make_datasette(OPTIONS)).model()

    match way:
        case "prompt":
            await (await model.prompt("hi", **given)).text()
        case "conversation":
            await (await model.conversation().prompt("hi", **given)).text()
        case "chain":
            await model.chain("hi", **given).text()
        case _:
            await model.conversation().chain("hi", **given).text()

    options = scripted["a"].calls[0].request.options
    assert (options.temperature, options.max_tokens) == sent


async def test_configured_options_are_for_their_model(make_datasette, scripted) -> None:
    models = LLM(make_datasette(OPTIONS))

    await (await (await models.model("b")).prompt("hi")).text()

    assert scripted["b"].calls[0].request.options.temperature is None


@pytest.mark.parametrize("options", [{"nonsense": 1}, {"temperature": "hot"}])
async def test_invalid_configured_option_fails_by_name(
    make_datasette, scripted, options: dict[str, Any]
) -> None:
    """A configured option that the model does not take fails the prompt by name."""
    config = {"default_model": {"model": "a", "options": options}}
    model = await LLM(make_datasette(config)).model()

    with pytest.raises(pydantic.ValidationError, match=next(iter(options))):
        await model.prompt("hi")

    assert scripted["a"].calls == []


# Odd prompts


@pytest.mark.parametrize("text", ["", None, "x" * 5_000_000], ids=["empty", "None", "5 MB"])
async def test_a_prompt_may_be_empty_or_5_mb(make_datasette, scripted, text: str | None) -> None:
    model = await LLM(make_datasette()).model("a")

    assert await (await model.prompt(text)).text() == "Hello"
    assert scripted["a"].calls[0].prompt == (text or "")


# The configuration, as it is now


async def test_config_changes_between_calls_count(make_datasette) -> None:
    datasette = make_datasette({"models": ["a", "b"]})
    models = LLM(datasette)
    assert await ids(models) == "ab"

    datasette.config["plugins"]["datasette-llm"]["models"].append("c")
    assert await ids(models) == "abc"

    datasette.config["plugins"]["datasette-llm"] = {"models": ["d"], "default_model": "c"}
    assert await ids(models) == "cd"

    datasette.config["plugins"] = {"datasette-llm": {**ABC, "blocked_models": ["a"]}}
    assert await ids(models) == "bc"
    await refused(models, "a")


async def test_broken_config_is_an_error_until_repaired(
    make_datasette,
) -> None:
    """A configuration broken between calls is an error until it is repaired."""
    datasette = make_datasette(ABC)
    models = LLM(datasette)
    await models.model("a")

    datasette.config["plugins"]["datasette-llm"] = {"modles": ["a"]}
    for _ in range(2):
        for ask in (models.models(), models.model("a"), models.explain("a"), models.model()):
            with pytest.raises(ConfigError, match="modles"):
                await ask

    datasette.config["plugins"]["datasette-llm"] = {"models": ["b"]}
    assert await ids(models) == "b"


async def test_unchanged_config_is_parsed_once(
    make_datasette, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = LLM(make_datasette(ABC))
    await models.model("a")
    monkeypatch.setattr("datasette_llm.access.snapshot.parse_settings", None)

    await models.model("a")
    assert await ids(models) == "abc"


async def test_setting_may_come_from_the_environment(
    make_datasette, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_MODEL", "b")
    models = LLM(make_datasette({"default_model": {"$env": "MY_MODEL"}}))

    assert (await models.model()).model_id == "b"


@pytest.mark.parametrize("config", [None, {}, {"plugins": {}}, {"plugins": None}])
async def test_installed_models_listed_without_config(config: Any) -> None:
    datasette = Datasette(memory=True, config=config)
    try:
        listed = await ids(LLM(datasette))
    finally:
        datasette.close()

    assert "echo" in listed
    assert "abcd" in listed


async def test_a_default_hook_may_list_models_itself(
    make_datasette, register_models, plugin
) -> None:
    asked = []

    class Cheapest:
        @hookimpl
        async def llm_default_model(self, datasette):
            asked.append(True)
            listed = await LLM(datasette).models()
            return min(model.model_id for model in listed)

    class KeepsAll:
        @hookimpl
        def llm_filter_models(self, models):
            return models

    register_models(ScriptedModel("0 cheap"))
    plugin(Cheapest())
    plugin(KeepsAll())
    models = LLM(make_datasette())
    assert (await models.model()).model_id == "0 cheap"
    assert asked == [True]
    await models.model("echo")
    assert asked == [True]


@pytest.mark.parametrize("odd", [["x"], {"model": "x"}, 5])
async def test_a_model_id_that_is_no_text_is_unknown(make_datasette, odd) -> None:
    with pytest.raises(ModelNotFoundError, match="is text"):
        await LLM(make_datasette()).model(odd)


async def test_missing_file_in_config_is_reported(make_datasette) -> None:
    datasette = make_datasette({"default_model": {"$file": "/no/such/file"}})
    with pytest.raises(ConfigError, match=r"plugins.datasette-llm: a \$file cannot be read"):
        await LLM(datasette).models()


async def test_task_of_a_default_hook_gets_its_default(
    make_datasette, register_models, plugin
) -> None:
    """A task that a default hook starts gets the hook's default later."""
    register_models(ScriptedModel("0 cheap"))
    asked, workers = asyncio.Event(), []

    class Default:
        @hookimpl
        def llm_default_model(self, datasette):
            async def later():
                await asked.wait()
                return (await LLM(datasette).model()).model_id

            if not workers:
                workers.append(asyncio.create_task(later()))
            return "0 cheap"

    plugin(Default())
    await LLM(make_datasette({"default_model": "echo"})).model()
    asked.set()
    assert await workers[0] == "0 cheap"
