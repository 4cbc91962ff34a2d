"""The public API: our exports, and the names that they share with llm's classes."""

import dataclasses
import importlib.metadata
import importlib.resources
import inspect
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llm
import pytest
from datasette.plugins import get_plugins
from llm.models import AsyncChainResponse

import datasette_llm
from datasette_llm import LLM, LLMError, WrappedAsyncModel, WrappedConversation, errors
from datasette_llm.testing import ScriptedModel

EXPORTS = [
    "LLM",
    "CallRecord",
    "Candidate",
    "Case",
    "ConfigError",
    "ConversationBusyError",
    "Cost",
    "Decision",
    "Group",
    "GroupClosedError",
    "GroupError",
    "HookError",
    "IncompleteAnswerError",
    "LLMError",
    "ModelNotAllowedError",
    "ModelNotFoundError",
    "NewerDatabaseError",
    "NotRecordedError",
    "ProfileError",
    "PromptResult",
    "ProviderError",
    "Purpose",
    "ResponseCancelledError",
    "ResponseTimeoutError",
    "SchemaError",
    "Structured",
    "StructuredOutputError",
    "TableNotFoundError",
    "TagError",
    "WrappedAsyncModel",
    "WrappedConversation",
    "evaluate",
    "get_purposes",
    "tagged",
]
ERRORS = [name for name in EXPORTS if name.endswith("Error")]


def test_these_names_are_exported_and_no_others() -> None:
    assert datasette_llm.__all__ == EXPORTS


def test_the_exports_are_sorted() -> None:
    def kind_and_name(name: str) -> tuple[bool, bool, str]:
        return not name.isupper(), name.islower(), name

    assert sorted(datasette_llm.__all__, key=kind_and_name) == datasette_llm.__all__


@pytest.mark.parametrize("name", EXPORTS)
def test_what_is_exported_has_a_docstring(name: str) -> None:
    exported = getattr(datasette_llm, name)

    assert exported.__doc__, name
    for member, value in vars(exported).items() if inspect.isclass(exported) else ():
        if inspect.isfunction(value) and not member.startswith("_"):
            assert value.__doc__, f"{name}.{member}"


@pytest.mark.parametrize("name", ERRORS)
def test_error_is_ours_and_in_the_tree(name: str) -> None:
    assert issubclass(getattr(datasette_llm, name), LLMError)
    assert f"{name} " in errors.__doc__ or f"{name}\n" in errors.__doc__


def test_types_are_shipped() -> None:
    assert (importlib.resources.files("datasette_llm") / "py.typed").is_file()
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["datasette_llm"]


def test_package_is_its_own_plugin() -> None:
    (entry_point,) = importlib.metadata.entry_points(group="datasette", value="datasette_llm")

    (plugin,) = [each for each in get_plugins() if each["name"] == "datasette-llm"]
    assert entry_point.load() is datasette_llm
    assert set(plugin["hooks"]) >= {"register_commands", "register_secrets", "shutdown", "startup"}


# Parity with llm


MODEL = {
    *("Options", "attachment_types", "can_stream", "chain", "conversation", "execute", "get_key"),
    *("key", "key_env_var", "model_id", "needs_key", "prompt", "supported_server_side_tools"),
    *("supports_conversation", "supports_schema", "supports_tools"),
}
CONVERSATION = {
    *("after_call", "before_call", "chain", "chain_limit", "from_row", "id", "loaded_messages"),
    *("loaded_tools", "model", "name", "prompt", "responses", "to_sync_conversation", "tools"),
}
RESPONSE = {
    *("add_tool_call", "after_call", "astream_events", "attachments", "before_call"),
    *("conversation", "datetime_utc", "done_callbacks", "duration_ms", "execute_tool_call"),
    *("execute_tool_calls", "fake", "from_dict", "from_row", "id", "input_tokens", "json"),
    *("log_to_db", "messages", "model", "on_done", "output_tokens", "prompt", "reply"),
    *("resolved_model", "response_json", "set_resolved_model", "set_usage", "stream", "text"),
    *("text_or_raise", "to_dict", "to_sync_response", "token_details", "token_usage"),
    *("tool_calls", "tool_calls_or_raise", "usage"),
}
CHAIN = {
    *("after_call", "astream_events", "before_call", "chain_limit", "conversation", "log_to_db"),
    *("model", "prompt", "responses", "stream", "text"),
}
TELLING = "llm's public surface has changed: carry the names in our classes, then pin them here"


def public_names(instance: object) -> set[str]:
    annotated = [getattr(each, "__annotations__", {}) for each in type(instance).__mro__]
    return {name for name in set(dir(instance)).union(*annotated) if not name.startswith("_")}


class KeylessModel(llm.AsyncModel):
    """The least that llm takes for an async model."""

    model_id = "keyless"

    async def execute(self, prompt: Any, stream: Any, response: Any, conversation: Any) -> Any:
        yield "Hello"


class KeyModel(llm.AsyncKeyModel):
    """The least that llm takes for an async model with a key."""

    model_id = "with-key"

    async def execute(
        self, prompt: Any, stream: Any, response: Any, conversation: Any, key: Any
    ) -> Any:
        yield "Hello"


async def test_llm_surface_is_the_one_that_we_mirror() -> None:
    model = KeyModel()

    assert public_names(model) == public_names(KeylessModel()) == MODEL, TELLING
    assert public_names(model.conversation()) == CONVERSATION, TELLING
    assert public_names(model.prompt("hi")) == RESPONSE, TELLING
    assert isinstance(model.chain("hi"), AsyncChainResponse)
    assert public_names(model.chain("hi")) == CHAIN, TELLING


async def test_callers_objects_have_all_of_llms_names(make_datasette, register_models) -> None:
    """The objects of callers are instances of llm's classes with every public name."""
    register_models(ScriptedModel("pelican"))
    model = await LLM(make_datasette()).model("pelican")
    conversation, chain, response = (
        model.conversation(),
        model.chain("hi"),
        await model.prompt("hi"),
    )

    assert isinstance(model, WrappedAsyncModel)
    assert isinstance(model, llm.AsyncKeyModel)
    assert isinstance(conversation, WrappedConversation)
    assert isinstance(conversation, llm.AsyncConversation)
    assert isinstance(response, llm.AsyncResponse)
    assert isinstance(chain, AsyncChainResponse)
    assert public_names(model) >= MODEL
    assert public_names(conversation) >= CONVERSATION
    assert public_names(response) >= RESPONSE
    assert public_names(chain) >= CHAIN
    await response.text()


class PelicanTool(llm.ServerSideTool):
    """A tool that runs at the provider."""

    name = "pelican"


class AbleModel(ScriptedModel):
    """Differs from llm's defaults in every attribute."""

    supports_conversation = False

    @property
    def supported_server_side_tools(self) -> tuple[type[llm.ServerSideTool], ...]:
        return (PelicanTool,)


@pytest.mark.parametrize(
    "original",
    [
        KeylessModel(),
        KeyModel(),
        AbleModel("able", needs_key="bird", key_env_var="BIRD", attachment_types=["image/png"]),
        ScriptedModel("plain", can_stream=False, supports_schema=False, supports_tools=False),
    ],
    ids=lambda model: model.model_id,
)
async def test_wrapped_model_has_llms_attributes(
    make_datasette, register_models, original: Any
) -> None:
    register_models(original)
    wrapped = await LLM(make_datasette()).model(original.model_id)

    attributes = {name for name in MODEL if not inspect.isroutine(getattr(original, name))}
    assert attributes >= {"Options", "model_id", "needs_key", "supported_server_side_tools"}
    for name in attributes:
        assert getattr(wrapped, name) == getattr(original, name), name
    assert str(wrapped) == str(original)
    assert wrapped._model is original  # noqa: SLF001  # the first release's name


def test_wrapped_conversation_has_llms_fields() -> None:
    fields = {field.name for field in dataclasses.fields(llm.AsyncConversation)}

    assert {field.name for field in dataclasses.fields(WrappedConversation)} == fields


# Every argument of llm's reaches the provider as from llm itself


def lookup(name: str) -> str:
    """A tool."""
    return name


async def before_call(tool: Any, tool_call: Any) -> None:
    """Called before each tool."""


async def after_call(tool: Any, tool_call: Any, tool_result: Any) -> None:
    """Called after each tool."""


# A value for each argument that llm's methods take; a new argument needs a value here, and to
# arrive at the provider.
ARGUMENTS: dict[str, Any] = {
    "prompt": "hi",
    "fragments": ["a fragment"],
    "attachments": [llm.Attachment(type="image/png", content=b"png")],
    "system": "Be brief",
    "system_fragments": ["and dry"],
    "messages": [llm.user("earlier"), llm.assistant("yes?")],
    "stream": False,
    "schema": {"type": "object", "properties": {"name": {"type": "string"}}},
    "tools": [lookup],
    "tool_results": [llm.ToolResult(name="lookup", output="found", tool_call_id="1")],
    "options": {"temperature": 1.0},
    "hide_reasoning": True,
    "key": "sk-given",
    "before_call": before_call,
    "after_call": after_call,
    "chain_limit": 3,
    "kwargs": None,
}


def parameters(method: Callable[..., Any]) -> list[str]:
    names = [name for name in inspect.signature(method).parameters if name != "self"]
    assert set(names) <= set(ARGUMENTS), TELLING
    return [name for name in names if name != "kwargs"]


async def prompt(model: Any, **arguments: Any) -> None:
    response = model.prompt(**arguments)
    await (await response if inspect.iscoroutine(response) else response).text()


async def chain(model: Any, **arguments: Any) -> None:
    await model.chain(**arguments).text()


async def conversation_prompt(model: Any, **arguments: Any) -> None:
    await prompt(model.conversation(), **arguments)


async def conversation_chain(model: Any, **arguments: Any) -> None:
    await model.conversation().chain(**arguments).text()


async def reply(model: Any, **arguments: Any) -> None:
    response = model.prompt("first")
    response = await response if inspect.iscoroutine(response) else response
    await response.text()
    await (await response.reply(**arguments)).text()


async def reply_as_turn(model: Any, **arguments: Any) -> None:
    """What a reply of ours sends; llm's own does not reach plugins that read the conversation."""
    conversation = model.conversation()
    await conversation.prompt("first").text()
    if "messages" in arguments:  # those of a reply come after the history
        history = [*conversation.responses[0].prompt.messages, llm.assistant("Hello")]
        arguments["messages"] = history + arguments["messages"]
    await conversation.prompt(**arguments).text()


WAYS: dict[Callable[..., Any], Callable[..., Any]] = {
    prompt: llm.AsyncKeyModel.prompt,
    chain: llm.AsyncKeyModel.chain,
    conversation_prompt: llm.AsyncConversation.prompt,
    conversation_chain: llm.AsyncConversation.chain,
    reply: llm.AsyncResponse.reply,
}
# reply() hands what it does not name on to prompt().
EXTRA = {prompt: ["key"], reply: [*parameters(llm.AsyncKeyModel.prompt)[1:], "key"]}
CASES = [
    (way, name)
    for way, method in WAYS.items()
    for name in dict.fromkeys([*parameters(method), *EXTRA.get(way, [])])
]


def sent(model: ScriptedModel) -> list[dict[str, Any]]:
    """All that the provider was sent, in a form that can be compared."""
    return [
        {
            "text": call.prompt,
            "key": call.key,
            "stream": call.stream,
            "system": call.request.system,
            "fragments": call.request.fragments,
            "system_fragments": call.request.system_fragments,
            "attachments": call.request.attachments,
            "schema": call.request.schema,
            "tools": [tool.name for tool in call.request.tools],
            "tool_results": call.request.tool_results,
            "messages": call.request.messages,
            "options": call.request.options,
            "hide_reasoning": call.request.hide_reasoning,
        }
        for call in model.calls
    ]


@pytest.mark.parametrize(
    ("way", "name"), CASES, ids=[f"{way.__name__}({name}=)" for way, name in CASES]
)
async def test_argument_reaches_provider_as_from_llm(
    make_datasette, register_models, llm_folder: Path, way: Callable[..., Any], name: str
) -> None:
    (llm_folder / "keys.json").write_text('{"bird": "sk-stored"}')
    raw, ours = (
        ScriptedModel(name, needs_key="bird", attachment_types=["image/png"])
        for name in ("raw", "ours")
    )
    register_models(ours)
    wrapped = await LLM(make_datasette()).model("ours")
    arguments = {name: ARGUMENTS[name]}

    await (reply_as_turn if way is reply else way)(raw, **arguments)
    await way(wrapped, **arguments)

    expected = sent(raw)
    if way is reply and name in ("system", "system_fragments"):  # which llm does not send
        expected[1]["messages"].insert(0, llm.system(expected[1]["system"]))
    assert sent(ours) == expected


async def test_text_by_position_by_name_or_not_at_all(make_datasette, register_models) -> None:
    ours = ScriptedModel("ours")
    register_models(ours)
    model = await LLM(make_datasette()).model("ours")

    for make in (lambda: model, model.conversation):
        await (await make().prompt("hi")).text()
        await (await make().prompt(prompt="hi")).text()
        await (await make().prompt()).text()
        await make().chain("hi").text()
        await make().chain(prompt="hi").text()
        await make().chain().text()

    assert [call.prompt for call in ours.calls] == ["hi", "hi", ""] * 4


@pytest.mark.parametrize("name", parameters(llm.AsyncKeyModel.conversation))
async def test_a_conversation_takes_what_llms_takes(
    make_datasette, register_models, name: str
) -> None:
    register_models(ScriptedModel("pelican"))
    model = await LLM(make_datasette()).model("pelican")

    conversation = model.conversation(**{name: ARGUMENTS[name]})

    assert getattr(conversation, name) == ARGUMENTS[name]
    assert conversation.model is model


async def test_conversation_arguments_by_position(make_datasette, register_models) -> None:
    register_models(ScriptedModel("pelican"))
    names = parameters(llm.AsyncKeyModel.conversation)
    values = [ARGUMENTS[name] for name in names]

    conversation = (await LLM(make_datasette()).model("pelican")).conversation(*values)

    assert [getattr(conversation, name) for name in names] == values


@pytest.mark.parametrize("name", ["before_call", "after_call", "chain_limit"])
async def test_a_chain_keeps_what_it_was_given(make_datasette, register_models, name: str) -> None:
    register_models(ScriptedModel("pelican"))
    model = await LLM(make_datasette()).model("pelican")

    assert getattr(model.chain("hi", **{name: ARGUMENTS[name]}), name) == ARGUMENTS[name]


async def test_unknown_argument_is_refused(make_datasette, register_models) -> None:
    ours = ScriptedModel("ours")
    register_models(ours)
    model = await LLM(make_datasette()).model("ours")

    with pytest.raises(ValueError, match="pelican"):
        await model.prompt("hi", pelican=1)
    with pytest.raises(ValueError, match="pelican"):
        model.chain("hi", pelican=1)
    with pytest.raises(TypeError):
        model.conversation(pelican=1)
    assert ours.calls == []
