"""The models of OpenAI-compatible servers that the configuration declares.

They are subclasses of llm's OpenAI models. Nothing is sent to a server before a prompt.
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
from .openai_clients import take_over

_CREDENTIAL = re.compile("auth|cookie|key|secret|token", re.IGNORECASE)


class EndpointModel(AsyncChat):
    """A model of an endpoint.

    Attributes:
        own_secret: the name of the secret that holds its key, or None.
        end_marks: the end marks that the answer to a request has had; of its copy of the model.
    """

    # OpenAI's own key must not be sent to other servers.
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
        self.end_marks: list[str] = []
        self.own_secret = settings.key
        self.needs_key = settings.key  # type: ignore[assignment]  # None, as llm itself sets it

    def get_client(self, key: str | None, *, async_: bool = False) -> Any:
        """The client of the server."""
        client: Any = openai.AsyncOpenAI(
            api_key=key or "DUMMY_KEY",  # as in llm: the client requires one
            base_url=self.api_base,
            default_headers=self.headers,
            # By default a client reads the files of a TLS context for each request.
            http_client=openai.DefaultAsyncHttpxClient(verify=_tls()),
        )
        # Undoes OPENAI_ORG_ID, OPENAI_PROJECT_ID and OPENAI_CUSTOM_HEADERS, which are not for
        # other servers either; the last has no public attribute.
        client.organization = client.project = None
        client._custom_headers = dict(self.headers)  # noqa: SLF001
        # The client has no public way to see whether a stream was complete.
        decoder = client._make_sse_decoder()  # noqa: SLF001
        client._make_sse_decoder = partial(_Watched, decoder, self.end_marks)  # noqa: SLF001
        return take_over(client)

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None = None,
        key: str | None = None,
    ) -> AsyncGenerator[str | StreamEvent, None]:
        """Send a request; credentials are removed from the server's errors.

        Raises:
            ConnectionError: the answer is incomplete.
        """
        request = copy.copy(self)  # since requests run concurrently
        request.end_marks = []
        source = AsyncChat.execute(request, prompt, stream, response, conversation, key)
        clean: BaseException | None = None
        try:
            async with aclosing(source):
                async for chunk in source:
                    yield chunk
            if stream and not request.end_marks and not _has_reason(response):
                raise ConnectionError(
                    "The answer broke off: the server ended it without saying that it is complete "
                    '(there was no "finish_reason", and no "[DONE]")'
                )
        except Exception as error:
            clean = self._without_credentials(error)
            if clean is error:
                raise
        if clean is not None:
            raise clean  # outside `except`, so that its context does not hold a credential

    def _without_credentials(self, error: BaseException) -> BaseException:
        for credential in self._credentials():
            error = redact(error, credential)
        return error

    def _credentials(self) -> Iterable[str]:
        """Header values that are credentials, with and without a scheme such as Bearer."""
        for name, value in self.headers.items():
            if _CREDENTIAL.search(name):
                yield from dict.fromkeys((value, value.rpartition(" ")[2]))


def models_of(endpoints: Iterable[EndpointSettings]) -> list[llm.models.ModelWithAliases]:
    """The models of endpoints, in the form in which llm lists models.

    Args:
        endpoints: the endpoints of the configuration.
    """
    _tls()  # here, in the thread of the catalog, since it reads files
    return [
        llm.models.ModelWithAliases(None, EndpointModel(each), list(each.aliases))  # type: ignore[arg-type]  # llm itself leaves out the model where there is none
        for each in endpoints
    ]


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpx2.create_ssl_context()


class _Watched:
    """A decoder of openai's client that records the mark at the end of a stream.

    The client takes a truncated stream for a complete one. HTTP detects it only where the server
    sends a Content-Length or chunked encoding.
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
    """Whether the server sent a finish_reason; some send none, or an empty one."""
    summary: Any = response.response_json
    return isinstance(summary, dict) and bool(summary.get("finish_reason"))
