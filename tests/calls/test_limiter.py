"""Concurrency limiters: how many at once, in which order, and what cancelled waiters leave."""

from __future__ import annotations

import asyncio
import gc
import weakref

from hypothesis import given
from hypothesis import strategies as st

from datasette_llm.calls import limiter
from datasette_llm.calls.limiter import ConcurrencyLimiter, LimiterRegistry


async def settled() -> None:
    """Let every task run that can; nothing here waits for a clock."""
    for _ in range(5):
        await asyncio.sleep(0)


class Crowd:
    """Tasks that acquire one limiter, and which of them have, in order."""

    def __init__(self) -> None:
        self.limiter = ConcurrencyLimiter()
        self.entered: list[int] = []
        self.inside: set[int] = set()
        self.limits: dict[int, int] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}

    def arrive(self, name: int, limit: int = 1) -> asyncio.Task[None]:
        self.limits[name] = limit
        self.tasks[name] = asyncio.create_task(self._enter(name, limit))
        return self.tasks[name]

    def leave(self, name: int) -> None:
        self.inside.remove(name)
        self.limiter.release()

    async def _enter(self, name: int, limit: int) -> None:
        await self.limiter.acquire(limit)
        self.entered.append(name)
        self.inside.add(name)

    @property
    def waiting(self) -> list[int]:
        return [name for name, task in self.tasks.items() if not task.done()]

    async def drain(self) -> None:
        await settled()
        while self.inside:
            self.leave(min(self.inside))
            await settled()


async def test_free_limiter_is_entered_without_yielding() -> None:
    limited, ran = ConcurrencyLimiter(), []
    asyncio.get_running_loop().call_soon(ran.append, "other")
    await limited.acquire(2)
    await limited.acquire(2)
    assert ran == []
    assert repr(limited) == "<ConcurrencyLimiter 2 running, 0 waiting>"


async def test_waiters_enter_in_order_of_arrival() -> None:
    crowd = Crowd()
    for name in range(6):
        crowd.arrive(name, limit=2)
    await settled()
    assert (crowd.entered, crowd.waiting) == ([0, 1], [2, 3, 4, 5])
    crowd.leave(1)
    await settled()
    assert crowd.entered == [0, 1, 2]
    crowd.leave(0)
    crowd.leave(2)
    await settled()
    assert crowd.entered == [0, 1, 2, 3, 4]
    await crowd.drain()
    assert crowd.entered == [0, 1, 2, 3, 4, 5]
    assert crowd.limiter.idle


async def test_newcomer_does_not_pass_waiters() -> None:
    crowd = Crowd()
    crowd.arrive(0)
    await settled()
    crowd.arrive(1)
    await settled()
    crowd.leave(0)  # 1 has its permit and has not run yet
    crowd.arrive(2)
    await settled()
    assert (crowd.entered, crowd.waiting) == ([0, 1], [2])
    await crowd.drain()


async def test_head_of_queue_waits_for_its_own_limit() -> None:
    """The head of the queue waits for its own limit, and none passes it."""
    crowd = Crowd()
    for name in range(3):
        crowd.arrive(name, limit=3)
    crowd.arrive(3, limit=1)
    crowd.arrive(4, limit=10)
    await settled()
    assert crowd.entered == [0, 1, 2]
    for name in (0, 1):
        crowd.leave(name)
        await settled()
        assert crowd.waiting == [3, 4]
    crowd.leave(2)
    await settled()
    assert crowd.entered == [0, 1, 2, 3, 4]
    await crowd.drain()


async def test_release_admits_all_there_is_room_for() -> None:
    crowd = Crowd()
    crowd.arrive(0)
    await settled()
    for name in (1, 2, 3):
        crowd.arrive(name, limit=2)
    await settled()
    assert crowd.waiting == [2, 3]  # the limit of each is its own
    crowd.leave(0)
    crowd.leave(1)
    await settled()
    assert crowd.inside == {2, 3}
    await crowd.drain()


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    crowd = Crowd()
    for name in range(4):
        crowd.arrive(name)
    await settled()
    crowd.tasks[1].cancel()
    crowd.tasks[2].cancel()
    await settled()
    assert repr(crowd.limiter) == "<ConcurrencyLimiter 1 running, 1 waiting>"
    crowd.leave(0)
    await settled()
    assert crowd.entered == [0, 3]
    await crowd.drain()
    assert crowd.limiter.idle


async def test_waiters_behind_a_cancelled_one_enter() -> None:
    """Waiters behind a cancelled one enter if they waited for its limit only."""
    crowd = Crowd()
    crowd.arrive(0, limit=3)
    await settled()
    crowd.arrive(1, limit=1)
    crowd.arrive(2, limit=3)
    crowd.arrive(3, limit=3)
    await settled()
    assert crowd.entered == [0]
    crowd.tasks[1].cancel()
    await settled()
    assert crowd.entered == [0, 2, 3]
    await crowd.drain()


async def test_waiter_cancelled_with_permit_releases_it() -> None:
    crowd = Crowd()
    for name in range(3):
        crowd.arrive(name)
    await settled()
    crowd.leave(0)  # lets 1 in, which has not run yet
    crowd.tasks[1].cancel()
    await settled()
    assert crowd.tasks[1].cancelled()
    assert crowd.entered == [0, 2]
    await crowd.drain()
    assert crowd.limiter.idle


async def test_cancelled_waiter_does_not_take_a_permit() -> None:
    crowd = Crowd()
    for name in range(3):
        crowd.arrive(name)
    await settled()
    crowd.tasks[1].cancel()
    crowd.leave(0)
    await settled()
    assert crowd.tasks[1].cancelled()
    assert crowd.entered == [0, 2]
    await crowd.drain()
    assert crowd.limiter.idle


async def test_closed_waiter_never_entered() -> None:
    limited = ConcurrencyLimiter()
    await limited.acquire(1)
    waiter = limited.acquire(1)
    waiter.send(None)
    waiter.close()
    assert repr(limited) == "<ConcurrencyLimiter 1 running, 0 waiting>"
    limited.release()
    assert limited.idle


async def test_mass_cancellation_is_linear(monkeypatch) -> None:
    """All waiters can be cancelled at once with one step for each."""
    steps = 0

    class Counted(limiter.OrderedDict):
        def __iter__(self):
            nonlocal steps
            for each in super().__iter__():
                steps += 1
                yield each

        def values(self):
            return (self[each] for each in self)

    monkeypatch.setattr(limiter, "OrderedDict", Counted)
    crowd, count = Crowd(), 10_000
    crowd.arrive(0)
    await settled()
    for name in range(1, count):
        crowd.arrive(name)
    await settled()
    assert len(crowd.waiting) == count - 1
    for name in range(count - 1, 0, -1):
        crowd.tasks[name].cancel()
    await settled()
    assert (crowd.entered, crowd.waiting) == ([0], [])
    assert 0 < steps < 5 * count
    crowd.leave(0)
    assert crowd.limiter.idle


# What may happen next: a task arrives with a limit, one of those inside leaves, one of those
# that wait is cancelled, or the event loop runs once.
EVENTS = st.lists(
    st.tuples(st.just("arrive"), st.integers(1, 4))
    | st.tuples(st.just("leave"), st.integers(0, 9))
    | st.tuples(st.just("cancel"), st.integers(0, 9))
    | st.tuples(st.just("step"), st.just(0)),
    max_size=40,
)


@given(events=EVENTS)
def test_limits_order_and_permits_always_hold(events) -> None:
    """Never too many are inside, none passes another, and no permit is lost."""
    asyncio.run(_play(events))


async def _play(events: list[tuple[str, int]]) -> None:
    crowd = Crowd()
    cancelled: set[int] = set()
    for kind, number in events:
        pick = sorted(crowd.inside) if kind == "leave" else crowd.waiting
        if kind == "arrive":
            crowd.arrive(len(crowd.tasks), limit=number)
        elif kind == "step":
            await asyncio.sleep(0)
        elif pick and kind == "leave":
            crowd.leave(pick[number % len(pick)])
        elif pick and kind == "cancel":
            name = pick[number % len(pick)]
            crowd.tasks[name].cancel()
            cancelled.add(name)
        _check_inside(crowd)
    await settled()
    _check_inside(crowd)
    heads = [name for name in crowd.waiting if name not in cancelled]
    if heads:  # the first has a reason to wait
        assert len(crowd.inside) >= crowd.limits[heads[0]]
    await crowd.drain()
    # A task is done with entering, or was cancelled before it entered.
    assert crowd.waiting == []
    assert crowd.entered == sorted(crowd.entered)
    assert {*crowd.entered} == {n for n, task in crowd.tasks.items() if not task.cancelled()}
    assert {*crowd.tasks} - {*crowd.entered} <= cancelled
    assert crowd.limiter.idle


def _check_inside(crowd: Crowd) -> None:
    # The last to enter found room by its own limit then, and since then others only left.
    if crowd.inside:
        assert len(crowd.inside) <= crowd.limits[max(crowd.inside)]


async def test_each_name_has_single() -> None:
    named = LimiterRegistry().named
    assert named("a") is named("a")
    assert named("a") is not named("b")
    assert named(("model", "a")) is not named(("purpose", "a"))


def test_each_loop_has_limiters_which_go_with_it() -> None:
    registry = LimiterRegistry()
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def enter_and_stay() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        # A limiter that was left behind by another loop would never admit a task here.
        await registry.named("model").acquire(1)

    for _ in range(20):
        asyncio.run(enter_and_stay())
    gc.collect()
    assert [loop() for loop in loops] == [None] * 20
    assert registry.all_idle()


async def test_two_loops_do_not_wait_for_each_other() -> None:
    registry = LimiterRegistry()
    await registry.named("model").acquire(1)

    async def enter() -> str:
        await registry.named("model").acquire(1)
        return repr(registry.named("model"))

    other = await asyncio.gather(*(asyncio.to_thread(asyncio.run, enter()) for _ in range(4)))
    assert other == ["<ConcurrencyLimiter 1 running, 0 waiting>"] * 4
    registry.named("model").release()
    assert registry.named("model").idle
