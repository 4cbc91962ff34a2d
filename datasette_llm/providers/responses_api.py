"""OpenAI's Responses API: how an answer ended, which llm's reader sees of complete answers only.

llm reads the stream, and passes over the events of an answer that failed or was cut off, so that
half an answer would be a success.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Any

from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseErrorEvent,
    ResponseFailedEvent,
    ResponseIncompleteEvent,
)

from ..errors import IncompleteAnswerError
from .server_errors import Place, failed_answer

if TYPE_CHECKING:
    import openai


def watch(client: openai.AsyncOpenAI, place: Place) -> None:
    """Have a client raise what answers of the Responses API failed with.

    Args:
        client: of one request.
        place: where its requests go.
    """
    responses: Any = client.responses
    responses.create = partial(_create, responses.create, place)


async def _create(create: Any, place: Place, **arguments: Any) -> Any:
    answer = await create(**arguments)
    if isinstance(answer, Response):
        _check(answer, place, begun=False)
        return answer
    return _events(answer, place)


async def _events(stream: Any, place: Place) -> AsyncIterator[Any]:
    """The events of an answer; one that was cut off ends as one that is complete.

    Raises:
        openai.APIError: the answer failed.
        IncompleteAnswerError: it has no end.
    """
    begun = ended = False
    async with stream:
        async for event in stream:
            match event:
                case ResponseErrorEvent():
                    failure = event.message or event.code or "it gave no reason"
                    raise failed_answer(failure, event.model_dump(), place, begun=begun)
                case ResponseFailedEvent():
                    _check(event.response, place, begun=begun)
                case ResponseIncompleteEvent():
                    # Its status becomes the finish reason.
                    whole = {**dict(event), "type": "response.completed"}
                    event = ResponseCompletedEvent.model_construct(**whole)
            begun = begun or event.type.endswith(".delta")
            ended = ended or isinstance(event, ResponseCompletedEvent)
            yield event
    if not ended:
        what = "ended it without calling it complete" if begun else "sent no answer"
        raise IncompleteAnswerError(f"The answer broke off: the server at {place.host} {what}")


def _check(answer: Response, place: Place, *, begun: bool) -> None:
    """Raise what an answer failed with."""
    if answer.status == "failed":
        error = answer.error
        failure = error.message if error is not None else "it gave no reason"
        raise failed_answer(failure, error and error.model_dump(), place, begun=begun)
