"""Which settings hold for a model and a purpose: a table of cases, without Datasette."""

from typing import Any

import pytest

from datasette_llm.access.call_policy import (
    CallPolicy,
    Limit,
    call_policy_of,
    fallback_call_policy,
)
from datasette_llm.config.parse import parse_settings
from datasette_llm.providers.catalog import Catalog, Entry
from datasette_llm.testing import ScriptedModel

CATALOG = Catalog(
    entries={name: Entry(ScriptedModel(name)) for name in "abcd"},
    names={"a": "a", "ay": "a", "b": "b", "c": "c", "d": "d"},
)
ROOT = "plugins.datasette-llm"
ENDPOINT = {"model": "a", "api_base": "http://127.0.0.1:1/v1"}


def policy_for(
    config: dict[str, Any], purpose: str | None = "chat", model_id: str = "a"
) -> CallPolicy:
    return call_policy_of(parse_settings(config), CATALOG, purpose, model_id)


def test_defaults_are_two_retries_only() -> None:
    assert policy_for({}) == CallPolicy()
    assert CallPolicy().retries == 2


# From the most specific place to the least; each line has all that are below it too.
PLACES = [
    ("purposes.chat.models[1]", {"purposes": {"chat": {"models": ["b", {"model": "ay"}]}}}),
    ("purposes.chat.model", {"purposes": {"chat": {"model": {"model": "a"}}}}),
    ("models[1]", {"models": ["b", {"model": "ay"}]}),
    ("default_model", {"default_model": {"model": "ay"}}),
    ("endpoints[0]", {"endpoints": [ENDPOINT]}),
    ("purposes.chat", {"purposes": {"chat": {}}}),
    ("", {}),
]


def put(config: dict[str, Any], path: str, value: dict[str, Any]) -> None:
    """Add settings at a path such as `purposes.chat.models[1]`."""
    place: Any = config
    for step in path.replace("[", ".").replace("]", "").split(".") if path else []:
        place = place[int(step) if step.isdigit() else step]
    place.update(value)


def merged(paths: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "models": ["b", {"model": "ay"}],
        "default_model": {"model": "ay"},
        "endpoints": [dict(ENDPOINT)],
        "purposes": {"chat": {"model": {"model": "a"}, "models": ["b", {"model": "ay"}]}},
    }
    for number, path in enumerate(paths):
        put(config, path, {"timeout": number + 1, "idle_timeout": number + 1, "retries": number})
    return config


@pytest.mark.parametrize("number", range(len(PLACES)), ids=[path or "all" for path, _ in PLACES])
def test_the_most_specific_setting_counts(number: int) -> None:
    paths = [path for path, _ in PLACES][number:]
    policy = policy_for(merged(paths))
    assert (policy.timeout_s, policy.idle_timeout_s, policy.retries) == (1, 1, 0)
    where = ".".join(part for part in (ROOT, paths[0]) if part)
    assert policy.settings == {
        "timeout": f"{where}.timeout",
        "idle_timeout": f"{where}.idle_timeout",
        "retries": f"{where}.retries",
    }


def test_each_setting_is_looked_for_by_itself() -> None:
    config = {"timeout": 9, "retries": 1, "purposes": {"chat": {"retries": 5}}}
    policy = policy_for(config)
    assert (policy.timeout_s, policy.retries) == (9, 5)
    policy = policy_for(config, purpose="other")
    assert (policy.timeout_s, policy.retries) == (9, 1)
    policy = policy_for(config, purpose=None)
    assert (policy.timeout_s, policy.retries) == (9, 1)


@pytest.mark.parametrize(
    ("config", "limits"),
    [
        ({"max_concurrency": 3}, [(("model", "a"), 3)]),
        ({"purposes": {"chat": {"max_concurrency": 2}}}, [(("purpose", "chat"), 2)]),
        (
            {"max_concurrency": 3, "purposes": {"chat": {"max_concurrency": 9}}},
            [(("purpose", "chat"), 9)],
        ),
        (
            {"max_concurrency": 3, "default_model": {"model": "ay", "max_concurrency": 9}},
            [(("model", "a"), 9)],
        ),
        (
            {
                "endpoints": [ENDPOINT | {"max_concurrency": 4}],
                "purposes": {"chat": {"max_concurrency": 2}},
            },
            [(("purpose", "chat"), 2), (("model", "a"), 4)],
        ),
        ({"default_model": {"model": "b", "max_concurrency": 9}}, []),
    ],
)
def test_limits_of_model_and_purpose(
    config: dict[str, Any], limits: list[tuple[tuple[str, str], int]]
) -> None:
    assert policy_for(config).limits == tuple(Limit(*limit) for limit in limits)


def fallbacks(policy: CallPolicy) -> list[tuple[str, str]]:
    return [(each.model_id, each.setting.removeprefix(f"{ROOT}.")) for each in policy.fallbacks]


def test_fallbacks_come_from_most_specific_place() -> None:
    """The most specific list of fallbacks counts, and each is followed by its own."""
    config = {
        "fallbacks": ["c"],
        "purposes": {
            "chat": {
                "fallbacks": ["ay", "d", "b", "c"],
                "models": ["a", {"model": "d", "fallbacks": ["c"]}],
            }
        },
    }
    assert fallbacks(policy_for(config)) == [
        ("d", "purposes.chat.fallbacks[1]"),
        ("c", "purposes.chat.models[1].fallbacks[0]"),
        ("b", "purposes.chat.fallbacks[2]"),
    ]
    assert fallbacks(policy_for(config, model_id="d")) == [
        ("c", "purposes.chat.models[1].fallbacks[0]")
    ]
    assert fallbacks(policy_for(config, purpose=None)) == [("c", "fallbacks[0]")]


def test_an_empty_list_is_a_setting() -> None:
    config = {"fallbacks": ["c"], "purposes": {"chat": {"fallbacks": []}}}
    assert policy_for(config).fallbacks == ()


def test_fallback_reference_precedes_its_model() -> None:
    """A fallback has the settings of its reference, then those of its model."""
    settings = parse_settings(
        {
            "timeout": 9,
            "idle_timeout": 8,
            "retries": 7,
            "max_answer_chars": 6,
            "fallbacks": [{"model": "b", "retries": 0, "max_answer_chars": 5}],
            "default_model": {"model": "b", "retries": 4, "idle_timeout": 3, "max_concurrency": 2},
        }
    )
    [fallback] = call_policy_of(settings, CATALOG, None, "a").fallbacks
    own = call_policy_of(settings, CATALOG, None, "b")
    assert fallback_call_policy(settings, CATALOG, None, fallback, own) == CallPolicy(
        timeout_s=9,
        idle_timeout_s=3,
        retries=0,
        max_answer_chars=5,
        limits=(Limit(("model", "b"), 2),),
    )
    assert own.max_answer_chars == 6
    assert CallPolicy().max_answer_chars == 20_000_000


def test_fallback_inherits_from_its_purpose() -> None:
    """A fallback without settings has those of its purpose."""
    settings = parse_settings(
        {"retries": 5, "purposes": {"chat": {"retries": 1, "idle_timeout": 7, "fallbacks": ["b"]}}}
    )
    [fallback] = call_policy_of(settings, CATALOG, "chat", "a").fallbacks
    policy = fallback_call_policy(settings, CATALOG, "chat", fallback, CallPolicy())
    assert (policy.retries, policy.idle_timeout_s) == (1, 7)


def test_each_limit_has_its_setting() -> None:
    config = {
        "max_concurrency": 9,
        "purposes": {"chat": {"max_concurrency": 3, "model": {"model": "a", "max_concurrency": 2}}},
    }
    place = f"{ROOT}.purposes.chat"
    assert [limit.setting for limit in policy_for(config).limits] == [
        f"{place}.max_concurrency",
        f"{place}.model.max_concurrency",
    ]
    (limit,) = policy_for(config, purpose=None).limits
    assert limit.setting == f"{ROOT}.max_concurrency"
