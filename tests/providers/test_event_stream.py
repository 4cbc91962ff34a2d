"""Whatever servers send is taken apart into events, keep-alives and texts."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasette_llm import ProviderError
from datasette_llm.providers import event_stream
from datasette_llm.providers.event_stream import DONE, KEEP_ALIVE, EventDecoder, Frame

A, B = {"a": 1}, {"b": "two"}
EVENT_A, EVENT_B = Frame(A), Frame(B)


def frames(*pieces: bytes) -> list[Frame]:
    decoder = EventDecoder()
    found = [frame for piece in pieces for frame in decoder.feed(piece)]
    return [*found, *decoder.finish()]


def said(*pieces: bytes) -> list[Frame]:
    """The frames that are no keep-alives."""
    return [frame for frame in frames(*pieces) if frame is not KEEP_ALIVE]


@pytest.mark.parametrize(
    "sent",
    [
        b'data: {"a": 1}\n\ndata: {"b": "two"}\n\n',
        b'data: {"a": 1}\r\n\r\ndata: {"b": "two"}\r\n\r\n',
        b'data: {"a": 1}\r\rdata: {"b": "two"}\r\r',
        b'data:{"a": 1}\n\ndata:{"b": "two"}',  # no space, and no blank line at the end
        b'data: {"a": 1}\ndata: {"b": "two"}\n',  # no blank line at all
        b'\xef\xbb\xbfdata: {"a": 1}\n\ndata: {"b": "two"}\n\n',
        b': hello\n\ndata: {"a": 1}\n\n:\n\ndata: {"b": "two"}\n\n',
        b'retry: 10\n\nid: 1\ndata: {"a": 1}\n\nid: 2\ndata: {"b": "two"}\n\n',
        b'data: {"a": 1}\n\nevent: ping\ndata: {"type": "ping"}\n\ndata: {"b": "two"}\n\n',
        b'data: {"a": 1}\n\nevent: ping\ndata: now\n\ndata: {"b": "two"}\n\n',
        b'data: {"a": 1}\n\ndata: null\n\ndata:\n\ndata: []\n\ndata: {"b": "two"}\n\n',
        b'data: {"a": 1}\n\ndata: null\ndata: {"b": "two"}\n\n',
        b'data: {\ndata: "a": 1}\n\ndata: [{"b": "two"}]\n\n',
        b'data: {"a": 1}\n\ndata: ping\n\ndata: {"type": "ping"}\n\ndata: {"b": "two"}\n\n',
        b'data: {"a": 1}\n\ndata: {}\n\ndata: "Keep-Alive"\n\ndata: {"b": "two"}\n\n',
        b'{"a": 1}\n{"b": "two"}\n',  # lines of JSON, without the protocol
        b'{"a": 1}\n{\n "b":\n "two"\n}',
    ],
)
def test_w1_what_is_no_answer_breaks_nothing(sent):
    assert said(sent) == [EVENT_A, EVENT_B]
    assert said(*(sent[n : n + 1] for n in range(len(sent)))) == [EVENT_A, EVENT_B]


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6))
def test_w1_pieces_do_not_matter(sent, cuts):
    """However bytes are cut, they say the same, or are refused with the same words."""
    edges = [0, *sorted(cut for cut in cuts if cut < len(sent)), len(sent)]
    pieces = [sent[a:b] for a, b in itertools.pairwise(edges)]

    def result(*given_pieces):
        try:
            return said(*given_pieces)
        except ProviderError as error:
            return str(error)

    assert result(*pieces) == result(sent)


def test_w1_done_is_a_mark_of_the_end():
    assert said(b'data: {"a": 1}\n\ndata: [DONE]\n\n') == [EVENT_A, DONE]
    assert said(b"data: [DONE]") == [DONE]


def test_w1_comments_are_one_keep_alive():
    assert list(EventDecoder().feed(b": x\n" * 1000)) == [KEEP_ALIVE]


def test_w1_two_frames_on_a_line_are_shown():
    with pytest.raises(ProviderError, match=r'no JSON: {"a": 1}data: {"b": "two"}$') as caught:
        said(b'data: {"a": 1}data: {"b": "two"}\n\n')
    assert caught.value.kind == "bad_answer"


def test_w4_texts_and_errors_are_kept():
    assert said(b"Internal Server Error") == [Frame(text="Internal Server Error")]
    assert said(b"<html>\n<p>No</p></html>\n") == [Frame(text="<html>\n<p>No</p></html>")]
    assert said(b"event: error\ndata: out of memory\n\n") == [Frame(None, "error", "out of memory")]
    assert said(b'event: error\ndata: {"a": 1}\n\n') == [Frame(A, "error")]


def test_w6_invalid_utf8_is_replaced():
    assert said(b'data: {"a": "x\xffy"}\n\n') == [Frame({"a": "x\ufffdy"})]


@pytest.mark.parametrize("start", [b"data: ", b"", b"data: {\ndata: "])
def test_large_events_are_refused_unread(start, monkeypatch):
    monkeypatch.setattr(event_stream, "MAX_EVENT_BYTES", 1_000)
    decoder = EventDecoder()
    with pytest.raises(ProviderError, match="in one event"):
        for piece in [start, *[b"x" * 100 + b"\n" * (start == b"")] * 20]:
            list(decoder.feed(piece))


def test_deep_json_is_refused():
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    with pytest.raises(ProviderError, match="no JSON"):
        said(b"data: " + deep + b"\n\n")


def test_long_event_is_read_in_linear_time():
    event = json.dumps({"a": "x" * 3_000_000}).encode()
    sent = b"data: " + event + b"\n\n"
    [frame] = said(*(sent[n : n + 1_000] for n in range(0, len(sent), 1_000)))
    assert frame.event == json.loads(event)


@pytest.mark.parametrize("mark", [b"[DONE]", b"  [DONE] ", b"[done]", b'"[DONE]"'])
def test_w2_mark_of_the_end_in_any_spelling(mark):
    assert said(b'data: {"a": 1}\n\ndata:' + mark + b"\n\n") == [EVENT_A, DONE]


def test_w4_no_half_of_a_key_is_left():
    """Of a text that is quoted; it would not be taken out later."""
    with pytest.raises(ProviderError, match=r"no JSON: no no .* no…$"):
        frames(b"data: " + b"no " * 160 + b"sk-1234567890abcdefghijklmnop is no key\n\n")
