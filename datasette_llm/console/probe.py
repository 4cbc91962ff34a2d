"""Probes: a tiny real prompt to one model, or to each model of a purpose, and its result.

`attempted` prompts a model with anything, as a plugin would, for the playground too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pydantic

from ..access import policy
from ..access.keys import read_status
from ..access.quoting import MAX_MESSAGE_CHARS, quoted
from ..access.snapshot import snapshot_of
from ..calls.model import WrappedAsyncModel
from ..errors import ConfigError, FailureKind, LLMError, ModelNotFoundError
from ..events import FinishReason
from ..facade import LLM
from ..providers.failures import failure_message, kind_of
from ..providers.names import provider_of
from ..redaction import key_begin, shortened, without_keys
from ..sanitize import count, message_of, well_formed
from .choices import refused_by_filters
from .explain import resolved_default

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..calls.call import Call
    from ..calls.model import WrappedConversation
    from ..tags.values import Tags

    Actor = Mapping[str, Any] | None

PROMPT = "Reply with the single word: pong"
LIMIT_S = 30.0
# After the limit, for the hooks of the cancelled call; each of them is bounded too.
CLEANUP_S = 10.0
MAX_TEXT_CHARS = 500
MAX_AT_ONCE = 4
MAX_MODELS = 40
# Why an answer has no text, by its finish reason.
_NO_TEXT: Mapping[FinishReason, str] = {
    FinishReason.LENGTH: "It was cut off before: max_tokens leaves no room for an answer, or the "
    "model spent it on reasoning",
    FinishReason.CONTENT_FILTER: "A filter of the provider withheld it",
    FinishReason.REFUSAL: "The model refused",
}
NO_CANDIDATES = (
    "There is no model to test: no default, no allowlist, and no model that has a key or needs "
    "none. Set default_model, or a key"
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a probe failed.

    Attributes:
        kind: one of a closed set.
        message: the whole message, up to a bound, without keys.
    """

    kind: FailureKind
    message: str


@dataclass(frozen=True, slots=True)
class Probe:
    """The result of prompting one model.

    Attributes:
        model_id: the canonical id; for a model unknown to llm, the given name.
        provider: the provider's name for display; None for an unknown model.
        latency_ms: from policy to the end of the call.
        first_chunk_ms: until the first text; None if there was none.
        error: why it failed; None for a success.
        call_id: the id of its row in the call log; None without a row.
        text: the answer, up to a bound.
        usage: the provider's token counts, `input` and `output`.
        cost_dollars: what it cost, failed attempts included; None where unknown.
        finish_reason: why the answer ended, as the provider says; None where unknown.
        answered_by: the model that a fallback went to, if it is another one; or None.
    """

    model_id: str
    provider: str | None
    latency_ms: float
    first_chunk_ms: float | None
    error: Failure | None
    call_id: str | None
    text: str
    usage: Mapping[str, int | None]
    cost_dollars: float | None
    finish_reason: FinishReason | None
    answered_by: str | None

    @property
    def ok(self) -> bool:
        """Whether the model answered."""
        return self.error is None

    def payload(self) -> dict[str, Any]:
        """The probe as in JSON."""
        return {"ok": self.ok, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Candidates:
    """The models to probe for a purpose.

    Attributes:
        model_ids: their ids, the default first.
        left_out: how many more there are.
        removed: those that policy removes, as the configuration blocks them or a plugin refuses
            them to the actor: they are not probed.
        allowlist: whether they come from an allowlist; without one they are the default and the
            models that have a key or need none.
        problem: why the default is unknown, or why there are no models; or None.
    """

    model_ids: tuple[str, ...]
    left_out: int
    removed: tuple[str, ...]
    allowlist: bool
    problem: str | None

    def payload(self) -> dict[str, Any]:
        """The candidates as in JSON."""
        return asdict(self) | {"model_ids": list(self.model_ids), "removed": list(self.removed)}


async def probe_model(
    datasette: Datasette,
    model_id: str,
    purpose: str | None = None,
    actor: Actor = None,
    on_first_chunk: Callable[[float], None] = lambda first_chunk_ms: None,
) -> Probe:
    """Prompt a model as a plugin would, for `LIMIT_S` at most.

    Policy, key, hooks, call log and configured options apply. Failures are part of the result and
    never raised.

    Args:
        datasette: the Datasette instance.
        model_id: an id or alias; it may be unknown.
        purpose: the purpose of the prompt.
        actor: the actor of the call, for policy, budgets and the call log.
        on_first_chunk: called with the milliseconds until the first text, when it is there.
    """
    asked = Asked(PROMPT, LIMIT_S, alone=True, on_first_chunk=on_first_chunk)
    return await attempted(Attempt(datasette, model_id, purpose, actor, asked))


async def attempted(attempt: Attempt) -> Probe:
    """Make an attempt, for the time that it may take at most; a failure is part of the result."""
    task = asyncio.create_task(attempt.run())
    try:
        await asyncio.wait([task], timeout=attempt.asked.limit_s)
        if not task.done():
            attempt.time_out()
            task.cancel()
            await asyncio.wait([task], timeout=CLEANUP_S)
    finally:
        task.cancel()  # if our caller was cancelled
    return await _result(attempt)


async def candidates(datasette: Datasette, purpose: str, actor: Actor = None) -> Candidates:
    """The models to probe for a purpose, `MAX_MODELS` at most.

    Every model of an allowlist counts, with or without a key, as it is meant to work. Those that
    policy removes do not; a filter that fails is left to the probe, which reports it.

    Args:
        datasette: the Datasette instance.
        purpose: any name; one without settings has the global rules.
        actor: the actor, on whom the default may depend.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    snapshot = await snapshot_of(datasette)
    default = await resolved_default(datasette, snapshot, purpose, actor) or {}
    problem = default.get("error") and f"llm_default_model: {default['error']}"
    # If a plugin failed to name the default, the configured one is probed.
    configured = snapshot.for_purpose(purpose).default() if problem else None
    name = configured.model_id if configured else default.get("model_id")
    rules = snapshot.for_purpose(purpose).rules
    first = [] if name is None else [snapshot.catalog.canonical(name)]
    ids = policy.listing(rules, snapshot.catalog, first[0] if first else None)
    if rules.allowed is None:
        ids = policy.with_key(ids, snapshot.catalog, rules, await read_status(datasette))
    # Configured names that llm does not know: their failure is worth reporting.
    unknown = [name for name in rules.order if name not in snapshot.catalog.entries]
    every = dict.fromkeys([*first, *ids, *unknown])
    known = [each for each in every if each in snapshot.catalog.entries]
    removed = {each for each in known if not rules.permits(each)}
    removed |= set(await refused_by_filters(datasette, snapshot, purpose, known, actor))
    every = dict.fromkeys(each for each in every if each not in removed)
    return Candidates(
        tuple(every)[:MAX_MODELS],
        left_out=max(0, len(every) - MAX_MODELS),
        removed=tuple(each for each in known if each in removed),
        allowlist=rules.allowed is not None,
        problem=problem or (None if every else NO_CANDIDATES),
    )


async def probe_purpose(
    datasette: Datasette,
    purpose: str,
    actor: Actor = None,
    on_probe: Callable[[Probe], None] = lambda probe: None,
) -> dict[str, Any]:
    """Probe each model of a purpose, `MAX_AT_ONCE` at a time.

    Args:
        datasette: the Datasette instance.
        purpose: the purpose.
        actor: the actor of the calls.
        on_probe: called with each probe when it has ended.

    Returns:
        `ok` (at least one model, all answered, no problem), `purpose`, `results` in the order of
        the candidates, and their `left_out`, `removed` and `problem`.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    found = await candidates(datasette, purpose, actor)
    limiter = asyncio.Semaphore(MAX_AT_ONCE)

    async def run(model_id: str) -> Probe:
        async with limiter:
            probe = await probe_model(datasette, model_id, purpose, actor)
        on_probe(probe)
        return probe

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(model_id)) for model_id in found.model_ids]
    probes = [task.result() for task in tasks]
    return {
        "ok": found.problem is None and all(probe.ok for probe in probes),
        "purpose": purpose,
        "results": [probe.payload() for probe in probes],
        "left_out": found.left_out,
        "removed": list(found.removed),
        "problem": found.problem,
    }


def _ignored(observed: str | float) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Asked:
    """What a model is asked, and how.

    Attributes:
        prompt: the text.
        limit_s: how long it may take, in seconds.
        arguments: what else its `prompt()` gets.
        tags: what the call is tied to, or None.
        alone: whether it is asked once, and no fallback, whose answer would hide that it is down.
        max_chars: how many characters of the answer are kept.
        on_text: gets each piece of the answer, without keys, as it comes.
        on_first_chunk: called with the milliseconds until the first text, when it is there.
    """

    prompt: str
    limit_s: float
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tags: Tags | None = None
    alone: bool = False
    max_chars: int = MAX_TEXT_CHARS
    on_text: Callable[[str], None] = _ignored
    on_first_chunk: Callable[[float], None] = _ignored


class Attempt:
    """A model being asked, and what was observed of it."""

    def __init__(
        self, datasette: Datasette, name: str, purpose: str | None, actor: Actor, asked: Asked
    ) -> None:
        """
        Args:
            datasette: the Datasette instance.
            name: an id or alias; it may be unknown.
            purpose: what it is asked for.
            actor: who asks, for policy, budgets and the call log.
            asked: what it is asked.
        """
        self.datasette = datasette
        self.name = name
        self.asked = asked
        self.began = time.monotonic()
        self.first_chunk_at: float | None = None
        self.ended_at: float | None = None
        self.model: WrappedAsyncModel | None = None
        self.text = ""
        self.error: Exception | None = None
        self.timed_out: str | None = None
        self._purpose = purpose
        self._actor = actor
        self._conversation: WrappedConversation | None = None

    @property
    def call(self) -> Call | None:
        """The call; None if none was made."""
        # From the conversation, which has it before there is a response.
        return self._conversation.call if self._conversation is not None else None

    @property
    def answered(self) -> bool:
        """Whether the response is complete."""
        return self.call is not None and bool(self.call.result.responses[0].is_complete)

    async def run(self) -> None:
        """Prompt the model, and read the answer to its end."""
        try:
            models = LLM(self.datasette)
            model = await models.model(self.name, self._purpose, self._actor, tags=self.asked.tags)
            self.model = WrappedAsyncModel(model.route.once()) if self.asked.alone else model
            self._conversation = self.model.conversation()
            await self._read(self._conversation)
        except Exception as error:  # of a hook, a provider or ours: it is the result
            self.error = error
        if self.ended_at is None:
            self.ended_at = time.monotonic()

    async def _read(self, conversation: WrappedConversation) -> None:
        asked, held = self.asked, ""
        # A kept answer says nothing about the model, nor about its latency and cost.
        arguments = {"response_cache": False, **asked.arguments}
        async for chunk in await conversation.prompt(asked.prompt, **arguments):
            if self.first_chunk_at is None:
                self.first_chunk_at = time.monotonic()
                asked.on_first_chunk(self.ms_until(self.first_chunk_at))
            if len(self.text) < max(asked.max_chars, MAX_MESSAGE_CHARS):
                self.text += chunk
                held = self._pass_on(held + chunk)
        self._pass_on(held, whole=True)

    def _pass_on(self, text: str, *, whole: bool = False) -> str:
        """Pass on a text without keys; what of its end may begin a key is returned."""
        keys = self.call.used_keys if self.call is not None else frozenset()
        clean = without_keys(text, keys)
        held = "" if whole else key_begin(clean, keys)
        if passed := clean.removesuffix(held):
            self.asked.on_text(well_formed(passed))
        return held

    def time_out(self) -> None:
        """Note that the time is up, and which stage the call was in."""
        self.ended_at = time.monotonic()
        call = self.call
        if call is None:
            stage = "before the model was found and allowed"
        elif not call.admitted.is_set():
            stage = "before a plugin let the prompt go to the provider"
        elif call.awaits_permit:
            stage = "while the request waited for the concurrency limit (max_concurrency)"
        elif self.answered:
            stage = "after the answer was complete, before a plugin had finished"
        elif self.first_chunk_at is not None:
            stage = "after the first text, before the end of the answer"
        else:
            stage = "before the provider had sent any text"
        self.timed_out = f"Stopped after {self.asked.limit_s:g} s, {stage}"

    def ms_until(self, moment: float) -> float:
        """Milliseconds from the beginning to a moment."""
        return round((moment - self.began) * 1000, 1)


async def _result(attempt: Attempt) -> Probe:
    """The result of an attempt, as far as it is known now."""
    call = attempt.call
    keys = call.used_keys if call is not None else frozenset()
    response = call.result.response if call is not None else None
    failure = _failure(attempt)
    if failure is not None:
        message = await quoted(attempt.datasette, without_keys(failure.message, keys))
        failure = Failure(failure.kind, message)
    model_id, provider = await _identity(attempt)
    cost = await call.result.cost() if call is not None else None
    first = attempt.first_chunk_at
    return Probe(
        model_id=model_id,
        provider=provider,
        latency_ms=attempt.ms_until(attempt.ended_at or time.monotonic()),
        first_chunk_ms=None if first is None else attempt.ms_until(first),
        error=failure,
        call_id=_call_id(attempt),
        text=_shown(attempt.text, keys, attempt.asked.max_chars),
        usage={
            "input": count(response.input_tokens) if response is not None else None,
            "output": count(response.output_tokens) if response is not None else None,
        },
        cost_dollars=cost.dollars if cost is not None else None,
        finish_reason=response.finish_reason if response is not None else None,
        answered_by=_answered_by(attempt),
    )


def _answered_by(attempt: Attempt) -> str | None:
    if attempt.call is None or attempt.model is None:
        return None
    answering = attempt.call.result.responses[0].model.model_id
    return None if answering == attempt.model.model_id else str(answering)


def _failure(attempt: Attempt) -> Failure | None:
    call, error = attempt.call, attempt.error
    plugin = call.refused_by if call is not None else None
    if attempt.timed_out is not None:
        suffix = f" (plugin {plugin!r})" if plugin else ""
        return Failure("timeout", f"{attempt.timed_out}{suffix}")
    if error is None:
        return None if attempt.text.strip() else Failure("bad_answer", _no_text(call))
    if plugin is not None:
        message = f"Plugin {plugin!r} blocked the call: {message_of(error)}"
        return Failure("blocked", message)
    kind = _kind(attempt, error)
    return Failure(kind, _of_options(error) or failure_message(error, kind))


def _of_options(error: Exception) -> str | None:
    """What is wrong with options, in a line; None for another error."""
    if not isinstance(error, pydantic.ValidationError):
        return None
    problems = error.errors(include_url=False, include_input=False)
    return "; ".join(f"option {'.'.join(map(str, p['loc']))}: {p['msg']}" for p in problems)


def _kind(attempt: Attempt, error: Exception) -> FailureKind:
    """The kind of an error, by the stage too, since an error of a hook may have any type."""
    if attempt.answered:
        return "blocked"  # by a hook, after the answer was complete
    if attempt.call is not None or isinstance(error, LLMError):
        return kind_of(error)
    # Before the call: a hook about defaults or filters; then llm, which checks the options.
    return "blocked" if attempt.model is None else "other"


def _no_text(call: Call | None) -> str:
    response = call.result.responses[0] if call is not None else None
    tokens = response.output_tokens if response is not None else None
    counted = f" ({tokens} tokens were counted)" if tokens else ""
    why = _NO_TEXT.get(response.finish_reason) if response and response.finish_reason else None
    why = why or (
        "Either the address serves no such model, or the configured options leave no room for an "
        "answer"
    )
    return f"The answer has no text{counted}. {why}"


def _call_id(attempt: Attempt) -> str | None:
    """The id of the row in the call log, if there is one."""
    call, model = attempt.call, attempt.model
    if isinstance(attempt.error, LLMError) and attempt.error.call_id:
        return attempt.error.call_id
    if call is None or model is None or model.route.recorder is None or not call.admitted.is_set():
        return None
    never_sent = call.refused_by is not None and call.cancelled
    return None if never_sent else call.result.call_id


async def _identity(attempt: Attempt) -> tuple[str, str | None]:
    """The canonical id and the provider, also of a model that policy refused."""
    if attempt.model is not None:
        return attempt.model.model_id, provider_of(attempt.model.route.model)
    try:
        entry = (await snapshot_of(attempt.datasette)).catalog.get(attempt.name)
    except (ConfigError, ModelNotFoundError):
        return _shown(attempt.name, (), MAX_TEXT_CHARS), None
    return entry.model_id, provider_of(entry.model)


def _shown(text: str, keys: Iterable[str], max_chars: int) -> str:
    """Third-party text for display: without keys, of bounded length."""
    whole = well_formed(text)
    clean = shortened(whole, frozenset(keys), max_chars)
    return clean if len(whole) <= max_chars else f"{clean}…"
