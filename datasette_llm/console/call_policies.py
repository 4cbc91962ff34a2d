"""Call policies on the pages: timeouts, retries, fallbacks and concurrency limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .. import instance
from ..access.keys import KeyStatus, candidates
from ..access.snapshot import Snapshot
from ..calls.limiter import LimiterRegistry
from ..config.references import references

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..access.call_policy import CallPolicy, Fallback
    from ..config.settings import AttemptSettings, Settings

Row = dict[str, Any]

# Stands for a model that no reference and no endpoint mentions: no id is empty.
ANY_MODEL = ""


class CallPolicies:
    """The call policies of a site as payloads, for one moment."""

    def __init__(self, datasette: Datasette, snapshot: Snapshot, status: KeyStatus) -> None:
        """
        Args:
            datasette: the Datasette instance.
            snapshot: its configuration and models.
            status: which keys are set.
        """
        self._snapshot = snapshot
        self._status = status
        self._busy = instance.of(datasette, LimiterRegistry).busy()

    def payload(self, purpose: str | None, model_id: str) -> Row:
        """The call policy of a model for a purpose, as in JSON.

        Returns:
            `timeout_s`, `idle_timeout_s`, `retries` and `max_answer_chars`; `cache`, which answers
            are kept, or None; `limits`, each with its
            numbers of running and waiting requests; `fallbacks`, each with the problem that
            prevents its use, or None; `settings`, the path of each setting that is not the default.
        """
        call_policy = self._snapshot.for_purpose(purpose).call_policy(model_id)
        return {
            "timeout_s": call_policy.timeout_s,
            "idle_timeout_s": call_policy.idle_timeout_s,
            "retries": call_policy.retries,
            "max_answer_chars": call_policy.max_answer_chars,
            "cache": _cache(call_policy),
            "limits": self._limits(call_policy),
            "fallbacks": [
                {
                    "model_id": each.model_id,
                    "problem": self.problem(purpose, each),
                    "setting": each.setting,
                }
                for each in call_policy.fallbacks
            ],
            "settings": dict(call_policy.settings),
        }

    def of_any_model(self, purpose: str | None = None) -> list[Row]:
        """The call policy of models without settings of their own.

        Args:
            purpose: a purpose; without one, the policies of purposes that differ follow the
                global one.
        """
        names = [purpose]
        if purpose is None:
            common = self._paths(None, ANY_MODEL)
            own = (
                (each, self._paths(each, ANY_MODEL)) for each in self._snapshot.settings.purposes
            )
            names += [name for name, paths in own if paths != common]
        return [{"purpose": name} | self.payload(name, ANY_MODEL) for name in names]

    def of_model(self, purpose: str | None, model_id: str) -> list[Row]:
        """The call policy of a model; without a purpose, those of purposes that differ follow."""
        names = [purpose]
        if purpose is None:
            common = self._paths(None, model_id)
            for name in self._snapshot.settings.purposes:
                if model_id in self._snapshot.for_purpose(name).rules.references and (
                    self._paths(name, model_id) - common - self._paths(name, ANY_MODEL)
                ):
                    names.append(name)
        return [{"purpose": name} | self.payload(name, model_id) for name in names]

    def problem(self, purpose: str | None, fallback: Fallback) -> str | None:
        """Why a fallback cannot be used, by configuration and keys; None if it can."""
        snapshot, model_id = self._snapshot, fallback.model_id
        entry, rules = snapshot.catalog.entries.get(model_id), snapshot.for_purpose(purpose).rules
        if entry is None:
            return snapshot.catalog.why_unknown(model_id)
        refusal = next((s for s in rules.steps(model_id, purpose) if not s.passed), None)
        if refusal is not None:
            return refusal.detail
        own = [fallback.reference.key] if fallback.reference.key else []
        names = [*own, *rules.secret_names(model_id)]
        if not entry.model.needs_key or self._status.source(entry.model, names) is not None:
            return None
        return f"Model {model_id!r} has no key. Set {' or '.join(candidates(entry.model, names))}"

    def _limits(self, call_policy: CallPolicy) -> list[Row]:
        limits = []
        for limit in call_policy.limits:
            kind, name = limit.limiter
            limiter = self._busy.get(limit.limiter)
            limits.append(
                {
                    kind: name or None,
                    "max_concurrency": limit.count,
                    "running": limiter.running if limiter else 0,
                    "waiting": limiter.waiting if limiter else 0,
                    "setting": limit.setting or None,
                }
            )
        return limits

    def _paths(self, purpose: str | None, model_id: str) -> set[str]:
        return set(_paths_of(self._snapshot.for_purpose(purpose).call_policy(model_id)))


def has_limits(settings: Settings) -> bool:
    """Whether the configuration sets `max_concurrency` anywhere."""
    sections: list[AttemptSettings] = [settings, *settings.purposes.values(), *settings.endpoints]
    sections += [reference for _, reference in references(settings)]
    return any(each.max_concurrency is not None for each in sections)


def queues(datasette: Datasette) -> list[Row]:
    """The concurrency limiters in use, with their numbers of running and waiting requests.

    A request may count for its purpose and for its model; it waits at one of them.
    """
    return [
        {kind: name or None, "running": limiter.running, "waiting": limiter.waiting}
        for (kind, name), limiter in instance.of(datasette, LimiterRegistry).busy().items()
    ]


def items(call_policy: Row, *shown: Row) -> list[Row]:
    """A call policy as text, one item for each setting.

    Args:
        call_policy: as `CallPolicies.payload` returns it.
        *shown: call policies that the page shows too. Defaults and items that are the same there
            are left out, except for a limit with requests at the moment.

    Returns:
        Each with its `text`; its `setting`, None for a default; its `problem`, or None; and
        `busy`, whether requests are running or waiting.
    """
    known = {_key(item) for each in shown for item in _items(each)}
    known |= {(None, None, None)} if shown else set()
    return [item for item in _items(call_policy) if _key(item) not in known]


def _key(item: Row) -> tuple[str | None, ...]:
    """What makes items equal: setting, problem, and the counts of a busy limit."""
    return item["setting"], item["problem"], item["text"] if item["busy"] else None


def differences(
    call_policies: Sequence[Row], common: Sequence[Row]
) -> Iterator[tuple[str | None, list[Row]]]:
    """The items of each call policy that those before it do not have.

    Args:
        call_policies: as `CallPolicies.of_model` returns them; or the common ones themselves.
        common: as `CallPolicies.of_any_model` returns them.

    Yields:
        A purpose, None for the first call policy, and its items. Policies without any are left
        out.
    """
    for number, call_policy in enumerate(call_policies):
        shown = [*common[:1], *call_policies[: min(number, 1)]]
        shown += [each for each in common if each["purpose"] == call_policy["purpose"]]
        own = items(call_policy, *(each for each in shown if each is not call_policy))
        if own:
            yield (call_policy["purpose"] if number else None), own


def sentence(item: Row) -> str:
    """An item as a line of text."""
    setting = f" ({item['setting'] or 'default'})"
    return f"{item['text']}{setting}{': ' + item['problem'] if item['problem'] else ''}"


def _items(call_policy: Row) -> Iterator[Row]:
    settings = call_policy["settings"]
    for name, label in (("timeout", "timeout"), ("idle_timeout", "idle timeout")):
        if call_policy[f"{name}_s"] is not None:
            yield _item(f"{label} {call_policy[f'{name}_s']:g} s", settings[name])
    retries = call_policy["retries"]
    noun = "retry" if retries == 1 else "retries"
    yield _item(f"{retries or 'no'} {noun}", settings.get("retries"))
    if "max_answer_chars" in settings:
        text = f"answers of at most {call_policy['max_answer_chars']:,} characters"
        yield _item(text, settings["max_answer_chars"])
    if "cache" in settings:
        yield _item(_cache_text(call_policy["cache"]), settings["cache"])
    for limit in call_policy["limits"]:
        busy = bool(limit["running"] or limit["waiting"])
        yield _item(_limit_text(limit), limit["setting"], busy=busy)
    for number, fallback in enumerate(call_policy["fallbacks"], 1):
        text = f"fallback {number}: {fallback['model_id']}"
        yield _item(text, fallback["setting"], fallback["problem"])
    if "fallbacks" in settings and not call_policy["fallbacks"]:
        yield _item("no fallbacks", settings["fallbacks"])


def _item(text: str, setting: str | None, problem: str | None = None, *, busy: bool = False) -> Row:
    return {"text": text, "setting": setting, "problem": problem, "busy": busy}


def _cache(call_policy: CallPolicy) -> Row | None:
    cache = call_policy.cache
    if cache is None:
        return None
    scope = "actor" if cache.of_actor else "purpose"
    return {"keep_days": cache.keep_days, "max_bytes": cache.max_bytes, "scope": scope}


def _cache_text(cache: Row | None) -> str:
    if cache is None:
        return "no response cache"
    days = "1 day" if cache["keep_days"] == 1 else f"{cache['keep_days']:,} days"
    whose = "each actor's own" if cache["scope"] == "actor" else "shared by its actors"
    return f"answers kept for {days}, {cache['max_bytes'] // 1_000_000:,} MB, {whose}"


def _limit_text(limit: Row) -> str:
    scope = "for the purpose" if "purpose" in limit else "for the model"
    if "threads" in limit:
        scope = "in threads"
    elif limit.get("model", "") is None:
        scope = "for each model"
    now = f", {limit['running']} now" if limit["running"] else ""
    now += f" and {limit['waiting']} waiting" if limit["waiting"] else ""
    return f"at most {limit['max_concurrency']} at once {scope}{now}"


def _paths_of(call_policy: CallPolicy) -> Iterator[str]:
    yield from call_policy.settings.values()
    yield from (limit.setting for limit in call_policy.limits if limit.setting)
