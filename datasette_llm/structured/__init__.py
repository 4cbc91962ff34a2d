"""Structured output: prompts whose answer is an object that fits the caller's schema.

`schema` reads the caller's schema, `strict_schema` makes the schema that is sent,
`json_extraction` finds the JSON in an answer, `validation` checks it by the caller's schema, and
`request` sends the prompt, and once more if the answer does not fit.
"""

from __future__ import annotations

from .request import Answer, AsksForObjects, Structured, prompt_text, taken_answer
from .strict_schema import closed_schema
from .validation import Outline

__all__ = [
    "Answer",
    "AsksForObjects",
    "Outline",
    "Structured",
    "closed_schema",
    "prompt_text",
    "taken_answer",
]
