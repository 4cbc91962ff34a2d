"""The configuration: what is read, and how every problem with it is told."""

import copy
import datetime
import json
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
import yaml
from datasette.utils import StartupError
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from datasette_llm.config import (
    ModelReference,
    PurposeSettings,
    Settings,
    parse_settings,
    secret_names,
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
    "models": ["gpt-4o-mini", "claude"],
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
    assert settings.models == ("gpt-4o-mini", "claude")
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


def test_an_id_and_a_mapping_with_only_a_model_are_the_same_reference() -> None:
    assert parse_settings({"default_model": "gpt-4o"}) == parse_settings(
        {"default_model": {"model": "gpt-4o"}}
    )


def test_spaces_around_an_id_are_no_part_of_it() -> None:
    settings = parse_settings({"default_model": " a ", "models": ["b "]})
    assert settings.default_model == ModelReference(model="a")
    assert settings.models == ("b",)


def test_an_empty_allowlist_differs_from_none() -> None:
    assert parse_settings({"models": []}).models == ()
    assert parse_settings({"purposes": {"chat": {"models": []}}}).purposes["chat"].models == ()


@pytest.mark.parametrize("wrap", [OrderedDict, MappingProxyType])
def test_any_mapping_and_any_sequence_of_ids_will_do(wrap: Any) -> None:
    assert parse_settings(wrap({"models": ("a", "b")})).models == ("a", "b")


def test_equal_configurations_give_equal_settings() -> None:
    assert parse_settings(EVERYTHING) == parse_settings(copy.deepcopy(EVERYTHING))
    assert parse_settings(EVERYTHING) != parse_settings({**EVERYTHING, "require_keys": True})


def test_settings_do_not_follow_a_change_of_the_raw_configuration() -> None:
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


def test_plain_options_are_a_fresh_copy_in_the_shape_of_the_raw_ones() -> None:
    reference = parse_settings(EVERYTHING).default_model
    assert reference
    options = reference.plain_options()
    assert json.dumps(options) == json.dumps(EVERYTHING["default_model"]["options"])  # type: ignore[index]
    options["stop"][1]["b"] = 1
    assert reference.options["stop"][1]["b"] is None


def test_an_option_takes_any_value_that_yaml_gives() -> None:
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


def test_the_error_stops_datasette_and_shows_all_problems() -> None:
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
def test_a_configuration_that_is_no_mapping_is_one_problem(raw: object, got: str) -> None:
    assert problems_of(raw) == [f": expected a mapping such as {{default_model: …}}, got {got}"]


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ({"modle": "x"}, '.modle: unknown setting (did you mean "models"?)'),
        ({"MODELS": []}, '.MODELS: unknown setting (did you mean "models"?)'),
        ({"Require-Keys": True}, '.Require-Keys: unknown setting (did you mean "require_keys"?)'),
        (
            {"colour": "red"},
            ".colour: unknown setting"
            " (known here: blocked_models, consultant, default_model, endpoints, log, models,"
            " purposes, require_keys)",
        ),
        (
            {"purposes": {"chat": {"modle": "x"}}},
            '.purposes.chat.modle: unknown setting (did you mean "model"?)',
        ),
        (
            {"purposes": {"chat": {"colour": "red"}}},
            ".purposes.chat.colour: unknown setting"
            " (known here: blocked_models, log, model, models)",
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
def test_an_unknown_setting_is_told_with_the_nearest_known_one(raw: object, problem: str) -> None:
    assert problems_of(raw) == [problem]


@pytest.mark.parametrize("mark", [":", "=", " ", "\n"])
def test_a_setting_without_a_space_after_its_colon_is_told_without_its_value(mark: str) -> None:
    # YAML reads {model: gpt-4o, key:sk-…} so.
    assert reference_problems_of({"model": "gpt-4o", f"key{mark}{PASTED_KEY}": None}) == [
        '["key…"]: unknown setting (a name ends with a colon and then a space)'
    ]


def test_a_key_that_was_pasted_as_a_setting_is_not_shown() -> None:
    # YAML reads {model: gpt-4o, sk-…} so.
    assert reference_problems_of({"model": "gpt-4o", PASTED_KEY: None}) == [
        f'["{PASTED_KEY[:2]}…"]: unknown setting '
        "(a key does not belong here; go to /-/secrets with it)"
    ]


@pytest.mark.parametrize("setting", ["models", "blocked_models"])
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
def test_a_list_of_ids_takes_only_texts(setting: str, value: object, problem: str) -> None:
    assert problems_of({setting: value}) == [f".{setting}{problem}"]
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
def test_require_keys_is_a_boolean_and_nothing_like_one(value: object, got: str) -> None:
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
def test_a_reference_of_the_wrong_shape_is_one_problem(value: object, problem: str) -> None:
    assert reference_problems_of(value) == [problem]
    assert problems_of({"purposes": {"chat": {"model": value, "models": ["ok", value]}}}) == [
        f".purposes.chat.model{problem}",
        f".purposes.chat.models[1]{problem}",
    ]


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
def test_purposes_are_a_mapping_of_names_to_settings(value: object, problem: str) -> None:
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
def test_a_key_that_is_no_secret_name_is_told_without_repeating_it(key: object) -> None:
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
def test_no_problem_of_a_reference_repeats_a_value(name: str, wrap: Any) -> None:
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
            ".time_limit_ms: Input should be greater than or equal to 1",
        ),
        (
            {"exclude": "mail"},
            '.exclude: expected a list, got the text "mail"; write it as ["mail"]',
        ),
        ({"exlude": []}, '.exlude: unknown setting (did you mean "exclude"?)'),
        (False, ": expected a mapping such as {values: …}, got false"),
    ],
)
def test_problems_with_the_consultants_settings_are_told(raw: object, problem: str) -> None:
    assert problems_of({"consultant": raw}) == [f".consultant{problem}"]


def test_a_text_is_shown_on_one_line_and_cut_at_sixty_characters() -> None:
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
        " (known here: blocked_models, consultant, default_model, endpoints, log, models, purposes,"
        " require_keys)",
        '["Ä…"]: unknown setting (a name ends with a colon and then a space)',
    ]
    assert problems_of({"purposes": {"o" * 60: 1}})[0].startswith(f".purposes.{'o' * 60}: ")


def test_a_name_that_is_no_unicode_does_not_hide_other_problems() -> None:
    assert problems_of({"models\ud800": [], "models": 1, "purposes": {"\ud800": {"model": 1}}}) == [
        ".models: expected a list, got a number",
        f'.purposes["\ufffd\ufffd\ufffd"].model: {A_REFERENCE}, got a number',
        '["models?"]: unknown setting (did you mean "models"?)',
    ]


def test_a_value_that_contains_itself_is_a_problem() -> None:
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


def test_a_value_of_a_hundred_thousand_levels_is_a_problem() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = {"model": [deep]}
    raw = {"default_model": deep, "models": deep["model"], "purposes": deep}
    assert len(problems_of(raw)) == 3
    assert reference_problems_of({"model": "x", "options": deep}) == [
        f".options.model: {TOO_LARGE}"
    ]


def test_a_few_values_that_stand_for_very_many_are_a_problem() -> None:
    many: Any = "x"
    for _ in range(15):
        many = [many] * 10
    assert reference_problems_of({"model": "x", "options": {"stop": many}}) == [
        f".options.stop: {TOO_LARGE}"
    ]


def test_secret_names_come_once_each_in_config_order() -> None:
    raw = {
        "purposes": {
            "b": {"model": {"model": "x", "key": "TWO"}, "models": [{"model": "y", "key": "ONE"}]},
            "a": {"models": ["z", {"model": "y", "key": "THREE"}, {"model": "x", "key": "TWO"}]},
        },
        "default_model": {"model": "x", "key": "ONE"},
    }
    assert secret_names(parse_settings(raw)) == ("ONE", "TWO", "THREE")
    assert secret_names(Settings()) == ()


def test_the_table_of_settings_has_every_setting_in_order() -> None:
    # The long list of an endpoint's settings is compared in the README.
    rows = [row for row in settings_table() if not row[0].startswith("endpoints[].")]
    assert rows == [
        ("default_model", "reference", "not set", "Used when none is named."),
        (
            "models",
            "list of ids",
            "not set",
            "The allowlist; the default model is always part of it.",
        ),
        ("blocked_models", "list of ids", "[]", "Removed whatever else allows them."),
        ("require_keys", "bool", "true", "List only models whose key is set."),
        ("endpoints", "list", "[]", "Models of OpenAI-compatible servers."),
        ("log", "bool or mapping", "true", "Whether calls are recorded, and how."),
        (
            "log.content",
            "bool",
            "false",
            "Record prompts and responses too, not only their sizes.",
        ),
        ("log.keep_days", "days", "not set", "Remove records that are older; otherwise they stay."),
        ("log.required", "bool", "false", "Make no call that cannot be recorded."),
        (
            "log.prices",
            "mapping of ids to prices",
            "{}",
            "`{input, output}` in dollars a million tokens, for models without a public price.",
        ),
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
            "What a profile may take; what the whole table would need longer for is sampled.",
        ),
        (
            "consultant.exclude",
            "list of columns",
            "[]",
            "Left out everywhere, of checks too: `column`, `table.column` or "
            "`database.table.column`.",
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


SETTING_NAMES = ["default_model", "models", "blocked_models", "require_keys", "purposes"]
OTHER_NAMES = ["model", "key", "options", "chat", "modle", "kye", "a:b", "", "[0]"]
NAMES = st.sampled_from([*SETTING_NAMES, *OTHER_NAMES])
SCALARS = (
    st.sampled_from(["gpt-4o", "OPENAI_API_KEY", PASTED_KEY, "yes", "", True, None])
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=80)
    | st.binary(max_size=3)
    | st.dates()
    | st.builds(object)
    | st.sampled_from([len, int, 10**4000, -(10**4000), 1j, frozenset({1}), range(3)])
)
KEYS = NAMES | st.text(st.characters(), max_size=80) | st.none() | st.integers() | st.tuples(NAMES)
VALUES = st.recursive(
    SCALARS,
    lambda values: (
        st.lists(values, max_size=4)
        | st.dictionaries(KEYS, values, max_size=4)
        | st.lists(values, max_size=3).map(tuple)
    ),
    max_leaves=25,
)
REFERENCES = (
    st.fixed_dictionaries(
        {"model": st.text(min_size=1)},
        optional={"key": SCALARS, "options": st.dictionaries(KEYS, VALUES, max_size=3)},
    )
    | SCALARS
)
PURPOSES = st.fixed_dictionaries(
    {},
    optional={
        "model": REFERENCES,
        "models": st.lists(REFERENCES, max_size=3),
        "blocked_models": st.lists(st.text(), max_size=3),
    },
)
NEARLY_RIGHT = st.fixed_dictionaries(
    {},
    optional={
        "default_model": REFERENCES,
        "models": st.lists(st.text(), max_size=3),
        "blocked_models": st.lists(SCALARS, max_size=2),
        "require_keys": st.booleans(),
        "purposes": st.dictionaries(KEYS, PURPOSES, max_size=3),
    },
)


def is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def is_reference(value: object) -> bool:
    return (
        isinstance(value, ModelReference)
        and is_text(value.model)
        and (value.key is None or value.key.isidentifier())
        and isinstance(value.options, MappingProxyType)
        and all(isinstance(name, str) for name in value.options)
        and is_frozen(value.options)
        and is_plain(value.plain_options())
    )


def is_frozen(value: object) -> bool:
    if isinstance(value, MappingProxyType):
        return all(map(is_frozen, value.values()))
    if isinstance(value, tuple | frozenset):
        return all(map(is_frozen, value))
    return isinstance(value, str | int | float | bytes | datetime.date | None)


def is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    if isinstance(value, list):
        return all(map(is_plain, value))
    return is_frozen(value) and not isinstance(value, tuple | MappingProxyType)


def are(values: object, check: Any) -> bool:
    return isinstance(values, tuple) and all(map(check, values))


def is_purpose(value: object) -> bool:
    return (
        isinstance(value, PurposeSettings)
        and (value.model is None or is_reference(value.model))
        and (value.models is None or are(value.models, is_reference))
        and are(value.blocked_models, is_text)
    )


def is_settings(value: object) -> bool:
    return (
        isinstance(value, Settings)
        and (value.default_model is None or is_reference(value.default_model))
        and (value.models is None or are(value.models, is_text))
        and are(value.blocked_models, is_text)
        and isinstance(value.require_keys, bool)
        and isinstance(value.purposes, Mapping)
        and all(isinstance(name, str) for name in value.purposes)
        and all(map(is_purpose, value.purposes.values()))
    )


def parsed(raw: object) -> Settings | ConfigError:
    try:
        return parse_settings(raw)
    except ConfigError as error:
        return error


@hypothesis_settings(deadline=None, database=None, derandomize=True, max_examples=300)
@given(raw=VALUES | st.dictionaries(NAMES, VALUES, max_size=5) | NEARLY_RIGHT)
@example(raw=EVERYTHING)
def test_any_value_gives_well_typed_settings_or_a_config_error(raw: object) -> None:
    result = parsed(raw)
    if isinstance(result, ConfigError):
        assert result.problems
        assert len(str(result).splitlines()) == len(result.problems) + 1
        assert all(line.startswith(ROOT) and ": " in line for line in result.problems)
    else:
        assert is_settings(result)
        assert result == parse_settings(raw)
        assert all(map(is_text, secret_names(result)))


@pytest.mark.parametrize("setting", ["models", "blocked_models"])
def test_a_key_in_place_of_a_list_is_not_repeated(setting: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_settings({setting: "sk-proj-0123456789abcdef"})
    assert str(raised.value).endswith(f'.{setting}: expected a list, got text; write it as ["…"]')
