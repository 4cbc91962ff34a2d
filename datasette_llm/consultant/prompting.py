"""What a model is sent, to the letter, and about how much that is."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..log.cost import cost_columns
from ..log.values import well_formed

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ..config import PriceSettings

# Prose has a token for every four bytes or so; JSON, which most of a prompt is, has more. No
# provider's own tokenizer works without a download, so this is rather too many than too few.
BYTES_PER_TOKEN = 3
# What an answer is taken to have, for its cost.
ANSWER_TOKENS = 1_500
HOW = (
    f"a token for every {BYTES_PER_TOKEN} bytes of both prompts and the schema, and "
    f"{ANSWER_TOKENS:,} tokens of answer; prices as configured, else from genai-prices"
)

_BEGIN, _END = "<profile>", "</profile>"


@dataclass(frozen=True, slots=True)
class Prompts:
    """Both prompts of a consultation.

    Attributes:
        system: what the model is told to do.
        user: the question and the profile.
    """

    system: str
    user: str

    def digest(self, model_id: str | None) -> str:
        """What tells this from every other consultation that could be sent."""
        parts = json.dumps([self.system, self.user, model_id])
        return hashlib.sha256(parts.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Estimate:
    """About how much a consultation is.

    Attributes:
        input_tokens: of both prompts and the schema.
        answer_tokens: of the answer, which nobody knows before.
        cost_nanodollars: of both; None where the price is unknown.
        how: how these were found, as a sentence.
    """

    input_tokens: int
    answer_tokens: int
    cost_nanodollars: int | None
    how: str = HOW


def user_prompt(profile: Mapping[str, Any], question: str | None) -> str:
    """The profile as delimited data, and the question.

    No text of the profile can hold the delimiters, since it has no angle brackets: JSON can
    write them otherwise.
    """
    asked = f"The person's question: {_within(question)}\n\n" if question else ""
    return f"{asked}{_BEGIN}\n{_within(profile)}\n{_END}\n"


def _within(value: object) -> str:
    text = well_formed(json.dumps(value, ensure_ascii=False, indent=None))
    return text.replace("<", "\\u003c").replace(">", "\\u003e")


def input_tokens(prompts: Prompts, schema: type[BaseModel]) -> int:
    """About how many tokens the prompts and the schema have; see `HOW`."""
    parts = (prompts.system, prompts.user, json.dumps(schema.model_json_schema()))
    return math.ceil(sum(len(part.encode()) for part in parts) / BYTES_PER_TOKEN)


async def estimate(
    prompts: Prompts,
    schema: type[BaseModel],
    model_id: str | None,
    price: PriceSettings | None = None,
    *,
    exact: bool = False,
) -> Estimate:
    """About how much a consultation is.

    Args:
        prompts: what would be sent.
        schema: what is asked for.
        model_id: who would be asked; None where there is nobody.
        price: the configured price, or None.
        exact: whether only its very name has a public price; see `cost_columns`.
    """
    tokens = input_tokens(prompts, schema)
    if model_id is None:
        return Estimate(tokens, ANSWER_TOKENS, None)
    row: dict[str, Any] = {"input_tokens": tokens, "output_tokens": ANSWER_TOKENS}
    row |= {"token_details": None, "resolved_model": None}
    # In a thread, since the table of prices is slow to load.
    cost = await asyncio.to_thread(cost_columns, row, model_id, price, exact=exact)
    return Estimate(tokens, ANSWER_TOKENS, cost["cost_nanodollars"])
