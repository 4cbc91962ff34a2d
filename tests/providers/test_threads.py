"""What comes out of a thread item by item, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from datasette_llm.providers.threads import LOOK_AHEAD, SerialThread, ThreadStream

from ..support.waiting import BOUND_S, happens


def started(work):
    """A stream that has begun, and an event that is set once its thread has ended."""
    over = asyncio.Event()
    stream = ThreadStream(work, over.set)
    stream.start("a thread of the tests")
    return stream, over


async def test_it_is_no_further_ahead_than_allowed() -> None:
    made, reached = [], {LOOK_AHEAD + 1: threading.Event(), LOOK_AHEAD + 2: threading.Event()}

    def work():
        for number in range(1, 1_000):
            made.append(number)
            if number in reached:
                reached[number].set()
            yield number

    stream, over = started(work)
    await happens(reached[LOOK_AHEAD + 1])  # made, and waits for room
    assert await anext(stream) == 1
    await happens(reached[LOOK_AHEAD + 2])

    assert len(made) == LOOK_AHEAD + 2
    stream.stop()
    await over.wait()
    assert len(made) == LOOK_AHEAD + 2


async def test_e9_thread_has_an_event_loop() -> None:
    """For plugins that call get_event_loop(); it is closed at the end of the thread."""
    loops = []

    async def answer() -> int:
        return 42

    def work():
        loops.append(asyncio.get_event_loop())
        yield loops[0].run_until_complete(answer())

    stream, over = started(work)
    assert [item async for item in stream] == [42]
    await over.wait()
    assert loops[0].is_closed()


async def test_e9_tools_have_an_event_loop_too() -> None:
    """A task on it runs; code that does not ask for it opens no sockets."""

    def work():
        loop = asyncio.get_event_loop()
        unused = loop.is_made
        task = loop.create_task(asyncio.sleep(0, 42))
        return unused, loop.run_until_complete(task), asyncio.get_event_loop() is loop

    thread = SerialThread("a thread of the tests")
    assert await thread.run(work) == (False, 42, True)
    await thread.run(lambda: asyncio.run(asyncio.sleep(0)))  # which takes away the loop
    assert await thread.run(lambda: asyncio.get_event_loop().is_closed()) is False
    thread.close()


async def test_serial_thread_begins_again_after_its_end() -> None:
    thread = SerialThread("a thread of the tests")
    first = await thread.run(threading.current_thread)
    assert await thread.run(threading.current_thread) is first
    thread.close()
    second = await thread.run(threading.current_thread)
    assert second is not first
    first.join(BOUND_S)
    del thread
    second.join(BOUND_S)
    assert [first.is_alive(), second.is_alive()] == [False, False]


async def test_all_items_come_in_order() -> None:
    stream, over = started(lambda: iter(range(2_000)))

    assert [item async for item in stream] == list(range(2_000))
    assert over.is_set()


@pytest.mark.parametrize("when", ["before the first item", "after the first item"])
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
async def test_exceptions_reach_the_reader(error, when) -> None:
    def work():
        if when == "after the first item":
            yield 1
        raise error

    stream, over = started(work)
    seen = []
    with pytest.raises(type(error)) as raised:
        async for item in stream:
            seen.append(item)

    assert raised.value is error
    assert seen == ([1] if when == "after the first item" else [])
    await over.wait()


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration, GeneratorExit])
async def test_stop_iteration_becomes_an_error(error) -> None:
    def work():
        raise error("odd")

    stream, _ = started(work)
    with pytest.raises(RuntimeError, match=f"raised {error.__name__}") as raised:
        await anext(stream)
    assert isinstance(raised.value.__cause__, error)


class Unclosable:
    """An iterator without close()."""

    def __iter__(self):
        return self

    def __next__(self):
        return "again"


def stubborn():
    """A generator that ignores its end the first time."""
    with contextlib.suppress(GeneratorExit):
        while True:
            yield "again"
    yield "still here"


@pytest.mark.parametrize("work", [Unclosable, stubborn, lambda: ["x"] * 99])
async def test_stopping_closes_any_iterable(work) -> None:
    stream, over = started(work)
    await anext(stream)

    stream.stop()

    async with asyncio.timeout(BOUND_S):
        await over.wait()


@pytest.mark.parametrize("abandoned", ["stopped", "forgotten"])
def test_the_event_loop_may_be_closed_meanwhile(abandoned, monkeypatch) -> None:
    monkeypatch.setattr("datasette_llm.providers.threads.LOOP_CHECK_S", 0.01)
    go_on, closed, threads = threading.Event(), threading.Event(), []

    def work():
        threads.append(threading.current_thread())
        try:
            yield 0
            assert go_on.wait(BOUND_S)
            yield from range(1, 100)
        finally:
            closed.set()

    async def main():
        stream, _ = started(work)
        await anext(stream)
        if abandoned == "stopped":
            stream.stop()

    asyncio.run(main())
    go_on.set()

    assert closed.wait(BOUND_S)
    threads[0].join(BOUND_S)
    assert not threads[0].is_alive()


def test_waiting_thread_ends_with_the_event_loop(monkeypatch) -> None:
    monkeypatch.setattr("datasette_llm.providers.threads.LOOP_CHECK_S", 0.01)
    crowded, closed = threading.Event(), threading.Event()

    def work():
        try:
            for number in range(1_000):
                if number == LOOK_AHEAD:
                    crowded.set()
                yield number
        finally:
            closed.set()

    async def main():
        started(work)
        await happens(crowded)

    asyncio.run(main())

    assert closed.wait(BOUND_S)


async def test_process_does_not_wait_for_the_thread() -> None:
    stream, _ = started(lambda: [threading.current_thread().daemon])

    assert [item async for item in stream] == [True]
