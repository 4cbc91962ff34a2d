"""The models of OpenAI-compatible servers that the configuration declares.

They are llm's own OpenAI models. Nothing is sent to a server before a prompt.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

import llm
from llm.default_plugins.openai_models import AsyncChat
from llm.parts import StreamEvent

from .config import EndpointSettings
from .redaction import redact

_CREDENTIAL = re.compile("auth|cookie|key|secret|token", re.IGNORECASE)


class EndpointModel(AsyncChat):
    """A model of an endpoint.

    Attributes:
        own_secret: the name of the secret that holds its key, or None.
    """

    # The key of OpenAI itself is not for other servers.
    key_env_var = None  # type: ignore[assignment]  # llm itself takes None

    def __init__(self, settings: EndpointSettings) -> None:
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

    def get_client(self, key: str | None, *, async_: bool = False) -> Any:
        """The client of the server."""
        client = super().get_client(key, async_=async_)  # type: ignore[no-untyped-call]  # llm has no types here
        # From OPENAI_ORG_ID, OPENAI_PROJECT_ID and OPENAI_CUSTOM_HEADERS, which are not for other
        # servers either.
        client.organization = client.project = None
        client._custom_headers = dict(self.headers)
        return client

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None = None,
        key: str | None = None,
    ) -> AsyncGenerator[str | StreamEvent, None]:
        """Ask the server; what its errors repeat of our credentials is taken out of them."""
        source = super().execute(prompt, stream, response, conversation, key)
        clean: BaseException | None = None
        try:
            async with aclosing(source):
                async for chunk in source:
                    yield chunk
        except Exception as error:
            clean = self._without_credentials(error)
            if clean is error:
                raise
        if clean is not None:
            raise clean  # out here, so that its context is not what says a credential

    def _without_credentials(self, error: BaseException) -> BaseException:
        for credential in self._credentials():
            error = redact(error, credential)
        return error

    def _credentials(self) -> Iterable[str]:
        """Header values that are credentials, and what follows a word such as Bearer in them."""
        for name, value in self.headers.items():
            if _CREDENTIAL.search(name):
                yield from dict.fromkeys((value, value.rpartition(" ")[2]))


def models_of(endpoints: Iterable[EndpointSettings]) -> list[llm.models.ModelWithAliases]:
    """The models of endpoints, as llm lists its own.

    Args:
        endpoints: the endpoints of the configuration.
    """
    return [
        llm.models.ModelWithAliases(None, EndpointModel(each), list(each.aliases))  # type: ignore[arg-type]  # llm itself leaves out the model where there is none
        for each in endpoints
    ]
