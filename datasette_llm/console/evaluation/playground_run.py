"""What the playground sends, and what that would cost: each model on its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...access.quoting import quoted
from ...access.snapshot import find_model
from ...consultant.advice.prompt import tokens_estimate
from ...errors import HookError, LLMError
from ...facade import LLM
from ...hooks import dispatch
from ...log.cost import cost_columns
from ...log.totals import dollars
from ..markdown import as_html
from ..probe import Asked, Attempt, attempted
from .playground_request import MAX_CHARS, PlaygroundRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from datasette.app import Datasette

    Actor = Mapping[str, Any] | None
    Row = dict[str, Any]

TAG = "playground"
# A model that hangs must not keep the page without JavaScript from its end.
LIMIT_S = 300.0
# Of an answer, where no option limits it.
ANSWER_TOKENS = 500
_LIMITS = ("max_tokens", "max_output_tokens", "max_completion_tokens", "num_predict")


async def answer(
    datasette: Datasette,
    given: PlaygroundRequest,
    model: str,
    actor: Actor,
    on_text: Callable[[str], None],
) -> Row:
    """Ask one model, as a plugin would: policy, key, hooks, limits and call log apply.

    Args:
        datasette: the Datasette instance.
        given: what is sent; it has no problem.
        model: which of its models.
        actor: who asks.
        on_text: gets each piece of the answer, without keys, as it comes.

    Returns:
        The answer as in JSON; a failure is one, too.
    """
    asked = Asked(
        given.prompt,
        LIMIT_S,
        given.arguments(),
        tags={TAG: given.run},
        max_chars=MAX_CHARS,
        on_text=on_text,
    )
    with dispatch.answered_in_time():
        attempt = Attempt(datasette, model, given.purpose or None, actor, asked)
        return (await attempted(attempt)).payload()


async def answers(datasette: Datasette, given: PlaygroundRequest, actor: Actor) -> list[Row]:
    """Ask all models at once, and wait for the last."""
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(answer(datasette, given, model, actor, lambda _: None))
            for model in given.models
        ]
    return [task.result() for task in tasks]


async def shown(datasette: Datasette, found: Row) -> str:
    """An answer as HTML: its text as Markdown, without HTML of its own."""
    html = await asyncio.to_thread(as_html, found["text"])
    return str(html)


async def estimates(datasette: Datasette, given: PlaygroundRequest, actor: Actor) -> list[Row]:
    """What each model would cost, about; nothing is sent.

    Returns:
        For each its `input_tokens`, `answer_tokens`, and `cost_dollars`, which is None where the
        price is unknown; and its `problem`, why it cannot be asked, or None.
    """
    return [await _estimate(datasette, given, model, actor) for model in given.models]


async def _estimate(
    datasette: Datasette, given: PlaygroundRequest, model: str, actor: Actor
) -> Row:
    tokens = tokens_estimate(len((given.prompt + given.system).encode()))
    limits = [given.parsed_options().get(name) for name in _LIMITS]
    output = next((each for each in limits if isinstance(each, int) and each > 0), ANSWER_TOKENS)
    row = {"model": model, "input_tokens": tokens, "answer_tokens": output, "cost_dollars": None}
    purpose = given.purpose or None
    try:
        decision = await LLM(datasette).explain(model, purpose, actor)
        if not decision.available:
            return row | {"problem": await quoted(datasette, decision.reason)}
        snapshot, entry = await find_model(datasette, model)
    except (HookError, LLMError) as error:
        return row | {"problem": await quoted(datasette, str(error))}
    route = snapshot.for_purpose(purpose).route(entry.model_id)
    usage = {"input_tokens": tokens, "output_tokens": output}
    unknown = {"token_details": None, "resolved_model": None}
    cost = await asyncio.to_thread(
        cost_columns, usage | unknown, entry.model_id, route.price, exact=route.exact_price
    )
    return row | {"cost_dollars": dollars(cost["cost_nanodollars"]), "problem": None}
