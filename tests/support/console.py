"""Shared by the tests of the console: a site that ana manages, requests, and parsed pages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode

import httpx2
from cryptography.fernet import Fernet
from datasette.app import Datasette

ANA = {"id": "ana"}
BEN = {"id": "ben"}
CONSOLE = "/-/llm"
HOSTILE = "<img src=x onerror=alert(1)>\"'&amp;{{7*7}}"
ENCRYPTION_KEY = Fernet.generate_key().decode()
STORING = {"datasette-secrets": {"encryption-key": ENCRYPTION_KEY}}
KEY = "sk-" + "0123456789abcdef"

Start = Callable[..., Awaitable[Datasette]]


class Page(HTMLParser):
    """The tags, text and form of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._in_cell = False
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "dd"):
            self._in_cell = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "dd"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self.cells[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def links(self) -> list[str]:
        return [each["href"] or "" for each in self.all("a") if "href" in each]

    def form(self) -> dict[str, str]:
        """The fields of the form and their values."""
        fields = {each["name"]: each.get("value") or "" for each in self.all("input")}
        name = ""
        for tag, attributes in self.tags:
            if tag == "select":
                name = attributes["name"] or ""
                fields.setdefault(name, "")
            elif tag == "option" and "selected" in attributes:
                fields[name] = attributes["value"] or ""
        return fields


def starter(make_datasette: Callable[..., Datasette]) -> Start:
    """A function that starts a Datasette that ana manages, by default with both permissions."""

    async def start(
        config: object = None,
        *,
        may: tuple[str, ...] = ("manage-llm", "manage-secrets"),
        **more: Any,
    ) -> Datasette:
        datasette = make_datasette(config, **({"plugins": STORING} | more))
        datasette.config["permissions"] = {action: {"id": "ana"} for action in may}
        await datasette.invoke_startup()
        return datasette

    return start


def client(
    datasette: Datasette, actor: dict[str, str] | None = None, **more: Any
) -> httpx2.AsyncClient:
    """A client of the application, which is made once, as when it is served.

    For many requests: `datasette.client` makes the application anew for each, which takes longer
    than most pages.
    """
    transport = httpx2.ASGITransport(app=datasette.app())
    cookies = {"ds_actor": datasette.client.actor_cookie(actor)} if actor else {}
    return httpx2.AsyncClient(
        transport=transport, base_url="http://localhost", cookies=cookies, **more
    )


async def get(datasette: Datasette, page: str, status: int = 200, **arguments: str) -> Any:
    """The response to ana."""
    query = f"?{urlencode(arguments)}" if arguments else ""
    response = await datasette.client.get(f"{CONSOLE}/{page}{query}", actor=ANA)
    assert response.status_code == status, response.text
    return response


async def get_json(datasette: Datasette, page: str, status: int = 200, **arguments: str) -> Any:
    return (await get(datasette, f"{page}.json", status, **arguments)).json()


async def store(datasette: Datasette, name: str, key: str = KEY) -> None:
    """Store a secret as the page /-/secrets does."""
    encrypted = Fernet(ENCRYPTION_KEY.encode()).encrypt(key.encode())
    await datasette.get_internal_database().execute_write(
        "insert into datasette_secrets (name, encrypted, encryption_key_name) values (?, ?, ?)",
        [name, encrypted, "default"],
    )


async def assert_gated(start: Start, page: str, marker: str) -> None:
    """No actor and the wrong actor get 403 without the marker; the right one sees it."""
    datasette = await start()
    for address in (f"{CONSOLE}/{page}", f"{CONSOLE}/{page}.json"):
        for query in ("", f"?model={marker}&q={marker}&actor=nonsense&availability=nonsense"):
            for actor in (None, BEN):
                refused = await datasette.client.get(address + query, actor=actor)
                assert refused.status_code == 403
                assert marker not in refused.text
        shown = await datasette.client.get(f"{address}?model={marker}", actor=ANA)
        assert shown.status_code == 200
        assert marker in shown.text
    menus = [
        Page((await datasette.client.get("/", actor=actor)).text).links()
        for actor in (None, BEN, ANA)
    ]
    assert [CONSOLE in links for links in menus] == [False, False, True]


async def assert_framed(datasette: Datasette, address: str) -> None:
    """Links begin with the base_url, fields have labels, ids are unique."""
    page = Page((await datasette.client.get(address, actor=ANA)).text)
    targets = [*page.links(), *(form["action"] or "" for form in page.all("form"))]
    assert targets
    for target in targets:
        assert target.startswith(("/prefix/", "https://")), target
    labelled = {each["for"] for each in page.all("label")}
    for tag in ("select", "input"):
        assert all(each["id"] in labelled for each in page.all(tag))
    names = [each["id"] for _, each in page.tags if each.get("id")]
    assert len(names) == len(set(names))


def assert_harmless(page: Page) -> None:
    """No third-party markup is on a page."""
    assert not page.all("img")
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
