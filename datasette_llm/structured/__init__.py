"""Structured output: prompts whose answer is an object that fits the caller's schema.

The parts: `schemas` is what the caller gives, `closing` makes of it what is sent, `reading`
finds the JSON in an answer, `validating` checks it by the caller's own rules, and `asking`
prompts, twice if it must.
"""

from __future__ import annotations

from .request import AsksForObjects, Structured, prompt_text
from .strict_schema import closed_schema

__all__ = ["AsksForObjects", "Structured", "closed_schema", "prompt_text"]
