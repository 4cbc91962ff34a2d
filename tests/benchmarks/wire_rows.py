"""What an endpoint costs over HTTP and TLS, beside openai's own client with its connections."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx2
import openai
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from datasette_llm import LLM, WrappedAsyncModel

from .measuring import Row, measured, timed
from .rows import row, running

MODEL = "wire"


@row("http-lone")
async def http_lone(name: str, quick: bool) -> Row:
    return await _row(name, quick, tls=False, at_once=1)


@row("http-at-once")
async def http_at_once(name: str, quick: bool) -> Row:
    return await _row(name, quick, tls=False, at_once=32)


@row("tls-lone")
async def tls_lone(name: str, quick: bool) -> Row:
    return await _row(name, quick, tls=True, at_once=1)


@row("tls-at-once")
async def tls_at_once(name: str, quick: bool) -> Row:
    return await _row(name, quick, tls=True, at_once=32)


async def _row(name: str, quick: bool, *, tls: bool, at_once: int) -> Row:
    times, rounds = (5, 3) if quick else (20 if at_once > 1 else 200, 9)
    with _server(tls=tls) as (url, ca_file):
        async with _client(url, ca_file) as client, _model(url, ca_file) as model:

            async def raw() -> None:
                await asyncio.gather(*(_raw_text(client) for _ in range(at_once)))

            async def ours() -> None:
                await asyncio.gather(*(_our_text(model) for _ in range(at_once)))

            await raw()
            theirs = await _connections(url, ca_file)
            await ours()
            opened = await _connections(url, ca_file) - theirs
            pair = await measured(timed(raw, times), timed(ours, times), rounds)
            later = await _connections(url, ca_file) - theirs
    return Row(
        name,
        f"a stream of 42 events over {'TLS' if tls else 'HTTP'}, {at_once} at once",
        pair,
        "ratio",
        1.25,
        "ms",
        raw_is="openai's client with kept connections",
        holds=later <= opened + at_once and opened <= at_once,
        beside={"connections opened": later},
    )


async def _raw_text(client: openai.AsyncOpenAI) -> str:
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "x"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    texts = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    return "".join(texts)


async def _our_text(model: WrappedAsyncModel) -> str:
    return await (await model.prompt("x")).text()


@asynccontextmanager
async def _client(url: str, ca_file: Path | None) -> AsyncIterator[openai.AsyncOpenAI]:
    http = openai.DefaultAsyncHttpxClient(verify=_tls(ca_file), trust_env=False)
    async with openai.AsyncOpenAI(api_key="x", base_url=url, http_client=http) as client:
        yield client


@asynccontextmanager
async def _model(url: str, ca_file: Path | None) -> AsyncIterator[WrappedAsyncModel]:
    endpoint = {"model": MODEL, "api_base": url} | ({"ca_file": str(ca_file)} if ca_file else {})
    config = {"plugins": {"datasette-llm": {"endpoints": [endpoint]}}}
    async with running(config) as datasette:
        yield await LLM(datasette).model(MODEL)


async def _connections(url: str, ca_file: Path | None) -> int:
    async with httpx2.AsyncClient(verify=_tls(ca_file), trust_env=False) as client:
        return int((await client.get(f"{url.removesuffix('/v1')}/connections")).text)


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca_file) if ca_file else None)


@contextmanager
def _server(*, tls: bool) -> Iterator[tuple[str, Path | None]]:
    """The address of a running server, and the certificate to trust."""
    with tempfile.TemporaryDirectory() as folder:
        files = _certificate(Path(folder)) if tls else ()
        program = [sys.executable, "-m", "tests.benchmarks.wire_server", *map(str, files)]
        with subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            port = int(server.stdout.readline())
            scheme = "https" if tls else "http"
            try:
                yield f"{scheme}://127.0.0.1:{port}/v1", files[0] if files else None
            finally:
                server.stdin.close()


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=12))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files
