"""How an answer comes, and how much of it is taken."""

from __future__ import annotations

import asyncio
import json

import pytest

from datasette_llm.consultant.advice.answers import MAX_ANSWER_CHARS, complete_part
from datasette_llm.consultant.advice.consultation import ConsultationRequest, consult
from datasette_llm.consultant.advice.progress import AnswerGrows, ClaimChecked, ClaimRead, Step
from datasette_llm.testing import ScriptedModel
from tests.support.consultant import ANA, answer, answering, flag, rows_where
from tests.support.openai_server import BOUND_S

PETS = ConsultationRequest("data", "pets")


async def test_a8_progress_is_told(start_site, register_models):
    """Steps, an answer that grows, claims as read, then their verdicts."""
    text, gate = json.dumps(answer(flag(), flag(rows_where("ghost")))), asyncio.Event()
    register_models(ScriptedModel("scripted", [text[:30], gate, text[30:]]))
    site, events = await start_site(), []

    def on_progress(event):
        events.append(event)
        if isinstance(event, AnswerGrows):
            gate.set()

    async with asyncio.timeout(BOUND_S):
        done = await consult(site.datasette, PETS, ANA, on_progress=on_progress)
    assert [each.sentence for each in events if isinstance(each, Step)] == [
        "Profiling the table",
        "Looking for findings",
        "Looking for the model",
        "Waiting for the answer of scripted",
    ]
    grows = [each for each in events if isinstance(each, AnswerGrows)]
    assert grows[0] == AnswerGrows(30, 10)
    kinds = [type(each) for each in events if not isinstance(each, Step | AnswerGrows)]
    assert kinds == [ClaimRead, ClaimRead, ClaimChecked, ClaimChecked]
    flags, checks = done.row["advice"]["risk_flags"], done.row["checks"]
    assert [each.claim for each in events if isinstance(each, ClaimRead)] == flags
    assert [each.check for each in events if isinstance(each, ClaimChecked)] == checks
    assert [each["status"] for each in checks] == ["confirmed", "not_checkable"]


@pytest.mark.parametrize("ends", [True, False], ids=["ends", "endless"])
async def test_a7_no_more_than_a_bound_is_taken(start_site, register_models, ends):
    """Of an answer that goes on, complete claims are kept, and the model is stopped."""
    text = json.dumps(answer(*[flag(claim="Weights are negative " * 100)] * 200))
    assert len(text) > 2 * MAX_ANSWER_CHARS
    rest = [text[-100_000:]] if ends else [asyncio.Event()]
    model = ScriptedModel("scripted", [text[:-100_000], *rest])
    register_models(model)
    site = await start_site()
    async with asyncio.timeout(BOUND_S):
        done = await consult(site.datasette, PETS, ANA)
    row = done.row
    assert (row["outcome"], row["error_message"]) == ("ok", None)
    assert len(row["raw_answer"]) == MAX_ANSWER_CHARS
    assert len(row["checks"]) == len(row["advice"]["risk_flags"]) == 30
    assert row["rejected"][:2] == [
        "the answer: what follows the first 200,000 characters",
        row["rejected"][1],
    ]
    assert "more than the 30 that are kept" in row["rejected"][1]
    assert len((await site.rows())[0]["advice"]) < MAX_ANSWER_CHARS


async def test_a7_bound_holds_for_a_fast_answer(start_site, register_models):
    """One that has ended, without being JSON, before anyone looks at how long it is."""
    text = json.dumps(answer(flag()))[:-2]
    model = ScriptedModel("scripted", [f"{text}, " + "x" * MAX_ANSWER_CHARS])
    register_models(model)
    done = await consult((await start_site()).datasette, PETS, ANA)
    assert (done.row["outcome"], done.row["error_message"]) == ("ok", None)
    assert [each["status"] for each in done.row["checks"]] == ["confirmed"]


async def test_a7_endless_prose_is_a_failure(start_site, register_models):
    register_models(ScriptedModel("scripted", ["{" * (MAX_ANSWER_CHARS + 1), asyncio.Event()]))
    site = await start_site()
    async with asyncio.timeout(BOUND_S):
        done = await consult(site.datasette, PETS, ANA)
    assert done.row["outcome"] == "error"
    assert done.row["error_message"].startswith("The answer is longer than 200,000 characters")
    assert done.row["findings"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"a": 1, "b": [{"c": [{}]}, {"c": [{}], "d": "}', '{"a": 1, "b": [{"c": [{}]}]}'),
        ('Well: {"b": [{"c": "]}\\""}, {"c', '{"b": [{"c": "]}\\""}]}'),
        ('{"b": [{}, {}], "c": "x', '{"b": [{}, {}]}'),
    ],
)
def test_a7_beginning_of_json_is_closed(text, part):
    assert complete_part(text) == part
    json.loads(part)


async def test_a4_answer_to_a_question(start_site, register_models):
    ranked = {"kind": "top", "group_by": "kind", "function": "max", "column": "weight"}
    ranked |= {"any_of": [], "order": "largest", "limit": 2, "expected": "dog"}
    claim = flag(ranked, column=None, kind="answer", claim="The dog has the largest weight")
    register_models(answering(answer(claim)))
    found = await (await start_site()).ask(question="Which kind is the heaviest?")
    (check,) = found["checks"]
    assert (check["status"], check["result"]) == ("confirmed", [["dog", 13.0], ["cat", 4.0]])


async def test_a3_readers_see_no_other_private_table(start_site, register_models):
    """A consultation about a table that they may view, of an actor who may view more."""
    other = {"kind": "orphans", "column": "owner", "other_table": "secrets"}
    claims = [flag(other | {"other_column": "owner", "expected": 1}, column="owner"), flag()]
    register_models(answering(answer(*claims, reasoning_summary="Owners have SECRETS.")))
    site = await start_site()
    found = await site.ask(actor={"id": "eve"})
    assert found["checks"][0]["counted"] == 2
    address = f"/-/llm/consultations/{found['id']}"
    shown = (await site.get(f"{address}.json")).json()["consultation"]
    assert "secrets" not in json.dumps(shown).lower()
    assert shown["checks"][1] == found["checks"][1]
    assert "secrets" not in (await site.get(address)).text.lower()
    same = (await site.get(f"{address}.json", actor={"id": "eve"})).json()["consultation"]
    assert same["user_prompt"] == found["user_prompt"]
