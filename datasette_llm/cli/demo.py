"""`datasette llm demo`: an example site, made and served by one command."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import llm
import uvicorn
from datasette.app import Datasette

from ..access.snapshot import snapshot_of
from ..facade import LLM
from ..providers.catalog import CatalogSource
from .demo_advice import write_advice
from .demo_calls import DAYS, QUESTIONS, SETTINGS, write_calls
from .demo_data import write_harbour
from .demo_evaluation import write_evaluation
from .demo_start import start_page
from .site import run
from .terminal import echo, echo_json

ECHO = "echo"
ROOT = {"id": "root"}
QUESTION = "What would you ask a harbour about its ships?"
HOST = "127.0.0.1"
MAX_DAYS = 365


@click.command("demo")
@click.argument("folder", required=False, type=click.Path(writable=True, path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Otherwise a free one")
@click.option(
    "--days",
    type=click.IntRange(0, MAX_DAYS),
    default=DAYS,
    show_default=True,
    help="How many days of calls to write; 0 for none",
)
@click.option("--no-serve", is_flag=True, help="Make the site, but do not serve it")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON")
def demo_command(folder: Path | None, port: int, days: int, no_serve: bool, as_json: bool) -> None:
    """Make a small site, prompt a model in it, and serve it on this machine

    FOLDER gets the database, the datasette.yaml and the call log. It must be new or empty.
    Without it they are in a temporary folder, which is removed when the command ends.

    The call log begins with 60 days of calls, and there are an evaluation and advice about a table:
    scripted models made them, without a network or a key. The start page says what to look at.

    The default model is llm-echo, which repeats the prompt. If other models have a key, it is
    llm's own default model, or else the first of them.
    """
    with contextlib.ExitStack() as stack:
        place = Place(stack.enter_context(_folder(folder)), temporary=folder is None)
        if no_serve:
            run(_demo(place, None, days, as_json))
            return
        listener = stack.enter_context(_listener(port))
        # SIGTERM ends the command like Ctrl-C, so that the folder is removed.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        stack.callback(signal.signal, signal.SIGTERM, before)
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        run(_demo(place, listener, days, as_json))


@dataclass(frozen=True, slots=True)
class Place:
    """Where the files of a demo are.

    Attributes:
        folder: the folder.
        temporary: whether it is removed when the command ends.
    """

    folder: Path
    temporary: bool

    @property
    def harbour(self) -> Path:
        """The example database."""
        return self.folder / "harbour.db"

    @property
    def config(self) -> Path:
        """The site's configuration."""
        return self.folder / "datasette.yaml"

    @property
    def metadata(self) -> Path:
        """What its start page says."""
        return self.folder / "metadata.yaml"

    @property
    def internal(self) -> Path:
        """The internal database, which has the call log.

        In a folder of its own, or `datasette FOLDER` would serve it to everyone.
        """
        return self.folder / "internal" / "internal.db"


@dataclass(frozen=True, slots=True)
class Demo:
    """A demo that has been made.

    Attributes:
        place: the place of its files.
        counts: the number of rows in each table.
        calls: the number of calls that scripted models made.
        default: the id of its default model.
        keyed: the models that have a key.
        login_link: logs in as root, once; None if nothing is served.
    """

    place: Place
    counts: Mapping[str, int]
    calls: int
    default: str
    keyed: Sequence[str]
    login_link: str | None

    def introduction(self) -> str:
        """The text before the answer."""
        tables = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        repeats = ", which repeats what it is asked" if self.default == ECHO else ""
        return (
            f"A harbour with {tables} is in {self.place.folder}\n"
            f"{self._past()}"
            f"The default model is {self.default}{repeats}. "
            f"Models with a key: {len(self.keyed)}\n\n> {QUESTION}"
        )

    def _past(self) -> str:
        if not self.calls:
            return ""
        return f"Scripted models made the {self.calls:,} calls that are in its log\n"

    def links(self) -> str:
        """The text after the answer."""
        if self.login_link is None:
            return "\n"
        address = self.login_link.partition("/-/")[0]
        return (
            f"\n\nLog in as root, once: {self.login_link}\n"
            f"What to look at:      {address}/\n"
            f"The console:          {address}/-/llm\n"
            f"The call log:         {address}/-/llm/log\n"
            f"The harbour:          {address}/harbour\n"
            f"Ctrl-C ends it. {self._afterwards()}\n"
        )

    def _afterwards(self) -> str:
        if self.place.temporary:
            return "The folder goes then."
        words = ["datasette", self.place.folder, "--internal", self.place.internal, "--root"]
        return f"Begin again with: {shlex.join(map(str, words))}"

    def payload(self, answer: str) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "ok": True,
            "folder": str(self.place.folder),
            "rows": self.counts,
            "calls": self.calls,
            "default_model": self.default,
            "models_with_key": self.keyed,
            "prompt": QUESTION,
            "answer": answer,
            "login_link": self.login_link,
        }


@contextlib.contextmanager
def _folder(path: Path | None) -> Iterator[Path]:
    if path is None:
        with tempfile.TemporaryDirectory(prefix="datasette-llm-demo-") as folder:
            yield Path(folder)
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise click.ClickException(f"{path} is not empty. Name a new folder, or none")
    except OSError as error:
        raise click.ClickException(f"{path} cannot be the folder: {error.strerror}") from None
    yield path


@contextlib.contextmanager
def _listener(port: int) -> Iterator[socket.socket]:
    """Listen before the link is printed, so that it works at once."""
    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)  # str(error) repeats the address
        raise click.ClickException(f"Port {port} cannot be used: {reason}") from None
    with listener:
        yield listener


async def _demo(place: Place, listener: socket.socket | None, days: int, as_json: bool) -> None:
    if ECHO not in (await CatalogSource().current()).entries:
        raise click.ClickException(
            "The demo needs llm-echo, a model without a key: datasette install llm-echo"
        )
    counts = await asyncio.to_thread(write_harbour, place.harbour)
    place.internal.parent.mkdir()
    now, calls = datetime.now(UTC), 0
    if days:
        past = Datasette(config=settings(ECHO), internal=str(place.internal))
        calls = await write_calls(past, now, days)
    datasette = Datasette([str(place.harbour)], config=settings(ECHO), internal=str(place.internal))
    await datasette.invoke_startup()
    try:
        if days:
            await _write_start_page(place, datasette, now)
        default, keyed = await _default(datasette)
        datasette.config = settings(default)
        await asyncio.to_thread(place.config.write_text, as_yaml(datasette.config), "utf-8")
        demo = Demo(place, counts, calls, default, keyed, _login_link(datasette, listener))
        await _show(demo, datasette, as_json)
        if listener is not None:
            await _serve(datasette, listener)
    finally:
        await datasette.invoke_shutdown()


async def _write_start_page(place: Place, datasette: Datasette, now: datetime) -> None:
    evaluation_id = await write_evaluation(datasette, ROOT)
    advice_id = await write_advice(datasette, ROOT)
    metadata = await start_page(datasette, advice_id, evaluation_id, now)
    await asyncio.to_thread(place.metadata.write_text, as_yaml(metadata), "utf-8")
    for key, text in metadata.items():
        await datasette.set_instance_metadata(key, text)


async def _show(demo: Demo, datasette: Datasette, as_json: bool) -> None:
    """Prompt the default model, and print what came of it."""
    if as_json:
        pieces = [piece async for piece in _answer(datasette)]
        echo_json(demo.payload("".join(pieces)), indent=2)
        return
    echo(demo.introduction())
    async for piece in _answer(datasette):
        echo(piece, nl=False)
    echo(demo.links(), nl=False)


def settings(default_model: str) -> dict[str, Any]:
    """The configuration of the demo's site.

    Args:
        default_model: the id of its default model.
    """
    return {
        "plugins": {"datasette-llm": {"default_model": default_model, **SETTINGS}},
        "permissions": {"manage-llm": ROOT, "view-llm-log": ROOT, "analyze-table": ROOT},
    }


def as_yaml(value: dict[str, Any], indent: str = "") -> str:
    """YAML with block mappings; other values as JSON, which is YAML too."""
    lines = []
    for name, item in value.items():
        if isinstance(item, dict) and item:
            lines.append(f"{indent}{name}:\n{as_yaml(item, indent + '  ')}")
        else:
            lines.append(f"{indent}{name}: {json.dumps(item)}\n")
    return "".join(lines)


async def _default(datasette: Datasette) -> tuple[str, list[str]]:
    """The default model, and the models that have a key."""
    models = await LLM(datasette).models(ROOT, QUESTIONS)
    keyed = [model.model_id for model in models if model.needs_key]
    preferred = await asyncio.to_thread(llm.get_default_model)
    snapshot = await snapshot_of(datasette)
    model_id = snapshot.catalog.canonical(preferred)
    return (model_id if model_id in keyed else [*keyed, ECHO][0]), keyed


async def _answer(datasette: Datasette) -> AsyncIterator[str]:
    try:
        response = await (await LLM(datasette).model(None, QUESTIONS, ROOT)).prompt(QUESTION)
        async for piece in response:
            yield piece
    except Exception as error:
        # Third-party code with a key and a network; the error is in the call log too.
        yield f"No answer came: {type(error).__name__}: {error}"


def _login_link(datasette: Datasette, listener: socket.socket | None) -> str | None:
    if listener is None:
        return None
    datasette.root_enabled = True
    address = f"http://{HOST}:{listener.getsockname()[1]}"
    # Private, but `datasette --root` makes the same link, and there is no public name.
    token = datasette._root_token  # noqa: SLF001
    return f"{address}/-/auth-token?token={token}"


async def _serve(datasette: Datasette, listener: socket.socket) -> None:
    config = uvicorn.Config(datasette.app(), log_level="warning", lifespan="on", log_config=None)
    await uvicorn.Server(config).serve(sockets=[listener])
