"""Tags: what is taken, what is refused, and where they come from."""

from __future__ import annotations

import asyncio
import enum
from typing import Any

import pytest

from datasette_llm import LLM, TagError, tagged
from datasette_llm.tags.values import NO_TAGS, checked, current
from datasette_llm.testing import ScriptedModel


class Kind(enum.StrEnum):
    """A text that is a member of an enumeration."""

    BIRD = "bird"


SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}}
GOOD: list[dict[str, Any]] = [
    {},
    {"job": 12, "row": "5", "share": 0.5},
    {"a": "", "b.c-d_9": -(2**63 - 1), "k" * 64: "x" * 200},
    {"html": '<img src=x onerror="alert(1)">', "lines": "a\nb", "kind": Kind.BIRD},
    {f"k{number}": number for number in range(20)},
]
BAD = [
    (
        {f"k{number}": number for number in range(21)},
        "A call takes up to 20 tags, and these are 21",
    ),
    ({"Job": 1}, "Tag 'Job': a key begins with a lower-case letter"),
    ({"job ": 1}, "Tag 'job ': a key begins"),
    ({"job\n": 1}, r"Tag 'job\n': a key begins"),
    ({"": 1}, "Tag '': a key begins"),
    ({"k" * 65: 1}, "Tag 'kkkk"),
    ({7: 1}, "Tag int: a key begins"),
    ({"source.path": "/"}, "Tag 'source.path': keys that begin with 'source.' are set by"),
    ({"job": "x" * 201}, "Tag 'job': its value has 201 characters, and 200 is the most"),
    ({"job": None}, "Tag 'job': its value is NoneType, which is neither text nor a number"),
    ({"job": True}, "Tag 'job': its value is bool, which is neither"),
    ({"job": {"id": 1}}, "Tag 'job': its value is dict, which is neither"),
    ({"job": b"x"}, "Tag 'job': its value is bytes, which is neither"),
    ({"job": float("nan")}, "Tag 'job': its value is nan, which is no finite number"),
    ({"job": float("-inf")}, "Tag 'job': its value is -inf, which is no finite number"),
    ({"job": 2**63}, "Tag 'job': its value has more than 64 bits; make it a text"),
    ("job:12", "tags= takes a mapping such as {'job': 12}, not str"),
    ([("job", 12)], "tags= takes a mapping such as {'job': 12}, not list"),
]


@pytest.mark.parametrize("tags", GOOD, ids=range(len(GOOD)))
def test_k1_texts_and_numbers_are_tags(tags: dict[str, Any]) -> None:
    found = checked(tags)

    assert found == tags
    assert {type(value) for value in found.values()} <= {str, int, float}
    assert checked(None) is NO_TAGS


@pytest.mark.parametrize(("tags", "message"), BAD, ids=range(len(BAD)))
def test_k1_bad_tags_are_refused(tags: Any, message: str) -> None:
    """By one message, which never repeats the value of a text."""
    for use in (checked, lambda tags: tagged(tags).__enter__()):
        with pytest.raises(TagError) as raised:
            use(tags)
        assert str(raised.value).startswith(message)
        assert isinstance(raised.value, ValueError)
    assert current.get() is NO_TAGS


@pytest.fixture
async def llm(make_datasette, register_models) -> LLM:
    register_models(ScriptedModel("pelican"))
    return LLM(make_datasette({"default_model": "pelican"}))


async def test_k1_bad_tags_send_nothing(make_datasette, register_models) -> None:
    scripted = ScriptedModel("pelican")
    register_models(scripted)
    llm = LLM(make_datasette({"default_model": "pelican"}))
    model = await llm.model()
    conversation = model.conversation()
    for ask in (
        lambda: llm.model(tags={"Job": 1}),
        lambda: model.prompt("x", tags={"Job": 1}),
        lambda: conversation.prompt("x", tags={"Job": 1}),
        lambda: model.structured("x", schema=SCHEMA, tags={"Job": 1}),
    ):
        with pytest.raises(TagError):
            await ask()
    for make in (
        lambda: llm.group(tags={"Job": 1}),
        lambda: model.conversation(tags={"Job": 1}),
        lambda: model.chain("x", tags={"Job": 1}),
    ):
        with pytest.raises(TagError):
            make()
    with tagged({f"k{n}": n for n in range(11)}), pytest.raises(TagError, match="these are 22"):
        await model.prompt("x", tags={f"m{n}": n for n in range(11)})
    assert scripted.calls == []


async def test_k1_the_more_specific_tag_wins(llm: LLM) -> None:
    """Blocks from outer to inner, then the model, the conversation and the call."""
    names = ("outer", "inner", "model", "conversation", "call")
    layers = [{f"from-{i}": name for i in range(n + 1)} for n, name in enumerate(names[::-1])][::-1]
    with tagged(layers[0]), tagged(layers[1]):
        model = await llm.model(tags=layers[2])
        conversation = model.conversation(tags=layers[3])
        response = await conversation.prompt("x", tags=layers[4])
        await response.text()
        following = await conversation.prompt("y")
        await following.text()
    expected = {f"from-{n}": name for n, name in enumerate(names[::-1])}
    assert response.tags == expected
    assert following.tags == expected | {"from-0": "conversation"}
    # The tags of a chain are those of when it was made, and every step has them.
    conversation = model.conversation(tags=layers[3])
    with tagged(layers[0]), tagged(layers[1]):
        chain = conversation.chain("z", tags=layers[4])
    assert [step.tags async for step in chain.responses()] == [expected]


async def test_k1_group_tags_reach_its_prompts(llm: LLM) -> None:
    group = llm.group(tags={"job": 12})
    async with group as model:
        response = await model.prompt("x", tags={"row": 5})
    assert group.tags == {"job": 12}
    assert response.tags == {"job": 12, "row": 5}


async def test_k1_reply_has_the_tags_of_its_exchange(llm: LLM) -> None:
    model = await llm.model()
    with tagged(job=12):
        first = await model.prompt("x", tags={"row": 5})
    await first.text()
    reply = await first.reply("y", tags={"row": 6})
    assert reply.tags == {"job": 12, "row": 6}
    await reply.text()
    plain = await (await model.prompt("x")).reply("y")
    assert plain.tags is NO_TAGS
    assert "tags" not in vars(plain)  # memory of what has none


async def test_k1_tags_reach_other_code(llm: LLM) -> None:
    """A plugin that knows nothing of tags, also in its tasks, and however late it is read."""

    async def other() -> Any:
        model = await llm.model()
        return await asyncio.gather(*[asyncio.create_task(model.prompt(text)) for text in "ab"])

    async def of_row(row: int) -> Any:
        with tagged(row=row):
            return await other()

    with tagged(job=12):
        both = await asyncio.gather(of_row(1), of_row(2))
    found = [[(response.tags, await response.text()) for response in each] for each in both]
    assert [[tags["row"] for tags, _ in each] for each in found] == [[1, 1], [2, 2]]
    assert {tags["job"] for each in found for tags, _ in each} == {12}
    assert current.get() is NO_TAGS
    assert (await (await llm.model()).prompt("c")).tags is NO_TAGS


async def test_k1_positional_arguments_keep_their_meaning(llm: LLM) -> None:
    """As plugins in the wild call it."""
    model = await llm.model("pelican", "chat", {"id": "ana"})
    assert (model.purpose, model.actor) == ("chat", {"id": "ana"})
    with pytest.raises(TypeError):
        await llm.model("pelican", "chat", None, {"job": 1})  # type: ignore[misc]
    with pytest.raises(TypeError):
        llm.group("pelican", "chat", None, {"job": 1})  # type: ignore[misc]
    group = llm.group("pelican", "chat", {"id": "ana"})
    assert (group.model_id, group.purpose, group.actor) == ("pelican", "chat", {"id": "ana"})
