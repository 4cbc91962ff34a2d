"""What we keep for each Datasette instance, and let go with it."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ..calls.limiter import Gates
from ..config.parse import parse_settings
from ..config.settings import PriceSettings, Settings, path_of
from ..errors import ConfigError
from ..log.recorder import Recorder
from ..log.totals_cache import QueryCache
from ..providers.catalog import Catalog, CatalogSource, Entry
from .assignments import Assignment, Assignments
from .call_policy import CallPolicy, Fallback, call_policy_of, fallback_call_policy
from .policy import Default, Rules, default_of

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..calls.call import Call

PLUGIN = "datasette-llm"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The settings, the catalog and the assignments of one moment, and what follows from them."""

    settings: Settings
    catalog: Catalog
    assigned: Mapping[str, Assignment]
    _rules: dict[str | None, Rules] = field(default_factory=dict, repr=False)
    _prices: dict[str, PriceSettings] = field(default_factory=dict, repr=False)
    _plans: dict[tuple[str | None, str], CallPolicy] = field(default_factory=dict, repr=False)

    @property
    def made_of(self) -> tuple[Settings, Catalog, Mapping[str, Assignment]]:
        """The settings, the catalog and the assignments."""
        return self.settings, self.catalog, self.assigned

    def rules(self, purpose: str | None) -> Rules:
        """The rules for a purpose, worked out once."""
        key = purpose if purpose in self.settings.purposes else None
        if key not in self._rules:
            self._rules[key] = Rules.of(self.settings, self.catalog, key)
        return self._rules[key]

    def default(self, purpose: str | None) -> Default | None:
        """The default for a purpose, hooks aside: by assignment, then by configuration."""
        choice = self.assigned.get(purpose) if purpose is not None else None
        return default_of(self.rules(purpose), self.catalog, choice.model_id if choice else None)

    def plan(self, purpose: str | None, model_id: str) -> CallPolicy:
        """How the prompts of a model for a purpose are made, worked out once."""
        key = (purpose if purpose in self.settings.purposes else None, model_id)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = call_policy_of(self.settings, self.catalog, *key)
        return plan

    def fallback_call_policy(self, purpose: str | None, fallback: Fallback) -> CallPolicy:
        """How a model is asked that stands in for another."""
        return fallback_call_policy(self.settings, self.catalog, purpose, fallback)

    def price(self, model_id: str) -> PriceSettings | None:
        """The configured price of a model, or None."""
        log = self.settings.log
        if log is not None and log.prices and not self._prices:
            self._prices.update({self.catalog.canonical(k): v for k, v in log.prices.items()})
        return self._prices.get(model_id)


class State:
    """What belongs to one Datasette instance.

    Attributes:
        calls: the calls under way; this is also what keeps them alive.
        warnings: what is odd about the configuration, as found at startup.
        startup_check: the task that finds the warnings.
        assignments: the models that administrators chose for purposes.
        gates: where requests wait for their turn.
        query_cache: what was found about the record, for as long as it is still true.
    """

    def __init__(self) -> None:
        self.calls: set[Call] = set()
        self.warnings: tuple[str, ...] = ()
        self.startup_check: asyncio.Task[None] | None = None
        self.assignments = Assignments()
        self.query_cache = QueryCache()
        self.gates = Gates()
        self._source = CatalogSource()
        self._raw: object = None
        self._settings: Settings | None = None
        self._view: Snapshot | None = None
        self._recorder: Recorder | None = None

    async def view(self, datasette: Datasette) -> Snapshot:
        """The settings and the catalog as of now.

        Raises:
            ConfigError: the configuration cannot be used.
        """
        return self._viewed(await self.settings(datasette), await self._source.current())

    async def find(self, datasette: Datasette, name: str) -> tuple[Snapshot, Entry]:
        """The model with this id or alias, and the view it was found in.

        Raises:
            ConfigError: the configuration cannot be used.
            ModelNotFoundError: there is no such model.
        """
        settings = await self.settings(datasette)
        catalog, entry = await self._source.find(name)
        return self._viewed(settings, catalog), entry

    async def settings(self, datasette: Datasette) -> Settings:
        """The parsed configuration; parsed again when the raw one has changed.

        Raises:
            ConfigError: it cannot be used.
        """
        raw = ((datasette.config or {}).get("plugins") or {}).get(PLUGIN)
        if self._settings is None or raw != self._raw:
            # A copy from before we wait, since the configuration may change meanwhile.
            raw = copy.deepcopy(raw)
            try:
                # In a thread, because resolving `$file` reads files.
                resolved: Any = await asyncio.to_thread(datasette.plugin_config, PLUGIN)
            except OSError as error:
                raise ConfigError([f"{path_of()}: a $file cannot be read: {error}"]) from None
            self._settings = parse_settings(resolved)
            self._source.endpoints = self._settings.endpoints
            self._raw = raw
        return self._settings

    def recorder(self, datasette: Datasette) -> Recorder:
        """The record of the instance's calls; made when first asked for."""
        if self._recorder is None:
            self._recorder = Recorder(datasette)
        return self._recorder

    async def close_record(self) -> None:
        """Write what is still to be recorded; no more calls will come."""
        if self._recorder is not None:
            await self._recorder.close()

    def _viewed(self, settings: Settings, catalog: Catalog) -> Snapshot:
        view = self._view
        now = (settings, catalog, self.assignments.current)
        # By identity: each is replaced when it changes, and comparing them would take long.
        if view is None or any(a is not b for a, b in zip(view.made_of, now, strict=True)):
            view = self._view = Snapshot(*now)
        return view


_states: WeakKeyDictionary[Datasette, State] = WeakKeyDictionary()


def state_of(datasette: Datasette) -> State:
    """The state of a Datasette instance; made when first asked for."""
    state = _states.get(datasette)
    if state is None:
        state = _states[datasette] = State()
    return state
