"""Warnings about a valid configuration, each with its exact path."""

from typing import Any

import llm
import pytest
from pydantic import model_validator

from datasette_llm.access.config_warnings import warnings
from datasette_llm.config.parse import parse_settings
from datasette_llm.providers.catalog import Catalog, Entry
from datasette_llm.testing import ScriptedModel

ROOT = "plugins.datasette-llm"


class Choosy(ScriptedModel):
    """Takes one of two options, not both."""

    class Options(llm.Options):
        temperature: float | None = None
        top_p: float | None = None

        @model_validator(mode="after")
        def only_one(self) -> "Choosy.Options":
            if self.temperature is not None and self.top_p is not None:
                raise ValueError("give temperature or top_p")
            return self


MODELS = [ScriptedModel("a"), ScriptedModel("k", needs_key="bird"), Choosy("choosy")]
CATALOG = Catalog(
    entries={model.model_id: Entry(model) for model in MODELS},
    names={"a": "a", "ay": "a", "k": "k", "choosy": "choosy"},
)


def warnings_about(config: dict[str, Any], catalog: Catalog = CATALOG) -> list[str]:
    """The warnings about a configuration, each without the path's beginning, which all share."""
    found = warnings(parse_settings(config), catalog)
    assert all(line.startswith(f"{ROOT}.") for line in found)
    return [line.removeprefix(f"{ROOT}.") for line in found]


def unknown(name: str) -> str:
    return (
        f"Unknown model: {name!r}. Install the llm plugin that provides it with "
        "'datasette install', or see the known models with 'llm models'"
    )


@pytest.mark.parametrize(
    "config",
    [
        {},
        {
            "default_model": {"model": "ay", "options": {"temperature": 1, "max_tokens": 5}},
            "models": ["a", "k"],
            "blocked_models": ["choosy"],
            "purposes": {
                "chat": {"model": {"model": "k", "key": "TEAM_KEY"}, "blocked_models": ["a"]},
                "other": {"models": ["ay", {"model": "choosy", "options": {"top_p": 1}}]},
            },
        },
    ],
)
def test_valid_configuration_has_no_warnings(config: dict[str, Any]) -> None:
    assert warnings_about(config) == []


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"default_model": "pelican"}, "default_model"),
        ({"default_model": {"model": "pelican", "key": "KEY"}}, "default_model"),
        ({"models": ["a", "pelican"]}, "models[1]"),
        ({"blocked_models": ["pelican"]}, "blocked_models[0]"),
        ({"purposes": {"chat": {"model": "pelican"}}}, "purposes.chat.model"),
        ({"purposes": {"chat": {"models": ["a", "ay", "pelican"]}}}, "purposes.chat.models[2]"),
        (
            {"purposes": {"chat": {"blocked_models": ["a", "pelican"]}}},
            "purposes.chat.blocked_models[1]",
        ),
        ({"purposes": {"enrich rows": {"model": "pelican"}}}, 'purposes["enrich rows"].model'),
        (
            {"purposes": {"a.b": {"blocked_models": ["pelican"]}}},
            'purposes["a.b"].blocked_models[0]',
        ),
    ],
)
def test_an_id_that_no_installed_model_has(config: dict[str, Any], path: str) -> None:
    assert warnings_about(config) == [f"{path}: {unknown('pelican')}"]


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"default_model": {"model": "ay", "key": "TEAM_KEY"}}, "default_model.key"),
        ({"purposes": {"chat": {"model": {"model": "a", "key": "K"}}}}, "purposes.chat.model.key"),
        (
            {"purposes": {"chat": {"models": ["k", {"model": "a", "key": "K"}]}}},
            "purposes.chat.models[1].key",
        ),
    ],
)
def test_a_key_for_a_model_that_takes_none(config: dict[str, Any], path: str) -> None:
    assert warnings_about(config) == [f"{path}: model 'a' takes no key, so this is not used"]


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        ("ay", {"pelican": 1}, {".pelican": "'a'"}),
        ("a", {"temperature": "hot"}, {".temperature": "'a'"}),
        ("a", {"temperature": 3, "max_tokens": 0}, {".temperature": "'a'", ".max_tokens": "'a'"}),
        ("choosy", {"temperature": 1, "top_p": 1}, {"": "'choosy'"}),
        ("unknown", {"pelican": 1}, {}),
    ],
)
@pytest.mark.parametrize("where", ["default_model", "purposes.chat.model"])
def test_an_option_that_the_model_does_not_take(
    model: str, options: dict[str, Any], expected: dict[str, str], where: str
) -> None:
    reference = {"model": model, "options": options}
    config: dict[str, Any] = {"default_model": reference}
    if where == "purposes.chat.model":
        config = {"purposes": {"chat": {"model": reference}}}

    found = [line for line in warnings_about(config) if "Unknown model" not in line]

    assert len(found) == len(expected)
    for line, (option, named) in zip(found, expected.items(), strict=True):
        path, _, sentence = line.partition(": ")
        assert path == f"{where}.options{option}"
        assert sentence.startswith(
            f"model {named} does not take this, so prompts that use it will fail: "
        )


def test_warning_does_not_repeat_an_option_value() -> None:
    pasted = "sk-" + "0123456789abcdef"
    options = {"api_key": pasted, "temperature": pasted}

    found = warnings_about({"default_model": {"model": "a", "options": options}})

    assert len(found) == 2
    assert pasted not in "".join(found)


def blocked(path: str, setting: str) -> str:
    return (
        f"{path}: model 'a' is blocked by plugins.datasette-llm.{setting}, "
        "so a prompt that names no model will be "
        "refused"
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"default_model": "a", "blocked_models": ["ay"]},
            [blocked("default_model", "blocked_models")],
        ),
        (
            {"default_model": "a", "blocked_models": ["a"], "purposes": {"chat": {"models": []}}},
            [blocked("default_model", "blocked_models")],
        ),
        (
            {"blocked_models": ["a"], "purposes": {"chat": {"model": "ay"}}},
            [blocked("purposes.chat.model", "blocked_models")],
        ),
        (
            {"purposes": {"chat": {"model": "ay", "blocked_models": ["a"]}}},
            [blocked("purposes.chat.model", "purposes.chat.blocked_models")],
        ),
        (
            {"default_model": "a", "purposes": {"chat": {"blocked_models": ["a"]}}},
            [blocked("default_model", "purposes.chat.blocked_models")],
        ),
        (
            {
                "default_model": "k",
                "blocked_models": ["a"],
                "purposes": {"chat": {"model": "a"}, "other": {"models": ["k"]}},
            },
            [blocked("purposes.chat.model", "blocked_models")],
        ),
        ({"default_model": "k", "blocked_models": ["a"]}, []),
    ],
)
def test_a_default_that_is_blocked(config: dict[str, Any], expected: list[str]) -> None:
    assert warnings_about(config) == expected


def test_all_that_is_odd_is_told_at_once() -> None:
    config = {
        "default_model": {"model": "a", "key": "KEY", "options": {"pelican": 1}},
        "blocked_models": ["a", "heron"],
    }

    paths = [line.partition(":")[0] for line in warnings_about(config)]

    assert paths == [
        "blocked_models[1]",
        "default_model.key",
        "default_model.options.pelican",
        "default_model",
    ]


def test_listing_problems_come_first() -> None:
    catalog = Catalog({}, {}, problems=("llm plugin 'x' failed",))

    found = warnings(parse_settings({"models": ["pelican"]}), catalog)

    assert found == ["llm plugin 'x' failed", f"{ROOT}.models[0]: {unknown('pelican')}"]


def test_raising_validator_costs_no_other_warning() -> None:
    class Odd(ScriptedModel):
        class Options(llm.Options):
            size: int = 1

            def __init__(self, **kwargs: Any) -> None:
                if kwargs:
                    raise TypeError("no sizes today")
                super().__init__()

    settings = parse_settings(
        {"default_model": {"model": "odd", "options": {"size": 2}}, "blocked_models": ["nobody"]}
    )
    catalog = Catalog({"odd": Entry(Odd("odd"))}, {"odd": "odd"})
    found = warnings(settings, catalog)
    assert any("no sizes today" in line for line in found)
    assert any("'nobody'" in line for line in found)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"fallbacks": ["nobody"]},
            [f"fallbacks[0]: {unknown('nobody')}"],
        ),
        (
            {"blocked_models": ["ay"], "fallbacks": ["k", "a"]},
            [
                "fallbacks[1]: Model 'a' is not allowed: it is blocked. Remove it from "
                f"{ROOT}.blocked_models; until then this fallback is skipped"
            ],
        ),
        (
            {
                "purposes": {
                    "chat": {"models": [{"model": "a", "fallbacks": ["choosy"]}]},
                    "other": {"fallbacks": ["choosy"]},
                }
            },
            [
                "purposes.chat.models[0].fallbacks[0]: Model 'choosy' is not allowed for purpose "
                "'chat': it is not on the allowlist. Add it to the models setting of "
                "datasette-llm; until then this fallback is skipped"
            ],
        ),
        (
            {"default_model": {"model": "a", "fallbacks": [{"model": "choosy", "key": "K"}]}},
            [
                "default_model.fallbacks[0].key: model 'choosy' takes no key, so this is not used",
            ],
        ),
    ],
)
def test_a_fallback_that_is_not_allowed_is_told(
    config: dict[str, Any], expected: list[str]
) -> None:
    assert warnings_about(config) == expected


def test_cycle_by_alias_is_a_warning() -> None:
    model = {"model": "a", "fallbacks": [{"model": "choosy"}, "ay"]}
    assert warnings_about({"default_model": model}) == [
        'default_model.fallbacks[1]: "a" falls back to "a"; a model cannot be its own fallback. '
        "To make models fallbacks of each other, set fallbacks on the purpose; until then it is "
        "skipped"
    ]
