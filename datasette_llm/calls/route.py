"""How the prompts of a model reach its provider: resolved once, never changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import llm
from llm.parts import AttachmentPart

from ..access.keys import KeyName
from ..providers.registry import AsyncLLM
from ..providers.sync_adapter import mirror_attributes
from ..tags.source import call_tags
from ..tags.values import NO_TAGS, Tags, checked, current, limited
from .cache_mode import response_cache

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..access.call_policy import Fallback
    from ..access.snapshot import ModelRoute
    from ..log.recorder import Recorder


class GroupRegister(Protocol):
    """What a route needs of the group that its calls belong to."""

    id: str
    responses: list[Any]

    def enter(self, member: Any) -> None:
        """Take in a call that begins."""

    def leave(self, member: Any) -> None:
        """Let go of a call that has ended."""


class Route(NamedTuple):
    """The way of a model's prompts to its provider.

    Attributes:
        datasette: the Datasette instance.
        target: llm's model, with all that the configuration says of it.
        purpose: what the prompts are for, or None.
        actor: Datasette's actor dictionary, or None.
        group: the group that its calls belong to, or None.
        recorder: writes the call log; None where calls are not recorded.
        resolve_fallback: gives the model of a fallback, if policy allows it.
        tags: those that every prompt of the model has.
        caller: the name of the Python module that asked for the model, or None.
    """

    datasette: Datasette
    target: ModelRoute
    purpose: str | None
    actor: Mapping[str, Any] | None
    group: GroupRegister | None
    recorder: Recorder | None
    resolve_fallback: Callable[[Route, Fallback], Awaitable[RoutedModel]]
    tags: Tags = NO_TAGS
    caller: str | None = None

    @property
    def model(self) -> AsyncLLM:
        """llm's own model object."""
        return self.target.model

    @property
    def group_id(self) -> str | None:
        """The id of the group, or None."""
        return self.group.id if self.group is not None else None

    def tags_of(self, given: object = None, inherited: Tags = NO_TAGS) -> Tags:
        """The tags of a call that begins now: the more specific ones win.

        Args:
            given: what the caller passed as `tags=`, or None.
            inherited: those of its conversation.

        Returns:
            The tags of the blocks of `tagged()`, of the model, of the conversation and of the
            caller; where a request of Datasette caused the call, its path and the plugin, too.

        Raises:
            TagError: a tag is invalid, or there are too many.
        """
        if given is None and self.tags is inherited is current.get() is NO_TAGS:
            return NO_TAGS  # nearly always
        layers = (self.tags, inherited, checked(given))
        return limited(call_tags(self.datasette, self.caller, *layers))

    def once(self) -> Route:
        """The same route with one request for each prompt, to this model: no kept answer either."""
        return self._with_policy(retries=0, fallbacks=(), cache=None)

    def alone(self, *, response_cache: bool = False) -> Route:
        """The same route with requests to this model and to no other.

        Args:
            response_cache: whether an answer of it that the response cache keeps is used, any one.
        """
        cache = self.target.call_policy.cache if response_cache else None
        return self._with_policy(fallbacks=(), cache=cache and replace(cache, any_answer=True))

    def _with_policy(self, **changed: Any) -> Route:
        policy = replace(self.target.call_policy, **changed)
        return self._replace(target=replace(self.target, call_policy=policy))


class RoutedModel(llm.AsyncKeyModel):
    """A model whose prompts take a route; the base of what plugin authors hold.

    Attributes:
        route: the way to its provider.
        purpose: the purpose it was asked for, or None.
        actor: Datasette's actor dictionary, or None.
    """

    def __init__(self, route: Route) -> None:
        mirror_attributes(route.model, self)
        self.route = route
        self.purpose = route.purpose
        self.actor = route.actor
        self._model = route.model  # by this name plugins know it

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What llm's `prompt()` gets: the caller's arguments, configured options as defaults.

        Args:
            given: the caller's keyword arguments.

        Raises:
            TypeError: `key_name` is no name, or came with `key`.
            ValueError: `response_cache` is not what it may be.
        """
        arguments = dict(given)
        arguments.pop("tags", None)
        if "response_cache" in arguments:
            response_cache(arguments.pop("response_cache"))
        name = arguments.pop("key_name", None)
        if name is not None:
            if arguments.get("key") is not None or not isinstance(name, str):
                raise TypeError("key_name= is the name of a stored key, and excludes key=")
            arguments["key"] = KeyName(name)
        options = self.route.target.options
        if options:
            defaults = {k: v for k, v in options.items() if k not in given}
            if defaults:
                arguments["options"] = defaults | (given.get("options") or {})
        if not self.can_stream:
            arguments["stream"] = False  # llm passes on what it is given; its CLI checks this
        return arguments

    async def check_attachments(self, prompt: llm.Prompt) -> None:
        """Check the attachments of a prompt, in a thread: llm may look into a file or at a URL.

        Raises:
            ValueError: the model does not take one of them.
        """
        parts = [part for message in prompt.messages for part in message.parts]
        earlier = [part.attachment for part in parts if isinstance(part, AttachmentPart)]
        sent = [*prompt.attachments, *(each for each in earlier if each is not None)]
        if sent:
            await asyncio.to_thread(self._validate_attachments, sent)
