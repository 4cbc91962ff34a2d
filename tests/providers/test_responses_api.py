"""How answers of OpenAI's Responses API end, over a real connection."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from datasette.app import Datasette

from datasette_llm import LLM, IncompleteAnswerError

from ..support.call_log import flushed_rows
from ..support.dialects import document, http, sse
from ..support.openai_server import Drop
from ..support.waiting import soon

MODEL = "gpt-5-nano"
USAGE = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
USAGE |= {"input_tokens_details": {"cached_tokens": 0}}
USAGE |= {"output_tokens_details": {"reasoning_tokens": 0}}


@pytest.fixture
async def datasette(server: Any, make_datasette: Any, monkeypatch: pytest.MonkeyPatch) -> Datasette:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("DATASETTE_SECRETS_OPENAI_API_KEY", "sk-openai-0123456789")
    datasette: Datasette = make_datasette({"retries": 0})
    await datasette.invoke_startup()
    return datasette


def answer(status: str, text: str | None = None, **more: Any) -> dict[str, Any]:
    said = {"type": "output_text", "text": text, "annotations": []}
    message = {"type": "message", "id": "m", "role": "assistant", "status": status}
    output = [] if text is None else [message | {"content": [said]}]
    fixed = {"object": "response", "created_at": 1, "model": MODEL, "tools": []}
    fixed |= {"parallel_tool_calls": True, "tool_choice": "auto", "usage": USAGE}
    return {"id": "resp_1", "status": status, "output": output, **fixed, **more}


def delta(text: str) -> dict[str, Any]:
    place = {"item_id": "m", "output_index": 0, "content_index": 0, "logprobs": []}
    return {"type": "response.output_text.delta", "delta": text, "sequence_number": 1, **place}


def end(status: str, **more: Any) -> dict[str, Any]:
    return {"type": f"response.{status}", "sequence_number": 2, "response": answer(status, **more)}


async def ask(datasette: Datasette, *, stream: bool = True) -> str:
    model = await LLM(datasette).model(MODEL)
    return await soon((await soon(model.prompt("Hi", stream=stream))).text())


async def row_of(datasette: Datasette) -> dict[str, Any]:
    (row,) = await flushed_rows(datasette)
    return row


async def test_w2_complete_answer(server: Any, datasette: Datasette) -> None:
    server.play([sse(delta("Hel"), delta("lo"), end("completed", text="Hello"))])
    assert await ask(datasette) == "Hello"
    row = await row_of(datasette)
    assert (row["outcome"], row["finish_reason"], row["output_tokens"]) == ("ok", "stop", 3)


@pytest.mark.parametrize(
    ("reason", "finish_reason"),
    [("max_output_tokens", "length"), ("content_filter", "content_filter")],
)
async def test_w2_cut_off_answer_says_why(
    server: Any, datasette: Datasette, reason: str, finish_reason: str
) -> None:
    details = {"incomplete_details": {"reason": reason}}
    server.play([sse(delta("Hel"), end("incomplete", text="Hel", **details))])
    assert await ask(datasette) == "Hel"
    row = await row_of(datasette)
    assert (row["finish_reason"], row["output_tokens"]) == (finish_reason, 3)


FAILED = end("failed", error={"code": "rate_limit_exceeded", "message": "Slow down"})
ERROR = {"type": "error", "code": "server_error", "message": "Out of memory", "param": None}
ERROR |= {"sequence_number": 2}


@pytest.mark.parametrize(
    ("last", "message", "kind"),
    [(FAILED, "Slow down", "rate_limit"), (ERROR, "Out of memory", "other")],
)
async def test_w3_failed_answer_is_an_error(
    server: Any, datasette: Datasette, last: dict[str, Any], message: str, kind: str
) -> None:
    server.play([sse(delta("Hel"), last)])
    with pytest.raises(openai.APIError, match=f"The answer broke off: {message}"):
        await ask(datasette)
    row = await row_of(datasette)
    assert (row["outcome"], row["failure_kind"]) == ("error", kind)


async def test_w3_failed_whole_answer_is_an_error(server: Any, datasette: Datasette) -> None:
    server.play([document(FAILED["response"])])
    with pytest.raises(openai.APIError, match="failed: Slow down"):
        await ask(datasette, stream=False)


@pytest.mark.parametrize("script", [[sse(delta("Hel"))], [sse()], [http(b"")], [Drop.CLOSE]])
async def test_w3_answer_without_an_end(
    server: Any, datasette: Datasette, script: list[Any]
) -> None:
    server.play(script)
    with pytest.raises((IncompleteAnswerError, openai.APIConnectionError)):
        await ask(datasette)
    assert (await row_of(datasette))["failure_kind"] == "network"
