"""Requests as plain values: redacted, sanitized, measured."""

import json
import urllib.parse
from types import SimpleNamespace
from typing import Any

import llm
import pytest

from datasette_llm.decision import Decision, Step
from datasette_llm.errors import ModelNotAllowedError
from datasette_llm.events import (
    MAX_DETAILS_CHARS,
    MAX_DOLLARS,
    MAX_ID_CHARS,
    Outcome,
    Receipt,
    RequestFinished,
    RequestStarted,
    never_sent,
    request_finished,
    request_started,
    unsent,
)
from datasette_llm.log.schema import OUTCOMES
from datasette_llm.sanitize import MAX_COUNT, MAX_TEXT_CHARS
from datasette_llm.testing import ScriptedModel

KEY = "sk-events-0123456789"
# What JSON and URLs escape.
ODD_KEY = 'sk-"events\\0123456789/+é='
GONE = "[key removed]"
NOT_ALLOWED = ModelNotAllowedError(
    Decision("x", None, None, (Step("blocklist", False, "It is blocked"),))
)
ATTACHMENT = llm.Attachment(type="text/plain", content=b"x")


def as_it_is(key: str) -> str:
    return key


def in_json(key: str) -> str:
    return json.dumps(key)[1:-1]


def in_json_in_json(key: str) -> str:
    return in_json(in_json(key))


def in_a_url(key: str) -> str:
    return urllib.parse.quote(key, safe="")


def in_a_query(key: str) -> str:
    return urllib.parse.quote_plus(key)


all_keys = pytest.mark.parametrize("keys", [ODD_KEY, frozenset({ODD_KEY, KEY})], ids=["str", "set"])
all_spellings = pytest.mark.parametrize(
    "spelled", [as_it_is, in_json, in_json_in_json, in_a_url, in_a_query]
)


def response_of(prompt: llm.Prompt | None = None, **attributes: Any) -> llm.AsyncResponse:
    """A response that was not read, with these attributes."""
    model = ScriptedModel("scripted")
    response = llm.AsyncResponse(prompt or llm.Prompt("x", model), model, stream=True)
    for name, value in attributes.items():
        setattr(response, name, value)
    return response


def started(response: llm.AsyncResponse | None = None, **changes: Any) -> RequestStarted:
    arguments: dict[str, Any] = {
        "request_id": "one",
        "attempt": 1,
        "model_id": "scripted",
        "purpose": None,
        "actor": None,
        "group_id": None,
        "chain": None,
        "waited_s": None,
        "keys": None,
    }
    return request_started(response or response_of(), **(arguments | changes))


def finished(
    response: llm.AsyncResponse | None = None,
    error: BaseException | None = None,
    keys: Any = None,
    **changes: Any,
) -> RequestFinished:
    arguments: dict[str, Any] = {"duration_s": 2.0, "first_chunk_s": 0.5}
    outcome = Outcome.ERROR if error else Outcome.OK
    response = response or response_of()
    return request_finished("one", response, outcome, error, keys=keys, **(arguments | changes))


def test_outcomes_are_those_of_the_call_log() -> None:
    assert tuple(Outcome) == OUTCOMES


# Keys


@all_keys
@all_spellings
def test_keys_are_removed_from_a_started_request(keys: Any, spelled: Any) -> None:
    text = f"a {spelled(ODD_KEY)} b"
    response = response_of(conversation=SimpleNamespace(id=text))
    event = started(response, model_id=text, purpose=text, actor={"id": text}, keys=keys)
    texts = (event.model_id, event.purpose, event.actor_id, event.conversation_id)
    assert texts == (f"a {GONE} b",) * 4


@all_keys
@all_spellings
def test_keys_are_removed_from_one_never_sent(keys: Any, spelled: Any) -> None:
    text = f"a {spelled(ODD_KEY)} b"
    event = never_sent(text, text, {"id": text}, None, keys)
    assert (event.model_id, event.purpose, event.actor_id) == (f"a {GONE} b",) * 3


@all_keys
@all_spellings
def test_keys_are_removed_from_a_finished_request(keys: Any, spelled: Any) -> None:
    text = f"a {spelled(ODD_KEY)} b"
    details = {"note": text, text: [text]}
    response = response_of(resolved_model=text, token_details=details)
    event = finished(response, ValueError(text), keys)
    assert (event.error_message, event.resolved_model) == (f"a {GONE} b",) * 2
    assert finished(response, ValueError(), keys, message=text).error_message == f"a {GONE} b"
    assert event.token_details is not None
    assert json.loads(event.token_details) == {
        "note": f"a {GONE} b",
        f"a {GONE} b": [f"a {GONE} b"],
    }


@all_keys
@all_spellings
def test_keys_are_removed_from_an_unsent_request(keys: Any, spelled: Any) -> None:
    event = unsent(started(), Outcome.BLOCKED, ValueError(f"a {spelled(ODD_KEY)} b"), keys)
    assert event.error_message == f"a {GONE} b"
    text = f"a {spelled(ODD_KEY)} b"
    event = unsent(started(), Outcome.BLOCKED, ValueError(), keys, message=text)
    assert event.error_message == f"a {GONE} b"


@all_keys
@all_spellings
def test_k3_keys_are_removed_from_a_receipt(keys: Any, spelled: Any) -> None:
    text = f"a {spelled(ODD_KEY)} b"
    event = finished(keys=keys, receipt=Receipt(text, text, text, text, text))
    assert event[-6:-1] == (*(f"a {GONE} b",) * 4, None)


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        ("chatcmpl-1", "chatcmpl-1"),
        ("x" * (MAX_ID_CHARS + 1), "x" * MAX_ID_CHARS),
        (" a\r\nb\x1b[31m\u202e ", "a  b [31m"),
        ("a\ud83d", "a"),
        ("\u200b \n", None),
        *((odd, None) for odd in (None, "", 7, b"x", ["x"], {"id": "x"}, True)),
    ],
)
def test_k3_id_as_it_is_recorded(given: Any, recorded: str | None) -> None:
    event = finished(receipt=Receipt(given, given, given, given))
    assert event[-6:-1] == (recorded,) * 4 + (None,)


@pytest.mark.parametrize(
    ("given", "dollars"),
    [
        ("0.5", 0.5),
        (" 1e-6 ", 1e-6),
        (0, 0.0),
        (MAX_DOLLARS, MAX_DOLLARS),
        *((odd, None) for odd in (MAX_DOLLARS + 1, -0.1, "nan", float("inf"), 10**400, True)),
        *((odd, None) for odd in (None, "", "free", b"1", [1], {"total": 1}, 1j)),
    ],
)
def test_k3_gateways_cost_as_it_is_recorded(given: Any, dollars: float | None) -> None:
    assert finished(receipt=Receipt(gateway_cost=given)).gateway_cost_dollars == dollars


def test_every_key_of_a_set_is_removed() -> None:
    keys = frozenset({KEY, ODD_KEY})
    assert started(purpose=f"{KEY} {ODD_KEY}", keys=keys).purpose == f"{GONE} {GONE}"


# Purpose and actor


@pytest.mark.parametrize(
    ("purpose", "recorded"),
    [
        (None, None),
        ("", None),
        ("chat", "chat"),
        (" ", " "),
        (7, "7"),
        ("p" * (MAX_TEXT_CHARS + 1), "p" * MAX_TEXT_CHARS),
        ("\ud83d\ude00", "\N{GRINNING FACE}"),
    ],
)
def test_purpose_as_it_is_recorded(purpose: Any, recorded: str | None) -> None:
    assert started(purpose=purpose).purpose == recorded
    assert never_sent("m", purpose, None, None).purpose == recorded


@pytest.mark.parametrize(
    ("actor", "recorded"),
    [
        (None, None),
        ({}, None),
        ({"id": None}, None),
        ({"id": ""}, None),
        ({"id": "ana"}, "ana"),
        ({"id": 0}, "0"),
        ({"id": 7}, "7"),
        ({"name": "no id"}, None),
        ("root", None),
        (["ana"], None),
        (7, None),
    ],
)
def test_actor_id_as_it_is_recorded(actor: Any, recorded: str | None) -> None:
    assert started(actor=actor).actor_id == recorded
    assert never_sent("m", None, actor, None).actor_id == recorded


# A started request


def test_started_request_has_chain_group_and_wait() -> None:
    first, second = response_of(), response_of()
    event = started(second, chain=[first, second], group_id="g", waited_s=0.25)
    assert (event.chain_id, event.chain_step) == (first.id, 2)
    assert (event.group_id, event.waited_s, event.streaming) == ("g", 0.25, True)
    assert (event.id, event.attempt, event.prompt_id) == ("one", 1, None)


def test_later_attempt_refers_to_its_response() -> None:
    response = response_of()
    event = started(response, attempt=3)
    assert (event.attempt, event.prompt_id) == (3, response.id)


@pytest.mark.parametrize(
    ("options", "recorded"),
    [
        ({}, (None, None)),
        ({"temperature": 1, "max_tokens": 50}, (1.0, 50)),
        ({"temperature": "hot", "max_tokens": "50"}, (None, None)),
        ({"temperature": 0.5, "max_tokens": -1}, (0.5, None)),
        ({"temperature": 0, "max_tokens": 10**13}, (0.0, None)),
    ],
)
def test_options_as_they_are_recorded(options: Any, recorded: Any) -> None:
    response = response_of()
    response.prompt.options = SimpleNamespace(**options)
    event = started(response)
    assert (event.temperature, event.max_tokens) == recorded


@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [
        ({"prompt": ""}, (0, 0, 0, 0)),
        ({"prompt": "hello"}, (5, 0, 1, 0)),
        ({"prompt": "hello", "system": "be kind"}, (5, 7, 2, 0)),
        ({"prompt": "x", "attachments": [ATTACHMENT] * 2}, (1, 0, 1, 2)),
        ({"messages": [llm.user("one"), llm.user("three")], "prompt": None}, (5, 0, 2, 0)),
        # llm cannot build the messages of these.
        ({"prompt": "hello", "system": 5}, (0, 0, 0, 0)),
        ({"prompt": "hello", "system_fragments": [5]}, (0, 0, 0, 0)),
        ({"prompt": "hello", "messages": ["text"]}, (0, 0, 0, 0)),
    ],
)
def test_sizes_of_a_request(arguments: Any, sizes: Any) -> None:
    event = started(response_of(llm.Prompt(model=ScriptedModel("scripted"), **arguments)))
    recorded = (
        event.prompt_chars,
        event.system_chars,
        event.message_count,
        event.attachment_count,
    )
    assert recorded == sizes


def test_one_never_sent_has_an_id_and_no_sizes() -> None:
    event, other = never_sent("m", None, None, "g"), never_sent("m", None, None, "g")
    assert event.id < other.id
    assert event == RequestStarted(event.id, "m", None, None, "g")


# A finished request


@pytest.mark.parametrize(
    ("tokens", "recorded"),
    [
        (None, None),
        (0, 0),
        (12, 12),
        (MAX_COUNT, MAX_COUNT),
        (True, None),
        (-1, None),
        ("5", None),
        (1.5, None),
        (10**13, None),
        ([1], None),
    ],
)
def test_token_counts_as_they_are_recorded(tokens: Any, recorded: int | None) -> None:
    event = finished(response_of(input_tokens=tokens, output_tokens=3))
    assert (event.input_tokens, event.output_tokens) == (recorded, 3)
    event = finished(response_of(input_tokens=3, output_tokens=tokens))
    assert (event.input_tokens, event.output_tokens) == (3, recorded)


@pytest.mark.parametrize(
    ("details", "recorded"),
    [
        (None, None),
        ({}, None),
        ({"cached": 4}, {"cached": 4}),
        ({"share": float("nan")}, {"share": "NaN"}),
        ({("a", 1): 2}, {}),
        # With {"d": ""} the text is as long as is allowed.
        ({"d": "d" * (MAX_DETAILS_CHARS - 9)}, {"d": "d" * (MAX_DETAILS_CHARS - 9)}),
        (
            {"d": "d" * (MAX_DETAILS_CHARS - 8)},
            "More than 20,000 characters, too much to keep",
        ),
    ],
    ids=["none", "empty", "plain", "nan", "no text as key", "longest", "too long"],
)
def test_token_details_as_they_are_recorded(details: Any, recorded: Any) -> None:
    event = finished(response_of(token_details=details))
    assert (event.token_details and json.loads(event.token_details)) == recorded


class StatusError(Exception):
    """What a provider's client raises after an HTTP error."""

    def __init__(self, status: object) -> None:
        super().__init__("failed")
        self.status_code = status


class HostileError(Exception):
    """Raises for everything that is read of it."""

    def __str__(self) -> str:
        raise RuntimeError("no message")

    @property
    def status_code(self) -> int:
        raise RuntimeError("no status")


@pytest.mark.parametrize(
    ("error", "recorded"),
    [
        (None, (None, None, None)),
        (ValueError("no"), ("ValueError", "no", None)),
        (StatusError(429), ("StatusError", "failed", 429)),
        (StatusError("429"), ("StatusError", "failed", None)),
        (HostileError(), ("HostileError", "HostileError that cannot be shown", None)),
        (ValueError("x" * 3_000), ("ValueError", "x" * MAX_TEXT_CHARS, None)),
    ],
)
def test_errors_as_they_are_recorded(error: Any, recorded: Any) -> None:
    event = finished(error=error)
    assert (event.error_type, event.error_message, event.http_status) == recorded


def test_finished_request_has_outcome_and_times() -> None:
    event = finished(blocked_by="budget")
    assert (event.id, event.outcome, event.blocked_by) == ("one", "ok", "budget")
    assert (event.duration_s, event.first_chunk_s) == (2.0, 0.5)


@pytest.mark.parametrize(("blocked_by", "recorded"), [(None, None), ("", None), ("it", "it")])
def test_unsent_request_as_it_is_recorded(blocked_by: Any, recorded: str | None) -> None:
    event = unsent(started(), Outcome.BLOCKED, PermissionError("no"), blocked_by=blocked_by)
    assert event == RequestFinished(
        "one",
        Outcome.BLOCKED,
        error_type="PermissionError",
        error_message="no",
        blocked_by=recorded,
        failure_kind="blocked",
    )


@pytest.mark.parametrize(
    ("outcome", "error", "kind", "recorded"),
    [
        (Outcome.BLOCKED, NOT_ALLOWED, None, "not_allowed"),
        # A hook may raise it too.
        (Outcome.BLOCKED, NOT_ALLOWED, "blocked", "blocked"),
        (Outcome.BLOCKED, ValueError(), None, "blocked"),
        (Outcome.ERROR, TimeoutError(), "timeout", "timeout"),
        (Outcome.CANCELLED, ValueError(), None, None),
    ],
)
def test_w3_kind_of_an_unsent_request(outcome: Any, error: Any, kind: Any, recorded: Any) -> None:
    assert unsent(started(), outcome, error, failure_kind=kind).failure_kind == recorded
