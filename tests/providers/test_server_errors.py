"""What servers say of a failure becomes a sentence, with what to do where that is known."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl

import httpx2
import openai
import pytest

from datasette_llm.providers.failures import kind_of
from datasette_llm.providers.server_errors import (
    MAX_REASON_CHARS,
    Place,
    error_in,
    failed_answer,
    reason_of,
    refusal,
    unreachable,
)

HERE = Place("host:8000", has_version=True, is_endpoint=True)
BARE = Place("host:8000", has_version=False, is_endpoint=True)
OPENAI = Place("api.openai.com", has_version=True, is_endpoint=False)


def refused(body, status=422, place=HERE):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = httpx2.Response(status, request=httpx2.Request("POST", "http://host:8000/"))
    return refusal(response, data, place)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"error": "no such thing"}, "no such thing"),
        ({"error": {"message": "no such thing", "code": 400}}, "no such thing"),
        ({"error": {"code": "bad_thing"}}, "bad_thing"),
        ({"detail": "no such thing"}, "no such thing"),
        (
            {"detail": [{"loc": ["body", "model"], "msg": "no such thing"}]},
            "no such thing (body.model)",
        ),
        ({"object": "error", "message": {"detail": [{"msg": "no such thing"}]}}, "no such thing"),
        ([{"error": {"code": 400, "message": "no such thing"}}], "no such thing"),
        ({"errors": [{"message": "one"}, {"message": "two"}]}, "one; two"),
        ({"message": "no such thing"}, "no such thing"),
        ({"error": {"message": '{"error": {"message": "inside"}}'}}, "inside"),
        (
            {"fault": {"faultstring": "no such thing", "detail": {"errorcode": "x"}}},
            "no such thing",
        ),
        ({"Message": "no such thing"}, "no such thing"),  # AWS
        ({"errorMessage": "no such thing", "errorType": "X"}, "no such thing"),
        ({"base_resp": {"status_code": 1004, "status_msg": "no such thing"}}, "no such thing"),
        (
            {"ok": False, "why": {"x": "no such thing"}},
            '{"ok": false, "why": {"x": "no such thing"}}',
        ),
        (
            {"error": {"message": "Provider failed", "metadata": {"raw": '{"error": "too big"}'}}},
            "Provider failed: too big",  # OpenRouter
        ),
        ({"error": "no such \ud83d thing"}, "no such \ufffd thing"),
        (b"no such thing", "no such thing"),
        (b'"no such thing"', "no such thing"),
        (b"event: error\n", "event: error"),
        (b'data: {"error": {"message": "no such thing"}}\n\n', "no such thing"),
        (b"<html><title>502 Bad\n Gateway</title><p>x</html>", "a page of HTML, '502 Bad Gateway'"),
        (b"<!doctype html><body><h1>Sign &amp; in</h1>", "a page of HTML, 'Sign & in'"),
        (b'event: error\ndata: {"error": "no such thing"}\n\n', "no such thing"),
        (b"<title></title><h1>Down</h1>", "a page of HTML, 'Down'"),
        (b"<style>p {}</style><script>x</script><!-- y --><p>Hello", "a page of HTML, 'Hello'"),
        (b"<p>Hello</p>", "a page of HTML, 'Hello'"),
        (b"\xff\xfe", "\ufffd\ufffd"),
    ],
)
def test_w4_reason_of_any_shape(body, reason):
    assert (
        str(refused(body)) == f"The server at host:8000 answered 422 Unprocessable Entity: {reason}"
    )


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b"7", [[[[[[[[["deep"]]]]]]]]]])
def test_w4_no_reason_leaves_the_status(body):
    assert str(refused(body, 503)) == "The server at host:8000 answered 503 Service Unavailable"


def test_w4_reason_is_bounded_and_on_one_line():
    told = str(refused({"error": "a\nb" + "x" * 5_000}))
    assert "a bxxx" in told
    assert len(told) < MAX_REASON_CHARS + 100


@pytest.mark.parametrize("length", [470, 490, 498])
def test_w4_no_half_of_a_key_is_left(length):
    """It would not be taken out later."""
    told = str(refused({"error": "no " * (length // 3) + "sk-1234567890abcdef is no key"}))
    assert "sk-123" not in told or "sk-1234567890abcdef" in told


@pytest.mark.parametrize(
    ("body", "status", "place", "advice"),
    [
        (b"<title>404 Not Found</title>", 404, BARE, "lacks /v1"),
        ({"detail": "Not Found"}, 404, BARE, "lacks /v1"),
        ({"detail": "Not Found"}, 404, HERE, "check the path"),
        ({"error": "json_schema is not supported"}, 400, HERE, "supports_schema: false"),
        ({"error": "tools are not supported by this model"}, 400, HERE, "supports_tools: false"),
        ({"error": '"auto" needs --enable-auto-tool-choice'}, 400, HERE, "needs a flag"),
        ({"error": "model 'x' not found, try pulling it first"}, 404, HERE, "Set model_name"),
        ({"error": {"message": "No models loaded. Please load a model"}}, 404, HERE, "model_name"),
        ({"error": "Streaming is not supported for this model"}, 400, HERE, "can_stream: false"),
        (
            {"error": {"message": "This model's maximum context length is 4096 tokens"}},
            400,
            OPENAI,
            "shorten it",
        ),
        ({"error": "the request exceeds the available context size"}, 400, HERE, "shorten it"),
        (
            {"error": {"message": "No connected db.", "type": "no_db_connection"}},
            400,
            HERE,
            "LiteLLM",
        ),
        ({"error": "model 'x' not found"}, 404, OPENAI, ""),
    ],
)
def test_w4_likely_mistake_has_advice(body, status, place, advice):
    told = str(refused(body, status, place))
    assert advice in told
    assert told.count(". ") >= bool(advice)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (429, openai.RateLimitError),
        (529, openai.InternalServerError),
        (418, openai.APIStatusError),
        (304, openai.APIStatusError),
    ],
)
def test_w4_exceptions_are_openais(status, kind):
    error = refused({"error": {"message": "No", "code": "x"}}, status)
    assert type(error) is kind
    assert error.status_code == status
    assert error.code == "x"
    assert error.response.json()["error"]["message"] == "No"


def test_w4_litellm_without_database_refuses_a_key():
    body = {"error": {"message": "No connected db.", "type": "no_db_connection", "code": "400"}}
    assert kind_of(refused(body, 400)) == "key_refused"


@pytest.mark.parametrize(
    ("event", "failure"),
    [
        ({"error": {"message": "out of memory"}}, "out of memory"),
        ({"error": "out of memory", "choices": []}, "out of memory"),
        ({"object": "error", "message": "out of memory"}, "out of memory"),
        ({"type": "error", "error": {}}, "it gave no reason"),
        ({"code": "InvalidApiKey", "message": "No such key"}, "No such key"),  # Alibaba
        ({"base_resp": {"status_code": 1004, "status_msg": "login fail"}}, "login fail"),
        ({"base_resp": {"status_code": 0, "status_msg": ""}, "code": "Success"}, None),
        ({"choices": [], "base_resp": {"status_code": 1004}}, None),
        ({"detail": "out of memory"}, "out of memory"),
        ({"choices": [], "error": None}, None),
        ({"choices": [], "detail": "x"}, None),
        ({"usage": {}}, None),
    ],
)
def test_w4_errors_inside_a_200(event, failure):
    assert error_in(event) == failure


def test_w4_broke_off_only_where_something_came():
    body = {"error": {"message": "CUDA out of memory", "code": 503}}
    before = failed_answer("CUDA out of memory", body, HERE, begun=False)
    later = failed_answer("CUDA out of memory", body, HERE, begun=True)
    assert str(before) == "The server at host:8000 failed: CUDA out of memory"
    assert str(later) == "The answer broke off: CUDA out of memory"
    assert before.body == body["error"]


def test_w4_refused_connection_has_its_cause():
    error = httpx2.ConnectError("All connection attempts failed")
    error.__cause__ = OSError(111, "Connect call failed ('127.0.0.1', 1)")
    told = unreachable(error, HERE)
    assert str(told) == "Could not connect to the server at host:8000: Connection refused"
    assert kind_of(told) == "network"
    assert told.__cause__ is None  # which would hold the request with its key


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (
            "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)",
            "[SSL: WRONG_VERSION_NUMBER] wrong version number. It probably speaks plain HTTP: "
            "set api_base to http://…",
        ),
        (
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate "
            "(_ssl.c:1006)",
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate. "
            "If this is the right server, set ca_file to the certificate to trust",
        ),
    ],
)
def test_w4_tls_failures_say_what_to_do(reason, told):
    error = httpx2.ConnectError(reason)
    error.__cause__ = ssl.SSLError(1, reason)  # 1 is "Operation not permitted" elsewhere
    assert str(unreachable(error, HERE)) == f"Could not connect to the server at host:8000: {told}"
    elsewhere = HERE._replace(is_endpoint=False)
    assert "set " not in str(unreachable(error, elsewhere))


def test_w4_unknown_host_has_no_number():
    error = httpx2.ConnectError("[Errno -2] Name or service not known")
    error.__cause__ = socket.gaierror(-2, "Name or service not known")
    told = str(unreachable(error, HERE))
    assert told == "Could not connect to the server at host:8000: Name or service not known"


def test_w4_connection_timeout_is_told():
    """How a timeout stops a connection is no reason."""
    error = httpx2.ConnectTimeout("")
    error.__context__ = asyncio.CancelledError("Cancelled via cancel scope")
    error.__context__.__context__ = ssl.SSLWantReadError(2, "The operation did not complete")
    assert str(unreachable(error, HERE)).endswith("host:8000: it did not answer in time")


def test_w4_timeouts_are_timeouts():
    told = unreachable(httpx2.ReadTimeout(""), HERE)
    assert str(told) == "The server at host:8000 sent nothing for too long"
    assert kind_of(told) == "timeout"


def test_w4_reason_survives_values_of_any_kind():
    assert reason_of({"error": {"message": 5, "code": 7}}) == ""
    assert reason_of({"detail": {"a": object()}}) == ""
