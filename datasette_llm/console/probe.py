"""A tiny real prompt, sent the way that plugins send theirs, and what became of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..access import policy
from ..access.keys import read_status
from ..access.quoting import MAX_MESSAGE_CHARS, quoted
from ..access.snapshot import snapshot_of
from ..calls.model import WrappedAsyncModel
from ..errors import ConfigError, LLMError, ModelNotFoundError
from ..facade import LLM
from ..providers.failures import FailureKind, failure_message, kind_of
from ..providers.names import provider_of
from ..redaction import without_keys
from ..sanitize import count, storable
from .explain import resolved_default

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..calls.call import Call
    from ..calls.model import WrappedConversation

    Actor = Mapping[str, Any] | None

PROMPT = "Reply with the single word: pong"
LIMIT_S = 30.0
# How long a call that was stopped is waited for: its hooks clean up, each for a bounded time.
STOP_S = 10.0
MAX_TEXT_CHARS = 500


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a trial failed.

    Attributes:
        kind: one of a closed set.
        message: all that was said, up to a bound, without keys.
    """

    kind: FailureKind
    message: str


@dataclass(frozen=True, slots=True)
class Probe:
    """What became of the prompt that one model was sent.

    Attributes:
        model_id: the canonical id, or what was asked for where llm does not know it.
        provider: who answers, for people to read; None for an unknown model.
        latency_ms: from the first question about policy to the end of the call.
        first_chunk_ms: until the first text arrived; None where none did.
        error: why it failed; None for a success.
        call_id: the id of its row in the record; None where it has none.
        text: what was answered, up to a bound.
        usage: the tokens that the provider counted, `input` and `output`.
    """

    model_id: str
    provider: str | None
    latency_ms: float
    first_chunk_ms: float | None
    error: Failure | None
    call_id: str | None
    text: str
    usage: Mapping[str, int | None]

    @property
    def ok(self) -> bool:
        """Whether the model answered."""
        return self.error is None

    def payload(self) -> dict[str, Any]:
        """The trial as JSON gives it."""
        return {"ok": self.ok, **asdict(self)}


async def probe_model(
    datasette: Datasette, model_id: str, purpose: str | None = None, actor: Actor = None
) -> Probe:
    """Prompt a model as a plugin would, for `LIMIT_S` at most.

    Policy, key, hooks, record and configured options take part. What fails is told in the
    result, never raised.

    Args:
        datasette: the Datasette instance.
        model_id: an id or alias, of an unknown model too.
        purpose: what it would be for.
        actor: who asks: for policy, for budgets and in the record it is this actor's call.
    """
    attempt = _Attempt(datasette, model_id, purpose, actor)
    task = asyncio.create_task(attempt.run())
    try:
        await asyncio.wait([task], timeout=LIMIT_S)
        if not task.done():
            attempt.note_limit()
            task.cancel()
            await asyncio.wait([task], timeout=STOP_S)
    finally:
        task.cancel()  # whoever waits for us may have been cancelled
    return await _told(attempt)


class _Attempt:
    """One prompt under way, and what was seen of it."""

    def __init__(self, datasette: Datasette, name: str, purpose: str | None, actor: Actor) -> None:
        self.datasette = datasette
        self.name = name
        self.began = time.monotonic()
        self.first_chunk_at: float | None = None
        self.ended_at: float | None = None
        self.model: WrappedAsyncModel | None = None
        self.text = ""
        self.error: Exception | None = None
        self.limit: str | None = None
        self._purpose = purpose
        self._actor = actor
        self._conversation: WrappedConversation | None = None

    @property
    def call(self) -> Call | None:
        """The call; None where it never came to one."""
        # The conversation knows its call also when there is no response to hold.
        return self._conversation.call if self._conversation is not None else None

    async def run(self) -> None:
        """Prompt, and read to the end."""
        try:
            models = LLM(self.datasette)
            model = await models.model(self.name, self._purpose, self._actor)
            # Or a model that is down would pass by its fallback's answer.
            self.model = WrappedAsyncModel(model.route.once())
            self._conversation = self.model.conversation()
            await self._read(self._conversation)
        except Exception as error:  # a hook's, a provider's or ours: it is the result
            self.error = error
        if self.ended_at is None:
            self.ended_at = time.monotonic()

    async def _read(self, conversation: WrappedConversation) -> None:
        async for chunk in await conversation.prompt(PROMPT):
            if self.first_chunk_at is None:
                self.first_chunk_at = time.monotonic()
            if len(self.text) < MAX_MESSAGE_CHARS:
                self.text += chunk

    def note_limit(self) -> None:
        """The time is up: note what was being waited for."""
        self.ended_at = time.monotonic()
        call = self.call
        if call is None:
            waited = "the model had not been found and allowed"
        elif not call.admitted.is_set():
            waited = "a plugin had not let the prompt go to the provider"
        elif call.awaits_permit:
            waited = "other requests still had their turn (max_concurrency)"
        elif call.result.responses[0].is_complete:
            waited = "the answer was complete, but a plugin had not finished with it"
        elif self.first_chunk_at is not None:
            waited = "the answer had begun and not ended"
        else:
            waited = "the provider had sent no text"
        self.limit = f"Stopped after {LIMIT_S:g} s, when {waited}"


async def _told(attempt: _Attempt) -> Probe:
    """What became of an attempt, as far as it is known now."""
    call = attempt.call
    keys = call.used_keys if call is not None else frozenset()
    response = call.result.response if call is not None else None
    failure = _failure(attempt)
    if failure is not None:
        message = await quoted(attempt.datasette, without_keys(failure.message, keys))
        failure = Failure(failure.kind, message)
    model_id, provider = await _identity(attempt)
    first = attempt.first_chunk_at
    return Probe(
        model_id=model_id,
        provider=provider,
        latency_ms=_ms(attempt, attempt.ended_at or time.monotonic()),
        first_chunk_ms=None if first is None else _ms(attempt, first),
        error=failure,
        call_id=_call_id(attempt),
        text=_shown(attempt.text, keys, MAX_TEXT_CHARS),
        usage={
            "input": count(response.input_tokens) if response is not None else None,
            "output": count(response.output_tokens) if response is not None else None,
        },
    )


def _failure(attempt: _Attempt) -> Failure | None:
    call, error = attempt.call, attempt.error
    plugin = call.refused_by if call is not None else None
    if attempt.limit is not None:
        return Failure(
            "timeout", f"{attempt.limit} (plugin {plugin!r})" if plugin else attempt.limit
        )
    if error is None:
        return None if attempt.text.strip() else Failure("bad_answer", _no_text(call))
    if plugin is not None:
        message = f"Plugin {plugin!r} blocked the call: {failure_message(error, 'blocked')}"
        return Failure("blocked", message)
    kind = _kind(attempt, error)
    return Failure(kind, failure_message(error, kind))


def _kind(attempt: _Attempt, error: Exception) -> FailureKind:
    """What kind it is, by what was running when it came: a hook's error may look like any."""
    call = attempt.call
    if call is not None and call.result.responses[0].is_complete:
        return "blocked"  # a hook, after the answer was complete
    if call is not None or isinstance(error, LLMError):
        return kind_of(error)
    # Before the call: a hook about defaults or filters; then llm, which checks the options.
    return "blocked" if attempt.model is None else "other"


def _no_text(call: Call | None) -> str:
    made = call.result.responses[0].output_tokens if call is not None else None
    counted = f" ({made} tokens were counted)" if made else ""
    return (
        f"The answer has no text{counted}. Either what answered is no such model, or the "
        "configured options leave it no room"
    )


def _call_id(attempt: _Attempt) -> str | None:
    """The id of the row, where one was written."""
    call, model = attempt.call, attempt.model
    if call is None or model is None or model.route.recorder is None or not call.admitted.is_set():
        return None
    never_sent = call.refused_by is not None and call.cancelled
    return None if never_sent else call.result.responses[0].id


async def _identity(attempt: _Attempt) -> tuple[str, str | None]:
    """The canonical id and the provider, also of a model that policy refused."""
    if attempt.model is not None:
        return attempt.model.model_id, provider_of(attempt.model.route.model)
    try:
        view = await snapshot_of(attempt.datasette)
        entry = view.catalog.get(attempt.name)
    except (ConfigError, ModelNotFoundError):
        return _shown(attempt.name, (), MAX_TEXT_CHARS), None
    return entry.model_id, provider_of(entry.model)


def _shown(text: str, keys: Iterable[str], chars: int) -> str:
    """A stranger's text as pages can show it: without the keys, of bounded length."""
    clean = without_keys(str(storable({"text": text})["text"]), keys)
    return clean if len(clean) <= chars else f"{clean[:chars]}…"


def _ms(attempt: _Attempt, moment: float) -> float:
    return round((moment - attempt.began) * 1000, 1)


AT_ONCE = 4
MOST_MODELS = 40
NOTHING_TO_TRY = (
    "There is no model to try: no default, no allowlist, and no model that needs no key or has "
    "one. Set default_model, or a key"
)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The models that a trial of a purpose sends a prompt to.

    Attributes:
        model_ids: which, the default first.
        left_out: how many more there are.
        allowlist: whether an allowlist names them; without one they are the default and the
            models that need no key or have one.
        problem: why the default could not be found out, or why there is nothing to try; or None.
    """

    model_ids: tuple[str, ...]
    left_out: int
    allowlist: bool
    problem: str | None

    def payload(self) -> dict[str, Any]:
        """The candidates as JSON gives them."""
        return {
            "model_ids": list(self.model_ids),
            "left_out": self.left_out,
            "allowlist": self.allowlist,
            "problem": self.problem,
        }


async def candidates(datasette: Datasette, purpose: str, actor: Actor = None) -> Candidates:
    """The models to try for a purpose, `MOST_MODELS` at most.

    With an allowlist all that is on it, also without a key: somebody wanted it to work. The
    filters of plugins are left to the trial, which tells their refusals.

    Args:
        datasette: the Datasette instance.
        purpose: any name; one that nobody configured has the global rules.
        actor: who asks, on whom the default may depend.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    view = await snapshot_of(datasette)
    default = await resolved_default(datasette, view, purpose, actor) or {}
    problem = default.get("error") and f"llm_default_model: {default['error']}"
    # Where a plugin failed to name the default, the others are worth trying all the same.
    configured = view.for_purpose(purpose).default() if problem else None
    name = configured.model_id if configured else default.get("model_id")
    rules = view.for_purpose(purpose).rules
    first = [] if name is None else [view.catalog.canonical(name)]
    ids = policy.listing(rules, view.catalog, first[0] if first else None)
    if rules.allowed is None:
        ids = policy.with_key(ids, view.catalog, rules, await read_status(datasette))
    # What llm does not know, or policy refuses, was meant to work too: that is a finding.
    unknown = [name for name in rules.order if name not in view.catalog.entries]
    every = tuple(dict.fromkeys([*first, *ids, *unknown]))
    return Candidates(
        every[:MOST_MODELS],
        left_out=max(0, len(every) - MOST_MODELS),
        allowlist=rules.allowed is not None,
        problem=problem or (None if every else NOTHING_TO_TRY),
    )


async def probe_purpose(
    datasette: Datasette,
    purpose: str,
    actor: Actor = None,
    told: Callable[[Probe], None] = lambda trial: None,
) -> dict[str, Any]:
    """Try the models that a purpose may use, each on its own, a few at once.

    Args:
        datasette: the Datasette instance.
        purpose: what they are for.
        actor: whose calls they are.
        told: called with each trial as it ends.

    Returns:
        `ok` (every model answered, there was one, and no problem), `purpose`, `results` in the
        order of the candidates, and their `left_out` and `problem`.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    wanted = await candidates(datasette, purpose, actor)
    room = asyncio.Semaphore(AT_ONCE)

    async def attempt(model_id: str) -> Probe:
        async with room:
            trial = await probe_model(datasette, model_id, purpose, actor)
        told(trial)
        return trial

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(attempt(model_id)) for model_id in wanted.model_ids]
    trials = [task.result() for task in tasks]
    return {
        "ok": wanted.problem is None and all(trial.ok for trial in trials),
        "purpose": purpose,
        "results": [trial.payload() for trial in trials],
        "left_out": wanted.left_out,
        "problem": wanted.problem,
    }
