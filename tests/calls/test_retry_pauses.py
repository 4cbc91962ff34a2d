"""How long a provider asks to wait, in all the ways in which providers do."""

from datetime import UTC, datetime, timedelta

import pytest

from datasette_llm import ProviderError
from datasette_llm.calls.retry_pauses import retry_after_s

NOW = datetime(2026, 10, 21, 7, 28, tzinfo=UTC)
IN_30_S = "Wed, 21 Oct 2026 07:28:30 GMT"


def pause(status: int = 429, body: object = None, message: str = "no", **headers: str):
    """What the pause after a failure is; underscores are hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    error = ProviderError(message, status_code=status, headers=named, body=body)
    return retry_after_s(error, NOW)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        (" 7 ", 7),
        ("1.5s", 1.5),
        ("500ms", 0.5),
        ("2m", 120),
        ("6m0s", 360),
        ("1h2m3.5s", 3723.5),
        ("20 seconds", 20),
        ("1 minute 5 sec", 65),
        (IN_30_S, 30),
        ("Wednesday, 21-Oct-26 07:28:30 GMT", 30),
        ("2026-10-21T07:28:30Z", 30),
        ("2026-10-21T07:28:30", 30),
        (str(int(NOW.timestamp()) + 30), 30),
        (str((int(NOW.timestamp()) + 30) * 1000), 30),
        ("2, 5", 5),
        (f"2, {IN_30_S}", 30),
        (f"{IN_30_S}, 2", 30),
        ("2, nonsense", 2),
    ],
)
def test_w10_retry_after_in_all_spellings(value, seconds):
    assert pause(retry_after=value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", ["", "soon", "nan", "-1", "0", "-5s", "5 parsecs", "1e", "٣s", ",", "1.5.2s", "5s!"]
)
def test_w10_bad_values_are_ignored(value):
    assert pause(retry_after=value) is None
    assert pause(retry_after_ms=value) is None
    assert pause(x_ratelimit_reset_requests=value) is None
    assert pause(body={"retryDelay": value}) is None
    assert pause(retry_after_ms=value, retry_after="3") == 3


def test_w10_milliseconds_come_first():
    assert pause(retry_after_ms="1500", retry_after="2") == 1.5
    assert pause(retry_after_ms="1500ms") == 1.5


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-ratelimit-reset-requests": "1s"}, 1),
        ({"x-ratelimit-reset-tokens": "6m0s"}, 360),
        ({"x-ratelimit-reset-requests": "20ms", "x-ratelimit-reset-tokens": "3s"}, 3),
        (
            {
                "x-ratelimit-reset-requests": "8h",
                "x-ratelimit-remaining-requests": "13999",
                "x-ratelimit-reset-tokens": "3s",
                "x-ratelimit-remaining-tokens": "0",
            },
            3,
        ),
        # Too few tokens are left for this request: none is reached, the near one is waited for.
        (
            {
                "x-ratelimit-reset-requests": "8h",
                "x-ratelimit-remaining-requests": "13999",
                "x-ratelimit-reset-tokens": "3s",
                "x-ratelimit-remaining-tokens": "120",
            },
            3,
        ),
        ({"x-ratelimit-reset": str(int(NOW.timestamp()) + 9)}, 9),
        ({"x-ratelimit-reset": str((int(NOW.timestamp()) + 9) * 1000)}, 9),
        ({"ratelimit-reset": "9"}, 9),
        ({"anthropic-ratelimit-input-tokens-reset": "2026-10-21T07:28:09Z"}, 9),
        ({"anthropic-ratelimit-requests-reset": "2026-10-21T07:27:09Z"}, None),
    ],
)
def test_w10_reset_of_a_rate_limit(headers, seconds):
    error = ProviderError("no", status_code=429, headers=headers)
    found = retry_after_s(error, NOW)
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_w10_broken_server_is_not_a_rate_limit():
    assert pause(500, x_ratelimit_reset_tokens="6m0s") is None
    assert pause(500, retry_after="6") == 6


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"details": [{"violations": []}, {"retryDelay": "23s"}]}},
        [{"error": {"details": [{"retryDelay": "23s"}]}}],
        {"error": {"metadata": {"raw": '{"error": {"details": [{"retryDelay": "23s"}]}}'}}},
        {"error": {"retry_delay": {"seconds": 23}}},
        {"retry_after": 23},
        {"retryAfterMs": 23_000},
    ],
)
def test_w10_retry_info_of_a_body(body):
    assert pause(body=body) == 23
    assert pause(body=body, x_ratelimit_reset_requests="5s") == 23
    assert pause(body=body, retry_after="4") == 4


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Rate limit reached. Please try again in 7m12.5s. See …", 432.5),
        ("Please try again in 20ms.", 0.02),
        ("Please retry after 6 seconds.", 6),
        ("Please retry in 23.38s.", 23.38),
        ("Try again in a moment", None),
    ],
)
def test_w10_pause_of_a_message(message, seconds):
    assert pause(message=message) == seconds
    assert pause(body={"error": {"message": message}}) == seconds


def test_w10_far_dates_do_not_break():
    assert pause(retry_after="9999-12-31T23:59:59Z") > timedelta(days=365).total_seconds()
    assert pause(retry_after="9" * 400) > 1e100
