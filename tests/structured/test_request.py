"""`structured()`: what is sent, every kind of answer, the one repair, and what it raises."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import urllib.request
import weakref
from typing import Any, Literal

import llm
import pytest
from pydantic import BaseModel, Field, field_validator

from datasette_llm import LLM, LLMError, SchemaError, Structured, StructuredOutputError
from datasette_llm.log.recorder import Recorder
from datasette_llm.structured import closed_schema, prompt_text
from datasette_llm.testing import ScriptedModel

from ..support.call_log import rows_of
from ..support.openai_server import Refuse, write_model
from ..support.plugins import Observer

GOOD = '{"name": "Pim", "age": 3}'
BAD = '{"name": "Pim", "age": -1}'


class Pet(BaseModel):
    """A pet."""

    name: str
    age: int = Field(ge=0)
    kind: Literal["cat", "dog"] | None = None


PET = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
}


@pytest.fixture
def start(make_datasette, register_models):
    """Makes a model with these answers; its Datasette is `start.datasette` afterwards."""

    async def start(
        *answers: Any, config: object = None, internal: str | None = None, **kwargs: Any
    ):
        """The wrapped and the scripted model."""
        scripts = [[answer] if isinstance(answer, str) else answer for answer in answers]
        scripted = ScriptedModel("scripted", *scripts, **kwargs)
        register_models(scripted)
        made.datasette = make_datasette(config, internal=internal)
        model = await LLM(made.datasette).model("scripted", purpose="pets", actor={"id": "ada"})
        return model, scripted

    made: Any = start
    return start


# What comes back


async def test_pydantic_model_gives_an_instance(start):
    model, scripted = await start(GOOD)

    pet, response = await model.structured("Invent a pet", schema=Pet)

    assert pet == Pet(name="Pim", age=3)
    assert await response.text() == GOOD
    assert isinstance(response, llm.AsyncResponse)
    assert len(scripted.calls) == 1


async def test_a_dictionary_gives_plain_data(start):
    model, _ = await start(GOOD)

    result = await model.structured("Invent a pet", schema=PET)

    assert isinstance(result, Structured)
    assert result.value == {"name": "Pim", "age": 3}
    assert result.attempts == (result.response,)


async def test_response_is_complete_with_its_chunks(start):
    """The response is read to its end, chunk by chunk."""
    model, scripted = await start([GOOD[:9], GOOD[9:], llm.Usage(input=5, output=7)])

    pet, response = await model.structured("Invent a pet", schema=Pet)

    assert pet.name == "Pim"
    assert scripted.calls[0].outcome == "complete"
    assert (await response.usage()).output == 7


@pytest.mark.parametrize("can_stream", [True, False])
@pytest.mark.parametrize("supports_schema", [True, False])
async def test_it_works_with_models_of_every_kind(start, can_stream, supports_schema):
    model, _ = await start(GOOD, can_stream=can_stream, supports_schema=supports_schema)

    assert (await model.structured("Invent a pet", schema=Pet)).value.age == 3


# What is sent


async def test_native_model_gets_the_closed_schema(start):
    model, scripted = await start(GOOD)

    await model.structured("Invent a pet", schema=Pet)

    request = scripted.calls[0].request
    assert request.schema == closed_schema(Pet)
    assert request.prompt == "Invent a pet" == prompt_text(model, "Invent a pet", Pet)


@pytest.mark.parametrize("schema", [Pet, PET], ids=["model", "dictionary"])
async def test_other_models_get_schema_in_the_prompt(start, schema):
    model, scripted = await start(GOOD, supports_schema=False)

    await model.structured("Invent a pet", schema=schema, system="You breed animals")

    request = scripted.calls[0].request
    assert request.schema is None
    assert request.prompt.startswith("Invent a pet\n\n")
    assert request.prompt == prompt_text(model, "Invent a pet", schema)
    assert json.loads(request.prompt.splitlines()[-1]) == closed_schema(schema)
    assert request.system == "You breed animals"


async def test_schema_goes_into_the_callers_messages(start):
    model, scripted = await start(GOOD, supports_schema=False)
    messages = [llm.system("You breed animals"), llm.user("Invent a pet")]

    await model.structured(schema=Pet, messages=messages)

    sent = scripted.calls[0].request.messages
    assert sent[:2] == messages
    assert '"additionalProperties":false' in sent[2].parts[0].text


async def test_it_takes_what_prompt_takes(start):
    model, scripted = await start(GOOD, attachment_types=["image/png"])
    attachment = llm.Attachment(type="image/png", content=b"png")

    await model.structured(
        prompt="Invent a pet",
        schema=Pet,
        system="Be brief",
        fragments=["A fragment"],
        attachments=[attachment],
        temperature=0.5,
        options={"max_tokens": 9},
        key="sk-given",
        stream=False,
        hide_reasoning=True,
        tools=None,
    )

    (call,) = scripted.calls
    request = call.request
    assert (call.key, call.stream, call.prompt) == ("sk-given", False, "A fragment\nInvent a pet")
    assert (request.system, request.attachments) == ("Be brief", [attachment])
    assert (request.options.temperature, request.options.max_tokens) == (0.5, 9)
    assert request.hide_reasoning is True


# Arguments are checked first


def lookup(name: str) -> str:
    """A tool."""
    return name


class Anything(BaseModel):
    """Cannot be closed."""

    facts: dict[str, Any]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"schema": Anything}, SchemaError, "In the schema, facts is an object without prop"),
        ({"schema": {}}, SchemaError, "takes a value of any type"),
        ({"schema": {"type": "objekt"}}, SchemaError, "type is not valid JSON schema"),
        ({"schema": {"properties": {"a": {"$ref": "http://127.0.0.1/a"}}}}, SchemaError, "refers"),
        ({"schema": PET | {"not": {"$ref": "http://127.0.0.1/a"}}}, SchemaError, "refers"),
        ({"schema": PET | {"not": {"$id": "http://127.0.0.1/a"}}}, SchemaError, "has .id below"),
        ({"schema": PET | {"not": {"$dynamicRef": "#a"}}}, SchemaError, "uses .dynamicRef"),
        ({"schema": "name, age int"}, TypeError, "pydantic model class"),
        ({"schema": Pet, "tools": [lookup]}, TypeError, "takes no tools"),
        ({"schema": Pet, "temperature": 9}, ValueError, "temperature"),
        ({"schema": Pet, "pelican": 1}, ValueError, "pelican"),
        ({}, TypeError, "schema"),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_c1_arguments_are_checked_before_hooks(start, plugin, arguments, error, message):
    hook = plugin(Observer())
    model, scripted = await start(GOOD)

    with pytest.raises(error, match=message):
        await model.structured("Invent a pet", **arguments)

    assert hook.events == []
    assert scripted.calls == []


async def test_a_conversation_with_tools_is_refused(start):
    model, scripted = await start(GOOD)

    with pytest.raises(TypeError, match="takes no tools"):
        await model.conversation(tools=[lookup]).structured("Invent a pet", schema=Pet)
    assert scripted.calls == []


async def test_references_are_never_fetched(start, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_: pytest.fail("It was asked for"))
    model, _ = await start('{"name": "Pim", "age": 3, "friend": "Pam"}')
    properties = {**PET["properties"], "friend": {"$ref": "#/properties/name"}}
    ids = {"$schema": "http://127.0.0.1/schema", "$id": "http://127.0.0.1/id"}
    schema = {**ids, "properties": properties}

    assert (await model.structured("Invent a pet", schema=schema)).value["name"] == "Pim"


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def test_jsonschema_import_is_off_the_event_loop(start, monkeypatch):
    import jsonschema.validators

    threads = []
    original = jsonschema.validators.validator_for

    def noting(*args: Any, **kwargs: Any) -> Any:
        threads.append(_running_loop())
        return original(*args, **kwargs)

    monkeypatch.setattr(jsonschema.validators, "validator_for", noting)
    model, _ = await start(GOOD)
    await model.structured("Invent a pet", schema=PET)
    assert threads
    assert set(threads) == {None}


async def test_importing_us_does_not_import_jsonschema(tmp_path):
    code = "import sys, datasette_llm.cli.main; assert 'jsonschema' not in sys.modules"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=tmp_path)
    assert await process.wait() == 0


# The repair


async def test_unfit_answer_is_repaired_once(start):
    model, scripted = await start(BAD, GOOD)

    pet, response = result = await model.structured("Invent a pet", schema=Pet, system="Be brief")

    assert pet.age == 3
    assert await response.text() == GOOD
    assert [await each.text() for each in result.attempts] == [BAD, GOOD]
    history = scripted.calls[1].request.messages
    assert [message.role for message in history] == ["system", "user", "assistant", "user"]
    assert history[2].parts[0].text == BAD
    assert "\n- age: Input should be greater than or equal to 0.\n" in history[3].parts[0].text


async def test_repair_has_same_key_options_and_schema(start):
    attachment = llm.Attachment(type="image/png", content=b"png")
    model, scripted = await start(
        BAD,
        GOOD,
        attachment_types=["image/png"],
        needs_key="bird",
        config={"default_model": {"model": "scripted", "options": {"temperature": 0.1}}},
    )

    await model.structured(
        "Invent a pet",
        schema=Pet,
        key="sk-given",
        system="Be brief",
        attachments=[attachment],
        fragments=["A fragment"],
        max_tokens=9,
        stream=False,
    )

    first, second = scripted.calls
    assert (second.key, second.stream) == ("sk-given", False)
    assert second.request.schema == first.request.schema == closed_schema(Pet)
    assert second.request.options == first.request.options
    assert second.request.options.max_tokens == 9
    assert second.request.options.temperature == 0.1
    assert second.request.system == "Be brief"
    # What the history holds is not sent again.
    assert second.request.attachments == []
    assert second.request.fragments == []
    assert second.request.messages[: len(first.request.messages)] == first.request.messages


async def test_repair_is_a_separate_prompt(start, plugin, tmp_path):
    """The repair is a prompt of its own for the hooks and in the call log."""
    hook = plugin(Observer())
    internal = str(tmp_path / "internal.db")
    model, _ = await start(BAD, GOOD, internal=internal)

    result = await model.structured("Invent a pet", schema=Pet)

    assert hook.events == ["hook opens", "hook succeeds"] * 2
    assert [seen.response for seen in hook.results] == list(result.attempts)
    assert [(seen.purpose, seen.actor) for seen in hook.results] == [("pets", {"id": "ada"})] * 2
    await Recorder.of(start.datasette).writer.flush()
    rows = [(row["id"], row["outcome"], row["actor_id"]) for row in rows_of(internal)]
    assert rows == [(each.id, "ok", "ada") for each in result.attempts]


@pytest.mark.parametrize("way", ["model", "conversation", "no history"])
async def test_e10_repair_is_tied_to_its_answer(way, start, tmp_path):
    """By its row's prompt_id. If the whole failed, that row says so, without the answer's text."""
    internal = str(tmp_path / "internal.db")
    model, scripted = await start(BAD, '{"name": "Pim", "age": "secret"}', internal=internal)
    scripted.supports_conversation = model.supports_conversation = way != "no history"

    asked = model.conversation() if way == "conversation" else model
    with pytest.raises(StructuredOutputError) as caught:
        await asked.structured("Invent a pet", schema=PET)

    first, second = caught.value.attempts
    await Recorder.of(start.datasette).writer.flush()
    rows = rows_of(internal)
    assert [(row["id"], row["prompt_id"]) for row in rows] == [
        (first.id, None),
        (second.id, first.id),
    ]
    assert [row["outcome"] for row in rows] == ["ok", "error"]
    failed = rows[1]
    assert failed["error_type"] == "StructuredOutputError"
    assert "second answer" in failed["error_message"]
    assert "secret" not in failed["error_message"]


async def test_e10_prompt_of_a_hook_is_no_repair(start, plugin, tmp_path):
    """It is made while the contexts of the repair open."""
    internal = str(tmp_path / "internal.db")
    model, scripted = await start(BAD, "Hook", GOOD, internal=internal)

    async def ask(result):
        if result.purpose == "pets" and scripted.calls:
            other = await LLM(start.datasette).model("scripted", purpose="hook")
            await (await other.prompt("x")).text()

    plugin(Observer(before=ask))
    first, _ = (await model.structured("Invent a pet", schema=PET)).attempts
    await Recorder.of(start.datasette).writer.flush()
    ties = {(row["purpose"], row["prompt_id"], row["outcome"]) for row in rows_of(internal)}
    assert ties == {("pets", None, "ok"), ("hook", None, "ok"), ("pets", first.id, "ok")}


@pytest.mark.parametrize("reason", ["length", "refusal"])
async def test_e10_row_of_an_unrepaired_answer_says_so(
    reason, make_datasette, register_models, tmp_path
):
    internal = str(tmp_path / "internal.db")
    register_models(Ending(("My secret", reason)))
    datasette = make_datasette(internal=internal)
    model = await LLM(datasette).model("ending")
    with pytest.raises(StructuredOutputError):
        await model.structured("Invent a pet", schema=PET)
    await Recorder.of(datasette).writer.flush()
    [row] = rows_of(internal)
    assert (row["outcome"], row["error_type"]) == ("error", "StructuredOutputError")
    assert "secret" not in row["error_message"]


async def test_repair_without_conversation_has_answer(start):
    """A model without conversations gets its answer back in the prompt."""
    model, scripted = await start(BAD, GOOD)
    scripted.supports_conversation = model.supports_conversation = False

    pet, _ = await model.structured("Invent a pet", schema=Pet, fragments=["A fragment"])

    assert pet.age == 3
    text = scripted.calls[1].prompt
    assert text.startswith("A fragment\nInvent a pet\n\nYou have answered:\n" + BAD)
    assert [message.role for message in scripted.calls[1].request.messages] == ["user"]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("", "There is no JSON object in the answer."),
        ("I would rather not.", "There is no JSON object in the answer."),
        (GOOD[:-4], "The answer ends before its JSON does: it was cut off, or is not closed."),
        ('{"name": "Pim", "age": NaN}', "The JSON cannot be read: NaN is not JSON."),
        ('{"name": "Pim"}', "age: Field required."),
        ('{"name": "Pim", "age": "old", "kind": "cow"}', "age: Input should be a valid integer"),
        ("[" * 5_000 + "{", "The JSON is nested more than 50 levels deep."),
    ],
    ids=lambda text: text[:40],
)
@pytest.mark.parametrize("supports_schema", [True, False])
async def test_two_unfit_answers_are_an_error(start, answer, problem, supports_schema):
    model, scripted = await start(BAD, answer, supports_schema=supports_schema)

    with pytest.raises(StructuredOutputError) as caught:
        await model.structured("Invent a pet", schema=Pet)

    error = caught.value
    assert isinstance(error, LLMError)
    assert error.text == answer
    assert error.problems[0].startswith(problem)
    assert [await each.text() for each in error.attempts] == [BAD, answer]
    assert error.response is error.attempts[1]
    assert "The second answer of model 'scripted' does not fit the schema:\n  " in str(error)
    assert len(scripted.calls) == 2


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ('{"name": "Pim", "age": -1}', "age: -1 is less than the minimum of 0."),
        ('{"age": 1}', "'name' is a required property."),
        ('{"name": ["' + "x" * 999 + '"]}', "name: ['xxx"),
        ("{" + '"name": {' * 49 + "}" * 50, "name: {"),
    ],
    ids=lambda text: text[:30],
)
async def test_a_dictionarys_own_rules_are_checked_too(start, answer, problem):
    model, _ = await start(answer)

    with pytest.raises(StructuredOutputError) as caught:
        await model.structured("Invent a pet", schema=PET)

    assert caught.value.problems[0].startswith(problem)
    assert len(caught.value.problems[0]) < 350


async def test_unsent_formats_and_rules_are_checked(start):
    part = {"type": "string", "format": "date", "not": {"const": "2024-01-01"}}
    schema = {"properties": {"day": part}, "required": ["day"]}
    model, _ = await start('{"day": "soon"}', '{"day": "2024-01-01"}')

    with pytest.raises(StructuredOutputError) as caught:
        await model.structured("When?", schema=schema)

    assert "should not be valid" in caught.value.problems[0]


class Tree(BaseModel):
    """Refers to itself."""

    below: list[Tree] = []


TREE = {"type": "object", "properties": {"below": {"type": "array", "items": {"$ref": "#"}}}}


@pytest.mark.parametrize("schema", [Tree, TREE], ids=["model", "dictionary"])
async def test_object_of_maximal_depth_is_validated(start, schema):
    answer = '{"below": [' * 24 + "]}" * 24
    model, _ = await start(answer)

    assert (await model.structured("Grow", schema=schema)).attempts[0].text_or_raise() == answer


async def test_endless_schema_is_a_problem(start):
    """A schema that refers to itself without end is a problem, not a crash."""
    endless = {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "string"}]}
    schema = {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": endless}}
    model, _ = await start('{"a": "b"}')

    with pytest.raises(StructuredOutputError, match="nested too deep to be checked"):
        await model.structured("x", schema=schema)


class Careful(BaseModel):
    """Says no in its own words."""

    name: str

    @field_validator("name")
    @classmethod
    def check(cls, name: str) -> str:
        if name == "Pim":
            raise ValueError("Pim is taken")
        return name


async def test_a_validators_words_reach_the_model(start):
    model, scripted = await start('{"name": "Pim"}', '{"name": "Pam"}')

    pet, _ = await model.structured("Invent a pet", schema=Careful)

    assert pet.name == "Pam"
    assert (
        "- name: Value error, Pim is taken." in scripted.calls[1].request.messages[-1].parts[0].text
    )


async def test_unasked_tool_call_is_repaired(start):
    """A model that calls a tool unasked is asked for its answer."""
    call = llm.ToolCall(name="lookup", arguments={}, tool_call_id="1")
    model, scripted = await start([call], GOOD)

    assert (await model.structured("Invent a pet", schema=Pet)).value.name == "Pim"
    [message] = scripted.calls[1].request.messages
    assert "Invent a pet" in message.parts[0].text


async def test_e4_unasked_tool_call_in_a_conversation(start):
    """The turn with the call is no part of the history."""
    call = llm.ToolCall(name="lookup", arguments={}, tool_call_id="1")
    model, scripted = await start([call], GOOD)
    conversation = model.conversation()

    assert (await conversation.structured("Invent a pet", schema=Pet)).value.name == "Pim"
    assert [message.role for message in scripted.calls[1].request.messages] == ["user"]
    assert [turn.text_or_raise() for turn in conversation.responses] == [GOOD]


# Answers that a repair would not change


class Ending(llm.AsyncModel):
    """Says why each of its answers ended, as the endpoints do."""

    model_id = "ending"
    supports_schema = True

    def __init__(self, *answers: tuple[str, str]) -> None:
        self.answers = iter(answers)

    async def execute(self, prompt, stream, response, conversation):
        text, reason = next(self.answers)
        response.response_json = {"finish_reason": reason}
        if reason == "refusal":
            response.response_json = {"finish_reason": "stop", "refusal": text}
        yield text


CUT, FILTERED, REFUSED = (GOOD[:9], "length"), ("I", "content_filter"), ("I won't.", "refusal")
TOLD = [
    (CUT, "The answer was cut off at a limit of the model"),
    (FILTERED, "The provider's content filter has withheld the answer"),
    (REFUSED, "The model has refused to answer: I won't."),
]


@pytest.mark.parametrize(("ended", "told"), TOLD)
@pytest.mark.parametrize("second", [False, True])
async def test_w3_what_ended_an_answer_is_told(
    ended, told, second, make_datasette, register_models
):
    """No repair is paid for, and the error says which it was."""
    register_models(Ending(*[(BAD, "stop")] * second, ended))
    model = await LLM(make_datasette()).model("ending")

    with pytest.raises(StructuredOutputError) as caught:
        await model.structured("Invent a pet", schema=Pet)
    assert caught.value.problems[0].startswith(told)
    assert len(caught.value.attempts) == 1 + second
    assert told in str(caught.value)


async def test_w3_fitting_answer_counts_however_it_ended(make_datasette, register_models):
    register_models(Ending((GOOD, "length")))
    model = await LLM(make_datasette()).model("ending")

    assert (await model.structured("Invent a pet", schema=Pet)).value.name == "Pim"


async def test_response_is_freed_at_once(start):
    """Not only by the garbage collector."""
    model, scripted = await start(GOOD)
    gc.disable()
    try:
        result = await model.structured("Invent a pet", schema=Pet)
        await Recorder.of(start.datasette).writer.flush()
        response = weakref.ref(result.response)
        scripted.calls.clear()
        await asyncio.sleep(0)
        del result
        assert response() is None
    finally:
        gc.enable()


# Failures on the way


async def test_first_prompt_error_is_raised_unchanged(start):
    model, scripted = await start([llm.ModelError("No")])

    with pytest.raises(llm.ModelError, match="No"):
        await model.structured("Invent a pet", schema=Pet)
    assert len(scripted.calls) == 1


async def test_truncated_stream_is_a_failure(start):
    model, scripted = await start([GOOD, llm.ModelError("The line broke")])

    with pytest.raises(llm.ModelError, match="The line broke"):
        await model.structured("Invent a pet", schema=Pet)
    assert len(scripted.calls) == 1


async def test_failed_repair_keeps_the_first_answer(start):
    model, _ = await start(BAD, [llm.ModelError("Too many requests")])

    with pytest.raises(StructuredOutputError, match="Too many requests") as caught:
        await model.structured("Invent a pet", schema=Pet)

    assert caught.value.text == BAD
    assert "greater than or equal to 0" in caught.value.problems[0]
    assert isinstance(caught.value.__cause__, llm.ModelError)
    assert len(caught.value.attempts) == 1


async def test_a_hook_may_block_the_repair(start, plugin):
    def block_the_second(result):
        if len(hook.results) == 2:
            raise RuntimeError("The budget is spent")

    hook = plugin(Observer(before=block_the_second))
    model, scripted = await start(BAD, GOOD)

    with pytest.raises(StructuredOutputError, match="The budget is spent"):
        await model.structured("Invent a pet", schema=Pet)
    assert len(scripted.calls) == 1


async def test_cancelled_caller_stops_the_provider(start):
    model, scripted = await start([GOOD[:9], asyncio.Event()])
    asking = asyncio.create_task(model.structured("Invent a pet", schema=Pet))
    call = await scripted.received()

    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await call.ended.wait()
    assert call.outcome == "cancelled"


# Groups and conversations


async def test_group_model_gives_objects(make_datasette, register_models):
    """A group's model gives objects concurrently, and the group has every response."""
    register_models(ScriptedModel("scripted", [BAD], [GOOD]))
    group = LLM(make_datasette()).group("scripted")
    async with group as model:
        results = await asyncio.gather(
            *[model.structured(f"Pet {n}", schema=Pet) for n in range(3)], return_exceptions=True
        )
    assert [result.value.name for result in results] == ["Pim"] * 3
    assert len(group.responses) == 4


async def test_repair_in_conversation_adds_turns(start):
    model, scripted = await start("Hello", BAD, GOOD, "Goodbye", supports_schema=False)
    conversation = model.conversation()

    await (await conversation.prompt("Hi")).text()
    result = await conversation.structured("Invent a pet", schema=Pet)
    await (await conversation.prompt("Bye")).text()

    assert result.value.name == "Pim"
    assert [response.text_or_raise() for response in conversation.responses] == [
        "Hello",
        BAD,
        GOOD,
        "Goodbye",
    ]
    roles = [message.role for message in scripted.calls[2].request.messages]
    assert roles == ["user", "assistant"] * 2 + ["user"]


# Over the wire


@pytest.fixture
async def server(server, monkeypatch):
    monkeypatch.setenv("DATASETTE_SECRETS_WIRE_API_KEY", "sk-wire-0123456789abcdef")
    return server


def of_role(request: Any, role: str) -> list[str]:
    return [each["content"] for each in request.body["messages"] if each["role"] == role]


async def test_provider_gets_schema_as_response_format(server, llm_folder, make_datasette):
    write_model(llm_folder, server.url)
    server.play([BAD[:8], BAD[8:]], [GOOD])
    model = await LLM(make_datasette()).model("wire")

    pet, _ = await model.structured("Invent a pet", schema=Pet, system="Be brief")

    assert pet.name == "Pim"
    first, second = server.requests
    sent = first.body["response_format"]
    assert sent["type"] == "json_schema"
    assert (
        sent["json_schema"]["schema"]
        == closed_schema(Pet)
        == {
            "type": "object",
            "description": "A pet.",
            "properties": {
                "name": {"type": "string"},
                "age": {"type": "integer", "description": '({"minimum": 0})'},
                "kind": {"anyOf": [{"type": "string", "enum": ["cat", "dog"]}, {"type": "null"}]},
            },
            "required": ["name", "age", "kind"],
            "additionalProperties": False,
        }
    )
    assert second.body["response_format"] == sent
    assert of_role(second, "system") == ["Be brief"]
    assert of_role(second, "assistant") == [BAD]
    assert of_role(second, "user")[0] == "Invent a pet"
    assert "greater than or equal to 0" in of_role(second, "user")[1]
    assert first.key == second.key == "sk-wire-0123456789abcdef"


async def test_provider_without_schemas_is_prompted(server, llm_folder, make_datasette):
    write_model(llm_folder, server.url, supports_schema=False)
    server.play(["Here is your pet:\n```json\n", GOOD, "\n```\n"])
    model = await LLM(make_datasette()).model("wire")

    result = await model.structured("Invent a pet", schema=PET, system="Be brief")

    assert result.value == {"name": "Pim", "age": 3}
    (request,) = server.requests
    assert "response_format" not in request.body
    assert of_role(request, "system") == ["Be brief"]
    assert of_role(request, "user") == [prompt_text(model, "Invent a pet", PET)]


async def test_key_in_a_failed_repair_is_removed(server, llm_folder, make_datasette):
    write_model(llm_folder, server.url)
    server.play([BAD], [Refuse(401, "Incorrect API key provided: {key}")])
    model = await LLM(make_datasette()).model("wire")

    with pytest.raises(StructuredOutputError) as caught:
        await model.structured("Invent a pet", schema=Pet)

    assert "sk-wire" not in f"{caught.value}{caught.value.problems}{caught.value.__cause__!r}"
    assert "Incorrect API key" in str(caught.value)


class NoOptions(ScriptedModel):
    """Takes no options."""

    class Options(llm.Options):
        pass


@pytest.mark.parametrize("remembers", [True, False])
async def test_fallback_is_repaired_without_callers_key(make_datasette, register_models, remembers):
    first = ScriptedModel("first", [RuntimeError("down")], [GOOD], needs_key="first")
    second = NoOptions("second", [BAD], [GOOD])
    second.supports_conversation = remembers
    register_models(first, second)
    model = await LLM(make_datasette({"fallbacks": ["second"]})).model("first")

    pet, _ = await model.structured(
        "Invent a pet", schema=Pet, system="Be brief", temperature=0.5, key="given by the caller"
    )

    assert pet.age == 3
    assert [call.key for call in first.calls] == ["given by the caller"] * (1 if remembers else 2)
    assert [call.key for call in second.calls] == [None] * (2 if remembers else 1)
    repair = (second if remembers else first).calls[-1].request
    assert (repair.system, repair.schema is not None) == ("Be brief", True)
