"""Kinds of failure: from the exceptions of providers' clients, made here by their shape."""

from __future__ import annotations

import asyncio
import errno
import http
import json
import socket
import ssl
from typing import Any, get_args

import httpx2
import llm
import openai
import pytest

from datasette_llm import HookError, ModelNotAllowedError, ModelNotFoundError, NotRecordedError
from datasette_llm.decision import Decision, Step
from datasette_llm.errors import FailureKind, ResponseCancelledError, ResponseTimeoutError
from datasette_llm.providers.exceptions import causes
from datasette_llm.providers.failures import LABELS, failure_message, kind_of

REQUEST = httpx2.Request("POST", "http://127.0.0.1/v1/chat/completions")
NOT_ALLOWED = Decision("x", None, None, (Step("blocklist", False, "It is blocked"),))


def shaped(
    name: str = "APIError", text: str = "No", *, base: type = Exception, **values: Any
) -> Any:
    """An exception of a class of this name, with these attributes."""
    error = type(name, (base,), {})(text)
    vars(error).update(values)
    return error


def openai_status(status: int, message: str = "No", **fields: Any) -> Exception:
    body = {"message": message, **fields}
    response = httpx2.Response(status, json={"error": body}, request=REQUEST)
    return openai.APIStatusError(message, response=response, body=body)


def anthropic(status: int, kind: str, message: str = "No") -> Exception:
    body = {"type": "error", "error": {"type": kind, "message": message}}
    return shaped("APIStatusError", f"Error code: {status} - {body}", status_code=status, body=body)


def google(status: int, code: str, message: str) -> Exception:
    text = f"{status} {code}. {message}"
    return shaped("ClientError", text, code=status, status=code, message=message)


def aws(status: int, code: str) -> Exception:
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return shaped("ClientError", f"An error occurred ({code})", response=response)


def behind(outer: BaseException, *inner: BaseException) -> BaseException:
    """The outer exception, raised from the next, and so on."""
    error = outer
    for cause in inner:
        error.__cause__ = cause
        error = cause
    return outer


def requests_like(status: int) -> Exception:
    return shaped("HTTPError", base=OSError, response=shaped(status_code=status))


CASES: list[tuple[str, Any]] = [
    # Ours, and llm's
    ("no_key", llm.NeedsKeyException("No key for model 'x'")),
    ("unknown_model", ModelNotFoundError("Unknown model: 'x'")),
    ("unknown_model", llm.UnknownModelError("x")),
    ("not_allowed", ModelNotAllowedError(NOT_ALLOWED)),
    ("blocked", HookError("llm_filter_models returned int")),
    ("blocked", NotRecordedError("The call was not made")),
    ("other", ResponseCancelledError("Datasette is shutting down")),
    ("timeout", behind(ResponseCancelledError("The call was ended"), TimeoutError())),
    # OpenAI's, and compatible servers'
    ("key_refused", openai_status(401, "Incorrect API key", code="invalid_api_key")),
    ("key_refused", openai_status(403, "Country not supported")),
    ("unknown_model", openai_status(403, "No access to model `x`", code="model_not_found")),
    ("unknown_model", openai_status(404, "The model `x` does not exist")),
    ("unknown_model", openai_status(404, "No", code="DeploymentNotFound")),
    ("other", openai_status(404, "404 page not found")),
    ("unknown_model", openai_status(400, "Invalid model name passed in model=x")),
    ("rate_limit", openai_status(429, "Rate limit reached for x")),
    ("rate_limit", openai_status(429, "You exceeded your quota", code="insufficient_quota")),
    ("rate_limit", openai_status(402, "Insufficient Balance")),
    ("other", openai_status(400, "This model's maximum context length is 10 tokens")),
    ("other", openai_status(400, "Unsupported parameter: temperature with this model")),
    ("other", openai_status(500, "The server had an error, see the rate limit page")),
    ("other", openai_status(503, "Overloaded")),
    ("timeout", openai_status(504, "Gateway Time-out")),
    ("timeout", openai_status(408)),
    ("bad_answer", openai_status(200, "Data returned by API invalid for expected schema.")),
    ("rate_limit", openai.APIError("later", REQUEST, body={"code": "429"})),
    ("timeout", openai.APITimeoutError(REQUEST)),
    ("network", openai.APIConnectionError(request=REQUEST)),
    # Anthropic's
    ("key_refused", anthropic(401, "authentication_error", "invalid x-api-key")),
    ("key_refused", anthropic(403, "permission_error")),
    ("unknown_model", anthropic(404, "not_found_error", "model: claude-x")),
    ("rate_limit", anthropic(429, "rate_limit_error")),
    ("rate_limit", anthropic(400, "invalid_request_error", "Your credit balance is too low")),
    ("other", anthropic(529, "overloaded_error", "Overloaded")),
    ("other", anthropic(200, "overloaded_error", "Overloaded")),  # in a stream that had begun
    ("rate_limit", anthropic(200, "rate_limit_error")),
    ("no_key", TypeError("Could not resolve authentication method. Expected either api_key")),
    # Google's: its client, its older client, and llm-gemini, which only passes on the message
    ("key_refused", google(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid one")),
    ("key_refused", google(403, "PERMISSION_DENIED", "Caller has no permission")),
    ("unknown_model", google(404, "NOT_FOUND", "models/x is not found for API version v1beta")),
    ("rate_limit", google(429, "RESOURCE_EXHAUSTED", "Slow down")),
    ("timeout", google(504, "DEADLINE_EXCEEDED", "Too slow")),
    ("rate_limit", shaped("ResourceExhausted", code=http.HTTPStatus.TOO_MANY_REQUESTS)),
    ("timeout", shaped("DeadlineExceeded")),
    ("key_refused", llm.ModelError("API key not valid. Please pass a valid API key.")),
    ("unknown_model", llm.ModelError("models/gemini-x is not found for API version v1beta")),
    ("rate_limit", llm.ModelError("You exceeded your current quota, please check your plan")),
    ("other", llm.ModelError("The model is overloaded. Please try again later.")),
    # AWS's, requests', aiohttp's, the redaction's
    ("key_refused", aws(403, "AccessDeniedException")),
    ("rate_limit", aws(400, "ThrottlingException")),
    ("other", aws(400, "ValidationException")),
    ("key_refused", requests_like(401)),
    ("rate_limit", shaped("ClientResponseError", status=429)),
    ("key_refused", llm.ModelError("AuthenticationError: Incorrect API key [key removed]")),
    ("key_refused", behind(llm.ModelError("It failed"), openai_status(401))),
    # The network
    ("network", ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")),
    ("network", socket.gaierror(socket.EAI_NONAME, "Name or service not known")),
    ("network", ssl.SSLCertVerificationError("certificate verify failed")),
    ("network", OSError(errno.ENETUNREACH, "Network is unreachable")),
    ("network", OSError("All connection attempts failed")),
    ("network", httpx2.RemoteProtocolError("peer closed connection")),
    ("network", httpx2.UnsupportedProtocol("Request URL is missing 'http://'")),
    ("network", behind(RuntimeError("It failed"), httpx2.ReadError(""))),
    ("network", BaseExceptionGroup("tasks", [ConnectionResetError()])),
    ("network", llm.ModelError("Failed to connect to Ollama")),
    ("other", FileNotFoundError(errno.ENOENT, "No such file", "ca.pem")),
    ("other", PermissionError(errno.EACCES, "Permission denied", "key.txt")),
    ("other", OSError(errno.ENOSPC, "No space left on device")),
    # Time
    ("timeout", TimeoutError()),
    ("timeout", TimeoutError(errno.ETIMEDOUT, "Connection timed out")),
    ("timeout", httpx2.ReadTimeout("")),
    ("timeout", httpx2.ConnectTimeout("")),
    ("timeout", shaped("ReadTimeoutError")),
    ("timeout", behind(openai.APIConnectionError(request=REQUEST), httpx2.ReadTimeout(""))),
    # What came back could not be read
    ("bad_answer", json.JSONDecodeError("Expecting value", "<html>", 0)),
    ("bad_answer", UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")),
    ("bad_answer", KeyError("choices")),
    ("bad_answer", TypeError("'NoneType' object is not subscriptable")),
    ("bad_answer", httpx2.DecodingError("bad gzip")),
    # Others
    ("other", RuntimeError("Something odd")),
    ("other", ValueError("temperature")),
    ("other", Exception()),
]


@pytest.mark.parametrize(("kind", "error"), CASES, ids=lambda value: repr(value)[:70])
def test_kind_of_failure(kind: str, error: Exception) -> None:
    assert kind_of(error) == kind


def test_every_kind_has_a_label_and_a_case() -> None:
    assert set(LABELS) == set(get_args(FailureKind)) == {kind for kind, _ in CASES}


def raised_while_handling(error: Exception, handled: Exception, *, aside: bool) -> Exception:
    error.__context__, error.__suppress_context__ = handled, aside
    return error


def test_suppressed_exception_does_not_count() -> None:
    error = raised_while_handling(RuntimeError("Odd"), ConnectionResetError(), aside=True)

    assert kind_of(error) == "other"


def test_last_provider_error_counts_most() -> None:
    """The provider's last error counts more than what failed before."""
    first = httpx2.ReadTimeout("first attempt")

    assert kind_of(raised_while_handling(openai_status(401), first, aside=False)) == "key_refused"


class HostileError(Exception):
    """Raises when any attribute is read."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return super().__getattribute__(name)
        raise RuntimeError("No")

    def __str__(self) -> str:
        raise RuntimeError("No")


def test_uninspectable_exception_is_other() -> None:
    """An exception whose attributes cannot be read is of the kind "other"."""
    assert kind_of(HostileError()) == "other"
    assert "HostileError" in failure_message(HostileError(), "other")


def test_circular_causes_are_visited_once() -> None:
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first

    assert list(causes(first)) == [first, second]
    assert kind_of(first) == "other"


def test_endless_message_is_classified_quickly() -> None:
    assert kind_of(llm.ModelError("invalid api model key " * 100_000)) == "other"


# The message


def test_w3_cancelled_request_is_no_reason() -> None:
    """A timeout cancels the request, which says nothing about why it took so long."""
    error = behind(ResponseTimeoutError("timeout", 5), asyncio.CancelledError())
    assert failure_message(error, "timeout") == str(error)


def test_network_failure_message_has_its_causes() -> None:
    error = behind(
        openai.APIConnectionError(request=REQUEST),
        raised_while_handling(
            httpx2.ConnectError("All connection attempts failed"),
            ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed"),
            aside=True,
        ),
    )

    assert failure_message(error, "network") == (
        "Connection error. (All connection attempts failed; "
        f"ConnectionRefusedError: [Errno {errno.ECONNREFUSED}] Connect call failed)"
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (openai_status(401, "Incorrect API key"), "Incorrect API key"),
        (KeyError("choices"), "KeyError: 'choices'"),
        (httpx2.ReadTimeout(""), "ReadTimeout"),
        (ModelNotAllowedError(NOT_ALLOWED), "It is blocked"),
    ],
)
def test_message_has_the_type_where_it_helps(error: Exception, message: str) -> None:
    assert failure_message(error, "other") == message


@pytest.mark.parametrize("setting", ["timeout", "idle_timeout"])
def test_configured_timeout_is_a_timeout(setting: str) -> None:
    """A configured timeout is one, also if something else failed before."""
    error = ResponseTimeoutError(setting, 3)
    error.__cause__ = openai_status(429)

    assert kind_of(error) == "timeout"


def test_notes_are_part_of_the_message() -> None:
    error = llm.ModelError("It failed")
    error.add_note("Also, llm_prompt_context of plugin 'x' failed")

    assert failure_message(error, "other").splitlines() == [
        "It failed",
        "Also, llm_prompt_context of plugin 'x' failed",
    ]
