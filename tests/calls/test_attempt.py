"""One request: how long its answer may become."""

import llm
import pytest
from llm.parts import StreamEvent

from datasette_llm import ProviderError
from datasette_llm.providers.failures import kind_of
from datasette_llm.testing import ScriptedModel

from ..support.call_log import flushed_rows
from ..support.plugins import Accountant


def event(kind, chunk):
    return StreamEvent(type=kind, chunk=chunk, tool_call_id="t1")


@pytest.mark.parametrize(
    "chunks",
    [
        ["12345", "67890", "1"],
        ["x" * 11],
        [event("reasoning", "123456"), "12345"],
        [event("tool_call_name", "look"), event("tool_call_args", '{"a": 1}')],
        [""] * 11,
    ],
    ids=["text", "one chunk", "reasoning", "arguments", "empty chunks"],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_e12_answer_without_end_is_ended(site, plugin, chunks, stream):
    accountant = plugin(Accountant())
    model = ScriptedModel("m", [*chunks, "never read"])
    wrapped = await site(model, log=True, max_answer_chars=10).model("m")
    with pytest.raises(ProviderError, match=r"longer than 10 char.*max_answer_chars") as caught:
        await (await wrapped.prompt("Hi", stream=stream)).text()
    assert kind_of(caught.value) == "bad_answer"
    assert [call.outcome for call in model.calls] == ["cancelled"]  # closed, and not asked again
    assert (accountant.settled, accountant.released) == (0, 1)
    [row] = await flushed_rows(wrapped.route.datasette)
    assert (row["outcome"], row["error_type"]) == ("error", "ProviderError")


async def test_e12_bound_is_of_each_request(site):
    """An answer of just so many characters is one, and each step of a chain has its own bound."""
    call = llm.ToolCall(name="look", arguments={}, tool_call_id="t1")
    model = ScriptedModel("m", ["0123456789", call], ["0123456789"])
    reference = {"model": "m", "max_answer_chars": 10}
    chain = (await site(model, max_answer_chars=1, default_model=reference).model()).chain(
        "Hi", tools=[llm.Tool.function(lambda: "seen", name="look")]
    )
    assert await chain.text() == "0123456789 0123456789"


async def test_e12_fallback_has_its_own_bound(site):
    first, second = ScriptedModel("first", ["too long"]), ScriptedModel("second", ["Hello"])
    fallback = {"model": "second", "max_answer_chars": 5}
    llms = site(first, second, max_answer_chars=4, fallbacks=[fallback])
    response = await (await llms.model("first")).prompt("Hi")
    assert await response.text() == "Hello"
