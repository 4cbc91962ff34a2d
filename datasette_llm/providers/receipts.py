"""What a provider and a gateway before it call a request, and what the gateway says that it cost.

They say so in the headers of the response, in the answer, and in the exceptions of failures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ..events import Receipt
from .exceptions import header_of, part_of
from .finish_reasons import parts_of

# The provider's own, which LiteLLM passes on, before one of the server that was asked. Of OpenAI
# and most others, Anthropic, AWS and Azure.
_REQUEST_IDS = (
    *("llm_provider-x-request-id", "llm_provider-request-id"),
    *("x-request-id", "request-id", "x-amzn-requestid", "apim-request-id", "x-ms-request-id"),
)
# In an answer; the second is Gemini's, the others are Cohere's.
_RESPONSE_IDS = ("id", "responseId", "response_id", "generation_id")


def receipt_of(
    headers: Sequence[Mapping[str, str]],
    answer: object,
    error: BaseException | None,
    *,
    streamed: bool,
) -> Receipt:
    """The receipt of a request that has ended.

    Args:
        headers: those of its responses, of which the last one counts; empty where unknown.
        answer: what the model has put into `response.response_json`, or None.
        error: what the request failed with, or None.
        streamed: whether a stream was asked for.
    """
    header: Callable[[str], str | None] = _no_header
    if headers:
        header = headers[-1].get
    elif error is not None:
        header = partial(header_of, error, of="response")
    return Receipt(
        _response_id(answer),
        next(filter(None, map(header, _REQUEST_IDS)), None) or _request_id(answer),
        header("x-litellm-call-id"),
        header("x-litellm-model-id"),
        _cost(header("x-litellm-response-cost"), answer, streamed=streamed),
    )


def _no_header(_: str) -> None:
    return None


def _response_id(answer: object) -> Any:
    ids = (part_of(part, name) for part in parts_of(answer) for name in _RESPONSE_IDS)
    return next((each for each in ids if each and isinstance(each, str)), None)


def _request_id(answer: object) -> Any:
    return part_of(part_of(answer, "ResponseMetadata"), "RequestId")  # as of AWS's client


def _cost(header: str | None, answer: object, *, streamed: bool) -> object:
    """What an answer cost, as OpenRouter and LiteLLM say in its usage, or LiteLLM in a header."""
    if answer is None:
        return None
    cost = part_of(part_of(answer, "usage"), "cost")
    if isinstance(cost, int | float):
        return cost
    # Sent before the answer of a stream, where some versions have a zero.
    return None if streamed and not (header or "").strip("0.") else header
