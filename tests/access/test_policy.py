"""Which models may be used: tables of cases for the pure functions that decide."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasette_llm.access.keys import KeyStatus
from datasette_llm.access.policy import Rules, filter_steps, has_key, key_step, listing, narrowed
from datasette_llm.config.parse import parse_settings
from datasette_llm.decision import Decision, Step
from datasette_llm.providers.catalog import Catalog, Entry
from datasette_llm.testing import ScriptedModel


def catalog_of(*model_ids: str, aliases: dict[str, str] | None = None) -> Catalog:
    aliases = aliases or {}
    entries = {name: Entry(ScriptedModel(name)) for name in model_ids}
    return Catalog(entries, {**aliases, **{name: name for name in model_ids}})


# "bee" is another name for b, in every table below.
CATALOG = catalog_of("a", "b", "c", "d", aliases={"bee": "b"})


def rules_of(config: dict[str, Any], purpose: str | None = None) -> Rules:
    return Rules.of(parse_settings(config), CATALOG, purpose)


def for_chat(**settings: Any) -> dict[str, Any]:
    return {"purposes": {"chat": settings}}


@pytest.mark.parametrize(
    ("config", "purpose", "permitted"),
    [
        ({}, None, "abcd"),
        ({}, "unheard of", "abcd"),
        # The allowlist
        ({"models": ["a", "c"]}, None, "ac"),
        ({"models": ["bee"]}, None, "b"),
        ({"models": []}, None, ""),
        ({"models": ["a", "unknown"]}, None, "a"),
        # The default is always part of it
        ({"models": ["a"], "default_model": "d"}, None, "ad"),
        ({"models": ["a"], "default_model": "bee"}, None, "ab"),
        ({"models": [], "default_model": "d"}, None, "d"),
        ({"default_model": "d"}, None, "abcd"),
        # The blocklist
        ({"blocked_models": ["a"]}, None, "bcd"),
        ({"blocked_models": ["bee", "unknown"]}, None, "acd"),
        ({"models": ["a", "b"], "blocked_models": ["a"]}, None, "b"),
        ({"models": ["bee"], "blocked_models": ["b"]}, None, ""),
        ({"models": ["a"], "default_model": "d", "blocked_models": ["d"]}, None, "a"),
        # A purpose's list is added to the global one
        ({"models": ["a"], **for_chat(models=["c"])}, "chat", "ac"),
        ({"models": ["a"], **for_chat(models=["c"])}, None, "a"),
        ({"models": ["a"], **for_chat(models=["c"])}, "other", "a"),
        ({"models": ["a"], **for_chat(models=["bee", {"model": "c"}])}, "chat", "abc"),
        # or is one by itself
        (for_chat(models=["c"]), "chat", "c"),
        (for_chat(models=["c"]), None, "abcd"),
        (for_chat(models=["c"]), "other", "abcd"),
        (for_chat(models=[]), "chat", ""),
        # together with the default that the purpose resolves to
        ({"default_model": "d", **for_chat(models=["c"])}, "chat", "cd"),
        ({"default_model": "d", **for_chat(models=["c"], model="b")}, "chat", "bc"),
        ({"models": ["a"], "default_model": "d", **for_chat(model="b")}, "chat", "ab"),
        ({"models": ["a"], "default_model": "d", **for_chat(model="b")}, None, "ad"),
        ({"models": ["a"], "default_model": "d", **for_chat(blocked_models=[])}, "chat", "ad"),
        (for_chat(model="b"), "chat", "abcd"),
        # A purpose's blocklist is added to the global one
        (for_chat(blocked_models=["a"]), "chat", "bcd"),
        (for_chat(blocked_models=["a"]), None, "abcd"),
        (for_chat(blocked_models=["bee"], models=["b", "c"]), "chat", "c"),
        (for_chat(blocked_models=["b"], model="b"), "chat", "acd"),
        ({"blocked_models": ["a"], **for_chat(blocked_models=["c"])}, "chat", "bd"),
        ({"blocked_models": ["a"], **for_chat(models=["a", "b"])}, "chat", "b"),
        ({"blocked_models": ["b"], **for_chat(model="b")}, "chat", "acd"),
    ],
)
def test_what_the_configuration_permits(
    config: dict[str, Any], purpose: str | None, permitted: str
) -> None:
    rules = rules_of(config, purpose)

    assert "".join(name for name in CATALOG.entries if rules.permits(name)) == permitted


@pytest.mark.parametrize(
    ("config", "purpose", "default"),
    [
        ({}, None, None),
        ({}, "chat", None),
        ({"default_model": "a"}, None, "a"),
        ({"default_model": "bee"}, None, "b"),
        ({"default_model": {"model": "a"}}, "unheard of", "a"),
        ({"default_model": "unknown"}, None, "unknown"),
        ({"default_model": "a", **for_chat(model="c")}, "chat", "c"),
        ({"default_model": "a", **for_chat(model="c")}, "other", "a"),
        ({"default_model": "a", **for_chat(models=["c"])}, "chat", "a"),
        (for_chat(model="bee"), "chat", "b"),
        (for_chat(model="bee"), None, None),
    ],
)
def test_the_configured_default(
    config: dict[str, Any], purpose: str | None, default: str | None
) -> None:
    assert rules_of(config, purpose).default == default


@pytest.mark.parametrize(
    ("config", "purpose", "default", "order"),
    [
        ({}, None, None, "abcd"),
        ({}, None, "c", "cabd"),
        ({}, None, "unknown", "abcd"),
        ({"models": ["d", "b"]}, None, None, "db"),
        ({"models": ["d", "bee", "a"], "default_model": "b"}, None, "b", "bda"),
        # first what the purpose lists, then what is listed globally, then the rest
        ({"models": ["d", "a"], **for_chat(models=["c", "bee"])}, "chat", None, "cbda"),
        ({"models": ["d", "a"], **for_chat(models=["c", "a"])}, "chat", "d", "dca"),
        (for_chat(models=["d", "b"]), "chat", None, "db"),
        # a default that is not permitted does not get in
        ({"blocked_models": ["c"]}, None, "c", "abd"),
        ({"models": ["a"]}, None, "c", "a"),
        ({"models": ["unknown", "b"]}, None, None, "b"),
        # the same model by several names is one
        ({"models": ["b", "bee", "b"]}, None, "b", "b"),
    ],
)
def test_the_order_of_the_listing(
    config: dict[str, Any], purpose: str | None, default: str | None, order: str
) -> None:
    assert "".join(listing(rules_of(config, purpose), CATALOG, default)) == order


def test_order_without_lists() -> None:
    """Without lists the default comes first, then llm's order."""
    rules = rules_of({"default_model": "c"})

    assert listing(rules, CATALOG, rules.default) == ["c", "a", "b", "d"]


NAMES = st.lists(st.sampled_from(["a", "b", "bee", "c", "d", "unknown"]), max_size=4)


@given(models=NAMES, blocked=NAMES, own=NAMES, default=st.sampled_from(["a", "bee", "unknown"]))
def test_listing_is_what_is_permitted_once_each(
    models: list[str], blocked: list[str], own: list[str], default: str
) -> None:
    config = {"models": models, "blocked_models": blocked, **for_chat(models=own, model=default)}
    rules = rules_of(config, "chat")

    listed = listing(rules, CATALOG, rules.default)

    assert sorted(listed) == [name for name in CATALOG.entries if rules.permits(name)]
    assert not set(listed) & CATALOG.canonical_set(blocked)
    if rules.permits(rules.default) and rules.default in CATALOG.entries:
        assert listed[0] == rules.default


@given(models=NAMES, blocked=NAMES, own=NAMES, default=st.sampled_from(["a", "bee"]))
def test_aliases_and_ids_are_interchangeable(
    models: list[str], blocked: list[str], own: list[str], default: str
) -> None:
    def config_with(name: Any) -> dict[str, Any]:
        return {
            "default_model": name(default),
            "models": [*map(name, models)],
            "blocked_models": [*map(name, blocked)],
            **for_chat(
                model={"model": name(default), "key": "KEY"},
                models=[*map(name, own)],
                blocked_models=[*map(name, blocked)],
            ),
        }

    for purpose in (None, "chat"):
        as_written = rules_of(config_with(lambda name: name), purpose)
        by_id = rules_of(config_with(CATALOG.canonical), purpose)
        for attribute in ("default", "allowed", "blocked", "order"):
            assert getattr(as_written, attribute) == getattr(by_id, attribute)
        assert as_written.secret_names("b") == by_id.secret_names("b")


def reference(model: str, **options: Any) -> dict[str, Any]:
    return {"model": model, "options": options}


@pytest.mark.parametrize(
    ("config", "purpose", "options"),
    [
        ({}, None, {}),
        ({"default_model": reference("b", size=1)}, None, {"size": 1}),
        ({"default_model": reference("bee", size=1)}, None, {"size": 1}),
        ({"default_model": reference("a", size=1)}, None, {}),
        # The defaults of the model hold for every purpose; the more specific reference wins.
        ({"default_model": reference("b", size=1)}, "chat", {"size": 1}),
        (
            {
                "default_model": reference("b", size=1, tone="dry"),
                **for_chat(model=reference("bee", size=2)),
            },
            "chat",
            {"size": 2, "tone": "dry"},
        ),
        (
            {
                "default_model": reference("b", size=1, tone="dry", seed=7),
                **for_chat(
                    model=reference("b", size=2, tone="wet"), models=[reference("b", size=3)]
                ),
            },
            "chat",
            {"size": 3, "tone": "wet", "seed": 7},
        ),
        (
            for_chat(models=[reference("b", size=1), reference("bee", size=2, tone="dry")]),
            "chat",
            {"size": 1, "tone": "dry"},
        ),
        # Another purpose's do not.
        (for_chat(model=reference("b", size=2)), None, {}),
        (for_chat(model=reference("b", size=2)), "other", {}),
    ],
)
def test_the_configured_options_of_a_model(
    config: dict[str, Any], purpose: str | None, options: dict[str, Any]
) -> None:
    assert rules_of(config, purpose).options("b") == options


def test_options_are_plain_unshared_values() -> None:
    options = {"stop": ["a", "b"], "bias": {"50256": -100}}
    rules = rules_of({"default_model": {"model": "b", "options": options}})

    rules.options("b")["stop"].append("c")
    rules.options("b")["bias"].clear()

    assert rules.options("b") == options


@pytest.mark.parametrize(
    ("purpose", "names"),
    [(None, ("MAIN",)), ("chat", ("LIST", "CHAT", "MAIN")), ("other", ("OTHER", "MAIN"))],
)
def test_secret_names_most_specific_first(purpose: str | None, names: tuple[str, ...]) -> None:
    config = {
        "default_model": {"model": "b", "key": "MAIN"},
        "purposes": {
            "chat": {
                "model": {"model": "bee", "key": "CHAT"},
                "models": [{"model": "b", "key": "LIST"}, "bee", {"model": "a", "key": "A"}],
            },
            "other": {"model": {"model": "b", "key": "OTHER"}},
        },
    }

    assert rules_of(config, purpose).secret_names("b") == names


# Steps and sentences


@pytest.mark.parametrize(
    ("config", "purpose", "steps"),
    [
        (
            {},
            None,
            [
                Step("allowlist", True, "There is no allowlist"),
                Step("blocklist", True, "Model 'b' is not blocked"),
            ],
        ),
        (
            {"models": ["bee"]},
            "chat",
            [
                Step("allowlist", True, "Model 'b' is on the allowlist for purpose 'chat'"),
                Step("blocklist", True, "Model 'b' is not blocked for purpose 'chat'"),
            ],
        ),
        (
            {"models": ["a"], "blocked_models": ["b"]},
            None,
            [
                Step(
                    "allowlist",
                    False,
                    "Model 'b' is not allowed: it is not on the allowlist. "
                    "Add it to the models setting of datasette-llm",
                ),
            ],
        ),
        (
            {"blocked_models": ["bee"]},
            "chat",
            [
                Step("allowlist", True, "There is no allowlist for purpose 'chat'"),
                Step(
                    "blocklist",
                    False,
                    "Model 'b' is not allowed for purpose 'chat': it is blocked. "
                    "Remove it from plugins.datasette-llm.blocked_models",
                ),
            ],
        ),
        (
            for_chat(blocked_models=["b"], models=["b"]),
            "chat",
            [
                Step("allowlist", True, "Model 'b' is on the allowlist for purpose 'chat'"),
                Step(
                    "blocklist",
                    False,
                    "Model 'b' is not allowed for purpose 'chat': it is blocked. "
                    "Remove it from plugins.datasette-llm.purposes.chat.blocked_models",
                ),
            ],
        ),
    ],
)
def test_steps_stop_at_the_first_refusal(
    config: dict[str, Any], purpose: str | None, steps: list[Step]
) -> None:
    assert rules_of(config, purpose).steps("b", purpose) == steps


@given(models=st.none() | NAMES, blocked=NAMES, own=st.none() | NAMES, name=st.sampled_from("abcd"))
def test_the_steps_say_what_the_rules_permit(
    models: list[str] | None, blocked: list[str], own: list[str] | None, name: str
) -> None:
    lists = {"models": models} if models is not None else {}
    config = {**lists, "blocked_models": blocked}
    if own is not None:
        config |= for_chat(models=own)
    rules = rules_of(config, "chat")

    assert all(step.passed for step in rules.steps(name, "chat")) == rules.permits(name)


@pytest.mark.parametrize(
    ("needs_key", "status", "require_keys", "step"),
    [
        (None, KeyStatus(), True, Step("key", True, "Model 'b' needs no key")),
        (
            "bird",
            KeyStatus(secrets=frozenset({"BIRD_API_KEY"})),
            True,
            Step("key", True, "Model 'b' has a key (secret)"),
        ),
        (
            "bird",
            KeyStatus(stored=frozenset({"bird"})),
            True,
            Step("key", True, "Model 'b' has a key (keys.json)"),
        ),
        (
            "bird",
            KeyStatus(secrets=frozenset({"OTHER_API_KEY"}), stored=frozenset({"BIRD_API_KEY"})),
            True,
            Step(
                "key",
                False,
                "Model 'b' has no key, so it is not listed, and a prompt will fail. "
                "Set TEAM_KEY or BIRD_API_KEY",
            ),
        ),
        (
            "bird",
            KeyStatus(),
            False,
            Step(
                "key",
                True,
                "Model 'b' has no key, so a prompt will fail. Set TEAM_KEY or BIRD_API_KEY",
            ),
        ),
    ],
)
def test_the_step_about_the_key(
    needs_key: str | None, status: KeyStatus, require_keys: bool, step: Step
) -> None:
    entry = Entry(ScriptedModel("b", needs_key=needs_key))
    rules = rules_of({"default_model": {"model": "b", "key": "TEAM_KEY"}})

    assert key_step(entry, rules, status, require_keys) == step
    if require_keys:
        assert has_key(entry, rules, status) == step.passed


ANSWERS = [("budget", frozenset("ab")), ("teams", frozenset("bc"))]


def test_each_filter_with_an_opinion_is_a_step() -> None:
    assert filter_steps("a", "chat", ANSWERS) == [
        Step("filter", True, "Plugin 'budget' keeps model 'a' for purpose 'chat'", "budget"),
        Step(
            "filter",
            False,
            "Plugin 'teams' does not allow model 'a' for purpose 'chat' for this actor",
            "teams",
        ),
    ]
    assert filter_steps("a", None, []) == []


@pytest.mark.parametrize("answers", [ANSWERS, ANSWERS[::-1]])
def test_filters_are_intersected_in_any_order(
    answers: list[tuple[str, frozenset[str]]],
) -> None:
    assert narrowed("dcba", answers) == ["b"]
    assert narrowed("dcba", []) == ["d", "c", "b", "a"]


def decision_of(*steps: Step, purpose: str | None = None) -> Decision:
    return Decision("b", purpose, None, steps)


YES, NO = Step("allowlist", True, "listed"), Step("allowlist", False, "not listed")
HAS_KEY, NO_KEY = Step("key", True, "a key"), Step("key", False, "no key")
KEPT, FILTERED = Step("filter", True, "kept", "p"), Step("filter", False, "filtered", "p")


@pytest.mark.parametrize(
    ("steps", "available", "listed", "reason"),
    [
        ([YES, HAS_KEY, KEPT], True, True, "Model 'b' is available"),
        ([NO], False, False, "not listed"),
        ([YES, NO_KEY, KEPT], True, False, "no key"),
        ([YES, NO_KEY, FILTERED], False, False, "filtered"),
        ([YES, HAS_KEY, FILTERED], False, False, "filtered"),
    ],
)
def test_a_decision_is_what_its_steps_come_to(
    steps: list[Step], available: bool, listed: bool, reason: str
) -> None:
    decision = decision_of(*steps)

    assert decision.available == bool(decision) == available
    assert decision.listed == listed
    assert decision.reason == reason


def test_the_reason_names_the_purpose() -> None:
    assert decision_of(YES, purpose="chat").reason == "Model 'b' is available for purpose 'chat'"


def test_decisions_are_values() -> None:
    assert decision_of(YES) == decision_of(YES)
    assert decision_of(YES) != decision_of(NO)
    with pytest.raises(AttributeError):
        decision_of(YES).purpose = "other"  # type: ignore[misc]
