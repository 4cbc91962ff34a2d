"""Fuzz tests: any configuration is a problem, or has the right types."""

from __future__ import annotations

import asyncio
import copy
import datetime
import types
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from datasette.app import Datasette
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from datasette_llm.config.parse import parse_settings
from datasette_llm.config.references import secret_names
from datasette_llm.config.settings import Settings
from datasette_llm.config.values import Section
from datasette_llm.errors import ConfigError

from .test_settings import EVERYTHING, PASTED_KEY, ROOT, is_frozen

ATTEMPTS = {"idle_timeout": 1.5, "retries": 0, "max_concurrency": 2, "max_answer_chars": 9}
FALLBACK = {"model": "o3", "key": "SPARE_KEY", "options": {"temperature": 0}} | ATTEMPTS
CACHE = {"keep_days": 3, "max_mb": 10, "scope": "purpose"}
CALLS = ATTEMPTS | {"timeout": 30, "fallbacks": ["claude", FALLBACK], "cache": CACHE}
REFERENCE = {
    "model": "gpt-4o",
    "key": "TEAM_KEY",
    "options": {"temperature": 0.5, "stop": ["a", {"b": None}], "seed": 1},
} | CALLS
ENDPOINT = {
    "model": "qwen",
    "api_base": "http://127.0.0.1:8000/v1",
    "model_name": "Qwen/Qwen3-8B",
    "aliases": ["q"],
    "key": "VLLM_KEY",
    "headers": {"X-Team": "pets"},
    "proxy": "http://proxy.example:3128",
    "ca_file": "/etc/ssl/own.pem",
    "can_stream": True,
    "supports_schema": True,
    "supports_tools": True,
    "vision": False,
    "audio": False,
    "reasoning": True,
    "send_user": True,
    "send_tags": True,
} | CALLS
# Valid, and with every setting at every place.
FULL: dict[str, Any] = {
    "default_model": REFERENCE,
    "models": ["gpt-4o-mini", "claude"],
    "blocked_models": ["o1"],
    "require_keys": False,
    "threads": 2,
    "endpoints": [ENDPOINT],
    "log": {
        "content": True,
        "keep_days": 30,
        "required": True,
        "prices": {"gpt-4o": {"input": 1, "output": 2.5, "cached_input": 0.1}},
    },
    "telemetry": {"content": True, "actor": False},
    "consultant": {
        "values": "none",
        "time_limit_ms": 500,
        "max_prompt_tokens": 5_000,
        "exclude": ["mail"],
    },
    "purposes": {
        "chat": {
            "model": "claude",
            "models": [REFERENCE, "o3"],
            "blocked_models": [],
            "log": {"content": False},
        }
        | CALLS,
    },
} | CALLS

# Values


SETTING_NAMES = sorted({*Settings.model_fields, *REFERENCE, *ENDPOINT, "input", "values"})
NAMES = st.sampled_from([*SETTING_NAMES, "chat", "modle", "kye", "a:b", "", "[0]", PASTED_KEY])
TEXTS = st.text(st.characters(exclude_categories=()), max_size=80)  # lone surrogates, too
SPECIAL: list[Any] = [
    "gpt-4o",
    "OPENAI_API_KEY",
    PASTED_KEY,
    f"key: {PASTED_KEY}",
    "yes",
    "",
    " ",
    "ü",
    "{name}",
    "{0}{got!r}",
    "http://u:p@x/v1",
    "http://[",
    0,
    -1,
    1,
    2.0,
    0.1,
    -0.0,
    float("nan"),
    float("inf"),
    10**4000,
    -(10**4000),
    1j,
    True,
    False,
    None,
    len,
    int,
    range(3),
    frozenset({1}),
    b"\xff",
    bytearray(b"x"),
    datetime.date(2024, 1, 1),
    datetime.timedelta(1),
]
SCALARS = (
    st.sampled_from(SPECIAL)
    | st.integers()
    | st.floats()
    | TEXTS
    | st.binary(max_size=3)
    | st.dates()
    | st.datetimes()
    | st.builds(object)
)
KEYS = NAMES | TEXTS | st.none() | st.booleans() | st.integers() | st.dates() | st.tuples(NAMES)
VALUES = st.recursive(
    SCALARS,
    lambda values: (
        st.lists(values, max_size=4)
        | st.dictionaries(KEYS, values, max_size=4)
        | st.lists(values, max_size=3).map(tuple)
        | st.sets(st.integers() | TEXTS, max_size=3)
    ),
    max_leaves=20,
)
YAML = [
    "&a [*a, *a]",
    "&a {default_model: *a, purposes: *a, endpoints: [*a], log: *a, fallbacks: [*a]}",
    "purposes: &p {chat: *p, models: [*p]}",
    "fallbacks: &f [{model: x, fallbacks: *f}, *f]",
    "default_model: &r {model: x, fallbacks: [*r], options: &o {o: [*o]}}",
    "default_model: {model: x, options: {o: &o [*o, *o]}}",
    "endpoints: &e [{model: a, api_base: 'http://x/v1', aliases: *e, headers: {x: *e}}]",
    "{a: &a [x, x], b: &b [*a, *a], c: &c [*b, *b], models: [*c, *c]}",
    "? &k [1]\n: *k",
    "<<: {timeout: 1}\ntimeout: .nan",
    "timeout: 1e3",
    "timeout: 1_0",
    "retries: 0x10",
    "retries: 010",
    "max_concurrency: 1:30",
    "models: !!set {a, b}",
    "models: !!binary aGVsbG8=",
    "purposes: !!omap [a: {}]",
    "default_model: 2024-01-01",
]

# Mutations of what is valid


def places(node: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, Any, tuple[Any, ...]]]:
    """Each container with each of its keys or indexes, and the containers it is in."""
    inner = (*above, node)
    for name, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        yield node, name, inner
        if isinstance(value, dict | list):
            yield from places(value, inner)


def mutate(draw: st.DrawFn, raw: Any) -> None:
    everywhere = list(places(raw))
    one, other = draw(st.sampled_from(everywhere)), draw(st.sampled_from(everywhere))
    (node, name, _), (other_node, other_name, _) = one, other
    match draw(st.sampled_from(["replace", "special", "rename", "nest", "list", "remove", "copy"])):
        case "replace":
            node[name] = draw(VALUES)
        case "special":
            node[name] = draw(st.sampled_from(SPECIAL))
        case "rename" if isinstance(node, dict):
            node[draw(KEYS)] = node.pop(name)
        case "rename" | "nest":
            node[name] = {draw(KEYS | st.just(name)): node[name]}
        case "list":
            node[name] = [node[name], draw(SCALARS)]
        case "remove":
            del node[name]
        case "copy":
            node[name] = copy.deepcopy(other_node[other_name])


@st.composite
def mutated(draw: st.DrawFn, knots: bool = True) -> Any:
    """The full configuration, with a few of its settings replaced, renamed, nested or gone."""
    raw = copy.deepcopy(FULL)
    for _ in range(draw(st.integers(1, 3))):
        mutate(draw, raw)
    if knots and draw(st.integers(0, 3)) == 0:
        node, name, above = draw(st.sampled_from(list(places(raw))))
        node[name] = draw(st.sampled_from(above))  # which contains it
    return raw


# The results


def conforms(value: Any, hint: Any) -> bool:
    """Whether a setting deeply has exactly its declared type, and is immutable."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return is_frozen(value)
    if origin in (Union, types.UnionType):
        return any(conforms(value, each) for each in inner)
    if origin is Literal:
        return type(value) is str and value in inner
    if origin is tuple:
        return type(value) is tuple and all(conforms(each, inner[0]) for each in value)
    if origin is Mapping:
        pairs = value.items() if type(value) is MappingProxyType else [(None, None)]
        return all(conforms(name, inner[0]) and conforms(each, inner[1]) for name, each in pairs)
    if not issubclass(hint, Section):
        return type(value) is hint
    hints = get_type_hints(hint)
    return (
        type(value) is hint
        and hint.model_config["frozen"] is True
        and value.__dict__.keys() == hint.model_fields.keys()
        and value.__pydantic_extra__ is None
        and all(conforms(each, hints[name]) for name, each in value.__dict__.items())
    )


def shown(value: Any) -> Any:
    """A whole setting as text, including what its repr leaves out, for comparison."""
    if isinstance(value, Section):
        return {name: shown(each) for name, each in value.__dict__.items()}
    if isinstance(value, Mapping):
        return repr({name: shown(each) for name, each in value.items()})
    return repr([shown(each) for each in value]) if isinstance(value, tuple) else repr(value)


def wreck(raw: Any, seen: set[int]) -> None:
    """Empty every mutable container of a configuration, as later code might."""
    if id(raw) in seen or not isinstance(raw, dict | list | set | tuple | bytearray):
        return
    seen.add(id(raw))
    for each in (*raw.values(), *raw) if isinstance(raw, dict) else tuple(raw):
        wreck(each, seen)
    if not isinstance(raw, tuple):
        raw.clear()


def parsed(raw: Any) -> Settings | ConfigError:
    try:
        return parse_settings(raw)
    except ConfigError as error:
        return error


def check(raw: Any) -> None:
    """Either every problem is reported properly, or every setting has the right type."""
    result = parsed(raw)
    check_error(result) if isinstance(result, ConfigError) else check_settings(result, raw)


def check_error(error: ConfigError) -> None:
    assert error.problems
    assert str(error).splitlines()[1:] == [f"  {line}" for line in error.problems]
    for line in error.problems:
        assert line.startswith((f"{ROOT}.", f"{ROOT}[", f"{ROOT}: "))
        assert line.partition(": ")[2]
        assert line.isprintable()
    assert PASTED_KEY[3:] not in str(error)
    assert error.__context__ is None


def check_settings(settings: Settings, raw: Any) -> None:
    assert conforms(settings, Settings)
    assert all(name.isidentifier() for name in secret_names(settings))
    before = shown(settings)
    assert shown(parse_settings(raw)) == before
    wreck(raw, set())
    assert shown(settings) == before


def test_full_configuration_has_every_setting() -> None:
    """The full configuration has every setting at every place."""
    found: set[tuple[type[Section], str]] = set()
    every = [Settings]
    for section in every:  # which grows
        for name, hint in get_type_hints(section).items():
            if name in section.model_fields:
                found.add((section, name))
                every += [each for each in sections_in(hint) if each not in every]

    def written(section: Section) -> Iterator[tuple[type[Section], str]]:
        yield from ((type(section), name) for name in section.model_fields_set)
        for value in section.__dict__.values():
            for each in value.values() if isinstance(value, Mapping) else value_list(value):
                if isinstance(each, Section):
                    yield from written(each)

    assert set(written(parse_settings(FULL))) == found


def value_list(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def sections_in(hint: Any) -> Iterator[type[Section]]:
    if isinstance(hint, type) and issubclass(hint, Section):
        yield hint
    for inner in get_args(hint):
        yield from sections_in(inner)


@hypothesis_settings(max_examples=300)
@given(raw=VALUES | st.dictionaries(NAMES, VALUES, max_size=5))
@example(raw=EVERYTHING)
@example(raw=FULL)
def test_any_value_parses_or_is_a_config_error(raw: Any) -> None:
    check(copy.deepcopy(raw))


def at(raw: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        raw = raw[step]
    return raw


def paths(node: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for name, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield (*above, name)
        if isinstance(value, dict | list):
            yield from paths(value, (*above, name))


@pytest.mark.parametrize("setting", FULL)
def test_special_values_parse_or_are_errors(setting: str) -> None:
    """Each setting with each special value is well typed or a problem."""
    for path in paths({setting: FULL[setting]}):
        *above, name = path
        for value in SPECIAL:
            raw = {setting: copy.deepcopy(FULL[setting])}
            at(raw, tuple(above))[name] = value
            check(raw)


@pytest.mark.parametrize("setting", FULL)
def test_key_as_setting_name_is_not_shown(setting: str) -> None:
    """Each setting with a key in the place of a name is a problem that does not show it."""
    for path in paths({setting: FULL[setting]}):
        *above, name = path
        for bad in ("ü", len):
            raw = {setting: copy.deepcopy(FULL[setting])}
            node = at(raw, tuple(above))
            if isinstance(node, dict):
                del node[name]
            else:
                node[name] = {}
                node = node[name]
            node[PASTED_KEY] = bad
            check(raw)


@hypothesis_settings(max_examples=300)
@given(raw=mutated())
def test_mutated_config_parses_or_is_an_error(raw: Any) -> None:
    check(raw)


@pytest.mark.parametrize("text", YAML)
def test_yaml_features_parse_or_are_errors(text: str) -> None:
    for loader in (yaml.SafeLoader, yaml.BaseLoader):
        try:
            raw = yaml.load(text, loader)
        except yaml.YAMLError:
            continue
        check(raw)


@pytest.mark.parametrize("setting", sorted(Settings.model_fields))
def test_deep_or_wide_setting_parses_or_is_error(setting: str) -> None:
    deep: Any = "x"
    for _ in range(5_000):
        deep = {"model": [deep]}
    check({setting: deep})
    check({setting: [deep]})
    check({setting: {str(number): number for number in range(3_000)}})
    check({setting: [f"m{number}" for number in range(3_000)]})


@hypothesis_settings(max_examples=25)
@given(raw=mutated(knots=False))
@example(raw=FULL)
def test_mutated_config_starts_or_says_why_not(raw: Any) -> None:
    # Without cycles: Datasette itself looks into every configuration for `$env`.
    """Datasette starts with a mutated configuration or shows its problems."""
    asyncio.run(start(copy.deepcopy(raw)))


async def start(raw: Any) -> None:
    expected = parsed(raw)
    datasette = Datasette(memory=True, config={"plugins": {"datasette-llm": raw}})
    try:
        if isinstance(expected, ConfigError):
            with pytest.raises(ConfigError) as stopped:
                await datasette.invoke_startup()
            assert stopped.value.problems == expected.problems
        else:
            await datasette.invoke_startup()
            assert (await datasette.client.get("/-/llm.json")).status_code == 403
    finally:
        datasette.close()
