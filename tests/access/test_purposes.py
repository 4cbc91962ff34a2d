"""Purposes: what plugins say that they use models for."""

from typing import Any

import pytest
from datasette import hookimpl

from datasette_llm import HookError, Purpose, get_purposes


class Registers:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    @hookimpl
    def register_llm_purposes(self, datasette: Any) -> Any:
        return self.answer


class RegistersLater:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    @hookimpl
    async def register_llm_purposes(self) -> Any:
        return self.answer


async def test_there_are_no_purposes_before_a_plugin_registers_some(make_datasette) -> None:
    assert await get_purposes(make_datasette()) == []


async def test_the_purposes_of_all_plugins_come_in_the_order_of_the_plugins(
    make_datasette, plugin
) -> None:
    plugin(RegistersLater([Purpose("enrichments"), Purpose("chat", "Talk about a table")]))
    plugin(Registers((Purpose("sql-assistant", "Write SQL"),)))

    assert await get_purposes(make_datasette()) == [
        Purpose("sql-assistant", "Write SQL"),
        Purpose("enrichments", None),
        Purpose("chat", "Talk about a table"),
    ]


@pytest.mark.parametrize("kind", [Registers, RegistersLater])
@pytest.mark.parametrize("answer", [Purpose("chat"), [Purpose("chat")], (Purpose("chat"),)])
async def test_a_plugin_may_answer_in_any_of_these_ways(
    make_datasette, plugin, kind: Any, answer: Any
) -> None:
    plugin(kind(answer))

    assert await get_purposes(make_datasette()) == [Purpose("chat")]


async def test_a_plugin_may_answer_with_a_function_as_for_datasettes_own_hooks(
    make_datasette, plugin
) -> None:
    plugin(Registers(lambda: [Purpose("chat")]))

    assert await get_purposes(make_datasette()) == [Purpose("chat")]


@pytest.mark.parametrize("kind", [Registers, RegistersLater])
async def test_a_plugin_may_have_none(make_datasette, plugin, kind: Any) -> None:
    plugin(kind(None))
    plugin(Registers([]), name="empty")

    assert await get_purposes(make_datasette()) == []


@pytest.mark.parametrize(
    ("asked_first", "asked_later", "kept"),
    [
        (Purpose("chat", "One"), Purpose("chat", "Other"), Purpose("chat", "One")),
        (Purpose("chat"), Purpose("chat", "Other"), Purpose("chat", "Other")),
        (Purpose("chat", "One"), Purpose("chat"), Purpose("chat", "One")),
        (Purpose("chat"), Purpose("chat"), Purpose("chat")),
    ],
)
async def test_of_two_purposes_with_one_name_the_first_with_a_description_is_kept(
    make_datasette, plugin, asked_first: Purpose, asked_later: Purpose, kept: Purpose
) -> None:
    plugin(Registers([asked_later]), name="later")
    plugin(Registers([asked_first]), name="first")

    assert await get_purposes(make_datasette()) == [kept]


@pytest.mark.parametrize(
    "answer",
    [
        *(7, "chat", ["chat"], [Purpose("chat"), None], {"chat": "x"}),
        *(Purpose(7), Purpose(None), Purpose("chat", 7)),  # type: ignore[arg-type]  # the mistake
    ],
)
async def test_a_plugin_that_answers_something_else_is_told_by_name(
    make_datasette, plugin, answer: Any
) -> None:
    plugin(Registers(answer), name="my-plugin")

    with pytest.raises(HookError) as raised:
        await get_purposes(make_datasette())

    message = str(raised.value)
    assert message.startswith("register_llm_purposes of plugin 'my-plugin' returned ")
    assert message.endswith("; return a list of datasette_llm.Purpose")


def test_a_purpose_is_a_value() -> None:
    assert Purpose("chat") == Purpose(name="chat", description=None)
    assert len({Purpose("chat"), Purpose("chat")}) == 1
    with pytest.raises(AttributeError):
        Purpose("chat").name = "other"  # type: ignore[misc]


async def test_purposes_may_come_from_a_generator(make_datasette, plugin) -> None:
    class Generates:
        @hookimpl
        def register_llm_purposes(self):
            yield Purpose("sql")
            yield Purpose("pets")

    plugin(Generates())
    assert [purpose.name for purpose in await get_purposes(make_datasette())] == ["sql", "pets"]
