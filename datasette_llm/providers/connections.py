"""Connections to providers' servers: a pool for each server and event loop, kept and reused.

A pool belongs to the event loop that made its sockets. It is closed when that loop ends or when
Datasette shuts down.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, NamedTuple

import httpx2

from ..errors import ProviderError
from ..loop_end import LoopEnd
from .activity import activity

LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=30)
# For reading, each request sets its own.
TIMEOUT = httpx2.Timeout(600.0, connect=10.0, pool=None)
MAX_REDIRECTS = 5

# How a connection fails that the server had closed while it was idle.
_STALE = (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError)


class Server(NamedTuple):
    """What the connections of a pool have in common.

    Attributes:
        address: its base address, up to `/v1`.
        proxy: the address of a proxy; None where the environment says whether there is one.
        ca_file: a file of certificates that are trusted instead of the usual ones, or None.
    """

    address: str
    proxy: str | None = None
    ca_file: str | None = None


@dataclass(slots=True)
class Learned:
    """What earlier answers have shown of a model at a server.

    Attributes:
        gives_reasons: whether its answers have a finish_reason.
        refuses_stream_options: whether the server does not know `stream_options`.
    """

    gives_reasons: bool = False
    refuses_stream_options: bool = False


class Connections:
    """The pools of a Datasette instance, and what is known of the servers."""

    def __init__(self) -> None:
        self._pools: dict[asyncio.AbstractEventLoop, dict[Server, PooledClient]] = {}
        self._learned: dict[tuple[str, str], Learned] = {}
        self._loop_end = LoopEnd(self.aclose)

    def learned(self, address: str, name: str) -> Learned:
        """What is known of a model at a server, kept over the catalogs.

        Args:
            address: the base address of the server.
            name: the model's name there.
        """
        return self._learned.setdefault((address.rstrip("/"), name), Learned())

    def client(self, server: Server) -> PooledClient:
        """The HTTP client of a server in the running event loop.

        Args:
            server: where it connects to. `tls_context()` has been called for it before, in a
                thread, since that reads files.
        """
        loop = asyncio.get_running_loop()
        clients = self._pools.get(loop)
        if clients is None:
            self._forget_closed_loops()
            clients = self._pools[loop] = {}
            self._loop_end.expect(loop)
        client = clients.get(server)
        if client is None:
            client = clients[server] = PooledClient(server)
        return client

    async def aclose(self) -> None:
        """Close the pools of the running event loop."""
        for client in self._pools.pop(asyncio.get_running_loop(), {}).values():
            await client.aclose()
        self._forget_closed_loops()

    def _forget_closed_loops(self) -> None:
        """Drop what a loop left that was closed without `shutdown_asyncgens()`.

        Its sockets go with it: closing them needs the loop.
        """
        for loop in [each for each in self._pools if each.is_closed()]:
            del self._pools[loop]


class PooledClient(httpx2.AsyncClient):
    """An HTTP client that sends to one origin only, and repeats what met a stale connection.

    It keeps no cookies, since the requests of different people go through it.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(
            verify=tls_context(server.ca_file),
            proxy=server.proxy,
            limits=LIMITS,
            timeout=TIMEOUT,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    async def send(self, request: httpx2.Request, **kwargs: Any) -> httpx2.Response:
        """Send a request, and follow redirects on its own origin.

        Raises:
            ProviderError: the server redirects elsewhere, or without an end.
            httpx2.HTTPError: it cannot be sent, or nothing comes back.
        """
        kwargs["follow_redirects"] = False
        for _ in range(MAX_REDIRECTS):
            response = await self._send_past_stale(request, kwargs)
            if not response.has_redirect_location:
                headers = activity.get().headers
                if headers is not None:
                    headers.append(response.headers)
                return response
            try:
                request = _redirected(request, response)
            finally:
                await response.aclose()
        raise ProviderError(
            f"The server at {_origin(request.url)} redirects without an end; see whether "
            "api_base is right",
            status_code=response.status_code,
        )

    async def _send_past_stale(
        self, request: httpx2.Request, kwargs: dict[str, Any]
    ) -> httpx2.Response:
        """Send a request; once more if the kept connection it went to had been closed."""
        connected = False

        async def trace(event: str, _: object) -> None:
            nonlocal connected
            connected = connected or event.startswith("connection.connect")

        request.extensions["trace"] = trace
        try:
            return await super().send(request, **kwargs)
        except _STALE:
            if connected:
                raise
        return await super().send(request, **kwargs)


@functools.cache
def tls_context(ca_file: str | None = None) -> ssl.SSLContext:
    """The TLS settings for servers; reads files when it is called first.

    Args:
        ca_file: certificates to trust; None for `SSL_CERT_FILE`, `SSL_CERT_DIR` or the usual.

    Raises:
        OSError: the file cannot be read.
        ssl.SSLError: it holds no certificates.
    """
    if ca_file is None:
        return httpx2.create_ssl_context()
    return ssl.create_default_context(cafile=ca_file)


def _redirected(request: httpx2.Request, response: httpx2.Response) -> httpx2.Request:
    """The same request to where a response points.

    Raises:
        ProviderError: that is another origin, which must not get prompts and credentials.
    """
    try:
        target = request.url.join(response.headers["location"])
    except httpx2.InvalidURL:
        target = httpx2.URL("")
    if _origin(target) != _origin(request.url):
        raise ProviderError(
            f"The server at {_origin(request.url)} redirects to {_origin(target)}, and prompts "
            "and keys are sent to no other host than the configured one. If the new address is "
            "right, set it as api_base; it may also be a login page",
            status_code=response.status_code,
        )
    return httpx2.Request(
        request.method,
        target,
        headers=request.headers,
        stream=request.stream,
        extensions=request.extensions,
    )


def _origin(url: httpx2.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode('ascii', 'replace').rpartition('@')[2]}"
