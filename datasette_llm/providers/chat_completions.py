"""One request to a server that speaks OpenAI's protocol for chats, and the reading of its answer.

It stands in the place of the `execute()` of llm's `AsyncChat`, from which it takes the messages
and the options. llm's reader and openai's client under it take an answer for a good one at any
`[DONE]`, and fail at what many servers send.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import httpx2
import llm
import openai
from llm.default_plugins.openai_models import AsyncChat, redact_data
from llm.parts import Message, ReasoningPart, StreamEvent, ToolCallPart

from ..errors import IncompleteAnswerError, ProviderError
from ..redaction import MARK
from .activity import QUIET_IDLE_TIMEOUTS, activity
from .chat_reader import REASONING_DETAILS, REASONING_FIELD, ChatReader
from .connections import Learned, PooledClient
from .event_stream import DONE, KEEP_ALIVE, EventDecoder, Frame
from .server_errors import (
    MAX_BODY_BYTES,
    Place,
    failed_answer,
    reason_of,
    refusal,
    refuses_stream_options,
    unreachable,
)
from .tool_calls import EXTRA

# How long a finished answer waits for its usage, and for the end of the connection's turn.
LINGER_S = 0.8
# How long the body of a refusal may take; what has come by then is shown.
REFUSAL_S = 2.0

# How much may come, in events of any kind, without a part of the answer.
MAX_EMPTY_BYTES = 16 * 1024 * 1024

# Arguments of openai's `create()` that are not part of the body.
_NOT_SENT = ("extra_headers", "extra_query", "extra_body", "timeout")


class Target(NamedTuple):
    """Where a request goes.

    Attributes:
        client: openai's, for the address and the headers.
        http: sends it.
        place: the server, as messages name it.
        learned: what is known of the model there.
    """

    client: openai.AsyncOpenAI
    http: PooledClient
    place: Place
    learned: Learned


async def answer(
    model: AsyncChat,
    target: Target,
    prompt: llm.Prompt,
    stream: bool,
    response: llm.AsyncResponse,
    conversation: llm.AsyncConversation | None,
    about_caller: Mapping[str, Any],
) -> AsyncGenerator[StreamEvent, None]:
    """Send a request, and read its answer.

    Args:
        model: gives the messages and the options.
        target: where it goes.
        prompt: as llm's.
        stream: as llm's.
        response: gets usage, tool calls and a summary, as by llm.
        conversation: as llm's.
        about_caller: fields of the request; options of the same name take precedence.

    Raises:
        openai.APIError: the server refused it, could not be reached, or failed while answering.
        ProviderError: its answer cannot be used.
        IncompleteAnswerError: its answer is not complete.
    """
    if prompt.system and not model.allows_system_prompt:
        raise NotImplementedError("Model does not support system prompts")
    detail = getattr(prompt.options, "image_detail", None)
    messages = model.build_messages(prompt, conversation, image_detail=detail)
    _add_what_is_wanted_back(messages, prompt.messages)
    options = model.build_kwargs(prompt, stream)
    name = {"model": model.model_name or model.model_id}
    body = {**name, "messages": messages, "stream": stream, **about_caller, **options}
    reader = ChatReader(response, target.place, _call_ids(prompt.messages))
    http_response = await _sent(target, body)
    try:
        async for event in _read(http_response, reader, target):
            yield event
    finally:
        reader.summarize()
        response._prompt_json = redact_data({"messages": messages})  # noqa: SLF001  # as llm's models do
        await http_response.aclose()


async def _sent(target: Target, body: dict[str, Any]) -> httpx2.Response:
    """Send a request; without `stream_options` where the server does not know that.

    Raises:
        openai.APIError: the server refuses it, or cannot be reached.
    """
    if target.learned.refuses_stream_options:
        body.pop("stream_options", None)
    try:
        return await _sent_once(target, body)
    except openai.APIStatusError as error:
        if "stream_options" not in body or not refuses_stream_options(error):
            raise
    del body["stream_options"]
    http_response = await _sent_once(target, body)
    target.learned.refuses_stream_options = True
    return http_response


async def _sent_once(target: Target, body: Mapping[str, Any]) -> httpx2.Response:
    request = _request(target, body)
    refused: openai.APIStatusError | None = None
    unreached: openai.APIConnectionError | None = None
    try:
        # Bytes of headers, one by one, and "102 Processing" may come for ever.
        async with asyncio.timeout(activity.get().quiet_s):
            http_response = await target.http.send(request, stream=True)
        if http_response.is_success:
            return http_response
        try:
            refused = refusal(http_response, await _beginning(http_response), target.place)
        finally:
            await http_response.aclose()
    except TimeoutError:
        unreached = unreachable(httpx2.ReadTimeout(""), target.place)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        unreached = unreachable(error, target.place)
    # Outside `except`, since the context would hold the request with its key.
    raise refused or unreached or AssertionError("one of the two is there")


def _request(target: Target, body: Mapping[str, Any]) -> httpx2.Request:
    client = target.client
    sent = {name: value for name, value in body.items() if name not in _NOT_SENT}
    # Compression would hold back what is to be streamed.
    plain = {"accept-encoding": "identity"}
    headers = [plain, client.auth_headers, client.default_headers, body.get("extra_headers") or {}]
    return target.http.build_request(
        "POST",
        client.base_url.join("chat/completions"),
        params=_query({**client.default_query, **(body.get("extra_query") or {})}),
        headers=_merged(headers),
        content=json.dumps({**sent, **(body.get("extra_body") or {})}).encode(),
        timeout=httpx2.Timeout(600.0, connect=10.0, read=activity.get().quiet_s, pool=None),
    )


def _merged(several: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Headers of which later ones replace earlier ones, however they are spelled."""
    headers: dict[str, str] = {}
    for each in several:
        headers.update({k.lower(): v for k, v in each.items() if isinstance(v, str)})
    return headers


def _query(values: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return values or None  # an empty one would take away what the address has


async def _beginning(http_response: httpx2.Response) -> bytes:
    """The beginning of a body that says why; of one that breaks off or hangs what has come."""
    body = bytearray()
    try:
        async with asyncio.timeout(REFUSAL_S):
            async for data in http_response.aiter_bytes():
                body += data
                if len(body) > MAX_BODY_BYTES:
                    break
            else:
                return bytes(body)
    except (httpx2.HTTPError, TimeoutError):
        pass
    return bytes(body[:MAX_BODY_BYTES]) + MARK.encode() if body else b""


async def _read(
    http_response: httpx2.Response, reader: ChatReader, target: Target
) -> AsyncGenerator[StreamEvent, None]:
    """The events of an answer, until it is complete or the server has ended it."""
    stray = ""
    broken: Exception | None = None
    try:
        async for frame in _frames(http_response, reader):
            if frame.name == "error":
                said = frame.event or frame.text
                failure, begun = reason_of(said) or "it gave no reason", reader.said_something
                raise failed_answer(failure, said, target.place, begun=begun)
            if frame.event is not None:
                for event in reader.feed(frame.event):
                    yield event
            stray = stray or _stray(frame)
    except httpx2.HTTPError as error:
        broken = unreachable(error, target.place)
        if reader.said_something:
            broken = _broken_off(broken)
    except (openai.APIError, ProviderError) as error:
        broken, stray = error, ""
    if not reader.is_complete and stray:
        raise IncompleteAnswerError(_instead(stray, target.place, begun=reader.said_something))
    if broken is not None and not reader.is_over:
        raise broken  # outside `except`, since the context would hold the key
    for event in reader.finish(gives_reasons=target.learned.gives_reasons):
        yield event
    if reader.finish_reason is not None:
        target.learned.gives_reasons = True


async def _frames(http_response: httpx2.Response, reader: ChatReader) -> AsyncIterator[Frame]:
    """What the server sends, without keep-alives.

    Raises:
        ProviderError: it sends keep-alives alone for too long.
        httpx2.HTTPError: the connection breaks.
    """
    timing, decoder = activity.get(), EventDecoder()
    chunks = aiter(http_response.aiter_bytes())
    linger_s = min(LINGER_S, timing.quiet_s / (2 * QUIET_IDLE_TIMEOUTS))  # half an idle timeout
    quiet_since = time.monotonic()
    end: float | None = None
    data: bytes | None = b""
    parts = empty_bytes = 0
    broken: httpx2.HTTPError | None = None
    while data is not None:
        try:
            async with asyncio.timeout_at(end):
                data = await anext(chunks, None)
        except TimeoutError:
            return  # the answer is complete, and the connection stays open
        except httpx2.HTTPError as error:
            data, broken = None, error
        for frame in _decoded(decoder, data, broken):
            if timing.alive is not None:
                timing.alive()
            if frame is DONE:
                reader.is_done = True
            elif frame is not KEEP_ALIVE:
                quiet_since = time.monotonic()
                yield frame
        if data is not None:
            empty_bytes = empty_bytes + len(data) if parts == reader.parts else 0
            parts = reader.parts
            _check_progress(time.monotonic() - quiet_since, timing.quiet_s, empty_bytes)
        if not reader.is_over:
            end = None
        elif end is None:
            end = asyncio.get_running_loop().time() + linger_s
    if broken is not None:
        raise broken


def _decoded(
    decoder: EventDecoder, data: bytes | None, broken: httpx2.HTTPError | None
) -> Iterator[Frame]:
    """The frames that end with some bytes, or, for None, with the answer.

    Raises:
        ProviderError: one cannot be read, and not because the connection broke within it.
    """
    if data is not None:
        yield from decoder.feed(data)
        return
    try:
        yield from decoder.finish()
    except ProviderError:
        if broken is None:
            raise


def _check_progress(quiet_s: float, allowed_s: float, empty_bytes: int) -> None:
    """Refuse to wait on for a server that sends what is no answer."""
    if quiet_s > allowed_s:
        raise ProviderError(
            f"The server kept the connection open for {allowed_s:g} seconds without an event of "
            "its answer",
            kind="timeout",
        )
    if empty_bytes > MAX_EMPTY_BYTES:
        raise ProviderError(
            f"The server sent {MAX_EMPTY_BYTES // 2**20} MB without a part of its answer",
            kind="bad_answer",
        )


def _stray(frame: Frame) -> str:
    """What a frame says that is no part of an answer; for the case that none comes."""
    if frame.event is None:
        return reason_of(frame.text)
    if frame.event.get("choices") is None and not frame.event.get("usage"):
        return reason_of(frame.event)
    return ""


def _instead(stray: str, place: Place, *, begun: bool) -> str:
    if begun:
        return f"The answer broke off: the server at {place.host} ended it with {stray}"
    return (
        f"The server at {place.host} sent no answer, but {stray}. Is its address right, and is "
        "no login in between?"
    )


def _broken_off(error: openai.APIConnectionError) -> openai.APIConnectionError:
    error.args = (f"The answer broke off. {error.message}",)
    return error


def _call_ids(messages: list[Message]) -> Iterator[str]:
    for message in messages:
        for part in message.parts:
            if isinstance(part, ToolCallPart) and part.tool_call_id:
                yield part.tool_call_id


def _add_what_is_wanted_back(sent: list[dict[str, Any]], messages: list[Message]) -> None:
    """Put into messages what providers hung on tool calls, and what was thought before them.

    Gemini wants its `extra_content` back with each call, for good; thinking models such as those
    of DeepSeek and Kimi want their reasoning until the next turn of the user.

    Args:
        sent: the messages as they are to be sent, changed in place.
        messages: what they were made of.
    """
    extras: dict[str, Any] = {}
    thoughts: dict[str, dict[str, Any]] = {}
    for message in messages:
        if message.role == "user":
            thoughts.clear()
        calls = [part for part in message.parts if isinstance(part, ToolCallPart)]
        for call in calls:
            if call.tool_call_id and call.provider_metadata and EXTRA in call.provider_metadata:
                extras[call.tool_call_id] = call.provider_metadata[EXTRA]
        if calls and calls[0].tool_call_id:
            thoughts[calls[0].tool_call_id] = _thought(message)
    if not extras and not any(thoughts.values()):
        return
    for each in sent:
        calls_sent = each.get("tool_calls") or []
        for call_sent in calls_sent:
            if call_sent["id"] in extras:
                call_sent[EXTRA] = extras[call_sent["id"]]
        if calls_sent:
            each.update(thoughts.get(calls_sent[0]["id"], {}))


def _thought(message: Message) -> dict[str, Any]:
    """The reasoning of a message, in the fields in which it came."""
    found: dict[str, Any] = {}
    name, texts = None, []
    for part in message.parts:
        if isinstance(part, ReasoningPart):
            metadata = part.provider_metadata or {}
            name = name or metadata.get(REASONING_FIELD)
            texts.append(part.text)
            if REASONING_DETAILS in metadata:
                found[REASONING_DETAILS] = metadata[REASONING_DETAILS]
    if name:
        found[name] = "".join(texts)
    return found
