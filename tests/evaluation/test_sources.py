"""Cases from recorded calls, rows, and lines of JSON."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import llm
import pytest
from datasette.app import Datasette
from datasette.database import Database

from datasette_llm import LLM, Case
from datasette_llm.evaluation import templates
from datasette_llm.evaluation.definition import Definition, EvaluationError
from datasette_llm.evaluation.estimate import estimate
from datasette_llm.evaluation.sources import NO_CONTENT, read_cases
from datasette_llm.log.recorder import Recorder
from datasette_llm.testing import ScriptedModel

Make = Callable[..., Datasette]


async def read(datasette: Datasette, source: Any, **more: Any) -> tuple[list[Case], Counter[str]]:
    left_out = Counter[str]()
    definition = Definition.of({"candidates": ["a"], "cases": source} | more)
    return [each async for each in read_cases(datasette, definition, left_out)], left_out


@pytest.fixture
async def logged(make_datasette: Make, register_models: Any) -> Datasette:
    """Ten calls for `p` with content, and some that cannot be replayed."""
    picture = "image/png"
    register_models(
        ScriptedModel("a", ["yes", llm.Usage(input=4, output=2)], attachment_types=[picture]),
        ScriptedModel("b", [ValueError("no")]),
    )
    config = {"log": {"content": True}, "purposes": {"quiet": {"log": {"content": False}}}}
    datasette = make_datasette(config)
    await datasette.invoke_startup()
    model = await LLM(datasette).model("a", purpose="p")
    for number in range(10):
        await (await model.prompt(f"q {number}", system="Be brief", temperature=0.5)).text()
    await (await model.prompt("q 9", system="Be brief", temperature=0.5)).text()
    attachment = llm.Attachment(type=picture, content=b"x")
    await (await model.prompt("see", attachments=[attachment])).text()
    await (await model.prompt("use", tools=[llm.Tool(name="t", implementation=str)])).text()
    await (await model.prompt("x" * 1_000_100)).text()
    tagged = await model.prompt("again", tags={"evaluation": "e"})
    await tagged.text()
    talk = model.conversation()
    await (await talk.prompt("first")).text()
    await (await talk.prompt("second")).text()
    quiet = await LLM(datasette).model("a", purpose="quiet")
    await (await quiet.prompt("secret")).text()
    about_table = await LLM(datasette).model("a", purpose="dataset-consultant")
    await (await about_table.prompt("rows")).text()
    return datasette


async def test_v3_recorded_calls_are_cases(logged: Datasette) -> None:
    """With their answers as the baseline; what cannot be replayed is counted by reason."""
    cases, left_out = await read(logged, {"calls": {"limit": 20}}, purpose="p")
    assert [each.prompt for each in cases] == [
        *("second", "first"),
        *(f"q {number}" for number in reversed(range(10))),
    ]
    assert left_out == {
        "it is a request of an evaluation": 1,
        "its text was cut when it was recorded": 1,
        "it has tools": 1,
        "it has attachments": 1,
        "it is the same as an earlier case": 1,
    }
    assert [message["parts"][0]["text"] for message in cases[0].history] == ["first", "yes"]
    last = cases[-1]
    assert (last.system, dict(last.options)) == ("Be brief", {"temperature": 0.5})
    assert last.baseline is not None
    assert (last.baseline.text, last.baseline.output_tokens) == ("yes", 2)
    assert last.baseline.call_id == last.name

    _, others = await read(logged, {"calls": {"limit": 2}}, purpose="dataset-consultant")
    assert others == {"it is about a table that not everyone may view": 1}


async def test_v3_random_calls_by_a_seed(logged: Datasette) -> None:
    """The same for the same seed, others for another, and as many as are wanted."""
    found = [
        [each.prompt for each in (await read(logged, {"calls": source}, purpose="p"))[0]]
        for source in ({"limit": 5, "seed": 1}, {"limit": 5, "seed": 1}, {"limit": 5, "seed": 2})
    ]
    assert found[0] == found[1] != found[2]
    assert [len(each) for each in found] == [5, 5, 5]


async def test_v3_no_content_says_how_to_record_it(logged: Datasette) -> None:
    with pytest.raises(EvaluationError, match=r"set log\.content: true.*lines of JSON"):
        await read(logged, {"calls": {}}, purpose="quiet")
    with pytest.raises(EvaluationError, match=r"log\.content"):
        await read(logged, {"calls": {}}, purpose="none")
    _, left_out = await read(logged, {"calls": {"limit": 50}})
    assert left_out[NO_CONTENT] == 1


@pytest.fixture
async def zoo(make_datasette: Make) -> Datasette:
    datasette = make_datasette()
    await datasette.invoke_startup()
    database = datasette.add_database(Database(datasette, memory_name="evaluated"), "zoo")
    await database.execute_write("drop table if exists pets")
    await database.execute_write("create table pets (name text, [a kind] text, photo blob)")
    rows = [("Rex", "dog", b"123"), ("Tom", "cat", None), ("Tom", "cat", None), (None, None, 1.5)]
    await database.execute_write_many("insert into pets values (?, ?, ?)", rows)
    return datasette


async def test_v3_rows_with_a_template(zoo: Datasette) -> None:
    source = {"database": "zoo", "table": "pets", "limit": 3}
    template = "{{name}} is a {{ a kind }}: {{ photo }}"
    cases, left_out = await read(
        zoo, {"table": source | {"template": template, "expected": "a kind", "system": "{{name}}!"}}
    )
    assert [(c.prompt, c.system, c.expected) for c in cases] == [
        ("Rex is a dog: 3 bytes", "Rex!", "dog"),
        ("Tom is a cat: ", "Tom!", "cat"),
    ]
    assert left_out == {"it is the same as an earlier case": 1}
    query = {"database": "zoo", "sql": "select name, 7 as n from pets;", "template": "{{name}}"}
    cases, left_out = await read(zoo, {"query": query})
    assert [(c.prompt, c.name) for c in cases] == [("Rex", "row 1"), ("Tom", "row 2")]
    assert left_out["its prompt is empty"] == 1


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (
            {"table": {"database": "zoo", "table": "pets", "template": "{{ nme }} {{ x }}"}},
            "There is no column 'nme', 'x'; there are 'name', 'a kind', 'photo'",
        ),
        (
            {"table": {"database": "zoo", "table": "pets", "template": "t", "expected": "z"}},
            "There is no column 'z'",
        ),
        (
            {"table": {"database": "zoo", "table": "none", "template": "t"}},
            "There is no table or view 'none'",
        ),
        (  # which names the tables that an actor may not view
            {"table": {"database": "zoo", "table": "sqlite_master", "template": "{{ sql }}"}},
            "There is no table or view 'sqlite_master'",
        ),
        ({"table": {"database": "no", "table": "t", "template": "t"}}, "There is no database 'no'"),
        (
            {"table": {"database": "_internal", "table": "llm_calls", "template": "t"}},
            "There is no database '_internal'",
        ),
        (
            {"query": {"database": "zoo", "sql": "delete from pets", "template": "t"}},
            "Statement must be a SELECT",
        ),
        (
            {"query": {"database": "zoo", "sql": "select nonsense from pets", "template": "t"}},
            "The rows cannot be read",
        ),
    ],
)
async def test_bad_rows_are_refused(zoo: Datasette, source: Any, problem: str) -> None:
    with pytest.raises(EvaluationError) as refused:
        await read(zoo, source)
    assert problem in str(refused.value)


async def test_v3_lines_of_json(make_datasette: Make) -> None:
    lines = [{"prompt": "a\u2028b", "system": "s", "expected": "e", "name": "n"}, {"prompt": "a"}]
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\r\n"
    cases, _ = await read(make_datasette(), {"jsonl": {"text": text}})
    assert cases == [
        Case("a\u2028b", "s", expected="e", name="n"),
        Case("a", name="line 3"),
    ]


async def test_broken_lines_are_named_by_number(make_datasette: Make) -> None:
    lines = ['{"prompt": "ok"}', "{", "[]", '{"prompt": " "}', '{"prompt": 1}', '{"promt": "x"}']
    lines += ['{"prompt": "x", "schema": {"type": 7}}', *["{"] * 30]
    with pytest.raises(EvaluationError) as refused:
        await read(make_datasette(), {"jsonl": {"text": "\n".join(lines)}})
    message = str(refused.value)
    assert message.startswith("line 2: no JSON (Expecting property name")
    for problem in ("line 3: expected an object", "line 4: it has no prompt", "line 5: prompt: "):
        assert problem in message
    assert "line 6: unknown promt; known are prompt" in message
    assert "line 7: In the schema, type" in message
    assert message.endswith("and 16 more")
    assert "line 1:" not in message


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ({}, "candidates: is needed; cases: is needed"),
        ({"candidates": [], "cases": {"calls": {}}}, "candidates: "),
        ({"candidates": list("abcde"), "cases": {"calls": {}}}, "at most 4"),
        ({"candidates": ["a"], "cases": {}}, "one of calls, table, query or jsonl"),
        ({"candidates": ["a"], "cases": {"calls": {}, "jsonl": {}}}, "got 2"),
        ({"candidates": ["a"], "cases": {"calls": {"limit": 0}}}, "cases.calls.limit: "),
        ({"candidates": ["a"], "cases": {"calls": {}}, "checks": ["jso"]}, "no check 'jso'"),
        (
            {"candidates": ["a"], "cases": {"calls": {}}, "tresholds": {}},
            'unknown (did you mean "thresholds"?)',
        ),
        ([], "a mapping such as"),
    ],
)
def test_bad_definition_names_every_problem(raw: Any, problem: str) -> None:
    with pytest.raises(EvaluationError) as refused:
        Definition.of(raw)
    assert problem in str(refused.value)


async def test_v3_estimate_sends_nothing(logged: Datasette) -> None:
    """It has tokens of the recorded answers, configured prices, and the usual latency."""
    prices = {"a": {"input": 1_000_000, "output": 2_000_000}}
    ours = logged.config["plugins"]["datasette-llm"]
    ours["log"] = ours["log"] | {"prices": prices}
    calls = await logged.get_internal_database().execute("select count(*) from llm_calls")
    raw = {"candidates": ["a", "b"], "purpose": "p", "cases": {"calls": {"limit": 4}}}

    found = await estimate(logged, Definition.of(raw), None)

    assert (found.cases, found.requests, found.unpriced) == (4, 8, ("b",))
    a, b = found.candidates
    assert (a.output_tokens, b.output_tokens) == (8, 8)
    assert a.cost_dollars == a.input_tokens + 2 * 8
    assert a.latency_ms is not None
    assert (b.cost_dollars, b.latency_ms, found.seconds) == (None, None, None)
    again = await logged.get_internal_database().execute("select count(*) from llm_calls")
    assert again.single_value() == calls.single_value()


async def test_v3_estimate_leaves_cached_calls_out(
    make_datasette: Make, register_models: Any
) -> None:
    """Which have no tokens, so that an answer would cost nothing."""
    register_models(ScriptedModel("a", ["yes", llm.Usage(input=4, output=2)]))
    datasette = make_datasette({"cache": True})
    await datasette.invoke_startup()
    model = await LLM(datasette).model("a")
    for _ in range(3):
        await (await model.prompt("x")).text()
    await Recorder.of(datasette).writer.flush_in_time()
    raw = {"candidates": ["a"], "cases": {"jsonl": {"text": '{"prompt": "y"}'}}}
    found = await estimate(datasette, Definition.of(raw), None)
    assert found.candidates[0].output_tokens == 2


@pytest.mark.parametrize(
    ("candidate", "problem"),
    [
        ("nonsense", "Unknown model: 'nonsense'"),
        ("blocked", "blocked"),
        ({"model": "a", "options": {"temperature": 9}}, "option temperature: "),
        ({"model": "a", "options": {"heat": 1}}, "option heat: "),
    ],
)
async def test_candidate_that_cannot_be_asked_is_refused(
    make_datasette: Make, register_models: Any, candidate: Any, problem: str
) -> None:
    register_models(ScriptedModel("a"), ScriptedModel("blocked"))
    datasette = make_datasette({"purposes": {"p": {"blocked_models": ["blocked"]}}})
    raw = {
        "candidates": [candidate],
        "purpose": "p",
        "cases": {"jsonl": {"text": '{"prompt": "x"}'}},
    }
    with pytest.raises(EvaluationError) as refused:
        await estimate(datasette, Definition.of(raw), None)
    assert problem in str(refused.value)


@pytest.mark.parametrize("seed", [{}, {"seed": 1}])
async def test_v3_looks_past_what_is_unfit(
    make_datasette: Make, register_models: Any, seed: Any
) -> None:
    """However many requests of an earlier evaluation are newer; and past the response cache."""
    register_models(ScriptedModel("a", ["yes"]))
    datasette = make_datasette({"log": {"content": True}, "cache": True})
    await datasette.invoke_startup()
    model = await LLM(datasette).model("a")
    for _ in range(2):
        await (await model.prompt("question")).text()
    evaluated = await LLM(datasette).model("a", tags={"evaluation": "e"})
    await asyncio.gather(*[evaluated.prompt(f"q {number}") for number in range(120)])
    (case,), left_out = await read(datasette, {"calls": {"limit": 1, **seed}})
    assert case.prompt == "question"
    if not seed:
        assert left_out == {
            "it is a request of an evaluation": 120,
            "its answer is from the response cache": 1,
        }


async def test_v3_no_more_cases_than_confirmed(zoo: Datasette) -> None:
    """Rows that are added meanwhile are not asked about."""
    rows = {"table": {"database": "zoo", "table": "pets", "template": "{{ name }} {{ a kind }}"}}
    definition, left_out = Definition.of({"candidates": ["a"], "cases": rows}), Counter[str]()
    found = [each.prompt async for each in read_cases(zoo, definition, left_out, 1)]
    assert found == ["Rex dog"]
    found = [each.prompt async for each in read_cases(zoo, definition, left_out, 2)]
    assert (found, left_out.total()) == (["Rex dog", "Tom cat"], 2)


async def test_lines_of_a_windows_editor(make_datasette: Make) -> None:
    """A byte order mark and CRLF; and only as many as are wanted."""
    text = "\ufeff" + "\r\n".join(json.dumps({"prompt": f"{n}"}) for n in range(5))
    cases, _ = await read(make_datasette(), {"jsonl": {"text": text, "limit": 2}})
    assert [each.prompt for each in cases] == ["0", "1"]


async def test_lines_do_not_hold_the_event_loop(make_datasette: Make) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    text = "\n".join(json.dumps({"prompt": f"{n}"}) for n in range(2_000))
    await read(make_datasette(), {"jsonl": {"text": text}})
    counting.cancel()
    assert turns >= 10


def test_template_with_odd_columns() -> None:
    """White space around a name, as after the commas of a CSV, need not be written."""
    row = {" kind": "dog", "name": "{{ kind }}", "name ": "Tom"}
    template = "{{ name }} {{kind}} {{  kind }}"
    assert templates.unknown_columns(template, row) == []
    assert templates.filled(template, row) == "{{ kind }} dog dog"
