"""Which failures are worth another attempt; pure functions over exceptions.

What failed decides, not the status alone: a quota that is used up is a 429, and a server that is
overloaded may say so inside a successful answer.
"""

from __future__ import annotations

import datetime
import re

from ..errors import FailureKind, LLMError, ProviderError, ResponseTimeoutError
from ..providers.exceptions import causes, header_of, status_of
from ..providers.failures import did_not_connect, kind_of
from ..sanitize import message_of
from .error_details import codes_of, text_of
from .retry_pauses import announces_pause

# RFC 9110 (408, 409), RFC 8470 (425), RFC 6585 (429); 529 is Anthropic's "overloaded".
RETRIED_STATUSES = frozenset({408, 409, 425, 429, *range(500, 600)})

# What no later attempt changes, whatever the status: a key, a model.
_FINAL_KINDS: frozenset[FailureKind] = frozenset(
    {"no_key", "key_refused", "unknown_model", "blocked", "not_allowed"}
)
# Codes as `codes_of()` has them. A quota, a budget, a prompt that is too long, a policy.
_FINAL_CODES = re.compile(
    r"(insufficient(quota|balance|credits?|funds)|quotaexceeded|exceededcurrentquota|paymentrequired"
    r"|billing(hardlimitreached|notactive)?|budgetexceeded|exceeded(token)?budget"
    r"|contextlengthexceeded|contextwindowexceeded|exceedcontextsize|stringabovemaxlength"
    r"|requesttoolarge|contentfilter|contentpolicyviolation|responsibleaipolicyviolation"
    r"|datainspectionfailed|contentmoderation)(error|exception)?"
)
_INVALID_CODES = re.compile(
    r"((invalid|bad)(request|argument|parameter|value)|validation|unprocessableentity"
    r"|missingrequiredparameter|unsupported(parameter|value))(error|exception)?"
)
_BUSY_CODES = re.compile(
    r"((engine|server)?overloaded|resourceexhausted|(user)?ratelimit(ed|exceeded|reached)?"
    r"|toomanyrequests|throttl(ing|ed)|(service|server)?unavailable|modelnotready)(error|exception)?"
)
# Only without an HTTP status of a failure, beside which some servers name everything so.
_BROKEN_CODES = re.compile(
    r"((internal)?server|internal|api|timeout|modelstream)(error|exception)|internal|deadlineexceeded"
)

_FINAL_WORDS = re.compile(
    r"budget (has been |was |is )?(exceeded|reached)|exceed\w*[^.]{0,40}budget|over budget"
    r"|max_answer_chars"  # our own bound, which the same answer would reach again
    r"|certificate.verify.failed|407 Proxy Authentication"
    r"|PerDay"  # a quota of Google's, which announces a pause that does not help
    r"|maximum context length|longer than [^.]{0,40}context"
    r"|context.?(length|window|size)[^.]{0,60}exceed"
    r"|exceed[^.]{0,80}(context.?(length|window|size)|maximum number of tokens|token count)"
    r"|(prompt|input|request|message)s? (is |are |was )?too (long|large)"
    r"|content (management |filter\w* )?policy|safety system|(flagged|blocked) (by|as)\b",
    re.I,
)
# Some providers say so of limits a minute, too.
_QUOTA_WORDS = re.compile(
    r"exceeded your [\w ]{0,30}(quota|credits)|quota[\w ]{0,20} (used up|exhausted|exceeded)"
    r"|out of (quota|credit)|(insufficient|not enough|no (more )?)[_ ]?(quota|balance|credit|fund)"
    r"|credit balance|billing (hard limit|(is )?not active)|(usage|spend(ing)?|monthly) limit",
    re.I,
)
_BUSY_WORDS = re.compile(
    r"overload|rate.?limit|too many requests|(over|at) capacity|capacity exceeded|throttl"
    r"|temporarily unavailable"
    r"|(server|model|service) (is )?(currently )?(busy|unavailable|loading)"
    r"|(try again|retry) (later|in|after)\b",
    re.I,
)


def is_transient(error: Exception) -> bool:
    """Whether the same request may well succeed a little later.

    Args:
        error: what the request failed with, before its first event.
    """
    if isinstance(error, ResponseTimeoutError):
        return error.setting == "idle_timeout"
    if isinstance(error, LLMError) and not isinstance(error, ProviderError):
        return False
    if header_of(error, "x-should-retry", of="response") == "false":
        return False  # the provider knows better, of a quota that is used up for example
    codes, text = codes_of(error), text_of(error)
    if _is_final(error, codes, text):
        return False
    if _named(codes, _BUSY_CODES):
        return True
    status = status_of(error)
    if _named(codes, _INVALID_CODES) and not _BUSY_WORDS.search(text):
        return False
    if status is not None and status >= 400:
        # Gateways to Bedrock answer 400 when they are throttled.
        busy = status == 400 and _BUSY_WORDS.search(text) is not None
        return busy or status in RETRIED_STATUSES
    return _broke_off(error, codes, text)


def requests_made(error: Exception) -> int:
    """How often the request was sent for this failure: the clients of some providers retry.

    Args:
        error: the failure. The clients that OpenAI, Anthropic and others generate with Stainless
            count in the header `x-stainless-retry-count`.
    """
    count = header_of(error, "x-stainless-retry-count", of="request") or ""
    return 1 + (int(count) if count.isascii() and count.isdigit() and len(count) < 4 else 0)


def _is_final(error: Exception, codes: frozenset[str], text: str) -> bool:
    if kind_of(error) in _FINAL_KINDS or any(map(_is_about_header, causes(error))):
        return True
    if _named(codes, _FINAL_CODES) or _FINAL_WORDS.search(text):
        return True
    is_quota = _QUOTA_WORDS.search(text) is not None
    return is_quota and not announces_pause(error, datetime.datetime.now(datetime.UTC))


def _named(codes: frozenset[str], pattern: re.Pattern[str]) -> bool:
    return any(map(pattern.fullmatch, codes))


def _is_about_header(error: BaseException) -> bool:
    """Whether a header cannot be sent, as with a key that holds a line break."""
    if isinstance(error, UnicodeEncodeError):
        return True
    return type(error).__name__ == "LocalProtocolError" and "header" in message_of(error)


def _broke_off(error: Exception, codes: frozenset[str], text: str) -> bool:
    """Whether a failure without a status of its own passes: inside a stream, or of the network."""
    if _named(codes, _BROKEN_CODES) or _BUSY_WORDS.search(text):
        return True
    if isinstance(error, ProviderError) and error.kind is not None:
        return error.kind in ("network", "timeout", "rate_limit")
    return did_not_connect(error)
