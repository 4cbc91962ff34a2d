"""Consistent snapshots of the settings, the models and the assignments.

A snapshot is replaced when one of its parts has changed. Each decision about a model is made
over one snapshot.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from .. import instance
from ..config.parse import parse_settings
from ..config.settings import PriceSettings, Settings, TelemetrySettings, path_of
from ..errors import ConfigError
from ..providers.catalog import Catalog, CatalogSource, Entry
from .assignments import Assignment, Assignments
from .call_policy import CallPolicy, Fallback, LogPolicy, call_policy_of, fallback_call_policy
from .keys import endpoint_secret
from .policy import Default, Rules, default_of, listing

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..providers.registry import AsyncLLM

PLUGIN = "datasette-llm"


class Endpoint(Protocol):
    """What is so of the requests of an endpoint's model only.

    Attributes:
        caller_fields: the fields in which it gets something about the caller.
        credentials: what its headers hold that must not be shown.
    """

    caller_fields: frozenset[str]
    credentials: frozenset[str]


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """A model for a purpose, with its settings.

    Attributes:
        model: llm's own model object.
        options: the configured options; the caller's take precedence.
        secret_names: the secrets that may hold its key, the most specific first.
        call_policy: its timeouts, retries, limits and fallbacks.
        log: how its calls are recorded; None where they are not.
        price: its configured price, or None.
        exact_price: whether a public price needs an exact match of the name, since the model
            may be self-hosted.
        telemetry: what spans of its calls hold.
        endpoint: what is so of an endpoint's requests only; None for other models.
    """

    model: AsyncLLM
    options: Mapping[str, Any]
    secret_names: tuple[str, ...]
    call_policy: CallPolicy
    log: LogPolicy | None
    price: PriceSettings | None
    exact_price: bool
    telemetry: TelemetrySettings
    endpoint: Endpoint | None


@dataclass(frozen=True, slots=True)
class PurposeSnapshot:
    """The part of a snapshot that is about one purpose.

    It does not refer to the snapshot, so that a replaced one is freed at once.

    Attributes:
        settings: the parsed configuration.
        catalog: the models that llm knows.
        prices: the configured prices, by model id.
        purpose: the purpose where it has settings of its own, else None.
        rules: the models that the configuration lets it use.
        assigned: the model that an administrator chose for it, or None.
    """

    settings: Settings
    catalog: Catalog
    prices: Mapping[str, PriceSettings]
    purpose: str | None
    rules: Rules
    assigned: str | None
    _call_policies: dict[str, CallPolicy] = field(default_factory=dict, repr=False)
    _routes: dict[str, ModelRoute] = field(default_factory=dict, repr=False)

    def default(self) -> Default | None:
        """The default model before hooks are asked: by assignment, else by configuration."""
        return default_of(self.rules, self.catalog, self.assigned)

    def permits(self, model_id: str) -> bool:
        """Whether the configuration lets a known model be used."""
        return self.rules.permits(model_id)

    def listing(self, default: str | None) -> list[str]:
        """The ids that the configuration permits, in the order of `LLM.models()`.

        Args:
            default: an id or alias, which comes first; None for no default.
        """
        first = self.catalog.canonical(default) if default else None
        return listing(self.rules, self.catalog, first)

    def call_policy(self, model_id: str) -> CallPolicy:
        """The call policy of a model, computed once."""
        found = self._call_policies.get(model_id)
        if found is None:
            found = call_policy_of(self.settings, self.catalog, self.purpose, model_id)
            self._call_policies[model_id] = found
        return found

    def route(self, model_id: str) -> ModelRoute:
        """A known model with its settings, computed once.

        Args:
            model_id: a canonical id.
        """
        found = self._routes.get(model_id)
        if found is None:
            found = self._routes[model_id] = self._resolved(model_id)
        # Options are copied for each caller, since a model or a plugin may change what it gets.
        return replace(found, options=self.rules.options(model_id)) if found.options else found

    def fallback_route(self, fallback: Fallback, model_id: str) -> ModelRoute:
        """A known model in the role of a fallback, with the key and the options of that role.

        Args:
            fallback: the role.
            model_id: a canonical id.
        """
        reference = fallback.reference
        own = self.route(model_id)
        names = own.secret_names if reference.key is None else (reference.key, *own.secret_names)
        policy = fallback_call_policy(
            self.settings, self.catalog, self.purpose, fallback, own.call_policy
        )
        options = {**own.options, **reference.plain_options()}
        return replace(own, options=options, secret_names=names, call_policy=policy)

    def _resolved(self, model_id: str) -> ModelRoute:
        model = self.catalog.entries[model_id].model
        return ModelRoute(
            model,
            self.rules.options(model_id),
            self.rules.secret_names(model_id),
            self.call_policy(model_id),
            self._log_policy(),
            self.prices.get(model_id),
            exact_price=not model.needs_key or endpoint_secret(model) is not None,
            telemetry=self.settings.telemetry,
            endpoint=_endpoint(model),
        )

    def _log_policy(self) -> LogPolicy | None:
        log = self.settings.log
        if log is None:
            return None
        own = self.settings.for_purpose(self.purpose)
        content = own.log.content if own is not None else None
        return LogPolicy(log.content if content is None else content, log.required)


def _endpoint(model: Any) -> Endpoint | None:
    """The model, if it is that of an endpoint."""
    # By attribute, since importing the class of endpoints takes a second.
    return model if hasattr(model, "caller_fields") else None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The settings, the catalog and the assignments of one moment.

    Attributes:
        settings: the parsed configuration.
        catalog: the models that llm knows.
        assigned: the models that administrators chose, by purpose.
    """

    settings: Settings
    catalog: Catalog
    assigned: Mapping[str, Assignment]
    _purposes: dict[str | None, PurposeSnapshot] = field(default_factory=dict, repr=False)

    def for_purpose(self, purpose: str | None) -> PurposeSnapshot:
        """The part about a purpose, computed once where it has settings of its own.

        Args:
            purpose: any name; one without settings has the global settings.
        """
        key = purpose if purpose in self.settings.purposes else None
        found = self._purposes.get(key)
        if found is None:
            rules = Rules.of(self.settings, self.catalog, key)
            prices = self._prices()
            found = PurposeSnapshot(
                self.settings, self.catalog, prices, key, rules, self._assigned(key)
            )
            self._purposes[key] = found
        if key == purpose or purpose not in self.assigned:
            return found
        return replace(found, assigned=self._assigned(purpose))

    def _prices(self) -> Mapping[str, PriceSettings]:
        log = self.settings.log
        prices = log.prices if log is not None else {}
        return {self.catalog.canonical(name): price for name, price in prices.items()}

    def _assigned(self, purpose: str | None) -> str | None:
        choice = self.assigned.get(purpose) if purpose is not None else None
        return choice.model_id if choice is not None else None


class SnapshotSource:
    """Takes the snapshots of a Datasette instance.

    Attributes:
        catalogs: keeps the catalog of the instance up to date.
    """

    def __init__(self) -> None:
        self.catalogs = CatalogSource()
        self._raw: object = None
        self._settings: Settings | None = None
        self._snapshot: Snapshot | None = None
        self._assignments: Assignments | None = None

    async def settings(self, datasette: Datasette) -> Settings:
        raw = ((datasette.config or {}).get("plugins") or {}).get(PLUGIN)
        if self._settings is None or raw != self._raw:
            # Copied before the await, since the configuration may change meanwhile.
            raw = copy.deepcopy(raw)
            try:
                # In a thread, because resolving `$file` reads files.
                resolved: Any = await asyncio.to_thread(datasette.plugin_config, PLUGIN)
            except OSError as error:
                raise ConfigError([f"{path_of()}: a $file cannot be read: {error}"]) from None
            self._settings = parse_settings(resolved)
            self.catalogs.endpoints = self._settings.endpoints
            self._raw = raw
        return self._settings

    def snapshot(self, datasette: Datasette, settings: Settings, catalog: Catalog) -> Snapshot:
        if self._assignments is None:
            self._assignments = instance.of(datasette, Assignments)
        assigned = self._assignments.current
        known = self._snapshot
        # By identity: each is replaced when it changes, and comparing them would be slow.
        if (
            known is None
            or known.settings is not settings
            or known.catalog is not catalog
            or known.assigned is not assigned
        ):
            known = self._snapshot = Snapshot(settings, catalog, assigned)
        return known


async def settings_of(datasette: Datasette) -> Settings:
    """The parsed configuration, parsed again when the raw one has changed.

    Raises:
        ConfigError: it cannot be used.
    """
    return await instance.of(datasette, SnapshotSource).settings(datasette)


async def snapshot_of(datasette: Datasette) -> Snapshot:
    """The current snapshot.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    source = instance.of(datasette, SnapshotSource)
    settings = await source.settings(datasette)
    return source.snapshot(datasette, settings, await source.catalogs.current())


async def find_model(datasette: Datasette, name: str) -> tuple[Snapshot, Entry]:
    """The model with this id or alias, and the snapshot it was found in.

    Raises:
        ConfigError: the configuration cannot be used.
        ModelNotFoundError: there is no such model.
    """
    source = instance.of(datasette, SnapshotSource)
    settings = await source.settings(datasette)
    catalog, entry = await source.catalogs.find(name)
    return source.snapshot(datasette, settings, catalog), entry
