"""The models of OpenAI-compatible servers that the configuration declares.

They are llm's own OpenAI models. Nothing is sent to a server before a prompt.
"""

from __future__ import annotations

import copy
import functools
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any

import httpx2
import llm
import openai
from llm.default_plugins.openai_models import AsyncChat
from llm.parts import StreamEvent

from ..config.settings import EndpointSettings
from ..redaction import redact
from .openai_clients import taken_over

_CREDENTIAL = re.compile("auth|cookie|key|secret|token", re.IGNORECASE)


class EndpointModel(AsyncChat):
    """A model of an endpoint.

    Attributes:
        own_secret: the name of the secret that holds its key, or None.
    """

    _marks: list[str]

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
        self._marks = []
        self.own_secret = settings.key
        self.needs_key = settings.key  # type: ignore[assignment]  # None, as llm itself sets it

    def get_client(self, key: str | None, *, async_: bool = False) -> Any:
        """The client of the server."""
        client: Any = openai.AsyncOpenAI(
            api_key=key or "DUMMY_KEY",  # as llm: the client insists on one
            base_url=self.api_base,
            default_headers=self.headers,
            # Left to itself it reads the files of a TLS context for each request.
            http_client=openai.DefaultAsyncHttpxClient(verify=_tls()),
        )
        # From OPENAI_ORG_ID, OPENAI_PROJECT_ID and OPENAI_CUSTOM_HEADERS, which are not for other
        # servers either.
        client.organization = client.project = None
        client._custom_headers = dict(self.headers)
        client._make_sse_decoder = partial(_Watched, client._make_sse_decoder(), self._marks)
        return taken_over(client)

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None = None,
        key: str | None = None,
    ) -> AsyncGenerator[str | StreamEvent, None]:
        """Ask the server; what its errors repeat of our credentials is taken out of them.

        Raises:
            ConnectionError: the answer broke off.
        """
        request = copy.copy(self)  # what one answer has marked is not for the others
        request._marks = []
        source = AsyncChat.execute(request, prompt, stream, response, conversation, key)
        clean: BaseException | None = None
        try:
            async with aclosing(source):
                async for chunk in source:
                    yield chunk
            if stream and not request._marks and not _has_reason(response):
                raise ConnectionError(
                    "The answer broke off: the server ended it without saying that it is complete "
                    '(there was no "finish_reason", and no "[DONE]")'
                )
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


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpx2.create_ssl_context()


class _Watched:
    """A decoder of openai's client, which notes the mark at the end of a stream.

    The client takes a stream that ends in the middle for one that is complete. Where the server
    says neither how long its answer is nor that it comes in chunks, so does HTTP.
    """

    def __init__(self, decoder: Any, marks: list[str]) -> None:
        self._decoder = decoder
        self._marks = marks

    async def aiter_bytes(self, source: AsyncIterator[bytes]) -> AsyncGenerator[Any, None]:
        async for event in self._decoder.aiter_bytes(source):
            if event.data.startswith("[DONE]"):
                self._marks.append(event.data)
            yield event


def _has_reason(response: llm.AsyncResponse) -> bool:
    """Whether the server said why its answer ends; some never do, or say an empty text."""
    said: Any = response.response_json
    return isinstance(said, dict) and bool(said.get("finish_reason"))


def models_of(endpoints: Iterable[EndpointSettings]) -> list[llm.models.ModelWithAliases]:
    """The models of endpoints, as llm lists its own.

    Args:
        endpoints: the endpoints of the configuration.
    """
    _tls()  # here, in the snapshot's thread, since it reads files
    return [
        llm.models.ModelWithAliases(None, EndpointModel(each), list(each.aliases))  # type: ignore[arg-type]  # llm itself leaves out the model where there is none
        for each in endpoints
    ]
