"""The life of a call: promises H1 to H8."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from contextvars import ContextVar

import llm
import pytest
from datasette import hookimpl

from datasette_llm import HookError, LLMError, ResponseCancelledError

from ..support.plugins import Accountant, Observer, raises
from ..support.waiting import until

span: ContextVar[str] = ContextVar("span", default="outside")


async def test_h1_contexts_open_once_in_hook_order(model_of, plugin):
    events: list[str] = []
    for name in ("third", "second", "first"):  # pluggy asks the last one registered first
        plugin(Observer(name, events))
    _, model = await model_of(["a", "b"])
    response = await model.prompt("x")
    assert await response.text() == "ab"
    assert await response.text() == "ab"
    assert events == [
        "first opens",
        "second opens",
        "third opens",
        "third succeeds",
        "second succeeds",
        "first succeeds",
    ]


async def test_h1_a_reply_counts_as_a_prompt(model_of, plugin):
    recorder = plugin(Observer())
    scripted, model = await model_of(["a"], ["b"], purpose="chat", actor={"id": "ana"})
    response = await model.prompt("x")
    reply = await response.reply("y")
    assert await reply.text() == "b"
    assert recorder.events == ["hook opens", "hook succeeds"] * 2
    assert [result.purpose for result in recorder.results] == ["chat", "chat"]
    assert [result.actor for result in recorder.results] == [{"id": "ana"}] * 2
    assert [m.role for m in scripted.calls[1].request.messages] == ["user", "assistant", "user"]


async def test_h2_exception_before_yield_blocks_call(model_of, plugin):
    events: list[str] = []
    plugin(Observer("never", events))
    plugin(Observer("blocks", events, before=raises(PermissionError("over budget"))))
    outer = plugin(Observer("outer", events))
    scripted, model = await model_of(["a"])
    with pytest.raises(PermissionError, match="over budget"):
        await model.prompt("x")
    assert scripted.calls == []
    assert events == ["outer opens", "blocks opens", "outer sees PermissionError"]
    assert isinstance(outer.errors[0], PermissionError)


async def test_h3_contexts_stay_open_until_the_end(model_of, plugin):
    gate = asyncio.Event()
    recorder = plugin(Observer())
    _, model = await model_of(["a", gate, "b"])
    response = await model.prompt("x")
    assert recorder.events == ["hook opens"]
    gate.set()
    await response.text()
    assert recorder.events == ["hook opens", "hook succeeds"]


async def test_h3_response_is_complete_after_the_yield(model_of, plugin):
    seen = {}

    async def after(result):
        seen["text"] = await result.response.text()
        seen["usage"] = await result.response.usage()
        seen["both"] = await asyncio.gather(result.response.text(), result.response.tool_calls())
        await result.response.on_done(lambda response: seen.setdefault("done", response))

    plugin(Observer(after=after))
    _, model = await model_of(["a", "b", llm.Usage(input=3, output=2)])
    response = await model.prompt("x")
    await response.text()
    assert seen["text"] == "ab"
    assert (seen["usage"].input, seen["usage"].output) == (3, 2)
    assert seen["both"] == ["ab", []]
    assert seen["done"] is response


async def test_h3_contexts_close_before_readers_end(model_of, plugin):
    """A reader gets the end only after the contexts have closed."""
    settled = []

    async def after(result):
        await asyncio.sleep(0)
        settled.append(True)

    plugin(Observer(after=after))
    _, model = await model_of(["a"])
    response = await model.prompt("x")
    async for _ in response:
        pass
    assert settled == [True]


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([ValueError("broke")], id="before the first chunk"),
        pytest.param(["a", ValueError("broke")], id="in the middle"),
        pytest.param(["a", "b", llm.Usage(input=1), ValueError("broke")], id="at the end"),
    ],
)
async def test_h4_provider_failure_raised_at_yield(script, model_of, plugin):
    recorder = plugin(Observer())
    accountant = plugin(Accountant())
    _, model = await model_of(script)
    with pytest.raises(ValueError, match="broke"):
        response = await model.prompt("x")
        await response.text()
    assert recorder.events == ["hook opens", "hook sees ValueError"]
    assert (accountant.settled, accountant.released, accountant.open) == (0, 1, 0)


async def test_h4_contexts_see_cancelled_caller(model_of, plugin):
    gate = asyncio.Event()
    recorder, accountant = plugin(Observer()), plugin(Accountant())
    scripted, model = await model_of([gate, "a"])
    task = asyncio.create_task(model.prompt("x"))
    await scripted.received()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert recorder.events == ["hook opens", "hook sees ResponseCancelledError"]
    assert accountant.released == 1
    assert scripted.calls[0].outcome == "cancelled"


async def test_h4_contexts_see_cancelled_reader(model_of, plugin):
    accountant = plugin(Accountant())
    scripted, model = await model_of(["a", asyncio.Event(), "b"])
    response = await model.prompt("x")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(response.text(), 0.01)
    assert accountant.released == 1
    assert scripted.calls[0].outcome == "cancelled"


async def test_h4_contexts_see_dropped_reader(model_of, plugin):
    recorder = plugin(Observer())
    scripted, model = await model_of(["a", asyncio.Event(), "b"])

    async def drop():
        async for _ in await model.prompt("x"):
            break

    await drop()
    await recorder.left.wait()
    assert recorder.events == ["hook opens", "hook sees ResponseCancelledError"]
    assert scripted.calls[0].outcome == "cancelled"


async def test_h4_cancel_while_contexts_open(model_of, plugin):
    """A cancellation while the contexts open closes those that are open already."""
    started = asyncio.Event()

    async def hang(result):
        started.set()
        await asyncio.Event().wait()

    plugin(Observer("inner", before=hang))
    outer = plugin(Observer("outer"))
    scripted, model = await model_of(["a"])
    task = asyncio.create_task(model.prompt("x"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert outer.events == ["outer opens", "outer sees ResponseCancelledError"]
    assert scripted.calls == []


async def test_h4_cancel_before_the_call_began(model_of, plugin):
    recorder = plugin(Observer())
    _, model = await model_of(["a"])
    task = asyncio.create_task(model.prompt("x"))
    await asyncio.sleep(0)  # prompt() has made the task of the call, which has not run yet
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert recorder.events == [] or recorder.events[-1] == "hook sees ResponseCancelledError"


async def test_h5_contexts_run_in_one_own_task(model_of, plugin):
    """Contexts open and close in one task, which is not the caller's."""
    recorder = plugin(Observer())
    _, model = await model_of(["a"])
    await (await model.prompt("x")).text()
    [(opened, closed)] = recorder.tasks
    assert opened is closed
    assert opened is not asyncio.current_task()


async def test_h5_context_variables_are_inherited(model_of, plugin):
    """Context variables go from the caller to the hooks, and from them to the provider."""
    seen = []
    span.set("request")

    def before(result):
        seen.append(span.get())
        span.set("prompt")

    plugin(Observer(before=before))
    scripted, model = await model_of(["a"])
    play = scripted.execute

    def execute(*args, **kwargs):
        seen.append(span.get())
        return play(*args, **kwargs)

    scripted.execute = execute
    await (await model.prompt("x")).text()
    assert seen == ["request", "prompt"]
    assert span.get() == "request"


async def test_h5_timeout_around_yield_ends_the_call(model_of, plugin):
    caught = []

    class Timeouts:
        @hookimpl(tryfirst=True)
        def llm_prompt_context(self):
            @contextlib.asynccontextmanager
            async def context(result):
                try:
                    async with asyncio.timeout(0.2):
                        yield
                except TimeoutError:
                    caught.append("timeout")
                    raise

            return context

    accountant = plugin(Accountant())
    plugin(Timeouts())
    scripted, model = await model_of([asyncio.Event(), "a"])
    with pytest.raises(TimeoutError):
        await model.prompt("x")
    assert caught == ["timeout"]
    assert accountant.released == 1  # inside the timeout, and still an Exception
    assert scripted.calls[0].outcome == "cancelled"


async def test_h5_semaphore_around_yield_limits_calls(model_of, plugin):
    limit = asyncio.Semaphore(2)
    running = most = 0

    class Limit:
        @hookimpl
        def llm_prompt_context(self):
            @contextlib.asynccontextmanager
            async def context(result):
                nonlocal most, running
                async with limit:
                    running += 1
                    most = max(most, running)
                    yield
                    running -= 1

            return context

    plugin(Limit())
    _, model = await model_of(["a", 0.001, "b"])
    responses = await asyncio.gather(*[model.prompt(str(n)) for n in range(8)])
    assert [await r.text() for r in responses] == ["ab"] * 8
    assert most == 2


async def test_h6_a_context_cannot_swallow_a_failure(model_of, plugin):
    class Swallows:
        @hookimpl
        def llm_prompt_context(self):
            @contextlib.asynccontextmanager
            async def context(result):
                with contextlib.suppress(Exception):
                    yield

            return context

    outer = Observer("outer")
    plugin(Swallows())
    plugin(outer)
    _, model = await model_of(["a", ValueError("broke")])
    response = await model.prompt("x")
    with pytest.raises(ValueError, match="broke"):
        await response.text()
    assert outer.events == ["outer opens", "outer sees ValueError"]


async def test_h6_cleanup_error_keeps_provider_error(model_of, plugin):
    """An error during cleanup does not hide the provider's."""
    plugin(Observer("ledger", cleanup=raises(RuntimeError("ledger is down"))))
    _, model = await model_of([ValueError("broke")])
    with pytest.raises(ValueError, match="broke") as caught:
        await model.prompt("x")
    assert "ledger is down" in "".join(caught.value.__notes__)


async def test_h6_error_after_yield_reaches_caller(model_of, plugin):
    outer = Observer("outer")
    plugin(Observer("inner", after=raises(RuntimeError("too expensive"))))
    plugin(outer)
    scripted, model = await model_of(["a", asyncio.Event()])
    scripted.scripts = (["a"],)
    response = None
    with pytest.raises(RuntimeError, match="too expensive"):
        response = await model.prompt("x")
        await response.text()
    assert outer.events == ["outer opens", "outer sees RuntimeError"]


async def test_h7_contexts_close_in_reverse_order(model_of, plugin):
    """Every context is left, in reverse order, whatever the others raise."""
    events: list[str] = []
    for name in ("third", "second", "first"):
        plugin(Observer(name, events, cleanup=raises(RuntimeError(f"{name} fails"))))
    _, model = await model_of(["a"])
    with pytest.raises(RuntimeError, match="third fails") as caught:
        await (await model.prompt("x")).text()
    assert events[3:] == ["third succeeds", "second sees RuntimeError", "first sees RuntimeError"]
    notes = "".join(caught.value.__notes__)
    assert "second fails" in notes
    assert "first fails" in notes


async def test_h8_cleanup_finishes_despite_cancel(model_of, plugin):
    finished = []

    async def slow(result):
        for _ in range(5):
            await asyncio.sleep(0.001)
        finished.append(True)

    plugin(Observer(cleanup=slow))
    scripted, model = await model_of([asyncio.Event()])
    task = asyncio.create_task(model.prompt("x"))
    await scripted.received()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert finished == [True]


async def test_h8_cleanup_that_hangs_is_cut_short(model_of, plugin, monkeypatch):
    monkeypatch.setattr("datasette_llm.calls.task.CLEANUP_S", 0.02)
    events: list[str] = []
    plugin(Observer("hangs", events, cleanup=lambda result: asyncio.Event().wait()))
    plugin(Observer("outer", events))
    scripted, model = await model_of([asyncio.Event()])
    task = asyncio.create_task(model.prompt("x"))
    await scripted.received()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert events[-1] == "outer sees ResponseCancelledError"


async def test_h8_cleanup_is_bounded_after_success(model_of, plugin, monkeypatch):
    """Cleanup after a success is cut short once the reader is cancelled."""
    monkeypatch.setattr("datasette_llm.calls.task.CLEANUP_S", 0.02)
    plugin(Observer(after=lambda result: asyncio.Event().wait()))
    _, model = await model_of(["a"])
    response = await model.prompt("x")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(response.text(), 0.01)


async def test_prompt_result_describes_its_call(model_of, plugin):
    recorder = plugin(Observer())
    _, model = await model_of(["a"], purpose="chat", actor={"id": "ana"})
    response = await model.prompt("x")
    await response.text()
    [result] = recorder.results
    assert result.response is response
    assert result.responses == [response]
    assert (result.purpose, result.actor, result.group) == ("chat", {"id": "ana"}, None)
    assert (result.is_chain, result.chain_complete) == (False, False)


async def test_on_response_done_runs_every_callback(model_of, plugin):
    """Every callback runs, and then the first error is raised."""
    ran = []

    def fails(response):
        ran.append("fails")
        raise RuntimeError("cannot count")

    async def counts(response):
        ran.append((await response.usage()).input)

    async def before(result):
        await result.on_response_done(fails)
        await result.on_response_done(counts)

    recorder = plugin(Observer(before=before))
    _, model = await model_of(["a", llm.Usage(input=7)])
    response = await model.prompt("x")
    with pytest.raises(RuntimeError, match="cannot count"):
        await response.text()
    assert ran == ["fails", 7]
    # The provider was paid: the contexts see a success.
    assert recorder.events == ["hook opens", "hook succeeds"]


async def test_on_response_done_runs_at_once_after_end(model_of, plugin):
    ran = []
    plugin(Observer(after=lambda result: result.on_response_done(ran.append)))
    _, model = await model_of(["a"])
    response = await model.prompt("x")
    await response.text()
    assert ran == [response]


async def test_reading_before_the_yield_is_an_error(model_of, plugin):
    plugin(Observer(before=lambda result: result.response.text()))
    _, model = await model_of(["a"])
    with pytest.raises(LLMError, match="after the yield"):
        await model.prompt("x")


async def test_context_reads_error_of_failed_response(model_of, plugin):
    seen = []

    async def cleanup(result):
        try:
            await result.response.text()
        except ValueError as error:
            seen.append(str(error))

    plugin(Observer(cleanup=cleanup))
    _, model = await model_of([ValueError("broke")])
    with pytest.raises(ValueError, match="broke"):
        await model.prompt("x")
    assert seen == ["broke"]


async def test_hook_may_read_stream_from_own_task(model_of, plugin):
    chunks = []
    watchers = []

    def before(result):
        async def watch():
            async for chunk in result.response:
                chunks.append(chunk)

        watchers.append(asyncio.create_task(watch()))

    plugin(Observer(before=before, after=lambda result: asyncio.wait(watchers)))
    _, model = await model_of(["a", "b"])
    assert await (await model.prompt("x")).text() == "ab"
    assert chunks == ["a", "b"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("a text", "llm_prompt_context of plugin 'odd' returned str"),
        (lambda result: None, "'odd' returned gave NoneType"),
        (lambda result: contextlib.nullcontext, "async context manager"),
        (lambda result: open, "async context manager"),
    ],
)
async def test_invalid_hook_result_blocks_the_call(answer, message, model_of, plugin):
    class Odd:
        @hookimpl
        def llm_prompt_context(self):
            return answer

    plugin(Odd(), name="odd")
    scripted, model = await model_of(["a"])
    with pytest.raises(HookError, match=message):
        await model.prompt("x")
    assert scripted.calls == []


async def test_hook_may_be_async_and_take_any_arguments(model_of, plugin):
    seen = []

    class Async:
        @hookimpl
        async def llm_prompt_context(self, purpose, prompt):
            seen.append((purpose, prompt))

            @contextlib.asynccontextmanager
            async def context(result):
                yield

            return context

    class Nothing:
        @hookimpl
        def llm_prompt_context(self):
            return None

    plugin(Async())
    plugin(Nothing())
    _, model = await model_of(["a"], purpose="chat")
    await (await model.prompt("x")).text()
    assert seen == [("chat", "x")]


async def test_the_seeds_example_hook_counts_tokens(model_of, plugin):
    counted = []

    class Usage:
        @hookimpl
        def llm_prompt_context(self, datasette, model_id, prompt, purpose):
            @contextlib.asynccontextmanager
            async def wrapper(result):
                yield

                async def on_complete(response):
                    usage = await response.usage()
                    counted.append((usage.input, usage.output))

                if result.response:
                    await result.response.on_done(on_complete)

            return wrapper

    plugin(Usage())
    _, model = await model_of(["a", llm.Usage(input=5, output=6)])
    await (await model.prompt("x")).text()
    assert counted == [(5, 6)]


async def test_deaf_provider_stops_at_its_next_chunk(model_of, plugin):
    """A provider that swallows cancellation is stopped at its next chunk."""
    recorder = plugin(Observer())
    scripted, model = await model_of(["a"])
    waiting, reached = asyncio.Event(), []

    async def stubborn(prompt, stream, response, conversation, key=None):
        yield "a"
        with contextlib.suppress(asyncio.CancelledError):
            waiting.set()
            await asyncio.Event().wait()
        yield "b"
        reached.append("the end")

    scripted.execute = stubborn
    response = await model.prompt("x")
    reader = asyncio.create_task(response.text())
    await waiting.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert isinstance(recorder.errors[0], ResponseCancelledError)
    assert reached == []


async def test_h5_swallowed_cancel_is_cleared(model_of, plugin):
    """A cancellation that the provider swallowed is over for the contexts."""
    cancelling = []
    plugin(Observer(cleanup=lambda result: cancelling.append(asyncio.current_task().cancelling())))
    scripted, model = await model_of(["a"])
    waiting = asyncio.Event()

    async def stubborn(prompt, stream, response, conversation, key=None):
        yield "a"
        with contextlib.suppress(asyncio.CancelledError):
            waiting.set()
            await asyncio.Event().wait()

    scripted.execute = stubborn
    response = await model.prompt("x")
    reader = asyncio.create_task(response.text())
    await waiting.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert await response.text() == "a"
    assert cancelling == [0]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("how", ["shield", "gather", "watcher"])
async def test_context_reads_from_other_task_in_cleanup(how, fails, model_of, plugin):
    """A context may read its response from another task while it is left."""
    read, watchers = [], []

    async def settle(result):
        try:
            read.append(await result.response.text())
        except ValueError as error:
            read.append(str(error))

    def before(result):
        watchers.append(asyncio.create_task(settle(result)))

    async def cleanup(result):
        work = {
            "shield": lambda: asyncio.shield(settle(result)),
            "gather": lambda: asyncio.gather(settle(result), settle(result)),
            "watcher": lambda: watchers[0],
        }
        await work[how]()

    plugin(Observer(before=before if how == "watcher" else None, cleanup=cleanup))
    _, model = await model_of(["a", ValueError("broke")] if fails else ["a"])
    with pytest.raises(ValueError, match="broke") if fails else contextlib.nullcontext():
        await (await model.prompt("x")).text()
    assert set(read) == {"broke" if fails else "a"}


class Odd(BaseException):
    pass


@pytest.mark.parametrize("error", [Odd("odd"), GeneratorExit("odd")])
async def test_h4_base_exception_releases_reservation(error, model_of, plugin):
    accountant = plugin(Accountant())
    _, model = await model_of(["half ", error])
    response = await model.prompt("x")
    for _ in range(2):
        with pytest.raises(ResponseCancelledError, match=type(error).__name__) as caught:
            await response.text()
    assert caught.value.__cause__ is error
    assert (accountant.released, accountant.open) == (1, 0)


async def test_base_exception_in_a_hook_fails_the_call(model_of, plugin):
    plugin(Observer(after=raises(Odd("odd"))))
    _, model = await model_of(["a"])
    with pytest.raises(ResponseCancelledError, match=r"raised Odd\('odd'\)") as caught:
        await (await model.prompt("x")).text()
    assert isinstance(caught.value.__cause__, Odd)


async def test_provider_cleans_up_before_the_contexts(model_of, plugin):
    """The provider cleans up in its own task, before the contexts are left."""
    order = []
    plugin(Observer(cleanup=lambda result: order.append("context")))
    scripted, model = await model_of(["a"])

    async def endless(prompt, stream, response, conversation, key=None):
        task = asyncio.current_task()
        try:
            while True:
                yield "a"
        finally:
            order.append("provider" if asyncio.current_task() is task else "elsewhere")

    scripted.execute = endless
    response = await model.prompt("x")
    reader = asyncio.create_task(response.text())
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert order == ["provider", "context"]


async def test_hook_that_swallows_cancel_sends_nothing(model_of, plugin):
    """A call that was cancelled is not sent, even if a hook swallows the cancellation."""
    opening = asyncio.Event()

    async def swallow(result):
        opening.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    recorder = plugin(Observer(before=swallow))
    scripted, model = await model_of(["a"])
    task = asyncio.create_task(model.prompt("x"))
    await opening.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scripted.calls == []
    assert recorder.events[-1] == "hook sees ResponseCancelledError"


async def test_h5_outer_timeout_during_inner_cleanup(model_of, plugin):
    """A timeout of an outer context during an inner cleanup is raised by the outer context."""

    class Timeouts:
        @hookimpl(tryfirst=True)
        def llm_prompt_context(self):
            @contextlib.asynccontextmanager
            async def context(result):
                async with asyncio.timeout(0.2):
                    yield

            return context

    inner = plugin(Observer(after=lambda result: asyncio.Event().wait()))
    plugin(Timeouts())
    _, model = await model_of(["a"])
    response = await model.prompt("x")
    with pytest.raises(TimeoutError):
        await response.text()
    assert inner.events == ["hook opens", "hook succeeds"]


async def test_callback_cancelled_from_inside(model_of, plugin):
    """A callback that is cancelled from inside does not stop the others."""
    ran = []

    async def awaits_a_cancelled_task(response):
        worker = asyncio.create_task(asyncio.Event().wait())
        worker.cancel()
        await worker

    async def before(result):
        await result.on_response_done(awaits_a_cancelled_task)
        await result.on_response_done(ran.append)

    plugin(Observer(before=before))
    _, model = await model_of(["a"])
    response = await model.prompt("x")
    with pytest.raises(HookError, match="cancelled from inside"):
        await response.text()
    assert ran == [response]


async def test_h4_two_timeouts_roll_back_both_contexts(model_of, plugin):
    """Of two timeouts at once, the inner context rolls back too."""
    rolled_back = []

    def timeouts(name):
        class Timeouts:
            __name__ = name

            @hookimpl
            def llm_prompt_context(self):
                @contextlib.asynccontextmanager
                async def context(result):
                    try:
                        async with asyncio.timeout(0.2):
                            yield
                    except Exception:
                        rolled_back.append(name)
                        raise

                return context

        return Timeouts()

    plugin(timeouts("inner"))
    plugin(timeouts("outer"))
    _, model = await model_of([asyncio.Event()])
    with pytest.raises(TimeoutError):
        await model.prompt("x")
    assert rolled_back == ["inner", "outer"]


async def test_h8_each_cleanup_has_its_own_time_limit(model_of, plugin, monkeypatch):
    monkeypatch.setattr("datasette_llm.calls.task.CLEANUP_S", 1.0)
    finished = []

    def cleanup(name):
        async def work(result):
            await asyncio.sleep(0.6)
            finished.append(name)

        return work

    for name in ("inner", "outer"):
        plugin(Observer(name, cleanup=cleanup(name)))
    scripted, model = await model_of([asyncio.Event()])
    task = asyncio.create_task(model.prompt("x"))
    await scripted.received()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert finished == ["inner", "outer"]


async def test_h8_second_cancel_replaces_the_timer(model_of, plugin, monkeypatch):
    """A call that is cancelled while its cleanup is bounded already has one timer, not two."""
    cleanup_s = 50.0
    timers = []
    loop = asyncio.get_running_loop()
    later = loop.call_later

    def call_later(delay, callback, *args):
        timer = later(delay, callback, *args)
        if delay == cleanup_s:
            timers.append(timer)
        return timer

    monkeypatch.setattr("datasette_llm.calls.task.CLEANUP_S", cleanup_s)
    monkeypatch.setattr(loop, "call_later", call_later)
    cleaned = asyncio.Event()
    recorder = plugin(Observer(after=lambda result: cleaned.wait()))
    _, model = await model_of(["a"])
    response = await model.prompt("x")
    call = response.stream_state.producer
    call.hurry()
    call.cancel("test")
    assert [timer.cancelled() for timer in timers] == [True, False]
    cleaned.set()
    await call.closed.wait()
    assert recorder.events[0] == "hook opens"


async def test_calls_do_not_keep_their_successors(model_of):
    """A call that starts the next one in a callback is not kept in memory by it."""
    _, model = await model_of(["a"])
    calls: list[weakref.ref[object]] = []
    over = asyncio.Event()

    async def prompt():
        response = await model.prompt("x")
        calls.append(weakref.ref(response.stream_state.producer))
        if len(calls) < 20:
            await response.on_done(begin_next)
        else:
            gc.collect()
            over.set()
        await response.text()

    tasks = set()

    def begin_next(response):
        task = asyncio.create_task(prompt())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    await prompt()
    await over.wait()
    assert sum(call() is not None for call in calls) < 5


async def test_finished_response_is_freed_without_gc(model_of):
    _, model = await model_of(["a"])
    gone = asyncio.Event()
    gc.disable()
    try:
        response = await model.prompt("x")
        await response.text()
        weakref.finalize(response, gone.set)
        del response
        async with asyncio.timeout(5):
            await gone.wait()
    finally:
        gc.enable()


async def test_cancelled_call_is_freed_without_gc(model_of):
    _, model = await model_of(["a", asyncio.Event(), "b"])
    gc.disable()
    try:
        response = await model.prompt("x")
        call = weakref.ref(response.stream_state.producer)
        reader = asyncio.create_task(response.text())
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.wait([reader])
        del response, reader
        async with asyncio.timeout(5):
            await until(lambda: call() is None)
    finally:
        gc.enable()
