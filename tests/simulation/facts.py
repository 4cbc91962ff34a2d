"""What is recorded of a scenario: of its actors, requests, waits and contexts."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from datasette_llm.calls.response import PromptResponse

from .scenarios import Hook, Interaction, Script

acting: ContextVar[Run | None] = ContextVar("acting", default=None)
# The fallback that the plugins decide about; the hook gets all models.
checked_fallback: ContextVar[str] = ContextVar("checked_fallback", default="")


@dataclass(eq=False)
class Run:
    """A running interaction."""

    number: int
    interaction: Interaction
    outer: Request | None = None  # whose provider makes the nested prompt
    actors: list[Actor] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)
    chain: Any = None


@dataclass(eq=False)
class Actor:
    """A task of the scenario: a caller, a reader, or the body of the group."""

    name: str
    role: str
    run: Run | None
    task: asyncio.Task[None] | None = None
    response: PromptResponse | None = None
    outcome: str = "running"
    value: Any = None
    error: BaseException | None = None
    pieces: list[str] = field(default_factory=list)
    began: int = 0  # 0: has not read anything yet
    ended: int = 0
    ended_at: float = 0.0
    dropped: bool = False
    cancelled: bool = False
    pausing: bool = False
    busy_with: Any = None  # the call whose first event it waits for
    turn_busy: bool | None = None  # whether the previous turn was running when this one began


@dataclass(eq=False)
class Request:
    """A request that has reached the provider."""

    run: Run
    script: Script
    response: PromptResponse
    call: Any
    rows: list[tuple[str | None]]  # the outcomes in its row, as another connection sees them
    log_broken: bool
    model: str
    key: str | None
    row_id: str
    given: list[str] = field(default_factory=list)
    events: int = 0
    moments: list[int] = field(default_factory=list)  # of its events
    times: list[float] = field(default_factory=list)  # of its beginning and its events
    cancels: list[float] = field(default_factory=list)  # when it was cancelled
    tool_calls: int = 0
    cancelled: int = 0  # the moment at which it was first
    quiet_s: list[float] = field(default_factory=list)  # for how long it had no event then
    ended: BaseException | None = None
    retried: bool = False  # whether its failure may be retried
    wanted_s: float = 0.0  # the wait that its failure asks for
    ended_at: float = 0.0
    superseded: bool = False  # another attempt has followed
    complete: bool = False
    over: bool = False
    began: int = 0
    ended_moment: int = 0


@dataclass(eq=False)
class Answer:
    """The answer to a response, with all its attempts."""

    call: Any
    response: PromptResponse
    began: int
    began_at: float
    error: BaseException | None = None
    ended: int = 0  # 0: it is running
    ended_at: float = 0.0


@dataclass(eq=False)
class Wait:
    """A request's wait at the limiter of a model or a purpose."""

    limiter: Any
    permit: Any
    call: Any
    row_id: str | None
    began_at: float
    ended_at: float | None = None
    entered: int = 0  # 0: not admitted
    stopped: BaseException | None = None


@dataclass(frozen=True)
class Stop:
    """A call was stopped; `late` if its contexts were already being left."""

    reason: str
    moment: int
    at: float
    late: bool


@dataclass(eq=False)
class ObservedContext:
    """One context of one hook in one call."""

    number: int
    hook: Hook
    result: Any
    opened: int = 0
    opened_in: Any = None
    entered: bool = False
    blocked: BaseException | None = None
    left: list[int] = field(default_factory=list)
    left_in: Any = None
    cancelling: int = 0
    was_complete: bool = False
    saw: BaseException | None = None
    raised: BaseException | None = None
    span: str = ""
    read: str | None = None
    tidied: str = ""  # "began", "finished", or "interrupted"
    tidied_at: float = 0.0
    limit: asyncio.Timeout | None = None
    reported: list[Any] = field(default_factory=list)
