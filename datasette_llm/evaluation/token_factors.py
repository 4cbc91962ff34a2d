"""By how much models count other tokens than a recorded one, where both answered the same cases."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from datasette.utils.sqlite import sqlite3

from ..log import priced_tokens
from . import schema

# Fewer cases say little.
MIN_CASES = 10
# The newest evaluations, the first cases of each, and answers in all: what is read at most.
MAX_EVALUATIONS = 50
MAX_CASES = 500
MAX_ANSWERS = 5_000
_PROMPT_TOKENS = f"{priced_tokens.FUNCTION}('prompt', {priced_tokens.COLUMNS})"
# A model that has answered a case twice, with other options, counts once.
_FACTORS = f"""
    with answers as materialized (
        select a.evaluation_id, a.case_number, a.call_id
        from (select id from llm_evaluations order by id desc limit {MAX_EVALUATIONS}) as e
        cross join llm_evaluation_answers as a indexed by llm_evaluation_answers_figures
            on a.evaluation_id = e.id and a.candidate in (0, 1, 2, 3, 4)
            and a.case_number <= {MAX_CASES} and a.outcome = 'ok'
        limit {MAX_ANSWERS}
    ), counted as materialized (
        select evaluation_id, case_number, model_id,
            avg({_PROMPT_TOKENS}) as input_tokens, avg(output_tokens) as output_tokens
        from answers cross join llm_calls on llm_calls.id = answers.call_id
        where cached_from is null and input_tokens is not null and output_tokens is not null
        group by 1, 2, 3
    )
    select recorded.model_id, other.model_id, count(*),
        sum(other.input_tokens) / nullif(sum(recorded.input_tokens), 0),
        sum(other.output_tokens) / nullif(sum(recorded.output_tokens), 0)
    from counted as recorded join counted as other using (evaluation_id, case_number)
    where recorded.model_id in (select value from json_each(?))
        and other.model_id <> recorded.model_id
    group by 1, 2 having count(*) >= {MIN_CASES}
"""


class Factor(NamedTuple):
    """The tokens of a model by those of the recorded one, over the cases that both answered.

    Attributes:
        input_tokens: of the prompts, cached parts included.
        output_tokens: of the answers.
        cases: how many.
    """

    input_tokens: float
    output_tokens: float
    cases: int

    def payload(self, recorded_id: str) -> dict[str, Any]:
        """It as JSON.

        Args:
            recorded_id: the recorded model.
        """
        return {
            "model_id": recorded_id,
            "input_tokens": round(self.input_tokens, 4),
            "output_tokens": round(self.output_tokens, 4),
            "cases": self.cases,
        }


Factors = Mapping[tuple[str, str], Factor]


def token_factors(connection: sqlite3.Connection, recorded_ids: Iterable[str]) -> Factors:
    """The factors that evaluations give, from the newest answers that no cache has given.

    Args:
        connection: a connection for reading.
        recorded_ids: the models that they are for.

    Returns:
        The factor of each recorded and each other model; nothing for fewer than `MIN_CASES`.
    """
    if not schema.has_tables(connection):
        return {}
    priced_tokens.register(connection)
    found = connection.execute(_FACTORS, [json.dumps(list(recorded_ids))])
    return {
        (recorded_id, other_id): Factor(input_tokens, output_tokens, cases)
        for recorded_id, other_id, cases, input_tokens, output_tokens in found
        if input_tokens is not None and output_tokens is not None
    }
