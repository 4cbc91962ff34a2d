"""The closed schema that is sent: what strict providers demand, whatever the caller's says."""

from __future__ import annotations

import datetime
import enum
import json
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict, Field, RootModel, create_model

from datasette_llm import LLMError, SchemaError
from datasette_llm.structured import closed_schema

KEYWORDS = {
    *("type", "properties", "required", "additionalProperties", "items", "anyOf", "enum"),
    *("description", "$ref", "$defs"),
}


def assert_closed(schema: dict[str, Any], definitions: dict[str, Any] | None = None) -> None:
    """What OpenAI's strict mode demands of each part."""
    definitions = schema.get("$defs", {}) if definitions is None else definitions
    assert schema.keys() <= KEYWORDS
    if "$ref" in schema:
        assert schema.keys() == {"$ref"}
        assert schema["$ref"].removeprefix("#/$defs/") in definitions
        return
    if "anyOf" in schema:
        assert "type" not in schema
    else:
        assert schema["type"]
    kinds = schema.get("type", [])
    if "object" in ([kinds] if isinstance(kinds, str) else kinds):
        assert schema["additionalProperties"] is False
        assert schema["properties"]
        assert schema["required"] == list(schema["properties"])
    parts = [*schema.get("properties", {}).values(), *schema.get("anyOf", [])]
    parts += [schema["items"]] if "items" in schema else []
    for part in [*parts, *schema.get("$defs", {}).values()]:
        assert_closed(part, definitions)


def closed_field(kind: Any, default: Any = ...) -> Any:
    """What is sent for one field of a model."""
    schema = closed_schema(create_model("Model", field=(kind, default)))
    assert_closed(schema)
    return schema["properties"]["field"]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


def variants(*types: str) -> dict[str, Any]:
    return {"anyOf": [{"type": each} for each in types]}


@pytest.mark.parametrize(
    ("kind", "default", "sent"),
    [
        (str, ..., {"type": "string"}),
        (float, ..., {"type": "number"}),
        (int | None, ..., variants("integer", "null")),
        (int | None, None, variants("integer", "null")),
        (int, 3, {"type": "integer", "description": '({"default": 3})'}),
        (list[str], ..., {"type": "array", "items": {"type": "string"}}),
        (Literal["a"], ..., {"type": "string", "enum": ["a"]}),
        (
            Literal["a", 1, None],
            ...,
            {"type": ["string", "integer", "null"], "enum": ["a", 1, None]},
        ),
        (Annotated[int, Field(ge=1)], ..., {"type": "integer", "description": '({"minimum": 1})'}),
        (datetime.date, ..., {"type": "string", "description": '({"format": "date"})'}),
    ],
    ids=str,
)
def test_field_is_sent_in_strict_form(kind, default, sent):
    assert closed_field(kind, default) == sent


def test_optional_field_is_required():
    """An optional field is required, and may be null only if the model allows it."""
    schema = closed_schema(create_model("Model", a=(int | None, None), b=(int, 3)))

    assert schema["required"] == ["a", "b"]
    assert {"type": "null"} in schema["properties"]["a"]["anyOf"]
    assert schema["properties"]["b"]["type"] == "integer"


def test_dictionary_property_is_required():
    schema = {"properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "required": ["b"]}

    assert closed_schema(schema)["required"] == ["a", "b"]


def test_unsent_rules_are_in_the_description():
    kind = Annotated[str, Field(description="Its name", min_length=1, pattern="^[a-zé]+$")]

    description = closed_field(kind)["description"]

    assert description == 'Its name ({"pattern": "^[a-zé]+$", "minLength": 1})'


def test_tuple_is_sent_as_a_list():
    sent = closed_field(tuple[int, str, int])

    assert sent["items"] == variants("integer", "string")
    assert '"minItems": 3' in sent["description"]


def test_an_enumeration_is_sent_with_its_values():
    sent = closed_field(Colour)

    assert sent == {"$ref": "#/$defs/Colour"}
    schema = closed_schema(create_model("Model", field=(Colour, ...)))
    assert schema["$defs"] == {"Colour": {"type": "string", "enum": ["red", "blue"]}}


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    friends: list[Cat]


def test_discriminated_union_is_a_plain_anyof():
    sent = closed_field(Annotated[Cat | Dog, Field(discriminator="kind")])

    assert sent == {"anyOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]}


def test_described_reference_is_inlined():
    sent = closed_field(Annotated[Cat, Field(description="The cat")])

    assert sent["description"] == "The cat"
    assert list(sent["properties"]) == ["kind", "lives"]


class Tree(BaseModel):
    name: str
    parent: Annotated[Tree | None, Field(description="Above it")] = None
    first: Annotated[Tree, Field(description="Below it")]
    others: list[Tree] = []


def test_recursive_model_keeps_its_references():
    schema = closed_schema(Tree)

    assert_closed(schema)
    assert schema["type"] == "object"
    assert schema["properties"]["others"]["items"] == {"$ref": "#/$defs/Tree"}


class Open(BaseModel):
    model_config = ConfigDict(extra="allow", title="Said nowhere")

    name: str


def test_open_object_is_closed():
    schema = closed_schema(Open)

    assert_closed(schema)
    assert "Said nowhere" not in json.dumps(schema)


def test_a_property_may_be_called_like_a_keyword():
    names = ("title", "type", "properties", "$ref", "default", "anyOf")

    schema = closed_schema({"properties": {name: {"type": "string"} for name in names}})

    assert schema["required"] == list(names)


def test_other_references_become_definitions():
    schema = {
        "type": "object",
        "properties": {
            "first": {"$ref": "#/definitions/a~1b%20c"},
            "second": {"$ref": "#/properties/first"},
            "again": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        },
        "definitions": {"a/b c": {"type": "string"}},
    }

    sent = closed_schema(schema)

    assert_closed(sent)
    assert sent["properties"]["first"] == {"$ref": "#/$defs/a_1b_20c"}
    assert sent["$defs"]["a_1b_20c"] == {"type": "string"}
    assert sent["$defs"]["root"]["type"] == "object"


def test_the_callers_schema_is_left_as_it_is():
    schema = {"type": "object", "properties": {"a": {"type": "string", "minLength": 1}}}
    before = json.dumps(schema)

    closed_schema(schema)["properties"]["a"]["type"] = "integer"

    assert json.dumps(schema) == before


def test_constraining_choice_is_described():
    """Alternatives that only constrain a value are added to its description."""
    part = {"type": "string", "anyOf": [{"pattern": "^a"}, {"pattern": "b$"}]}

    sent = closed_schema({"properties": {"a": part}})["properties"]["a"]

    assert sent["type"] == "string"
    assert '"anyOf"' in sent["description"]


def test_an_allof_of_one_is_that_one():
    schema = {"properties": {"a": {"allOf": [{"type": "string"}], "description": "A"}}}

    assert closed_schema(schema)["properties"]["a"] == {"type": "string", "description": "A"}


# What cannot be closed


def inner(kind: Any) -> type[BaseModel]:
    item = create_model("Item", owner=(kind, ...))
    return create_model("Model", pets=(list[item], ...))


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (dict[str, int], "pets[].owner is an object without properties"),
        (dict, "pets[].owner is an object without properties"),
        (create_model("Empty"), "pets[].owner is an object without properties"),
        (Any, "pets[].owner takes a value of any type"),
        (list, "pets[].owner is a list of anything"),
        (list[Any], "pets[].owner is a list of anything"),
        (dict[str, int] | None, "pets[].owner is an object without properties"),
        (RootModel[list[dict[str, str]]], "pets[].owner[] is an object without properties"),
    ],
    ids=str,
)
def test_free_form_is_refused_with_its_path(kind, problem):
    with pytest.raises(SchemaError) as caught:
        closed_schema(inner(kind))
    assert problem in str(caught.value)
    assert problem.startswith(f"{caught.value.path} ")
    assert isinstance(caught.value, LLMError)
    assert isinstance(caught.value, ValueError)


STRING = {"type": "string"}
ENDLESS = {f"#/$defs/{n}": {"$ref": f"#/$defs/{1 - n}"} for n in (0, 1)}


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({}, "takes a value of any type"),
        (STRING, "has to be an object at its root"),
        ({"type": "array", "items": STRING}, "has to be an object at its root"),
        ({"anyOf": [{"properties": {"a": STRING}}]}, "has to be an object at its root"),
        ({"type": "object"}, "is an object without properties"),
        ({"properties": {"a": STRING}, "required": ["b"]}, "requires 'b'"),
        ({"properties": {"a": True}}, "a takes a value of any type"),
        ({"properties": {"a": {"enum": [[1]]}}}, "a is one of some lists or objects"),
        ({"properties": {"a": {"allOf": [STRING, {"minLength": 1}]}}}, "a uses allOf"),
        ({"properties": {"a": {"$ref": "https://example.com/a"}}}, "a refers to 'https:"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "a refers to '#/$defs/b', which is not"),
        ({"properties": {"a": {"$ref": "#/properties/a"}}}, "which refers to itself"),
        ({"properties": {"a": {"type": "string", "default": {1, 2}}}}, "is not JSON"),
        ({"properties": {"a": {"type": "number", "default": float("nan")}}}, "is not JSON"),
    ],
    ids=str,
)
def test_unclosable_dictionary_is_refused(schema, problem):
    with pytest.raises(SchemaError, match=problem.replace("$", r"\$")):
        closed_schema(schema)


@pytest.mark.parametrize("schema", [None, "name, age int", list[int], int, [Cat]], ids=str)
def test_what_is_no_schema_is_a_type_error(schema):
    with pytest.raises(TypeError, match="pydantic model class or a JSON schema dictionary"):
        closed_schema(schema)


def test_a_schema_nested_without_end_is_refused():
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(5_000):
        schema = {"properties": {"a": schema}}

    with pytest.raises(SchemaError):
        closed_schema(schema)


def test_exponential_schema_is_refused():
    definitions: dict[str, Any] = {"0": {"type": "string"}}
    for n in range(1, 40):
        below = {"$ref": f"#/$defs/{n - 1}", "description": "Written out"}
        definitions[str(n)] = {"properties": {"a": below, "b": below}}
    schema = {"$ref": "#/$defs/39", "$defs": definitions}

    with pytest.raises(SchemaError, match="more than 5,000 parts"):
        closed_schema(schema)


# Whatever the schema


def objects(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    properties = st.dictionaries(st.text(max_size=5), parts, min_size=1, max_size=4)
    required = st.booleans()
    more = st.sampled_from([{}, {"additionalProperties": True}, {"title": "T"}])
    return st.builds(
        lambda named, all_of_them, rest: {
            "type": "object",
            "properties": named,
            "required": list(named) if all_of_them else [],
            **rest,
        },
        properties,
        required,
        more,
    )


LEAVES = st.sampled_from(
    [
        {"type": "string", "maxLength": 3},
        {"type": ["integer", "null"], "minimum": 0},
        {"enum": ["a", 1, None]},
        {"const": True},
        {"$ref": "#/$defs/a"},
        {"$ref": "#/$defs/b", "description": "B"},
        {"$ref": "#"},
    ]
)
PARTS = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        objects(parts),
        st.builds(lambda item: {"type": "array", "items": item, "minItems": 1}, parts),
        st.builds(lambda one, two: {"oneOf": [one, two], "default": None}, parts, parts),
    ),
    max_leaves=8,
)


@settings(max_examples=40)
@given(root=objects(PARTS), a=objects(PARTS), b=objects(PARTS))
def test_closing_is_complete_and_idempotent(root, a, b):
    schema = closed_schema({**root, "$defs": {"a": a, "b": b}})

    assert_closed(schema)
    Draft202012Validator.check_schema(schema)
    assert_closed(closed_schema(schema))
