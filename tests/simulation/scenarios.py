"""What a scenario is made of, and the strategies that generate one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import llm
from hypothesis import strategies as st

Kind = Literal["prompt", "reply", "turns", "structured", "chain"]


@dataclass(frozen=True)
class ErrorKind:
    """An error of a provider.

    Attributes:
        make: makes one.
        retried: whether it is retried before the first event.
        wanted_s: the wait that it asks for; 0 for none.
    """

    make: Callable[[str], Exception]
    retried: bool = False
    wanted_s: float = 0.0


class StatusError(Exception):
    """An HTTP error of a provider's client."""

    def __init__(self, message: str, status: int, retry_after: str | None = None) -> None:
        super().__init__(message)
        self.status_code = status
        self.headers = {} if retry_after is None else {"retry-after": retry_after}


ERRORS = {
    "runtime": ErrorKind(RuntimeError),
    "model": ErrorKind(llm.ModelError),
    "value": ErrorKind(ValueError),
    "connection": ErrorKind(ConnectionError, retried=True),
    "busy": ErrorKind(lambda message: StatusError(message, 429), retried=True),
    "busy-3": ErrorKind(lambda message: StatusError(message, 429, "3"), True, wanted_s=3.0),
    "busy-3600": ErrorKind(lambda message: StatusError(message, 429, "3600")),
    "overloaded": ErrorKind(lambda message: StatusError(message, 529), retried=True),
}


@dataclass(frozen=True)
class Script:
    """The script of the provider for one request.

    Attributes:
        steps: "chunk", "reasoning", "usage", "pause" (until the scheduler ends it), "hang" (until
            cancelled), "stubborn" (a pause that swallows one cancellation), "cancelled" (it
            raises a CancelledError of its own), "nested" (it prompts a model itself, and reads
            that answer), or "fail" and the kind of the error.
        cleanup: what it does at its end.
    """

    steps: tuple[str, ...]
    cleanup: Literal["", "waits", "raises"] = ""


@dataclass(frozen=True)
class Reader:
    """A reader of a response or a chain.

    Attributes:
        how: by which of its methods.
        late: pauses before it begins.
        slow: pauses after each piece.
        stops_after: the number of pieces after which it leaves; None to read on.
        closes: whether it closes its generator then, or leaves that to the interpreter.
    """

    how: Literal["text", "for", "events", "usage", "anext", "responses", "unread"]
    late: bool = False
    slow: bool = False
    stops_after: int | None = None
    closes: bool = True


@dataclass(frozen=True)
class Interaction:
    """One caller: what they ask for, what the provider does, and who reads the answer."""

    kind: Kind
    scripts: tuple[Script, ...]
    readers: tuple[Reader, ...] = ()
    stream: bool = True
    late: bool = False
    tools: tuple[Literal["sync", "async", "waits", "fails"], ...] = ()
    limit: int = 0


@dataclass(frozen=True)
class Hook:
    """A plugin that takes part in every call.

    Attributes:
        factory: how it answers: at once, as a coroutine, or with None.
        before: what it does before its `yield`.
        at_yield: what it does with an exception there.
        after: what it does after the `yield` of a success.
        cleanup: what it does at the end, however the call ended.
        callback: what its callback of on_response_done does; "" for none.
        timeout_s: of the asyncio.timeout around the `yield`; 0 for none.
        accountant: it is one of those, and nothing else of this holds.
    """

    factory: Literal["sync", "async", "none"] = "sync"
    before: Literal["", "waits", "raises", "stubborn"] = ""
    at_yield: Literal["", "swallows", "transforms"] = ""
    after: Literal["", "waits", "raises", "reads"] = ""
    cleanup: Literal["", "waits", "slow", "raises", "hangs", "breaks"] = ""
    callback: Literal["", "sync", "waits", "raises"] = ""
    timeout_s: float = 0.0
    accountant: bool = False


@dataclass(frozen=True)
class Block:
    """A group around all the interactions: how its body ends, and what its exit hook does."""

    body: Literal["", "raises"] = ""
    exit_hook: Literal["", "waits", "raises"] = ""


@dataclass(frozen=True)
class Fallback:
    """A fallback: a model that is tried when the requested one has failed.

    Attributes:
        name: "second" and "third" do all that the first does, "plain" takes neither tools nor
            schemas; and a plugin's filter refuses "refused", raises about "raises", waits
            before it allows "slow", and also swallows a cancellation then of "stubborn".
        retries: its own, or None for the scenario's.
        limit: how many requests it takes at once; 0 for any number.
    """

    name: Literal["second", "third", "plain", "refused", "raises", "slow", "stubborn"]
    scripts: tuple[Script, ...] = (Script(("chunk",)),)
    retries: int | None = None
    limit: int = 0


@dataclass(frozen=True)
class Policy:
    """The call policy of a scenario's prompts; 0 for none."""

    retries: int = 0
    timeout_s: float = 0.0
    idle_timeout_s: float = 0.0
    limit: int = 0
    purpose_limit: int = 0
    fallbacks: tuple[Fallback, ...] = ()


@dataclass(frozen=True)
class Scenario:
    """Everything that happens, and in which order; see `clock.Scheduler`."""

    interactions: tuple[Interaction, ...]
    hooks: tuple[Hook, ...] = ()
    group: Block | None = None
    choices: bytes = b""
    cancels: int = 0
    slow_commits: bool = False
    shutdown: bool = False
    policy: Policy = Policy()


def _mostly(usual: object, *others: object) -> st.SearchStrategy[object]:
    """The usual value three times of four, and in minimal scenarios."""
    return st.sampled_from([usual] * 3 * len(others) + list(others))


ERROR_KINDS = st.sampled_from(list(ERRORS))
GOOD = st.lists(
    st.sampled_from(["chunk", "pause", "chunk", "reasoning", "usage"]), min_size=1, max_size=5
).map(tuple)
BAD = st.sampled_from(["hang", "pause", "stubborn", "cancelled", "nested"]) | ERROR_KINDS.map(
    "fail {}".format
)
STEPS = st.one_of(
    GOOD,
    GOOD,
    st.builds(lambda before, bad, after: (*before, bad, *after), GOOD, BAD, st.just(()) | GOOD),
    st.builds(lambda bad, after: (bad, *after), BAD, GOOD),
    st.just(()),
)
SCRIPTS = st.builds(Script, steps=STEPS, cleanup=_mostly("", "waits", "raises"))
# Fails before its first event, so that another attempt follows.
FLAKY = st.builds(
    Script,
    steps=st.builds(
        lambda before, bad: (*before, bad),
        st.sampled_from([(), (), ("pause",), ("usage",)]),
        ERROR_KINDS.map("fail {}".format) | st.just("hang"),
    ),
    cleanup=_mostly("", "", "waits", "raises"),
)


def _scripts(least: int, most: int) -> st.SearchStrategy[tuple[Script, ...]]:
    """Scripts that fail before their first event, then any."""
    return st.builds(
        lambda flaky, others: (*flaky, *others),
        st.lists(FLAKY, max_size=2),
        st.lists(SCRIPTS, min_size=least, max_size=most),
    )


READERS = st.builds(
    Reader,
    how=st.sampled_from(["text", "for", "events", "usage", "anext"]),
    late=st.booleans(),
    slow=st.booleans(),
    stops_after=st.none() | st.integers(0, 3),
    closes=st.booleans(),
)
CHAIN_READERS = st.builds(
    Reader,
    how=st.sampled_from(["text", "for", "events", "responses", "unread"]),
    late=st.booleans(),
    slow=st.booleans(),
    stops_after=st.none() | st.integers(0, 3),
    closes=st.booleans(),
)
PROMPTS = st.builds(
    Interaction,
    kind=st.sampled_from(["prompt"] * 4 + ["turns", "turns", "reply", "structured"]),
    scripts=_scripts(1, 2),
    readers=st.lists(READERS, max_size=2).map(tuple),
    stream=_mostly(True, False),
    late=st.booleans(),
)
CHAINS = st.builds(
    Interaction,
    kind=st.just("chain"),
    scripts=_scripts(2, 3),
    readers=st.lists(CHAIN_READERS, min_size=1, max_size=2).map(tuple),
    stream=_mostly(True, False),
    late=st.booleans(),
    tools=st.lists(
        st.sampled_from(["sync", "async", "waits", "fails"]), min_size=1, max_size=2
    ).map(tuple),
    limit=_mostly(0, 2),
)
HOOKS = st.one_of(
    st.just(Hook(accountant=True)),
    st.builds(
        Hook,
        factory=_mostly("sync", "async", "none"),
        before=_mostly("", "waits", "raises", "stubborn"),
        at_yield=_mostly("", "swallows", "transforms"),
        after=_mostly("", "waits", "raises", "reads"),
        cleanup=_mostly("", "waits", "slow", "raises", "hangs", "breaks"),
        callback=st.sampled_from(["", "sync", "waits", "raises"]),
        timeout_s=_mostly(0.0, 0.2, 1.0, 8.0),
    ),
)
FALLBACKS = st.builds(
    Fallback,
    name=st.sampled_from(
        ["second"] * 4 + ["third"] * 3 + ["plain", "refused", "raises", "slow", "stubborn"]
    ),
    scripts=_scripts(1, 1),
    retries=st.sampled_from([None, None, 0, 1]),
    limit=_mostly(0, 1, 2),
)
POLICIES = st.builds(
    Policy,
    retries=st.integers(0, 2),
    timeout_s=_mostly(0.0, 0.3, 1.0, 7.0),
    idle_timeout_s=_mostly(0.0, 0.2, 2.0),
    limit=_mostly(0, 1, 2),
    purpose_limit=_mostly(0, 1, 2),
    fallbacks=st.lists(FALLBACKS, max_size=2, unique_by=lambda fallback: fallback.name).map(tuple),
)
SCENARIOS = st.builds(
    Scenario,
    interactions=st.lists(st.one_of(PROMPTS, CHAINS), min_size=1, max_size=3).map(tuple),
    hooks=st.lists(HOOKS, max_size=3).map(tuple),
    group=st.none()
    | st.builds(Block, st.sampled_from(["", "raises"]), st.sampled_from(["", "waits", "raises"])),
    choices=st.binary(min_size=10, max_size=40),
    cancels=st.integers(0, 3),
    slow_commits=_mostly(False, True),
    shutdown=st.sampled_from([False] * 5 + [True]),
    policy=POLICIES,
)
