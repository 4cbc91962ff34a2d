"""The configuration: what is read, and how each problem is reported."""

import copy
import datetime
import json
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pytest
import yaml
from datasette.utils import StartupError
from pydantic import ValidationError

from datasette_llm.config.parse import parse_settings
from datasette_llm.config.references import secret_names
from datasette_llm.config.settings import (
    FallbackReference,
    ModelReference,
    PurposeSettings,
    Settings,
    settings_table,
)
from datasette_llm.errors import ConfigError

ROOT = "plugins.datasette-llm"
PASTED_KEY = "sk-proj-0123456789abcdef"
A_REFERENCE = 'expected a model id, or a mapping with "model"'
NOT_A_SECRET_NAME = (
    "expected the name of a secret, such as OPENAI_API_KEY; "
    "the key itself goes to /-/secrets or into DATASETTE_SECRETS_<NAME>"
)
NULL = "expected a value, got null; leave out a setting that has none"
TOO_LARGE = (
    "expected at most 10,000 values on 20 levels, got more, or something that contains itself"
)
EVERYTHING = {
    "default_model": {
        "model": "gpt-4o",
        "key": "TEAM_KEY",
        "options": {"temperature": 0.5, "stop": ["a", {"b": None}]},
    },
    "models": [
        "gpt-4o-mini",
        {"model": "claude", "key": "CLAUDE_KEY", "max_concurrency": 2},
    ],
    "blocked_models": ["o1"],
    "require_keys": False,
    "purposes": {
        "chat": {"model": "claude", "models": ["gpt-4o", {"model": "o3", "key": "CHAT_KEY"}]},
        "enrich rows": {"blocked_models": ["claude"]},
    },
}


def problems_of(raw: object) -> list[str]:
    """The problems of `raw`, each without the path's beginning, which all share."""
    with pytest.raises(ConfigError) as raised:
        parse_settings(raw)
    assert all(line.startswith(ROOT) for line in raised.value.problems)
    return [line.removeprefix(ROOT) for line in raised.value.problems]


def is_frozen(value: object) -> bool:
    if isinstance(value, MappingProxyType):
        return all(map(is_frozen, value.values()))
    if isinstance(value, tuple | frozenset):
        return all(map(is_frozen, value))
    return isinstance(value, str | int | float | bytes | datetime.date | None)


def reference_problems_of(raw: object) -> list[str]:
    """The problems of `raw` as the default model, each without the path's beginning."""
    problems = problems_of({"default_model": raw})
    assert all(line.startswith(".default_model") for line in problems)
    return [line.removeprefix(".default_model") for line in problems]


@pytest.mark.parametrize("raw", [None, {}])
def test_nothing_configured_gives_the_defaults(raw: object) -> None:
    settings = parse_settings(raw)
    assert settings == Settings()
    assert (settings.default_model, settings.models) == (None, None)
    assert (settings.blocked_models, settings.require_keys, settings.purposes) == ((), True, {})


def test_every_setting_is_read() -> None:
    settings = parse_settings(EVERYTHING)

    assert settings.default_model == ModelReference(
        model="gpt-4o",
        key="TEAM_KEY",
        options={"temperature": 0.5, "stop": ("a", {"b": None})},
    )
    assert settings.models == (
        ModelReference(model="gpt-4o-mini"),
        ModelReference(model="claude", key="CLAUDE_KEY", max_concurrency=2),
    )
    assert settings.blocked_models == ("o1",)
    assert settings.require_keys is False
    assert settings.purposes == {
        "chat": PurposeSettings(
            model=ModelReference(model="claude"),
            models=(ModelReference(model="gpt-4o"), ModelReference(model="o3", key="CHAT_KEY")),
        ),
        "enrich rows": PurposeSettings(blocked_models=("claude",)),
    }
    assert list(settings.purposes) == ["chat", "enrich rows"]


def test_id_and_mapping_are_the_same_reference() -> None:
    """An id and a mapping with only a model are equal references."""
    assert parse_settings({"default_model": "gpt-4o"}) == parse_settings(
        {"default_model": {"model": "gpt-4o"}}
    )


def test_spaces_around_an_id_are_no_part_of_it() -> None:
    settings = parse_settings({"default_model": " a ", "models": ["b "]})
    assert settings.default_model == ModelReference(model="a")
    assert settings.models == (ModelReference(model="b"),)


def test_an_empty_allowlist_differs_from_none() -> None:
    assert parse_settings({"models": []}).models == ()
    assert parse_settings({"purposes": {"chat": {"models": []}}}).purposes["chat"].models == ()


@pytest.mark.parametrize("wrap", [OrderedDict, MappingProxyType])
def test_any_mapping_and_sequence_type_will_do(wrap: Any) -> None:
    settings = parse_settings(wrap({"blocked_models": ("a", "b"), "models": ("a", "b")}))
    assert settings.blocked_models == ("a", "b")
    assert settings.models == (ModelReference(model="a"), ModelReference(model="b"))


def test_equal_configurations_give_equal_settings() -> None:
    assert parse_settings(EVERYTHING) == parse_settings(copy.deepcopy(EVERYTHING))
    assert parse_settings(EVERYTHING) != parse_settings({**EVERYTHING, "require_keys": True})


def test_settings_are_independent_of_the_raw_ones() -> None:
    """Settings do not change with the raw configuration."""
    raw = copy.deepcopy(EVERYTHING)
    settings = parse_settings(raw)
    raw["default_model"]["options"]["stop"][1]["b"] = 1  # type: ignore[index]
    raw["purposes"]["chat"]["models"].clear()  # type: ignore[index]
    raw["purposes"].clear()  # type: ignore[attr-defined]
    assert settings == parse_settings(EVERYTHING)


def test_settings_cannot_be_changed_at_any_depth() -> None:
    settings = parse_settings(EVERYTHING)
    reference = settings.default_model
    assert reference
    with pytest.raises(ValidationError, match="frozen"):
        settings.require_keys = True
    with pytest.raises(ValidationError, match="frozen"):
        reference.key = "OTHER"
    frozen: list[Any] = [settings.purposes, reference.options, reference.options["stop"][1]]
    for mapping in (*frozen, Settings().purposes, ModelReference(model="m").options):
        with pytest.raises(TypeError):
            mapping["new"] = 1


def test_plain_options_are_a_fresh_copy() -> None:
    reference = parse_settings(EVERYTHING).default_model
    assert reference
    options = reference.plain_options()
    assert json.dumps(options) == json.dumps(EVERYTHING["default_model"]["options"])  # type: ignore[index]
    options["stop"][1]["b"] = 1
    assert reference.options["stop"][1]["b"] is None


def test_option_takes_any_yaml_value() -> None:
    raw = yaml.safe_load(
        """
        seed: null
        stop: [a, null, 1.5, true, 2024-01-01, 2024-01-01 10:00:00]
        logit_bias: {1712: -100, null: 1, 2024-01-01: {}, true: []}
        image: !!binary aGVsbG8=
        words: !!set {a, b}
        pairs: !!pairs [a: 1, a: {b: 2}]
        """
    )
    reference = parse_settings({"default_model": {"model": "x", "options": raw}}).default_model
    assert reference
    assert is_frozen(reference.options)
    assert reference.plain_options() == raw | {"pairs": [["a", 1], ["a", {"b": 2}]]}


def test_config_error_stops_datasette() -> None:
    """The error stops Datasette and shows all problems."""
    with pytest.raises(StartupError) as raised:
        parse_settings({"modles": [], "require_keys": 1})
    assert str(raised.value) == (
        "datasette-llm cannot start: 2 problems in its configuration\n"
        "  plugins.datasette-llm.require_keys: "
        "expected true or false, without quotes, got a number\n"
        '  plugins.datasette-llm.modles: unknown setting (did you mean "models"?)'
    )


@pytest.mark.parametrize(
    ("raw", "got"),
    [([], "a list"), ("gpt-4o", "text"), (0, "a number"), (False, "false"), ("", "empty text")],
)
def test_non_mapping_configuration_is_one_problem(raw: object, got: str) -> None:
    assert problems_of(raw) == [f": expected a mapping such as {{default_model: …}}, got {got}"]


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ({"modle": "x"}, '.modle: unknown setting (did you mean "models"?)'),
        ({"MODELS": []}, '.MODELS: unknown setting (did you mean "models"?)'),
        ({"Require-Keys": True}, '.Require-Keys: unknown setting (did you mean "require_keys"?)'),
        (
            {"colour": "red"},
            f".colour: unknown setting (known here: {', '.join(sorted(Settings.model_fields))})",
        ),
        (
            {"purposes": {"chat": {"modle": "x"}}},
            '.purposes.chat.modle: unknown setting (did you mean "model"?)',
        ),
        (
            {"purposes": {"chat": {"colour": "red"}}},
            ".purposes.chat.colour: unknown setting"
            " (known here: blocked_models, cache, fallbacks, idle_timeout, log, max_answer_chars,"
            " max_concurrency, model, models, retries, timeout)",
        ),
        (
            {"purposes": {"chat": {"models": [{"model": "x", "option": {}}]}}},
            '.purposes.chat.models[0].option: unknown setting (did you mean "options"?)',
        ),
        (
            {"purposes": {"my chat": {"modle": "x"}}},
            '.purposes["my chat"].modle: unknown setting (did you mean "model"?)',
        ),
        ({True: 1}, ": names are text, got true; put it in quotes"),
        ({None: 1}, ": names are text, got null; put it in quotes"),
    ],
)
def test_unknown_setting_suggests_the_nearest(raw: object, problem: str) -> None:
    assert problems_of(raw) == [problem]


@pytest.mark.parametrize("mark", [":", "=", " ", "\n"])
def test_missing_space_after_colon_hides_value(mark: str) -> None:
    # YAML reads {model: gpt-4o, key:sk-…} so.
    """A setting without a space after its colon is a problem that does not show its value."""
    assert reference_problems_of({"model": "gpt-4o", f"key{mark}{PASTED_KEY}": None}) == [
        '["key…"]: unknown setting (a name ends with a colon and then a space)'
    ]


def test_key_pasted_as_setting_is_not_shown() -> None:
    # YAML reads {model: gpt-4o, sk-…} so.
    assert reference_problems_of({"model": "gpt-4o", PASTED_KEY: None}) == [
        f'["{PASTED_KEY[:2]}…"]: unknown setting '
        "(a key does not belong here; go to /-/secrets with it)"
    ]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("gpt-4o", ': expected a list, got the text "gpt-4o"; write it as ["gpt-4o"]'),
        ("", ": expected a list, got empty text"),
        (None, f": {NULL}"),
        (True, ": expected a list, got true"),
        ({"model": "gpt-4o"}, ": expected a list, got a mapping"),
        ({"gpt-4o"}, ": expected a list, got a value of type set"),
        (["a", 4.1], "[1]: expected text, in quotes, got a number"),
        (["a", 10**5000], "[1]: expected text, in quotes, got a number"),
        (["a", True], "[1]: expected text, in quotes, got true"),
        (["a", ""], "[1]: expected text, got empty text"),
        (["a", "  "], "[1]: expected text, got empty text"),
        (["a", None], "[1]: expected text, in quotes, got null"),
        (["a", ["b"]], "[1]: expected text, in quotes, got a list"),
        (["a", {"model": "b", "key": PASTED_KEY}], "[1]: expected text, in quotes, got a mapping"),
        (
            ["a", datetime.date(2024, 1, 1)],
            "[1]: expected text, in quotes, got a value of type date",
        ),
    ],
)
def test_a_list_of_ids_takes_only_texts(value: object, problem: str) -> None:
    assert problems_of({"blocked_models": value}) == [f".blocked_models{problem}"]
    assert problems_of({"purposes": {"chat": {"blocked_models": value}}}) == [
        f".purposes.chat.blocked_models{problem}"
    ]


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (1, "a number"),
        (0, "a number"),
        ("yes", "text"),
        ("false", "text"),
        ([True], "a list"),
        ((True,), "a list"),
    ],
)
def test_require_keys_must_be_a_boolean(value: object, got: str) -> None:
    assert problems_of({"require_keys": value}) == [
        f".require_keys: expected true or false, without quotes, got {got}"
    ]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([], f": {A_REFERENCE}, got a list"),
        ([{"model": "x", "key": PASTED_KEY}], f": {A_REFERENCE}, got a list"),
        ("", f": {A_REFERENCE}, got empty text"),
        ("  ", f": {A_REFERENCE}, got empty text"),
        (4, f": {A_REFERENCE}, got a number"),
        ({}, ': needs "model"'),
        ({"key": "SECRET"}, ': needs "model"'),
        ({"modle": "x"}, '.modle: unknown setting (did you mean "model"?)'),
        (
            {"model:x": None},
            '["model…"]: unknown setting (a name ends with a colon and then a space)',
        ),
        ({"model": None}, f".model: {NULL}"),
        ({"model": ""}, ".model: expected text, got empty text"),
        ({"model": 4.1}, ".model: expected text, in quotes, got a number"),
        ({"model": ["x"]}, ".model: expected text, in quotes, got a list"),
        ({"model": "x", 1: 2}, ": names are text, got a number; put it in quotes"),
    ],
)
def test_misshapen_reference_is_one_problem(value: object, problem: str) -> None:
    assert reference_problems_of(value) == [problem]
    assert problems_of({"purposes": {"chat": {"model": value, "models": ["ok", value]}}}) == [
        f".purposes.chat.model{problem}",
        f".purposes.chat.models[1]{problem}",
    ]
    assert problems_of({"models": ["ok", value]}) == [f".models[1]{problem}"]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, f": {NULL}"),
        (["temperature"], ": expected a mapping, got a list"),
        ({1: 2}, ": names are text, got a number; put it in quotes"),
        ({None: 2}, ": names are text, got null; put it in quotes"),
        (
            {"stop": [object()]},
            ".stop: expected a value that YAML can hold, got a value of type object",
        ),
        ({"stop": list(range(10_000))}, f".stop: {TOO_LARGE}"),
    ],
)
def test_options_are_a_mapping_of_plain_values(value: object, problem: str) -> None:
    assert reference_problems_of({"model": "x", "options": value}) == [f".options{problem}"]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, f": {NULL}"),
        ([], ": expected a mapping, got a list"),
        ({2024: {}}, ": names are text, got a number; put it in quotes"),
        ({"chat": None}, ".chat: expected a mapping such as {model: …}, got null"),
        ({"chat": "gpt-4o"}, ".chat: expected a mapping such as {model: …}, got text"),
        ({"[key]": "gpt-4o"}, '["[key]"]: expected a mapping such as {model: …}, got text'),
        (
            {"chat": {"models": "gpt-4o"}},
            '.chat.models: expected a list, got the text "gpt-4o"; write it as ["gpt-4o"]',
        ),
        (
            {"chat": {"models": {"model": "gpt-4o"}}},
            ".chat.models: expected a list, got a mapping",
        ),
    ],
)
def test_purposes_must_be_a_mapping(value: object, problem: str) -> None:
    assert problems_of({"purposes": value}) == [f".purposes{problem}"]


def test_all_problems_are_told_at_once() -> None:
    raw = {
        "colour": "red",
        "require_keys": "no",
        "purposes": {
            1: {},
            "chat": {"modle": 1, "models": [2, "ok", {"options": [], "key": ""}]},
        },
        "models": ["ok", 3, None],
        "default_model": [],
    }
    assert [problem.split(": ")[0] for problem in problems_of(raw)] == [
        ".default_model",
        ".models[1]",
        ".models[2]",
        ".require_keys",
        ".purposes",
        ".purposes.chat.models[0]",
        ".purposes.chat.models[2]",
        ".purposes.chat.models[2].key",
        ".purposes.chat.models[2].options",
        ".purposes.chat.modle",
        ".colour",
    ]


@pytest.mark.parametrize(
    "key",
    [
        PASTED_KEY,
        f"{PASTED_KEY}\n",
        "A_NAME\n",
        "1ST",
        "",
        "ÄNGSTRÖM",
        12345678901,
        True,
        [PASTED_KEY],
        {PASTED_KEY: PASTED_KEY},
        "abcdefghijklmnopqrs1",
        "_BCDEFGHIJKLMNOPQR1s",
        "1" + "X" * 20,
        "x" * 65,
        "X" * 65,
    ],
)
def test_pasted_key_is_not_repeated(key: object) -> None:
    """A key in the place of a secret's name is a problem that does not repeat it."""
    assert reference_problems_of({"model": "x", "key": key}) == [f".key: {NOT_A_SECRET_NAME}"]


@pytest.mark.parametrize(
    "key",
    [
        "k",
        "_",
        "OPENAI_API_KEY",
        "abcdefghijklmnopqr1",
        "abcdefghijklmnopqrstuvwxyz_ABC",
        "TEAM_7_KEY_OF_THE_YEAR_2024",
        "_OPENAI_API_KEY_OF_2024",
        "x" * 64,
        "X1" * 32,
    ],
)
def test_a_key_takes_the_name_of_a_secret(key: str) -> None:
    reference = parse_settings({"default_model": {"model": "x", "key": key}}).default_model
    assert reference
    assert reference.key == key


def test_a_null_key_is_told_to_be_null() -> None:
    assert reference_problems_of({"model": "x", "key": None}) == [f".key: {NULL}"]


def test_no_error_holds_the_refused_values() -> None:
    raw = {"default_model": {"model": "x", "key": PASTED_KEY}}
    with pytest.raises(ConfigError) as refused:
        parse_settings(raw)
    assert refused.value.__context__ is None
    with pytest.raises(ValidationError) as invalid:
        Settings(**raw)  # type: ignore[arg-type]
    assert PASTED_KEY not in str(invalid.value)


@pytest.mark.parametrize(
    "name", ["key", "kye", "Key", "keys", "api_key", "secret", "model", "options"]
)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda key: key,
        lambda key: [key],
        lambda key: {key},
        lambda key: {"key": [key]},
        lambda key: {"x": {1: key}},
        lambda key: {"x": [{key}]},
    ],
)
def test_reference_problems_repeat_no_value(name: str, wrap: Any) -> None:
    raw = {"key": 0, name: wrap(PASTED_KEY)}
    for reference in (raw, {"model": raw}, {"model": "x", "key": raw}, [raw]):
        assert PASTED_KEY not in "\n".join(reference_problems_of(reference))
    purposes = {"chat": {"model": raw, "models": [raw, [raw]], name: [raw]}}
    assert PASTED_KEY not in "\n".join(problems_of({"purposes": purposes, "models": [raw]}))


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ({"values": "all"}, ".values: expected 'none', 'top' or 'sample', got text"),
        ({"values": None}, f".values: {NULL}"),
        (
            {"time_limit_ms": 0},
            ".time_limit_ms: expected at least 1",
        ),
        ({"max_prompt_tokens": 3_999}, ".max_prompt_tokens: expected at least 4,000"),
        (
            {"exclude": "mail"},
            '.exclude: expected a list, got the text "mail"; write it as ["mail"]',
        ),
        ({"exlude": []}, '.exlude: unknown setting (did you mean "exclude"?)'),
        (False, ": expected a mapping such as {values: …}, got false"),
    ],
)
def test_consultant_problems(raw: object, problem: str) -> None:
    assert problems_of({"consultant": raw}) == [f".consultant{problem}"]


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (True, ": expected a mapping such as {content: …}, got true"),
        ({"content": "yes"}, ".content: expected true or false, without quotes, got text"),
        ({"contents": True}, '.contents: unknown setting (did you mean "content"?)'),
    ],
)
def test_k2_telemetry_problems(raw: object, problem: str) -> None:
    assert problems_of({"telemetry": raw}) == [f".telemetry{problem}"]


ENDPOINT = {"model": "e", "api_base": "http://127.0.0.1:8000/v1"}
# Where the settings of requests may stand: how each place is written, and its path.
PLACES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "": lambda settings: settings,
    ".default_model": lambda settings: {"default_model": {"model": "a"} | settings},
    ".models[1]": lambda s: {"models": ["b", {"model": "a"} | s]},
    ".purposes.chat": lambda settings: {"purposes": {"chat": settings}},
    ".purposes.chat.model": lambda s: {"purposes": {"chat": {"model": {"model": "a"} | s}}},
    ".purposes.chat.models[1]": lambda s: {
        "purposes": {"chat": {"models": ["b", {"model": "a"} | s]}}
    },
    ".endpoints[0]": lambda settings: {"endpoints": [ENDPOINT | settings]},
}
FALLBACK_PLACES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    f"{path}.fallbacks[1]": lambda settings, write=write: write(
        {"fallbacks": ["c", {"model": "d"} | settings]}
    )
    for path, write in PLACES.items()
}
ALL_PLACES = PLACES | FALLBACK_PLACES
A_NUMBER_OF_SECONDS = "expected a number of seconds, without quotes, got"
SECONDS = "expected seconds, more than 0 and at most 86,400"
WHOLE = "expected a whole number, without quotes or a decimal point, got"
NOT_SECONDS: list[tuple[object, str]] = [
    (-1, SECONDS),
    (0, SECONDS),
    (0.0, SECONDS),
    (-0.0, SECONDS),
    (86_400.001, SECONDS),
    (120_000, SECONDS),
    (10**400, SECONDS),
    (-(10**400), SECONDS),
    (math.nan, SECONDS),
    (math.inf, SECONDS),
    (-math.inf, SECONDS),
    (True, f"{A_NUMBER_OF_SECONDS} true"),
    (False, f"{A_NUMBER_OF_SECONDS} false"),
    ("30", f"{A_NUMBER_OF_SECONDS} text"),
    ("30s", f"{A_NUMBER_OF_SECONDS} text"),
    ("", f"{A_NUMBER_OF_SECONDS} empty text"),
    (PASTED_KEY, f"{A_NUMBER_OF_SECONDS} text"),
    ([30], f"{A_NUMBER_OF_SECONDS} a list"),
    ({"seconds": 30}, f"{A_NUMBER_OF_SECONDS} a mapping"),
    (1j, f"{A_NUMBER_OF_SECONDS} a value of type complex"),
    (datetime.date(2024, 1, 1), f"{A_NUMBER_OF_SECONDS} a value of type date"),
    (datetime.timedelta(seconds=30), f"{A_NUMBER_OF_SECONDS} a value of type timedelta"),
    (None, NULL),
]
NOT_WHOLE: list[tuple[object, str]] = [
    (1.5, f"{WHOLE} a number"),
    (2.0, f"{WHOLE} a number"),
    (math.nan, f"{WHOLE} a number"),
    (math.inf, f"{WHOLE} a number"),
    (True, f"{WHOLE} true"),
    (False, f"{WHOLE} false"),
    ("2", f"{WHOLE} text"),
    ("", f"{WHOLE} empty text"),
    (PASTED_KEY, f"{WHOLE} text"),
    ([2], f"{WHOLE} a list"),
    ({"number": 2}, f"{WHOLE} a mapping"),
    (b"2", f"{WHOLE} a value of type bytes"),
    (None, NULL),
]
NOT_RETRIES: list[tuple[object, str]] = [
    (-1, "expected at least 0"),
    (-(10**400), "expected at least 0"),
    (21, "expected at most 20"),
    (10**400, "expected at most 20"),
    *NOT_WHOLE,
]
NOT_CONCURRENCY: list[tuple[object, str]] = [
    (-1, "expected at least 1"),
    (0, "expected at least 1"),
    (100_001, "expected at most 100,000"),
    (10**400, "expected at most 100,000"),
    *NOT_WHOLE,
]
NOT_CHARS: list[tuple[object, str]] = [
    (0, "expected at least 1"),
    (10**13, "expected at most 1,000,000,000,000"),
    *NOT_WHOLE,
]
NOT_CACHE: list[tuple[object, str]] = [
    (7, "expected a mapping such as {keep_days: …}, got a number"),
    ("yes", "expected a mapping such as {keep_days: …}, got text"),
]
NOT_THREADS: list[tuple[object, str]] = [
    (-1, "expected at least 1"),
    (0, "expected at least 1"),
    (1_001, "expected at most 1,000"),
    (10**400, "expected at most 1,000"),
    *NOT_WHOLE,
]
NOT_FALLBACKS: list[tuple[object, str]] = [
    ("gpt-4o", ': expected a list, got the text "gpt-4o"; write it as ["gpt-4o"]'),
    (PASTED_KEY, ': expected a list, got text; write it as ["…"]'),
    ("", ": expected a list, got empty text"),
    (None, f": {NULL}"),
    (False, ": expected a list, got false"),
    (0, ": expected a list, got a number"),
    ({"model": "gpt-4o"}, ": expected a list, got a mapping"),
    ({"gpt-4o"}, ": expected a list, got a value of type set"),
    (["b", None], f"[1]: {A_REFERENCE}, got null"),
    (["b", 4.1], f"[1]: {A_REFERENCE}, got a number"),
    (["b", " "], f"[1]: {A_REFERENCE}, got empty text"),
    (["b", ["c"]], f"[1]: {A_REFERENCE}, got a list"),
    ([{}], '[0]: needs "model"'),
    ([{"modle": "b"}], '[0].modle: unknown setting (did you mean "model"?)'),
    ([{"model": "b", "key": PASTED_KEY}], f"[0].key: {NOT_A_SECRET_NAME}"),
    ([{"model": "b", "options": []}], "[0].options: expected a mapping, got a list"),
    (
        [{"model": "b", "fallbacks": ["c"]}],
        "[0].fallbacks: unknown setting (not allowed in a fallback; add them to the list after it)",
    ),
    (
        [{"model": "b", "timeout": 5}],
        "[0].timeout: unknown setting"
        " (not allowed in a fallback; the requested model's timeout covers all attempts)",
    ),
]


def section_at(settings: Settings, path: str) -> Any:
    """What stands at a path of ALL_PLACES."""
    found: Any = settings
    for name, number in re.findall(r"\.(\w+)|\[(\d+)\]", path):
        mapping = isinstance(found, Mapping)
        found = found[int(number)] if number else found[name] if mapping else getattr(found, name)
    return found


@pytest.mark.parametrize(
    ("path", "setting", "cases"),
    [
        *((path, "timeout", NOT_SECONDS) for path in PLACES),
        *((path, "cache", NOT_CACHE) for path in PLACES),
        *((path, "idle_timeout", NOT_SECONDS) for path in ALL_PLACES),
        *((path, "retries", NOT_RETRIES) for path in ALL_PLACES),
        *((path, "max_concurrency", NOT_CONCURRENCY) for path in ALL_PLACES),
        *((path, "max_answer_chars", NOT_CHARS) for path in ALL_PLACES),
    ],
)
def test_invalid_limit_is_a_problem_everywhere(
    path: str, setting: str, cases: list[tuple[object, str]]
) -> None:
    for value, problem in cases:
        raw = ALL_PLACES[path]({setting: value})
        assert problems_of(raw) == [f"{path}.{setting}: {problem}"]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"keep_days": 0}, ".keep_days: expected at least 1"),
        ({"max_mb": -1}, ".max_mb: expected at least 0"),
        ({"max_mb": 1.5}, ".max_mb: expected a whole number, without quotes or a decimal point"),
        ({"scope": "all"}, ".scope: expected 'actor' or 'purpose', got text"),
        ({"keep_day": 1}, '.keep_day: unknown setting (did you mean "keep_days"?)'),
    ],
)
def test_r1_bad_cache_setting_is_refused(value: object, problem: str) -> None:
    """A bad setting of the response cache is refused with its path, wherever it stands."""
    for path, raw in PLACES.items():
        (found,) = problems_of(raw({"cache": value}))
        assert found.startswith(f"{path}.cache{problem}")


def test_r1_fallback_takes_no_cache() -> None:
    """A fallback has no cache, and the message says why."""
    (found,) = problems_of({"fallbacks": [{"model": "x", "cache": True}]})
    assert found == (
        ".fallbacks[0].cache: unknown setting (not allowed in a fallback, whose answers are not "
        "kept)"
    )


@pytest.mark.parametrize(("value", "problem"), NOT_THREADS)
def test_invalid_thread_count_is_a_problem(value: object, problem: str) -> None:
    assert problems_of({"threads": value}) == [f".threads: {problem}"]


@pytest.mark.parametrize("path", PLACES)
def test_invalid_fallbacks_are_found_everywhere(path: str) -> None:
    for value, problem in NOT_FALLBACKS:
        assert problems_of(PLACES[path]({"fallbacks": value})) == [f"{path}.fallbacks{problem}"]


@pytest.mark.parametrize("path", ALL_PLACES)
def test_attempt_settings_are_read_everywhere(path: str) -> None:
    raw = {"idle_timeout": 30, "retries": 0, "max_concurrency": 100_000}
    section = section_at(parse_settings(ALL_PLACES[path](raw)), path)
    assert (section.idle_timeout, type(section.idle_timeout)) == (30.0, float)
    assert (section.retries, section.max_concurrency) == (0, 100_000)


@pytest.mark.parametrize("path", PLACES)
def test_call_settings_are_read_everywhere(path: str) -> None:
    fallback = {"model": "c", "key": "OTHER_KEY", "options": {"temperature": 0}, "retries": 1}
    raw = {"timeout": 0.5, "fallbacks": ["b", fallback]}
    section = section_at(parse_settings(PLACES[path](raw)), path)
    assert section.timeout == 0.5
    assert section.fallbacks == (FallbackReference(model="b"), FallbackReference(**fallback))
    assert is_frozen(section.fallbacks[1].options)


def test_empty_fallbacks_differ_from_unset() -> None:
    assert parse_settings({"fallbacks": []}).fallbacks == ()
    assert parse_settings({}).fallbacks is None


CIRCLE = (
    "; a model cannot be its own fallback. "
    "To make models fallbacks of each other, set fallbacks on the purpose"
)


def reference(model: str, *fallbacks: str) -> dict[str, Any]:
    return {"model": model, "fallbacks": list(fallbacks)}


def listing(*references: Any, model: Any = "z") -> dict[str, Any]:
    return {"purposes": {"chat": {"model": model, "models": list(references)}}}


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (
            {"default_model": reference("a", "b", " a ")},
            '.default_model.fallbacks[1]: "a" falls back to "a"',
        ),
        (
            listing(reference("a", "b"), reference("b", "c", "a")),
            '.purposes.chat.models[1].fallbacks[1]: "a" falls back to "b", which falls back to "a"',
        ),
        (
            listing(reference("a", "b"), model=reference("b", "a")),
            '.purposes.chat.model.fallbacks[0]: "a" falls back to "b", which falls back to "a"',
        ),
        (
            listing(reference("x", "a"), reference("a", "b"))
            | {"default_model": reference("b", "a")},
            '.default_model.fallbacks[0]: "a" falls back to "b", which falls back to "a"',
        ),
        (
            listing(reference("a", "e")) | {"endpoints": [ENDPOINT | {"fallbacks": ["a"]}]},
            '.endpoints[0].fallbacks[0]: "a" falls back to "e", which falls back to "a"',
        ),
        (
            {"default_model": reference("a", "e"), "endpoints": [ENDPOINT | {"fallbacks": ["a"]}]}
            | listing(reference("x", "a")),
            '.endpoints[0].fallbacks[0]: "a" falls back to "e", which falls back to "a"',
        ),
        (
            listing(*(reference(f"m{n}", f"m{(n + 1) % 3_000}") for n in range(3_000))),
            '.purposes.chat.models[2999].fallbacks[0]: "m0" falls back to "m1", '
            + ", ".join(f'which falls back to "m{n}"' for n in range(2, 7))
            + ', which falls back to …, which falls back to "m0"',
        ),
    ],
)
def test_fallback_cycle_is_shown(raw: object, problem: str) -> None:
    """A model that falls back to itself is a problem that shows the cycle."""
    assert problems_of(raw) == [problem + CIRCLE]


def test_each_circle_is_told_once() -> None:
    raw = {
        "default_model": reference("a", "a", "b"),
        "purposes": {name: {"models": [reference("b", "c"), reference("c", "b")]} for name in "xy"},
    }
    assert [problem.split(": ")[0] for problem in problems_of(raw)] == [
        ".default_model.fallbacks[0]",
        ".purposes.x.models[1].fallbacks[0]",
        ".purposes.y.models[1].fallbacks[0]",
    ]


@pytest.mark.parametrize(
    "raw",
    [
        # Those of a purpose, and those for all, skip the model that is asked for.
        {"default_model": "a", "fallbacks": ["a", "b"]},
        {"purposes": {"chat": {"model": "a", "models": ["b"], "fallbacks": ["a", "b"]}}},
        {"default_model": reference("a", "b"), "fallbacks": ["a"]},
        # Two paths to one model are no cycle.
        listing(reference("a", "b", "c"), reference("b", "d"), reference("c", "d")),
        # Other purposes do not count.
        {
            "purposes": {
                "x": {"models": [reference("a", "b")]},
                "y": {"models": [reference("b", "a")]},
            }
        },
        # The more specific reference counts.
        listing(reference("b")) | {"purposes": {"x": {"model": reference("b", "a")}}},
        {"default_model": reference("a", "b")} | listing(reference("a"), reference("b", "a")),
        listing(reference("a", "b"), reference("a", "a")),
        # Aliases are not resolved here.
        {"default_model": reference("a", "A")},
    ],
)
def test_fallbacks_that_lead_to_an_end_are_fine(raw: object) -> None:
    assert isinstance(parse_settings(raw), Settings)


def test_text_is_shown_on_one_line_and_shortened() -> None:
    text = 'gpt "4"\n\x85\u2028\ud800' + "o" * 100_000
    shown = 'gpt \\"4\\"\\n\\x85\\u2028\\ud800' + "o" * 48 + "…"
    assert problems_of({"models": text}) == [
        f'.models: expected a list, got the text "{shown}"; write it as ["{shown}"]'
    ]
    name = "Ä\n\x85\u2028" + "o" * 100_000
    assert problems_of({"purposes": {name: 1}, "o" * 100_000: 1, name: 1}) == [
        f'.purposes["Ä\\n\\x85\\u2028{"o" * 55}…"]:'
        " expected a mapping such as {model: …}, got a number",
        f'["{"o" * 59}…"]: unknown setting'
        f" (known here: {', '.join(sorted(Settings.model_fields))})",
        '["Ä…"]: unknown setting (a name ends with a colon and then a space)',
    ]
    assert problems_of({"purposes": {"o" * 60: 1}})[0].startswith(f".purposes.{'o' * 60}: ")


def test_non_unicode_name_hides_no_other_problem() -> None:
    assert problems_of({"models\ud800": [], "models": 1, "purposes": {"\ud800": {"model": 1}}}) == [
        ".models: expected a list, got a number",
        f'.purposes["\ufffd\ufffd\ufffd"].model: {A_REFERENCE}, got a number',
        '["models?"]: unknown setting (did you mean "models"?)',
    ]


def test_recursive_value_is_a_problem() -> None:
    mapping: dict[str, Any] = {}
    mapping |= {"purposes": mapping, "default_model": mapping, "models": [mapping]}
    assert problems_of(mapping)
    items: list[Any] = []
    items += [items, items]
    options = {"items": items, "mapping": mapping}
    assert reference_problems_of({"model": "x", "options": options}) == [
        f".options.items: {TOO_LARGE}",
        f".options.mapping: {TOO_LARGE}",
    ]


def test_very_deep_value_is_a_problem() -> None:
    """A value of a hundred thousand levels is a problem."""
    deep: Any = "x"
    for _ in range(100_000):
        deep = {"model": [deep]}
    raw = {"default_model": deep, "models": deep["model"], "purposes": deep}
    assert len(problems_of(raw)) == 3
    assert reference_problems_of({"model": "x", "options": deep}) == [
        f".options.model: {TOO_LARGE}"
    ]


def test_exponential_yaml_aliases_are_a_problem() -> None:
    """A few values that stand for very many are a problem."""
    many: Any = "x"
    for _ in range(15):
        many = [many] * 10
    assert reference_problems_of({"model": "x", "options": {"stop": many}}) == [
        f".options.stop: {TOO_LARGE}"
    ]


def test_secret_names_once_each_in_order() -> None:
    raw = {
        "purposes": {
            "b": {"model": {"model": "x", "key": "TWO"}, "models": [{"model": "y", "key": "ONE"}]},
            "a": {"models": ["z", {"model": "y", "key": "THREE"}, {"model": "x", "key": "TWO"}]},
        },
        "default_model": {"model": "x", "key": "ONE"},
    }
    assert secret_names(parse_settings(raw)) == ("ONE", "TWO", "THREE")
    raw["fallbacks"] = [{"model": "z", "key": "LAST"}]
    raw["purposes"]["a"]["fallbacks"] = ["y", {"model": "z", "key": "FIVE"}]  # type: ignore[index]
    raw["default_model"]["fallbacks"] = [{"model": "z", "key": "FOUR"}]  # type: ignore[index]
    assert secret_names(parse_settings(raw)) == ("ONE", "FOUR", "LAST", "TWO", "FIVE", "THREE")
    assert secret_names(Settings()) == ()


def test_settings_table_is_complete_and_in_order() -> None:
    # The long list of an endpoint's settings is compared in the README.
    rows = [row for row in settings_table() if not row[0].startswith("endpoints[].")]
    assert rows == [
        ("default_model", "reference", "not set", "The model if a plugin names none."),
        (
            "models",
            "list of references",
            "not set",
            "The allowlist; the default model is always part of it.",
        ),
        ("blocked_models", "list of ids", "[]", "Never available, even if on an allowlist."),
        ("require_keys", "bool", "true", "List only models whose key is set."),
        (
            "threads",
            "number",
            "4",
            "How many requests to models without an async version may run at once.",
        ),
        ("endpoints", "list", "[]", "Models of OpenAI-compatible servers."),
        ("log", "bool or mapping", "true", "Whether calls are recorded, and how."),
        (
            "idle_timeout",
            "seconds",
            "not set",
            "Time limit for a request without an event, the first event included.",
        ),
        (
            "retries",
            "number",
            "not set",
            "How often a request that failed before its first event is made again; otherwise 2.",
        ),
        (
            "max_concurrency",
            "number",
            "not set",
            "How many requests may run at once; further requests wait in a queue.",
        ),
        (
            "max_answer_chars",
            "number",
            "not set",
            "How long an answer may become before it is ended with an error; otherwise 20,000,000.",
        ),
        (
            "timeout",
            "seconds",
            "not set",
            "Time limit of a prompt, waiting and retries included; in a chain, of each step.",
        ),
        (
            "fallbacks",
            "list of references",
            "not set",
            "Models to try, in order, when a prompt has finally failed before its first event.",
        ),
        (
            "cache",
            "bool or mapping",
            "not set",
            "Whether answers are kept for equal prompts, and how; otherwise they are not.",
        ),
        ("cache.keep_days", "days", "7", "Older answers are not used, and removed."),
        (
            "cache.max_mb",
            "megabytes",
            "500",
            "How much may be kept by this setting; the least recently used answers go first.",
        ),
        (
            "cache.scope",
            "actor or purpose",
            '"actor"',
            "Whose answers an actor gets: its own only, or those of all actors of the purpose.",
        ),
        (
            "log.content",
            "bool",
            "false",
            "Record prompts and responses too, not only their sizes.",
        ),
        ("log.keep_days", "days", "not set", "Remove older records; if not set, records are kept."),
        ("log.required", "bool", "false", "Refuse calls that cannot be recorded."),
        (
            "log.prices",
            "mapping of ids to prices",
            "{}",
            "`{input, output, cached_input}` in dollars a million tokens, before all other prices.",
        ),
        (
            "telemetry.content",
            "bool",
            "false",
            "Put messages, tool arguments and tool results into spans, without keys and shortened.",
        ),
        ("telemetry.actor", "bool", "false", "Put the id of the actor into spans."),
        (
            "consultant.values",
            "none, top or sample",
            '"top"',
            "Which values of the table a model sees: none; extremes and frequent ones; "
            "whole rows too.",
        ),
        (
            "consultant.time_limit_ms",
            "milliseconds",
            "2000",
            "Time limit of a profile; columns that would take longer are sampled.",
        ),
        (
            "consultant.max_prompt_tokens",
            "number",
            "8000",
            "Budget of both prompts and the schema of the answer; the least telling figures are "
            "cut.",
        ),
        (
            "consultant.exclude",
            "list of columns",
            "[]",
            "Excluded from profiles: `column`, `table.column` or `database.table.column`.",
        ),
        ("purposes.<name>.model", "reference", "not set", "The default for this purpose."),
        (
            "purposes.<name>.models",
            "list of references",
            "not set",
            "Added to the allowlist for this purpose.",
        ),
        ("purposes.<name>.blocked_models", "list of ids", "[]", "Removed for this purpose."),
        (
            "purposes.<name>.log.content",
            "bool",
            "not set",
            "As `log.content`, for this purpose.",
        ),
    ]


@pytest.mark.parametrize("setting", ["models", "blocked_models"])
def test_a_key_in_place_of_a_list_is_not_repeated(setting: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_settings({setting: "sk-proj-0123456789abcdef"})
    assert str(raised.value).endswith(f'.{setting}: expected a list, got text; write it as ["…"]')


@pytest.mark.parametrize(
    "raw",
    [
        {"purposes": {PASTED_KEY: "x"}},
        {"purposes": {"chat": {PASTED_KEY: "x"}}},
        {"log": {"prices": {f"Bearer {PASTED_KEY}": "x"}}},
        {"default_model": {"model": "x", "options": {PASTED_KEY: object()}}},
        {"endpoints": [ENDPOINT | {"headers": {PASTED_KEY: "ä"}}]},
        {"endpoints": [ENDPOINT | {"model": PASTED_KEY}] * 2},
        {"default_model": reference(PASTED_KEY, PASTED_KEY)},
    ],
)
def test_a_key_in_place_of_a_name_is_not_repeated(raw: object) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_settings(raw)
    assert PASTED_KEY[3:] not in str(raised.value)


@pytest.mark.parametrize(
    "name",
    ["gpt-4o-mini-2024-07-18", "Qwen3-235B-A22B-Instruct-2507", "extract invoices of 2024"],
)
def test_a_long_name_with_numbers_is_no_key(name: str) -> None:
    assert problems_of({"purposes": {name: 1}})[0].startswith(
        (f".purposes.{name}:", f'.purposes["{name}"]:')
    )
