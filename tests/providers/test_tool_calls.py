"""Tool calls are put together from whatever pieces servers send."""

from __future__ import annotations

import json

import llm
import pytest

from datasette_llm import ProviderError
from datasette_llm.providers.tool_calls import MAX_TOOL_CALLS, ToolCalls

from ..support.dialects import piece

SHIPS, BERTHS = {"table": "ships"}, {"table": "berths"}
SHIPS_TEXT, BERTHS_TEXT = json.dumps(SHIPS), json.dumps(BERTHS)


def assembled(*events, taken=(), reason="tool_calls"):
    """The calls of some events, each of which holds some pieces, and what was streamed of them."""
    tools = ToolCalls(taken)
    streamed = [event for pieces in events for event in tools.feed(pieces)]
    streamed += tools.finish(reason)
    return list(tools.whole()), streamed


def called(*events, **kwargs):
    return [(call.name, call.arguments) for call in assembled(*events, **kwargs)[0]]


TWO = [("count", SHIPS), ("count", BERTHS)]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        # By the protocol.
        (
            [
                [piece("count", "", call_id="a")],
                [piece(arguments='{"table": ')],
                [piece(arguments='"ships"}')],
                [piece("count", "", index=1, call_id="b")],
                [piece(arguments=BERTHS_TEXT, index=1)],
            ],
            TWO,
        ),
        # Without ids, with empty ones, with repeated ones.
        ([[piece("count", SHIPS_TEXT), piece("count", BERTHS_TEXT, index=1)]], TWO),
        (
            [[piece("count", SHIPS_TEXT, call_id="")], [piece("count", BERTHS_TEXT, index=1)]],
            TWO,
        ),
        (
            [
                [piece("count", SHIPS_TEXT, call_id="x")],
                [piece("count", BERTHS_TEXT, index=1, call_id="x")],
            ],
            TWO,
        ),
        # Without indexes, with repeated ones.
        (
            [
                [piece("count", SHIPS_TEXT, index=None, call_id="a")],
                [piece("count", BERTHS_TEXT, index=None, call_id="b")],
            ],
            TWO,
        ),
        (
            [[piece("count", SHIPS_TEXT, call_id="a")], [piece("count", BERTHS_TEXT, call_id="b")]],
            TWO,
        ),
        ([[piece("count", SHIPS_TEXT), piece("count", BERTHS_TEXT)]], TWO),
        ([[piece("count", SHIPS_TEXT)], [piece("count", BERTHS_TEXT)]], TWO),
        (
            [[piece("count", SHIPS_TEXT, index=None)], [piece("count", BERTHS_TEXT, index=None)]],
            TWO,
        ),
        # Pieces of one call that name it by half of what the protocol has.
        (
            [[piece("count", '{"table"', index=None)], [piece(arguments=': "ships"}', index=None)]],
            TWO[:1],
        ),
        ([[piece("count", '{"table"', index=None)], [piece(arguments=': "ships"}')]], TWO[:1]),
        (
            [
                [piece("count", '{"table"', call_id="a")],
                [piece("count", ': "ships"}', call_id="a")],  # each piece has all
            ],
            TWO[:1],
        ),
        # The call, or its id and name, come once more at the end.
        (
            [[piece("count", SHIPS_TEXT, call_id="a")], [piece("count", SHIPS_TEXT, call_id="a")]],
            TWO[:1],
        ),
        ([[piece("count", SHIPS_TEXT, call_id="a")], [piece("count", "", call_id="a")]], TWO[:1]),
        # An empty object comes before the arguments.
        ([[piece("count", "{}", call_id="a")], [piece(arguments=SHIPS_TEXT)]], TWO[:1]),
        ([[piece("count", {}, call_id="a")], [piece(arguments=SHIPS_TEXT)]], TWO[:1]),
        ([[piece("count", "null", call_id="a")], [piece(arguments=SHIPS_TEXT)]], TWO[:1]),
        ([[piece("now", "{}", call_id="a")]], [("now", {})]),
        # Without the object around them.
        ([[{"name": "count", "arguments": SHIPS}]], TWO[:1]),
        # The name comes late; the second call takes no arguments.
        ([[piece(arguments="", call_id="a")], [piece("count", SHIPS_TEXT)]], TWO[:1]),
        (
            [[piece("count", SHIPS_TEXT, call_id="a")], [piece("now", "", call_id="b")]],
            [("count", SHIPS), ("now", {})],
        ),
        ([[piece("now", "")], [piece("count", SHIPS_TEXT)]], [("now", {}), ("count", SHIPS)]),
        # One piece that is no list.
        ([piece("count", SHIPS_TEXT)], TWO[:1]),
        ([[None, 5, piece("count", SHIPS_TEXT)]], TWO[:1]),
    ],
)
def test_w5_each_call_is_there_once(events, expected):
    calls, streamed = assembled(*events)
    assert [(call.name, call.arguments) for call in calls] == expected
    ids = [call.tool_call_id for call in calls]
    assert len(set(ids)) == len(ids)
    assert all(ids)
    # What was streamed says the same.
    for call in calls:
        own = [event for event in streamed if event.tool_call_id == call.tool_call_id]
        names = [event.chunk for event in own if event.type == "tool_call_name"]
        arguments = "".join(event.chunk for event in own if event.type == "tool_call_args")
        assert names == [call.name]
        assert json.loads(arguments) == call.arguments


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("null", {}),
        ("", {}),
        (None, {}),
        ("  ", {}),
        ("[]", {}),
        ({"table": "ships"}, SHIPS),
        (json.dumps(SHIPS_TEXT), SHIPS),
        ('{"table": "a\tb"}', {"table": "a\tb"}),
    ],
)
def test_w5_arguments_in_any_form(arguments, expected):
    assert called([piece("count", arguments)]) == [("count", expected)]


def test_w5_arguments_are_streamed_as_they_come():
    tools = ToolCalls()
    assert [event.chunk for event in tools.feed([piece("count", "", call_id="a")])] == ["count"]
    assert [event.chunk for event in tools.feed([piece(arguments='{"ta')])] == ['{"ta']
    assert [event.chunk for event in tools.feed([piece(arguments='ble": 1}')])] == ['ble": 1}']
    assert list(tools.finish("tool_calls")) == []


@pytest.mark.parametrize(
    ("reason", "cause"),
    [("length", '"length", so max_tokens'), ("stop", '"stop"'), (None, "it was cut off")],
)
def test_w5_cut_off_arguments_name_tool_and_cause(reason, cause):
    with pytest.raises(ProviderError) as caught:
        called([piece("count", '{"table": "sh')], reason=reason)
    assert "of the tool 'count'" in str(caught.value)
    assert cause in str(caught.value)
    assert caught.value.kind == "bad_answer"


@pytest.mark.parametrize("arguments", ["", None, " "])
def test_w5_cut_off_before_its_arguments(arguments):
    """A tool whose arguments are optional would run without them."""
    calls = [piece("now", "", call_id="a"), piece("count", arguments, index=1, call_id="b")]
    assert called(calls, reason="stop") == [("now", {}), ("count", {})]
    for reason in ("length", "max_tokens", "content_filter"):
        with pytest.raises(ProviderError, match=f"tool 'count' has no arguments yet.*{reason}"):
            called(calls, reason=reason)


@pytest.mark.parametrize("arguments", ["5", '["a"]', '"text"', "{'a': 1}", "[" * 100_000])
def test_w5_arguments_that_are_no_object(arguments):
    with pytest.raises(ProviderError, match="of the tool 'count'"):
        called([piece("count", arguments)])


def test_w5_no_half_of_a_key_is_told():
    arguments = '{"text": "' + "no " * 26 + "sk-1234567890abcdefghijklmnop"
    with pytest.raises(ProviderError) as caught:
        called([piece("count", arguments)], reason="length")
    assert "sk-" not in str(caught.value)


def test_w5_call_without_a_name_is_told():
    with pytest.raises(ProviderError, match="A call of a tool has no name"):
        called([piece(arguments="{}")])


def test_w5_ids_of_earlier_turns_are_not_reused():
    [call], _ = assembled([piece("count", SHIPS_TEXT, call_id="call_0")], taken=["call_0"])
    assert call.tool_call_id not in ("call_0", None, "")


def test_w5_extra_content_goes_with_its_call():
    extra = {"google": {"thought_signature": "SIG"}}
    _, streamed = assembled([piece("count", SHIPS_TEXT, call_id="a", extra_content=extra)])
    assert [event.provider_metadata for event in streamed if event.provider_metadata] == [
        {"extra_content": extra}
    ]


def test_too_many_calls_are_refused():
    pieces = [piece("now", "{}", index=number) for number in range(MAX_TOOL_CALLS)]
    assert called(pieces) == [("now", {})] * MAX_TOOL_CALLS
    with pytest.raises(ProviderError, match="more than 1,000 tool calls"):
        called([*pieces, piece("now", "{}", index=MAX_TOOL_CALLS)])


def test_calls_are_llms_own():
    [call], _ = assembled([piece("count", SHIPS_TEXT, call_id="a")])
    assert call == llm.ToolCall(name="count", arguments=SHIPS, tool_call_id="a")
