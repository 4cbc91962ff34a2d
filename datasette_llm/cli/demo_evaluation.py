"""The demo's evaluation: recorded questions, asked again of two scripted models."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any

import llm

from ..evaluation import run, store
from ..evaluation.definition import Definition
from ..evaluation.sources import read_cases
from ..testing import ScriptedModel, registered
from .demo_calls import ANSWERED, COMMON, QUESTIONS, DemoError, without_warnings
from .demo_data import BERTHS, SHIPS, pick

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datasette.app import Datasette

# Priced by the table that comes with the library, so that the costs can be compared.
_FAST, _FASTER = "gpt-4o-mini", "gpt-4.1-nano"
_CASES = 40
_SEED = 1880
_MAX_CHARS = 100


async def write_evaluation(datasette: Datasette, actor: Mapping[str, Any]) -> str:
    """Have two scripted models answer recorded questions, and give the evaluation's id.

    Args:
        datasette: it has been started, with the calls in its log.
        actor: who asks.
    """
    definition = Definition.of(
        {
            "name": "A cheaper model for the harbour's questions",
            "purpose": QUESTIONS,
            "candidates": [_FAST, _FASTER],
            "cases": {"calls": {"model": COMMON, "limit": _CASES, "seed": _SEED}},
            "checks": ["not-empty", "finished", {"max_chars": _MAX_CHARS}],
            "concurrency": 2 * _CASES,
        }
    )
    random, left_out = Random(_SEED), Counter[str]()
    scripted = (
        ScriptedModel(_FAST, *(_script(random, 0.3, 0.7) for _ in range(_CASES))),
        ScriptedModel(_FASTER, [_too_long()], *(_script(random, 0.1, 0.5) for _ in range(_CASES))),
    )
    with registered(*scripted), without_warnings():
        cases = read_cases(datasette, definition, left_out)
        evaluation = await store.create(datasette, definition, cases, left_out, actor)
        await run.start(datasette, evaluation, actor).ended()
    return evaluation.id


def _script(random: Random, low_s: float, high_s: float) -> Sequence[Any]:
    """An answer after a while, short enough that the demo need not be waited for."""
    text = pick(random, ANSWERED).format(ship=pick(random, SHIPS), berth=pick(random, BERTHS)[0])
    usage = llm.Usage(input=random.randrange(800, 1_300), output=random.randrange(60, 160))
    return [random.uniform(low_s, high_s), text, usage]


def _too_long() -> Exception:
    return DemoError("This model's maximum context length is 128000 tokens", 400)
