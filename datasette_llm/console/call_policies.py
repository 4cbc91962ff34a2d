"""How prompts are made, as the pages show it: timeouts, retries, fallbacks and limits."""

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

# Of a model that no reference and no endpoint is about: no id is empty.
ANY_MODEL = ""


class CallPolicies:
    """Tells the plans of a site, as they are at one moment."""

    def __init__(self, datasette: Datasette, view: Snapshot, status: KeyStatus) -> None:
        """
        Args:
            datasette: the Datasette instance.
            view: its configuration and models.
            status: which keys are set.
        """
        self._view = view
        self._status = status
        self._busy = instance.of(datasette, LimiterRegistry).busy()

    def payload(self, purpose: str | None, model_id: str) -> Row:
        """The plan of a model for a purpose, as JSON gives it.

        Returns:
            `timeout_s`, `idle_timeout_s` and `retries`; `limits` with how many requests are under
            way and waiting at each; `fallbacks` with what keeps each from being used; `settings`
            with the path of each setting that is not the default.
        """
        plan = self._view.for_purpose(purpose).call_policy(model_id)
        return {
            "timeout_s": plan.timeout_s,
            "idle_timeout_s": plan.idle_timeout_s,
            "retries": plan.retries,
            "limits": self._limits(plan),
            "fallbacks": [
                {
                    "model_id": each.model_id,
                    "problem": self.problem(purpose, each),
                    "setting": each.setting,
                }
                for each in plan.fallbacks
            ],
            "settings": dict(plan.settings),
        }

    def of_any_model(self, purpose: str | None = None) -> list[Row]:
        """What holds where nothing is said about the model itself.

        Args:
            purpose: what for; without one, purposes that differ follow what holds for all.
        """
        names = [purpose]
        if purpose is None:
            common = self._paths(None, ANY_MODEL)
            own = ((each, self._paths(each, ANY_MODEL)) for each in self._view.settings.purposes)
            names += [name for name, paths in own if paths != common]
        return [{"purpose": name} | self.payload(name, ANY_MODEL) for name in names]

    def of_model(self, purpose: str | None, model_id: str) -> list[Row]:
        """The plan of a model; without a purpose, those follow that say more about the model."""
        names = [purpose]
        if purpose is None:
            common = self._paths(None, model_id)
            for name in self._view.settings.purposes:
                if model_id in self._view.for_purpose(name).rules.references and (
                    self._paths(name, model_id) - common - self._paths(name, ANY_MODEL)
                ):
                    names.append(name)
        return [{"purpose": name} | self.payload(name, model_id) for name in names]

    def problem(self, purpose: str | None, fallback: Fallback) -> str | None:
        """Why the configuration, or the want of a key, keeps a fallback from answering."""
        view, model_id = self._view, fallback.model_id
        entry, rules = view.catalog.entries.get(model_id), view.for_purpose(purpose).rules
        if entry is None:
            return view.catalog.why_unknown(model_id)
        refusal = next((s for s in rules.steps(model_id, purpose) if not s.passed), None)
        if refusal is not None:
            return refusal.detail
        own = [fallback.reference.key] if fallback.reference.key else []
        names = [*own, *rules.secret_names(model_id)]
        if not entry.model.needs_key or self._status.source(entry.model, names) is not None:
            return None
        return f"Model {model_id!r} has no key. Set {' or '.join(candidates(entry.model, names))}"

    def _limits(self, plan: CallPolicy) -> list[Row]:
        limits = []
        for limit in plan.limits:
            kind, name = limit.limiter
            gate = self._busy.get(limit.limiter)
            limits.append(
                {
                    kind: name or None,
                    "max_concurrency": limit.count,
                    "running": gate.running if gate else 0,
                    "waiting": gate.waiting if gate else 0,
                    "setting": limit.setting or None,
                }
            )
        return limits

    def _paths(self, purpose: str | None, model_id: str) -> set[str]:
        return set(_settings(self._view.for_purpose(purpose).call_policy(model_id)))


def has_limits(settings: Settings) -> bool:
    """Whether anything is limited by `max_concurrency`."""
    sections: list[AttemptSettings] = [settings, *settings.purposes.values(), *settings.endpoints]
    sections += [reference for _, reference in references(settings)]
    return any(each.max_concurrency is not None for each in sections)


def queues(datasette: Datasette) -> list[Row]:
    """Where requests are under way that are counted, and how many of them and of those that wait.

    A request may be counted for its purpose and for its model; it waits at one of them.
    """
    found = []
    for name, gate in instance.of(datasette, LimiterRegistry).busy().items():
        kind, of = name
        found.append({kind: of or None, "running": gate.running, "waiting": gate.waiting})
    return found


def items(plan: Row, *apart_from: Row) -> list[Row]:
    """A plan in words, one item for each setting.

    Args:
        plan: as `CallPolicies.payload` gives it.
        *apart_from: plans that are shown too. What they say as well is left out, and defaults;
            but for a limit where requests are under way now.

    Returns:
        Each with its `text`; its `setting`, None for a default; its `problem`, or None; and
        whether it is `busy`.
    """
    shown = {_key(item) for each in apart_from for item in _items(each)}
    shown |= {(None, None, None)} if apart_from else set()
    return [item for item in _items(plan) if _key(item) not in shown]


def _key(item: Row) -> tuple[str | None, ...]:
    """What tells an item from others: its setting and problem, and the counts of a busy one."""
    return item["setting"], item["problem"], item["text"] if item["busy"] else None


def differing(
    plans: Sequence[Row], common: Sequence[Row]
) -> Iterator[tuple[str | None, list[Row]]]:
    """What plans say that is not said before them, where there is something.

    Args:
        plans: of a model, as `CallPolicies.of_model` gives them; or the common ones themselves.
        common: as `CallPolicies.of_any_model` gives them.

    Yields:
        A purpose, which is None for the first plan, and its items.
    """
    for number, plan in enumerate(plans):
        before = [*common[:1], *plans[: min(number, 1)]]
        before += [each for each in common if each["purpose"] == plan["purpose"]]
        own = items(plan, *(each for each in before if each is not plan))
        if own:
            yield (plan["purpose"] if number else None), own


def sentence(item: Row) -> str:
    """An item on a line of a terminal."""
    by = f" ({item['setting'] or 'default'})"
    return f"{item['text']}{by}{': ' + item['problem'] if item['problem'] else ''}"


def _items(plan: Row) -> Iterator[Row]:
    settings = plan["settings"]
    for name, label in (("timeout", "timeout"), ("idle_timeout", "idle timeout")):
        if plan[f"{name}_s"] is not None:
            yield _item(f"{label} {plan[f'{name}_s']:g} s", settings[name])
    retries = plan["retries"]
    noun = "retry" if retries == 1 else "retries"
    yield _item(f"{retries or 'no'} {noun}", settings.get("retries"))
    for limit in plan["limits"]:
        busy = bool(limit["running"] or limit["waiting"])
        yield _item(_limit_text(limit), limit["setting"], busy=busy)
    for number, fallback in enumerate(plan["fallbacks"], 1):
        text = f"fallback {number}: {fallback['model_id']}"
        yield _item(text, fallback["setting"], fallback["problem"])
    if "fallbacks" in settings and not plan["fallbacks"]:
        yield _item("no fallbacks", settings["fallbacks"])


def _item(text: str, setting: str | None, problem: str | None = None, *, busy: bool = False) -> Row:
    return {"text": text, "setting": setting, "problem": problem, "busy": busy}


def _limit_text(limit: Row) -> str:
    whose = "for the purpose" if "purpose" in limit else "for the model"
    if "threads" in limit:
        whose = "in threads"
    elif limit.get("model", "") is None:
        whose = "for each model"
    now = f", {limit['running']} now" if limit["running"] else ""
    now += f" and {limit['waiting']} waiting" if limit["waiting"] else ""
    return f"at most {limit['max_concurrency']} at once {whose}{now}"


def _settings(plan: CallPolicy) -> Iterator[str]:
    yield from plan.settings.values()
    yield from (limit.setting for limit in plan.limits if limit.setting)
