"""What the attempts of one call share: its hooks' result, its keys, and whether it may go on."""

from __future__ import annotations

from typing import Any

from ..access.keys import KeyName, find_key, find_named_key
from ..access.secrets import registered_secrets
from ..tags.values import Tags
from .cache import CachedPrompt
from .limiter import Permit
from .prompt_result import CallbackOwners, PromptResult
from .response import PromptResponse
from .route import Route, RoutedModel
from .task import SupervisedTask


class CallContext(SupervisedTask):
    """A call, as its attempts know it.

    Attributes:
        model: the model that was asked for.
        route: its route.
        owners: whose the callbacks of the result are.
        result: what the contexts of the hooks know of the call.
        awaited_permit: the permit that its request waits for, or None.
        waited_s: how long its requests have waited for permits, in seconds.
        used_keys: the keys looked up so far, those of fallbacks included.
        cached: what the response cache has for it; None where it has no part.
    """

    # No attributes of an instance without, for its memory.
    cached: CachedPrompt | None = None
    waited_s: float = 0.0

    def __init__(self, model: RoutedModel, tags: Tags, *, is_chain: bool) -> None:
        super().__init__()
        self.model = model
        self.route: Route = model.route
        # The route knows it by a protocol, since groups stand above routes.
        group: Any = model.route.group
        self.owners = CallbackOwners()
        self.result = PromptResult(model.purpose, model.actor, group, is_chain, self.owners, tags)
        self.awaited_permit: Permit | None = None
        self.used_keys: frozenset[str] = frozenset()
        self._keys: dict[RoutedModel, str | None] = {}

    @property
    def awaits_permit(self) -> bool:
        """Whether its request waits for a concurrency limit."""
        return self.awaited_permit is not None

    @property
    def row_id(self) -> str | None:
        """Of the request that its newest response comes from; None before the first."""
        return self.result.call_id if self.result.attempts else None

    async def key(self, model: RoutedModel, explicit: str | KeyName | None) -> str | None:
        """The key for this call's requests to a model, looked up once.

        Args:
            model: who is asked.
            explicit: what the caller passed as `key=` or `key_name=`.

        Raises:
            llm.NeedsKeyException: there is none.
        """
        if model not in self._keys:
            found = self._keys[model] = await self._found_key(model, explicit or model.key)
            if found:
                self.used_keys |= {found}
        return self._keys[model]

    def known_key(self, model: RoutedModel) -> str | None:
        """The key that was found for a model; None where none was."""
        return self._keys.get(model)

    async def _found_key(self, model: RoutedModel, explicit: str | KeyName | None) -> str | None:
        datasette, target = model.route.datasette, model.route.target
        if isinstance(explicit, KeyName):
            registered = {secret.name for secret in await registered_secrets(datasette)}
            return await find_named_key(
                datasette, target.model, explicit.name, registered=registered, actor=model.actor
            )
        return await find_key(
            datasette,
            target.model,
            explicit=explicit,
            secret_names=target.secret_names,
            actor=model.actor,
        )

    def may_retry(self, response: PromptResponse) -> bool:
        """True if the request may be retried: no event received, call not cancelled.

        A later step of a chain may be, too: its tools have run between the steps, and only its
        own request is made again, with the same history.

        Args:
            response: what the request fills.
        """
        return response.is_untouched and not self.is_being_stopped
