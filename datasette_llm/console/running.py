"""The calls that run in this process, and how an administrator stops one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .. import instance
from ..calls.call import RunningCalls
from ..calls.limiter import LimiterRegistry, Place
from ..sanitize import brief

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..calls.call import Call

    Actor = Mapping[str, Any] | None

State = Literal["plugins", "queued", "asked", "answering", "tools", "ending"]
# The others are counted.
MAX_SHOWN = 200
# How long the answer to a stop waits for the call to end; its hooks may take longer.
STOP_WAIT_S = 2.0


@dataclass(frozen=True, slots=True)
class RunningCall:
    """A prompt or chain that runs, at one moment.

    Attributes:
        id: of its newest request, which is in the call log once it is sent; None before a chain's
            first step.
        model_id: the model that was asked for.
        purpose: what it is for, or None.
        actor_id: who asks, or None.
        is_chain: whether it is a chain.
        requests: how many requests it has begun.
        seconds: since it began.
        state: whether `plugins` have not let it go yet, it is `queued` for a concurrency limit, was
            `asked`, is `answering`, runs its `tools`, or is `ending`.
        place: where it is queued, or None.
    """

    id: str | None
    model_id: str
    purpose: str | None
    actor_id: str | None
    is_chain: bool
    requests: int
    seconds: float
    state: State
    place: Place | None

    def payload(self) -> dict[str, Any]:
        """The call as in JSON."""
        found = {name: getattr(self, name) for name in self.__slots__ if name != "place"}
        place = self.place
        queue = None
        if place is not None:
            kind, name = place.limiter
            queue = {"place": place.number, "waiting": place.waiting, kind: name or None}
        return found | {"seconds": round(self.seconds, 1), "queue": queue}


def running_calls(datasette: Datasette) -> tuple[list[RunningCall], int]:
    """The calls that run in this process, the oldest first; and how many more there are."""
    calls = sorted(instance.of(datasette, RunningCalls), key=lambda call: call.began)
    places = instance.of(datasette, LimiterRegistry).places()
    shown = [_seen(call, places) for call in calls[:MAX_SHOWN]]
    return shown, len(calls) - len(shown)


def running_call(datasette: Datasette, ids: Collection[str]) -> RunningCall | None:
    """The call that runs in this process and has a request with one of the ids, or None."""
    call = _found(datasette, ids)
    if call is None:
        return None
    return _seen(call, instance.of(datasette, LimiterRegistry).places())


async def stop(datasette: Datasette, ids: Collection[str], actor: Actor) -> bool:
    """Stop a call of this process; the call log says by whom.

    Args:
        datasette: the Datasette instance.
        ids: of one of its requests.
        actor: who stops it.

    Returns:
        Whether there was such a call.
    """
    call = _found(datasette, ids)
    if call is None:
        return False
    who = (actor or {}).get("id")
    call.cancel_soon(f"Stopped by {'an actor without an id' if who is None else brief(who)}")
    if call.runs_here():
        closed = asyncio.create_task(call.closed.wait())
        await asyncio.wait([closed], timeout=STOP_WAIT_S)
        closed.cancel()
    return True


def _found(datasette: Datasette, ids: Collection[str]) -> Call | None:
    for call in list(instance.of(datasette, RunningCalls)):
        if call.result.call_id in ids or any(each.id in ids for each in call.result.responses):
            return call
    return None


def _seen(call: Call, places: Mapping[object, Place]) -> RunningCall:
    result, response = call.result, call.result.response
    given = response.secret_text if response is not None else None
    keys = call.used_keys | {given} if given else call.used_keys
    actor = call.model.actor
    actor_id = actor.get("id") if isinstance(actor, Mapping) else None
    return RunningCall(
        id=result.call_id,
        model_id=brief(call.model.model_id, keys),
        purpose=brief(result.purpose, keys) if result.purpose else None,
        actor_id=brief(actor_id, keys) if actor_id else None,
        is_chain=result.is_chain,
        requests=result.attempts,
        seconds=time.monotonic() - call.began,
        state=_state(call),
        place=places.get(call.awaited_permit) if call.awaits_permit else None,
    )


def _state(call: Call) -> State:
    if call.leaving:
        return "ending"
    if not call.admitted.is_set():
        return "plugins"
    if call.awaits_permit:
        return "queued"
    newest = call.result.responses[-1] if call.result.responses else None
    if newest is not None and newest.is_complete:
        return "tools"
    state = newest.stream_state if newest is not None else None
    return "answering" if state is not None and state.first_event_at is not None else "asked"
