"""What the tests of the console's pages share: a site that ana manages, and ways to look at it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlencode

from cryptography.fernet import Fernet
from datasette.app import Datasette

from ..console.log.test_pages import Page

ANA = {"id": "ana"}
BEN = {"id": "ben"}
CONSOLE = "/-/llm"
HOSTILE = "<img src=x onerror=alert(1)>\"'&amp;{{7*7}}"
ENCRYPTION_KEY = Fernet.generate_key().decode()
STORING = {"datasette-secrets": {"encryption-key": ENCRYPTION_KEY}}
KEY = "sk-" + "0123456789abcdef"

Start = Callable[..., Awaitable[Datasette]]


def starter(make_datasette: Callable[..., Datasette]) -> Start:
    """A function that starts a Datasette that ana manages; both permissions, unless told."""

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


async def get(datasette: Datasette, page: str, status: int = 200, **arguments: str) -> Any:
    """What ana gets."""
    query = f"?{urlencode(arguments)}" if arguments else ""
    response = await datasette.client.get(f"{CONSOLE}/{page}{query}", actor=ANA)
    assert response.status_code == status, response.text
    return response


async def get_json(datasette: Datasette, page: str, status: int = 200, **arguments: str) -> Any:
    return (await get(datasette, f"{page}.json", status, **arguments)).json()


async def store(datasette: Datasette, name: str, key: str = KEY) -> None:
    """Do what a person does at /-/secrets."""
    encrypted = Fernet(ENCRYPTION_KEY.encode()).encrypt(key.encode())
    await datasette.get_internal_database().execute_write(
        "insert into datasette_secrets (name, encrypted, encryption_key_name) values (?, ?, ?)",
        [name, encrypted, "default"],
    )


async def assert_gated(start: Start, page: str, marker: str) -> None:
    """Nobody and the wrong actor learn nothing of a page; the right one sees the marker."""
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
    """Every link begins with the base_url; fields have labels; ids are unique; no script."""
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
    """No markup of strangers is on a page."""
    assert not page.all("img")
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
