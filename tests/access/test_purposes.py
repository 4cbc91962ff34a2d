"""Purposes: what plugins use models for."""

import gc
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


async def test_no_purposes_without_plugins(make_datasette) -> None:
    assert await get_purposes(make_datasette()) == []


async def test_purposes_come_in_plugin_order(make_datasette, plugin) -> None:
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


async def test_hook_may_return_a_function(make_datasette, plugin) -> None:
    """A plugin may return a function, as for Datasette's own hooks."""
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
async def test_first_description_of_a_purpose_counts(
    make_datasette, plugin, asked_first: Purpose, asked_later: Purpose, kept: Purpose
) -> None:
    """Of two purposes with one name the first with a description counts."""
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
async def test_invalid_purpose_names_the_plugin(make_datasette, plugin, answer: Any) -> None:
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


class AnswersLater:
    """Has an ordinary function that returns a coroutine, or an async one."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked = 0

    async def later(self) -> Any:
        return self.answer

    @hookimpl
    def register_llm_purposes(self) -> Any:
        self.asked += 1
        return self.later()


def test_e1_purposes_are_a_list(make_datasette, plugin) -> None:
    """Plugins in the wild call it without `await`."""
    plugin(Registers([Purpose("sql"), Purpose("chat")]))

    purposes = get_purposes(make_datasette())

    assert isinstance(purposes, list)
    assert [purpose.name for purpose in purposes] == ["sql", "chat"]
    assert (len(purposes), purposes[0]) == (2, Purpose("sql"))


@pytest.mark.parametrize("read", [lambda found: found[0], lambda found: found[:1]])
async def test_e1_list_left_behind_warns_too(make_datasette, plugin, caplog, read: Any) -> None:
    plugin(Registers([Purpose("sql")]))
    plugin(RegistersLater([Purpose("chat")]), name="talks")

    read(get_purposes(make_datasette()))
    gc.collect()

    assert [record.message.endswith("'talks'") for record in caplog.records] == [True]


@pytest.mark.parametrize("read", [list, len, lambda found: found == []])
@pytest.mark.parametrize("kind", [AnswersLater, RegistersLater])
async def test_e1_list_leaves_out_async_hooks(
    make_datasette, plugin, caplog, kind: Any, read: Any
) -> None:
    plugin(Registers([Purpose("sql")]))
    plugin(kind([Purpose("chat")]), name="talks")
    purposes = get_purposes(make_datasette())

    read(purposes)

    assert list(purposes) == [Purpose("sql")]
    (record,) = caplog.records
    assert "leaves out the purposes of plugins" in record.message
    assert record.message.endswith("'talks'")


async def test_e1_awaited_has_async_hooks_too(make_datasette, plugin, caplog) -> None:
    plugin(Registers(Purpose(name) for name in ["sql"]))
    later = plugin(AnswersLater([Purpose("chat")]), name="talks")
    purposes = get_purposes(make_datasette())

    assert await purposes == [Purpose("chat"), Purpose("sql")]
    assert (later.asked, caplog.text) == (1, "")
    assert "get_purposes() was not awaited" not in caplog.text
    assert await purposes == [Purpose("chat")]  # the generator is read, and asks again


async def test_e1_may_be_read_and_then_awaited(make_datasette, plugin) -> None:
    plugin(AnswersLater([Purpose("chat")]), name="talks")
    purposes = get_purposes(make_datasette())

    assert list(purposes) == []
    assert await purposes == [Purpose("chat")]


@pytest.mark.parametrize("kind", [Registers, AnswersLater])
async def test_e2_failing_hook_is_named(make_datasette, plugin, caplog, kind: Any) -> None:
    def answers() -> Any:
        yield Purpose("sql")
        raise ValueError("No table")

    plugin(kind(answers()), name="talks")

    with pytest.raises(HookError) as raised:
        await get_purposes(make_datasette())

    said = "register_llm_purposes of plugin 'talks' raised ValueError: No table"
    assert (str(raised.value), raised.value.plugin) == (said, "talks")
    assert said in caplog.text
