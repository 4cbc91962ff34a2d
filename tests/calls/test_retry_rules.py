"""Which failures are retried, whatever client has raised them and whatever their status is."""

import json

import httpx2
import llm
import pytest

from datasette_llm import IncompleteAnswerError, ProviderError
from datasette_llm.calls.error_details import MAX_TEXT_CHARS, codes_of, fields_of, text_of
from datasette_llm.calls.retry_rules import is_transient


def refused(status: int | None, body: object, kind: str | None = None) -> ProviderError:
    """What the reader of endpoints raises."""
    return ProviderError("the server refused", kind=kind, status_code=status, body=body)


class ClientError(Exception):
    """What a provider's own client raises: status and body as attributes."""

    def __init__(self, message: str, status: int | None = None, body: object = None) -> None:
        super().__init__(message)
        self.status_code = status
        self.body = body


def error_of(**fields: object) -> dict[str, object]:
    """A body as most servers send it."""
    return {"error": fields}


GEMINI_MINUTE = {
    "error": {
        "code": 429,
        "message": "You exceeded your current quota, please check your plan and billing details.",
        "status": "RESOURCE_EXHAUSTED",
        "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "23s"}],
    }
}
GEMINI_DAY = json.loads(
    json.dumps(GEMINI_MINUTE).replace(
        '"details": [',
        '"details": [{"violations": [{"quotaId": "GenerateRequestsPerDayPerProject"}]}, ',
    )
)
OPENAI_QUOTA = "You exceeded your current quota, please check your plan and billing details."


def header_error(message: str) -> httpx2.LocalProtocolError:
    """As httpx refuses a header, behind the "Connection error" of a client."""
    error = httpx2.ConnectError("Connection error.")
    error.__cause__ = httpx2.LocalProtocolError(message)
    return error


PASSING = {
    "overloaded in a stream": refused(
        None, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    ),
    "429 in a stream": refused(429, error_of(code=429, message="slow down")),
    "rate limit in a 200": refused(200, error_of(type="rate_limit_exceeded", message="no")),
    "a text in a 200": refused(200, {"error": "The server is overloaded"}),
    "plain text": refused(503, "upstream connect error"),
    "server error in a stream": refused(None, error_of(type="server_error", code=None)),
    "throttled by AWS with 400": ClientError("x", 400, error_of(code="ThrottlingException")),
    "throttled behind a gateway": refused(
        400, {"detail": "An error occurred (ThrottlingException): Too many tokens, please wait"}
    ),
    "over capacity in a stream": refused(
        None, {"object": "error", "message": "Service tier capacity exceeded for this model."}
    ),
    "throttled, too many tokens": ClientError(
        "Too many tokens, please wait before trying again.", 429
    ),
    "a limit of tokens a minute": refused(
        429,
        error_of(
            type="rate_limit_error",
            message="This request would exceed your organization's rate limit of 40,000 input "
            "tokens per minute. Please reduce the prompt length or try again later.",
        ),
    ),
    "a limit with advertisement": refused(
        429,
        error_of(
            code="rate_limit_exceeded",
            message="Rate limit reached. Visit https://example.com/billing to raise it.",
        ),
    ),
    "a quota a minute": refused(429, GEMINI_MINUTE),
    "the same in a list": refused(429, [GEMINI_MINUTE]),
    "the same behind a gateway": refused(
        429, error_of(metadata={"raw": json.dumps(GEMINI_MINUTE)})
    ),
    "the same as llm-gemini says it": llm.ModelError(f"{OPENAI_QUOTA} Please retry in 23.4s."),
    "overloaded as llm-gemini says it": llm.ModelError(
        "The model is overloaded. Please try again later."
    ),
    "an invalid request that is a limit": refused(
        429, error_of(type="invalid_request_error", message="Rate limit reached")
    ),
    "broke off": IncompleteAnswerError("The answer broke off"),
    "reset": refused(None, None, "network"),
    "an empty body": refused(502, None),
}


@pytest.mark.parametrize("name", PASSING)
def test_w10_what_passes_is_retried(name):
    assert is_transient(PASSING[name])


FINAL = {
    "an answer that cannot be read": refused(None, None, "bad_answer"),
    "quota by code": refused(429, error_of(code="insufficient_quota", message=OPENAI_QUOTA)),
    "quota by message": ClientError(OPENAI_QUOTA, 429),
    "quota in a stream": refused(None, error_of(type="insufficient_quota")),
    "quota with a pause": refused(429, {**error_of(code="insufficient_quota"), "retry_after": 5}),
    "billing": refused(500, error_of(type="billing_error", message="no")),
    "credit balance": ClientError("Your credit balance is too low to access the API", 503),
    "no credits": refused(429, error_of(message="You have exceeded your monthly included credits")),
    "no balance": refused(503, error_of(message="Insufficient Balance")),
    "a quota a day": refused(429, GEMINI_DAY),
    "budget of LiteLLM": refused(
        429, error_of(message="Budget has been exceeded! Current cost: 1.2, Max budget: 1.0")
    ),
    "budget by type": refused(500, error_of(type="budget_exceeded", code="400")),
    "ExceededBudget": refused(429, error_of(message="ExceededBudget: User=x over budget.")),
    "context by code": refused(500, error_of(code="context_length_exceeded")),
    "context by type": refused(500, error_of(type="exceed_context_size_error")),
    "context by message": refused(
        500, error_of(message="This model's maximum context length is 2048 tokens. However, …")
    ),
    "too long in a stream": refused(None, error_of(message="prompt is too long: 210000 tokens")),
    "too large for the limit": refused(
        429, error_of(code="rate_limit_exceeded", message="Request too large for gpt-4o on TPM")
    ),
    "invalid request": refused(500, error_of(type="invalid_request_error", message="bad field")),
    "invalid request of vLLM": refused(None, {"type": "BadRequestError", "message": "no"}),
    "policy": refused(500, error_of(code="content_policy_violation")),
    "policy of Azure": refused(
        429, error_of(message="The prompt triggered Azure's content management policy")
    ),
    "no channel for a model": refused(503, error_of(code="model_not_found")),
    "a key of a stream": refused(None, error_of(type="authentication_error")),
    "a header": header_error("Illegal header value b'Bearer x\\n'"),
    "a header that is no ASCII": UnicodeEncodeError("ascii", "x", 0, 1, "no"),
    "context in an abort": ProviderError(
        "The server gave up: The input (5000) is longer than the model's context length (4096)",
        kind="network",
    ),
    "a certificate": ConnectionError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"),
    "a proxy's login": ConnectionError("407 Proxy Authentication Required"),
    "a plain 400": refused(400, None),
    "says nothing": refused(None, None),
    "nothing that is known": llm.ModelError("no"),
}


@pytest.mark.parametrize("name", FINAL)
def test_w10_what_stays_is_not_retried(name):
    assert not is_transient(FINAL[name])


def test_w10_header_of_the_client_is_the_network():
    assert is_transient(header_error("Can't send data when our state is ERROR"))


def test_w10_bodies_are_read_within_bounds():
    deep: object = {"code": "bottom"}
    for _ in range(2_000):
        deep = {"error": deep}
    error = refused(500, [deep, "x" * 1_000_000, {"code": 7, "type": "Over_Loaded-Error"}])
    assert codes_of(error) == {"overloadederror"}
    assert len(text_of(error)) <= MAX_TEXT_CHARS
    assert not list(fields_of(refused(500, "[" * 10_000)))
