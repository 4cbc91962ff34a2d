"""The canonical form of a request: different requests differ, equal ones do not."""

import copy
import dataclasses
from enum import StrEnum
from typing import Any, ClassVar

import llm
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm.parts import Message, TextPart

from datasette_llm.calls.cache_key import (
    UncacheableError,
    canonical,
    digest,
    server_variables,
)
from datasette_llm.testing import ScriptedModel

MODEL = ScriptedModel("m", attachment_types=["text/plain"])
SCOPE = {"purpose": "p", "actor": "'ana'"}
TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def prompt_of(**arguments: Any) -> llm.Prompt:
    given = {
        "fragments": ["a fragment"],
        "attachments": [llm.Attachment(type="text/plain", content=b"seen")],
        "system": "Be brief",
        "system_fragments": ["and kind"],
        "prompt_json": "{}",
        "options": MODEL.Options(temperature=0.5),
        "schema": {"type": "object", "properties": {"a": {}, "b": {}}},
        "messages": [Message("user", [TextPart("Hello")])],
    } | arguments
    return llm.Prompt(given.pop("prompt", "Hello"), MODEL, **given)


def key(prompt: llm.Prompt, model: Any = MODEL, **given: Any) -> bytes:
    return digest(canonical(prompt, model, **{"stream": True, "scope": SCOPE} | given))


CHANGES: dict[str, Any] = {
    "_prompt": "Hello!",
    "fragments": ["a fragment", "another"],
    "attachments": [llm.Attachment(type="text/plain", content=b"other")],
    "_system": "Be brie",
    "system_fragments": [],
    "prompt_json": None,
    "options": MODEL.Options(temperature=0.5, max_tokens=1),
    "schema": {"type": "object", "properties": {"b": {}, "a": {}}},
    "tool_results": [llm.ToolResult("t", "1")],
    "hide_reasoning": True,
    "_explicit_messages": [Message("assistant", [TextPart("Hello")])],
}


def test_r2_every_field_of_a_prompt_is_tried() -> None:
    """A field that a later llm adds has to be tried here, too."""
    assert vars(prompt_of()).keys() == {*CHANGES, "model", "tools"}


@pytest.mark.parametrize("name", CHANGES)
def test_r2_any_changed_field_is_a_miss(name: str) -> None:
    prompt = prompt_of()
    setattr(prompt, name, CHANGES[name])
    assert key(prompt) != key(prompt_of())
    assert key(copy.deepcopy(prompt)) == key(prompt)


@given(VALUES, VALUES)
def test_r2_a_field_of_a_later_llm_is_a_miss(value: Any, other: Any) -> None:
    """A field that no one knows counts with its value, whatever that is."""
    prompts = [prompt_of(), prompt_of(), prompt_of()]
    prompts[1].of_tomorrow, prompts[2].of_tomorrow = value, other
    assert len({key(each) for each in prompts[:2]}) == 2
    same = repr(value) == repr(other)
    assert (key(prompts[1]) == key(prompts[2])) == same


@given(TEXTS, TEXTS, VALUES, st.lists(TEXTS, max_size=2))
def test_r2_equal_prompts_are_hits(text: str, system: str, value: Any, parts: list[str]) -> None:
    made = [
        prompt_of(
            prompt=text,
            system=system,
            schema={"a": copy.deepcopy(value)},
            messages=[Message("user", [TextPart(each) for each in parts])],
        )
        for _ in range(2)
    ]
    assert key(made[0]) == key(made[1])
    made[1].system_fragments.append("x")
    assert key(made[0]) != key(made[1])


def test_r2_every_field_of_a_message_counts() -> None:
    """Of messages and of their parts, those of their dataclasses and others."""
    forms = {key(prompt_of())}
    for change in ("role", "provider_metadata", "of_tomorrow"):
        message = Message("user", [TextPart("Hello")])
        setattr(message, change, "assistant")
        forms.add(key(prompt_of(messages=[message])))
    for field in dataclasses.fields(TextPart):
        part = TextPart("Hello")
        setattr(part, field.name, "changed")
        forms.add(key(prompt_of(messages=[Message("user", [part])])))
    assert len(forms) == 1 + 3 + len(dataclasses.fields(TextPart))


def test_r2_model_stream_and_scope_count() -> None:
    class Other(ScriptedModel):
        api_base = "http://127.0.0.1/v1"

    class Routed(ScriptedModel):
        headers: ClassVar = {"x-route": "a"}

    prompt = prompt_of()
    forms = {
        key(prompt),
        key(prompt, ScriptedModel("n")),
        key(prompt, Other("m")),
        key(prompt, Routed("m")),
        key(prompt, stream=False),
        key(prompt, scope={"purpose": "p"}),
        key(prompt, scope=SCOPE | {"actor": "'bob'"}),
        key(prompt, scope=SCOPE | {"actor": None}),
    }
    assert len(forms) == 8


@pytest.mark.parametrize(
    "name", ["OPENAI_BASE_URL", "OPENAI_CUSTOM_HEADERS", "ANTHROPIC_BASE_URL", "OLLAMA_HOST"]
)
def test_r2_server_of_the_environment_counts(name: str, monkeypatch: Any) -> None:
    """It may be another one after a restart, or in another process with the same database."""
    forms = {key(prompt_of())}
    for value in ("http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"):
        monkeypatch.setenv(name, value)
        server_variables.cache_clear()
        forms.add(key(prompt_of()))
    server_variables.cache_clear()
    assert len(forms) == 3


def test_r2_attachments_count_by_their_bytes(tmp_path: Any) -> None:
    """The same bytes in a file and in memory are the same; others in the same file are not."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"seen")
    by_path = prompt_of(attachments=[llm.Attachment(type="text/plain", path=str(path))])
    assert key(by_path) == key(prompt_of())
    path.write_bytes(b"changed")
    assert key(by_path) != key(prompt_of())


class Strange:
    """Something of a caller."""


@pytest.mark.parametrize(
    "changed",
    [
        {"attachments": [llm.Attachment(type="text/plain", path="/gone/away.txt")]},
        {"attachments": [llm.Attachment(type="text/plain", url="http://127.0.0.1/x")]},
        {"attachments": [llm.Attachment(url="http://127.0.0.1/x", content=b"seen")]},
        {"attachments": [llm.Attachment(type="text/plain", path="\0")]},
        {"tools": [llm.Tool("t")]},
        {"tools": [llm.ServerSideTool({})]},
        {"schema": {"a": Strange()}},
        {"messages": [Strange()]},
    ],
)
def test_r2_without_an_exact_form_nothing_is_kept(changed: dict[str, Any]) -> None:
    """An attachment that has gone or may change, tools, and objects of unknown classes."""
    with pytest.raises(UncacheableError):
        key(prompt_of(**changed))


def test_r2_what_contains_itself_is_not_kept() -> None:
    schema: dict[str, Any] = {}
    schema["self"] = schema
    with pytest.raises(UncacheableError):
        key(prompt_of(schema=schema))


@pytest.mark.parametrize("between", ["str:", "str 1:", "str 8:", ";", '","', "\0"])
def test_r2_texts_are_not_run_together(between: str) -> None:
    """A text that looks like the end of one and the begin of another."""
    given = (["a", f"b{between}c"], [f"a{between}b", "c"])
    assert len({key(prompt_of(fragments=each)) for each in given}) == 2


def test_r2_similar_values_of_other_types_differ() -> None:
    values = [1, True, 1.0, "1", b"1", [1], (1,), {1: 1}, {"1": 1}, None, "None", ["list", 1]]
    assert len({key(prompt_of(schema={"a": value})) for value in values}) == len(values)


def test_k_credentials_of_an_endpoint_are_left_out() -> None:
    """Other headers count, as a gateway may choose the model by one."""

    class Endpoint(ScriptedModel):
        credentials = frozenset({"Bearer sk-secret"})
        headers: dict[str, str]

    def form(**headers: str) -> str:
        model = Endpoint("m")
        model.headers = headers
        return canonical(prompt_of(), model, stream=True, scope=SCOPE)

    assert "sk-secret" not in form(auth="Bearer sk-secret", route="a")
    assert form(auth="Bearer sk-secret", route="a") == form(route="a") != form(route="b")


class Effort(StrEnum):
    LOW = "low"
    HIGH = "high"


def test_r2_options_may_be_enums():
    """As the `reasoning_effort` of OpenAI's models."""

    class Options(llm.Options):
        effort: Effort

    low, again, high = [
        key(prompt_of(options=Options(effort=each))) for each in ("low", Effort.LOW, "high")
    ]
    assert low == again != high


def test_r2_attachment_of_a_subclass_is_its_bytes(tmp_path):
    """Not the path, at which something else may be later."""

    class Picture(llm.Attachment):
        pass

    path, keys = tmp_path / "a.txt", []
    for text in ("seen", "other", "seen"):
        path.write_text(text)
        keys.append(key(prompt_of(attachments=[Picture("text/plain", str(path))])))
    assert keys[0] == keys[2] != keys[1]


def test_r2_type_of_an_attachment_counts(tmp_path):
    """Also one that llm finds out from the name of the file."""
    keys = []
    for name in ("a.txt", "b.txt", "a.pdf"):
        path = tmp_path / name
        path.write_text("the same")
        keys.append(key(prompt_of(attachments=[llm.Attachment(path=str(path))])))
    assert keys[0] == keys[1] != keys[2]


def test_r2_extras_are_no_fields():
    """A field that has any name is another than what has come beside the fields."""

    class Options(llm.Options):
        model_config: ClassVar[Any] = {"extra": "allow"}

    field = pydantic.create_model("Options", __base__=Options, **{"[extra]": (Any, None)})
    keys = {key(prompt_of(options=field(**{"[extra]": each}))) for each in (1, 2, None)}
    assert len(keys) == 3


def test_r2_prompt_of_a_subclass_is_another():
    """One that a hook has made may ask for something else, with the same attributes."""

    class Louder(llm.Prompt):
        @property
        def prompt(self) -> str:
            return super().prompt.upper()

    prompt, louder = prompt_of(), prompt_of()
    louder.__class__ = Louder
    assert key(prompt) != key(louder)
