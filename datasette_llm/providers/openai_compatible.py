"""The models of OpenAI-compatible servers, those of `endpoints` and llm's own.

They are llm's OpenAI models, with a reader of ours for what servers answer. Nothing is sent to a
server before a prompt.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import aclosing
from functools import partial
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import llm
import openai
from llm.default_plugins.openai_models import AsyncChat
from llm.parts import StreamEvent
from pydantic import Field, JsonValue, create_model

from ..config.settings import EndpointSettings
from ..redaction import redact
from .chat_completions import Target, answer
from .connections import Connections, Server, tls_context
from .server_errors import Place

_CREDENTIAL = re.compile("auth|cookie|key|secret|token", re.IGNORECASE)
# llm's, for a server that needs no key: openai's client requires one.
_NO_KEY = "DUMMY_KEY"
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class EndpointModel(AsyncChat):
    """A model of an endpoint.

    Attributes:
        own_secret: the name of the secret that holds its key, or None.
        caller_fields: the fields of a request in which it gets something about the caller.
        credentials: what its headers and the address of its proxy hold that must not be shown.
    """

    # OpenAI's own key must not be sent to other servers.
    key_env_var = None  # type: ignore[assignment]  # llm itself takes None

    def __init__(self, settings: EndpointSettings, connections: Connections) -> None:
        super().__init__(  # type: ignore[no-untyped-call]  # llm has no types here
            settings.model,
            model_name=settings.model_name or settings.model,
            api_base=settings.api_base,
            headers=dict(settings.headers),
            can_stream=settings.can_stream,
            vision=settings.vision,
            audio=settings.audio,
            reasoning=settings.reasoning,
            supports_schema=settings.supports_schema,
            supports_tools=settings.supports_tools,
        )
        self.own_secret = settings.key
        self.needs_key = settings.key  # type: ignore[assignment]  # None, as llm itself sets it
        fields = {"user": settings.send_user, "metadata": settings.send_tags}
        self.caller_fields = frozenset(name for name, is_sent in fields.items() if is_sent)
        if self.caller_fields:
            self.Options = _with_caller_fields(self.Options)
        self._server = Server(settings.api_base, settings.proxy, settings.ca_file)
        self.credentials = frozenset(_credentials(settings))
        self._connections = connections

    def get_client(self, key: str | None, *, async_: bool = False) -> openai.AsyncOpenAI:
        """The client of the server."""
        client = client_for(
            self._connections, self._server, key=key or _NO_KEY, headers=self.headers
        )
        # Undoes OPENAI_ORG_ID, OPENAI_PROJECT_ID and OPENAI_CUSTOM_HEADERS, which are not for
        # other servers either; the last has no public attribute.
        client.organization = client.project = None
        client._custom_headers = dict(self.headers)  # noqa: SLF001
        return client

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None = None,
        key: str | None = None,
        about_caller: Mapping[str, Any] = _NOTHING,
    ) -> AsyncGenerator[str | StreamEvent, None]:
        """Send a request; credentials are removed from the server's errors.

        Args:
            prompt: as llm's.
            stream: as llm's.
            response: as llm's.
            conversation: as llm's.
            key: as llm's.
            about_caller: values for `caller_fields`; options of the same name take precedence.

        Raises:
            openai.APIError: the server refused it, could not be reached, or failed.
            ProviderError: its answer is not complete, or cannot be used.
        """
        target = _target(self, self._connections, self._server, self.get_client(key))
        source = answer(self, target, prompt, stream, response, conversation, about_caller)
        clean: BaseException | None = None
        try:
            async with aclosing(source):
                async for event in source:
                    yield event
        except Exception as error:
            clean = redact(error, self.credentials)
            if clean is error:
                raise
        if clean is not None:
            raise clean  # outside `except`, so that its context does not hold a credential


def models_of(
    endpoints: Iterable[EndpointSettings], connections: Connections, problems: list[str]
) -> list[llm.models.ModelWithAliases]:
    """The models of endpoints, in the form in which llm lists models.

    Called in the thread of the catalog, since it reads files.

    Args:
        endpoints: the endpoints of the configuration.
        connections: where their requests take their connections from.
        problems: gets a sentence for each endpoint that cannot be used, which is left out.
    """
    models = []
    for each in endpoints:
        try:
            tls_context(each.ca_file)
        except (OSError, ssl.SSLError) as error:
            problems.append(
                f"The endpoint of model {each.model!r} cannot be used: its ca_file "
                f"{each.ca_file!r} cannot be read as certificates: {error}"
            )
            continue
        model: Any = EndpointModel(each, connections)  # llm's own type omits models with keys
        models.append(llm.models.ModelWithAliases(None, model, list(each.aliases)))  # type: ignore[arg-type]  # llm itself leaves out the model where there is none
    return models


def _credentials(settings: EndpointSettings) -> Iterator[str]:
    """Header values that are credentials, with and without a scheme such as Bearer."""
    for name, value in settings.headers.items():
        if _CREDENTIAL.search(name):
            yield from (value, value.rpartition(" ")[2])
    password = urlsplit(settings.proxy or "").password
    if password:
        yield password


def _with_caller_fields(options: type[llm.Options]) -> type[llm.Options]:
    """The options of an endpoint whose callers may set themselves what it gets about them."""
    return create_model(
        "Options",
        __base__=options,
        user=(str | None, Field(default=None, description="In the place of the pseudonym.")),
        metadata=(
            dict[str, JsonValue] | None,
            Field(default=None, description="In the place of the tags, in LiteLLM's form."),
        ),
    )


def serve_chats(model: Any, connections: Connections) -> None:
    """Have one of llm's chat models answered by the reader of this package.

    Args:
        model: a model of llm's OpenAI plugin, or a subclass; others than chats stay as they are.
        connections: where its requests take their connections from.
    """
    tls_context()
    if isinstance(model, AsyncChat) and type(model).execute is AsyncChat.execute:
        own: Any = model
        own.execute = partial(_execute, model, connections)


async def _execute(
    model: AsyncChat,
    connections: Connections,
    prompt: llm.Prompt,
    stream: bool,
    response: llm.AsyncResponse,
    conversation: llm.AsyncConversation | None = None,
    key: str | None = None,
) -> AsyncGenerator[str | StreamEvent, None]:
    """As `AsyncChat.execute`; by that itself where the client is of another kind."""
    client: Any = model.get_client(key, async_=True)
    if type(client) is openai.AsyncOpenAI:
        target = _target(model, connections, Server(str(client.base_url)), client)
        source: Any = answer(model, target, prompt, stream, response, conversation, _NOTHING)
    else:
        source = AsyncChat.execute(model, prompt, stream, response, conversation, key)
    async with aclosing(source):
        async for event in source:
            yield event


def client_for(
    connections: Connections, server: Server, *, key: str | None, headers: Mapping[str, str] | None
) -> openai.AsyncOpenAI:
    """openai's client with kept connections, and without retries, which would multiply ours.

    Args:
        connections: where they come from.
        server: the server.
        key: the API key.
        headers: sent with each request.
    """
    return openai.AsyncOpenAI(
        api_key=key,
        base_url=server.address,
        default_headers=headers,
        max_retries=0,
        http_client=connections.client(server),
    )


def _target(
    model: AsyncChat, connections: Connections, server: Server, client: openai.AsyncOpenAI
) -> Target:
    place = Place.of(client.base_url, is_endpoint=bool(model.api_base))
    learned = connections.learned(server.address, model.model_name or model.model_id)
    return Target(client, connections.client(server), place, learned)
