"""The tokens of calls as prices need them, for SQL: by price tier, with the cached ones.

Some models cost more for long prompts: from a number of tokens on, all of the request's tokens
have another price. Calls are added up between these numbers, so that a sum can be priced as exactly
as its calls.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from datasette.utils.sqlite import sqlite3

from .cost import usage_of

# After how many tokens of a prompt prices change, in the table of genai-prices.
TIERS = (0, 32_000, 100_000, 128_000, 199_999, 200_000, 256_000, 272_000, 512_000, 524_288)
# The SQL function, which has the kind of tokens as its first argument, and then the columns.
FUNCTION = "llm_priced_tokens"
COLUMNS = "input_tokens, output_tokens, token_details"
TIER = f"{FUNCTION}('tier', {COLUMNS})"
# SQL for the sums of `usage_schema.PRICED`: how many calls have tokens, and these.
SUMS = tuple(
    f"sum(cast({FUNCTION}('{kind}', {COLUMNS}) as real))"
    for kind in ("counted", "prompt", "cache_read", "cache_write")
)


def register(connection: sqlite3.Connection) -> None:
    """Let SQL on a connection use `FUNCTION`."""
    connection.create_function(FUNCTION, 4, _value, deterministic=True)


def _value(kind: str, *columns: Any) -> int | None:
    return _priced(columns).get(kind)


@lru_cache(maxsize=4)  # SQL asks for each kind of one call after the other
def _priced(columns: tuple[Any, Any, Any]) -> Mapping[str, int]:
    """The kinds of tokens of a call; none where they are unknown."""
    input_tokens, output_tokens, details = columns
    if input_tokens is None and output_tokens is None:
        return {}
    row = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    try:
        usage = usage_of(row | {"token_details": details})
    except (ValueError, RecursionError):  # not the JSON that we write
        usage = usage_of(row | {"token_details": None})
    prompt = usage["input_tokens"]
    return {
        "counted": 1,
        "tier": TIERS[max(0, bisect_left(TIERS, prompt) - 1)],
        "prompt": prompt,
        "cache_read": usage.get("cache_read_tokens", 0),
        "cache_write": usage.get("cache_write_tokens", 0),
    }
