"""Say why a server refused a request, in whatever shape it says so, and what to do about it.

The exceptions are those of openai's client, which plugins may know; their messages are ours.
"""

from __future__ import annotations

import asyncio
import html
import json
import os
import re
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

import httpx2
import openai

from ..redaction import MARK, cut
from ..sanitize import well_formed
from .exceptions import causes

MAX_REASON_CHARS = 500
# Of the body of a refusal; the rest is not read.
MAX_BODY_BYTES = 64 * 1024

_CLASSES: Mapping[int, type[openai.APIStatusError]] = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
}
# Where servers put their reason, the most telling first.
_REASONS = (
    *("error", "fault", "err", "message", "Message", "msg", "faultstring", "detail", "errors"),
    *("error_description", "error_message", "errorMessage", "error_msg", "status_msg"),
    *("base_resp", "title", "reason"),
)
_LOCATION = ("loc", "path", "field")
_TITLE = re.compile(r"<(title|h1)[^>]*>(.*?)</\1>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^>]+>")
_UNSEEN = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_SILENT: Mapping[type[Exception], str] = {httpx2.ConnectTimeout: "it did not answer in time"}

# The likely mistake behind a reason.
_TOO_LONG = re.compile(
    r"context.{0,20}(length|window|size)|maximum context|prompt is too long"
    r"|too many tokens(?!, please wait)"
    r"|exceeds? .{0,30}(context|token)|context_length_exceeded",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(
    r"model.{0,80}(not found|not exist|n't exist|not loaded|unloaded|no longer)|no models? loaded"
    r"|unknown model|model_not_found",
    re.IGNORECASE,
)
_NO_STREAM = re.compile(
    r"stream(ing)?\b.{0,40}(not (supported|allowed|available|implemented)|unsupported|disabled)"
    r"|(not support|unsupported).{0,40}\bstream",
    re.IGNORECASE,
)
_NO_SCHEMA = re.compile(r"json_schema|response_format|grammar", re.IGNORECASE)
_NO_TOOLS = re.compile(
    r"tool.{0,60}(not support|unsupported|not enabled|requires)"
    r"|(not support|unsupported).{0,40}tool|enable-auto-tool-choice",
    re.IGNORECASE,
)
_NO_PATH = re.compile(
    r"unexpected endpoint|not found|no route|cannot post|method not allowed|unknown (path|route)"
    r"|invalid url",
    re.IGNORECASE,
)
_STREAM_OPTIONS = re.compile("stream_options|include_usage")
_NO_TLS = re.compile("WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE")
_UNTRUSTED = re.compile("self.signed certificate|unable to get (local )?issuer")
_NUMBER = re.compile(r"^\[Errno -?\d+\] | \(_ssl\.c:\d+\)")
_UNKNOWN = re.compile(
    r"extra|permitted|allowed|forbidden|unknown|unrecogni[sz]ed|unexpected|invalid|support",
    re.IGNORECASE,
)


class Place(NamedTuple):
    """Where a request went.

    Attributes:
        host: host and port, as messages show them.
        has_version: whether the address ends with a version such as `/v1`.
        is_endpoint: whether its address is configured, in `endpoints` or in a file of llm's.
    """

    host: str
    has_version: bool
    is_endpoint: bool

    @classmethod
    def of(cls, url: httpx2.URL, *, is_endpoint: bool) -> Place:
        """The place of a base address."""
        host = url.netloc.decode("ascii", "replace").rpartition("@")[2]
        return cls(host, bool(re.search(r"/v\d", url.path)), is_endpoint)


def refusal(response: httpx2.Response, body: bytes, place: Place) -> openai.APIStatusError:
    """The exception for an HTTP status that is no success.

    Args:
        response: the response, whose body is not read from it.
        body: the beginning of its body.
        place: where it comes from.
    """
    status = response.status_code
    value = body_of(body)
    reason = reason_of(value) or _as_it_is(value)
    known = HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
    answered = f"The server at {place.host} answered {status} {known}".rstrip()
    sentence = f"{answered}: {reason}" if reason else answered
    advice = advice_for(reason, status, place)
    message = f"{sentence.rstrip('.')}. {advice}" if advice else sentence
    kind = _CLASSES.get(status)
    if kind is None:
        kind = openai.InternalServerError if status >= 500 else openai.APIStatusError
    inner = value.get("error", value) if isinstance(value, Mapping) else value
    return kind(message, response=_readable(response, body), body=inner)


def _readable(response: httpx2.Response, body: bytes) -> httpx2.Response:
    """A response with its body, for code that looks into the exception; without the key."""
    hidden = ("content-encoding", "content-length", "transfer-encoding", "set-cookie")
    headers = [(k, v) for k, v in response.headers.multi_items() if k.lower() not in hidden]
    request = httpx2.Request(response.request.method, response.request.url)
    return httpx2.Response(response.status_code, headers=headers, content=body, request=request)


def unreachable(error: Exception, place: Place) -> openai.APIConnectionError:
    """The exception for a request that got no answer, or half of one.

    Args:
        error: what the HTTP client raised.
        place: where the request went.
    """
    reasons = dict.fromkeys(filter(None, map(_cause, causes(error, suppressed=True))))
    reason = "; ".join(_telling(list(reasons))) or _SILENT.get(type(error), type(error).__name__)
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
        message = f"Could not connect to the server at {place.host}: {reason}"
        advice = _connecting_advice(reason, place)
        message = f"{message}. {advice}" if advice else message
    elif isinstance(error, httpx2.ReadTimeout):
        message = f"The server at {place.host} sent nothing for too long"
    elif isinstance(error, httpx2.DecodingError):
        message = f"The answer of the server at {place.host} cannot be decompressed: {reason}"
    else:
        message = f"The connection to the server at {place.host} broke: {reason}"
    request = httpx2.Request("POST", f"http://{place.host}/")  # without headers, and so keys
    if isinstance(error, httpx2.TimeoutException):
        timed_out = openai.APITimeoutError(request)
        timed_out.args, timed_out.message = (cut(message, MAX_REASON_CHARS),), message
        return timed_out
    return openai.APIConnectionError(message=cut(message, MAX_REASON_CHARS), request=request)


def _cause(error: BaseException) -> str:
    """The message of a cause: of a failed system call what it means, without addresses."""
    if isinstance(error, asyncio.CancelledError | ssl.SSLWantReadError):
        return ""  # how a timeout stops a connection
    if (
        isinstance(error, OSError)
        and not isinstance(error, ssl.SSLError)  # whose numbers are OpenSSL's
        and (error.errno or 0) > 0
        and not error.filename
    ):
        return os.strerror(error.errno or 0)
    return _NUMBER.sub("", str(error)).strip()


def _connecting_advice(reason: str, place: Place) -> str:
    """What to do about a connection that failed, where the likely mistake is known."""
    if not place.is_endpoint:
        return ""
    if _NO_TLS.search(reason):
        return "It probably speaks plain HTTP: set api_base to http://…"
    if _UNTRUSTED.search(reason):
        return "If this is the right server, set ca_file to the certificate to trust"
    return ""


def _telling(texts: list[str]) -> list[str]:
    """Reasons without those that only another one repeats or that say nothing."""
    said = [text for text in texts if text != "All connection attempts failed"]
    return [
        text for text in said or texts if not any(text != other and text in other for other in said)
    ]


def failed_answer(failure: str, body: object, place: Place, *, begun: bool) -> openai.APIError:
    """The exception for an answer with status 200 that holds an error.

    Args:
        failure: the reason.
        body: the event that holds it.
        place: where it comes from.
        begun: whether a part of the answer had come.
    """
    start = "The answer broke off" if begun else f"The server at {place.host} failed"
    advice = advice_for(failure, None, place)
    message = f"{start}: {failure.rstrip('.')}. {advice}" if advice else f"{start}: {failure}"
    inner = body.get("error", body) if isinstance(body, Mapping) else body
    request = httpx2.Request("POST", f"http://{place.host}/")  # without headers, and so keys
    return openai.APIError(message, request, body=inner)


def error_in(event: Mapping[str, Any]) -> str | None:
    """The reason of an error that an event or a whole answer holds; None where it is no error.

    Args:
        event: an object that a server sent with status 200.
    """
    error = event.get("error")
    if error:
        return reason_of(event) or _as_it_is(error) or "it gave no reason"
    if event.get("choices") is not None:
        return None
    says_error = event.get("object") == "error" or event.get("type") == "error"
    if says_error or event.get("detail") or event.get("errors") or _has_code(event):
        return reason_of(event) or "it gave no reason"
    return None


def _has_code(event: Mapping[str, Any]) -> bool:
    """Whether an event without an answer has the code of an error, as Alibaba's and MiniMax's."""
    code, base = event.get("code"), event.get("base_resp")
    if isinstance(base, Mapping) and base.get("status_code"):
        return True
    return isinstance(code, str) and code[:1].isalpha() and code.lower() not in ("success", "ok")


def body_of(body: bytes) -> Any:
    """The body of a refusal: values of JSON, or text; None where there is none."""
    text = body.decode("utf-8", "replace").lstrip("\ufeff").strip()
    if text.startswith(("data:", "event:")):
        text = text.partition("data:")[2].split("\n\n")[0].strip() or text
    try:
        return json.loads(text.removesuffix(MARK))
    except (ValueError, RecursionError):
        return text or None


def reason_of(value: object) -> str:
    """The reason that a body or an event gives, on one line; empty where it gives none.

    Args:
        value: values of JSON, or text.
    """
    return _short(_reason(value, 0))


def refuses_stream_options(error: openai.APIStatusError) -> bool:
    """Whether a server does not know the option that asks for the usage of a stream."""
    reason = str(error)
    about = _STREAM_OPTIONS.search(reason) and _UNKNOWN.search(reason)
    return error.status_code not in (401, 403, 429) and bool(about)


def advice_for(reason: str, status: int | None, place: Place) -> str:
    """What to do about a refusal, where the likely mistake is known; else an empty text.

    Args:
        reason: what the server says.
        status: the HTTP status; None for an answer with status 200.
        place: where it comes from.
    """
    if _TOO_LONG.search(reason):
        return "The prompt is too long for the model: shorten it, or use one with a larger context"
    if "no_db_connection" in reason or "No connected db" in reason:
        return "LiteLLM without a database says so of a key that it does not know; check the key"
    if _NO_STREAM.search(reason):
        return "Set can_stream: false for this endpoint" if place.is_endpoint else ""
    if not place.is_endpoint:
        return ""
    if _NO_SCHEMA.search(reason):
        return "If the server takes no JSON schemas, set supports_schema: false"
    if _NO_TOOLS.search(reason):
        return "If the server takes no tools, set supports_tools: false; vLLM needs a flag for them"
    if _NO_MODEL.search(reason):
        return (
            "Set model_name to a model that the server has loaded; GET /models of its api_base "
            "lists them"
        )
    lost = status in (404, 405) or (status is None and _NO_PATH.search(reason))
    if lost and not place.has_version:
        return "api_base probably lacks /v1 at its end"
    return "There is no chat/completions below its api_base; check the path" if lost else ""


def _reason(value: object, level: int) -> str:
    if isinstance(value, str):
        return _text_reason(value, level)
    if level > 5:
        return ""
    if isinstance(value, list):
        found = [reason for each in value[:5] if (reason := _reason(each, level + 1))]
        return "; ".join(dict.fromkeys(found))
    if isinstance(value, Mapping):
        reason = next(
            (text for name in _REASONS if (text := _reason(value.get(name), level + 1))), ""
        )
        return _with_more(value, reason, level) if reason else _code(value)
    return ""


def _short(text: str) -> str:
    return cut(" ".join(well_formed(text).split()), MAX_REASON_CHARS)


def _as_it_is(value: object) -> str:
    """What a body of an unknown shape says, where it says anything."""
    return _short(json.dumps(value)) if isinstance(value, Mapping) and value else ""


def _text_reason(text: str, level: int) -> str:
    """The reason in a text, which may be HTML, or JSON once more."""
    text = text.strip()
    if text.startswith(("{", "[")) and level < 4:
        try:
            return _reason(json.loads(text), level + 1) or text
        except (ValueError, RecursionError):
            return text
    if text[:1] == "<" and _TAG.match(text):
        seen = _UNSEEN.sub(" ", text)
        titles = (_plain(found.group(2)) for found in _TITLE.finditer(seen))
        plain = next(filter(None, titles), "") or _plain(seen)
        return f"a page of HTML, {plain!r}" if plain else "a page of HTML"
    return text


def _plain(markup: str) -> str:
    return " ".join(html.unescape(_TAG.sub(" ", markup)).split())


def _with_more(value: Mapping[str, Any], reason: str, level: int) -> str:
    """A reason with what OpenRouter's provider said, or with the field that it is about."""
    metadata = value.get("metadata")
    cause = _reason(metadata.get("raw"), level + 1) if isinstance(metadata, Mapping) else ""
    if cause and cause not in reason:
        return f"{reason}: {cause}"
    for name in _LOCATION:
        where = value.get(name)
        if isinstance(where, list):
            where = ".".join(str(each) for each in where)
        if isinstance(where, str) and where:
            return f"{reason} ({where})"
    return reason


def _code(value: Mapping[str, Any]) -> str:
    """What stands for a reason where there is none."""
    for name in ("code", "type", "status"):
        if isinstance(value.get(name), str) and value[name] != "error":
            return str(value[name])
    return ""
