"""A page of the console: HTML and JSON from one function that makes the payload.

Only POST changes anything; Datasette itself refuses cross-site POSTs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from datasette import Response

from ..permissions import MANAGE
from ..web import READ_METHODS, as_json, html_page, method_not_allowed, status_of
from . import formatting
from .call_policies import differences, items
from .navigation import BY_PATH, ROOT, navigation

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    from ..web import Payload

    Row = dict[str, Any]
    ViewFunction = Callable[[Datasette, Request], Awaitable[Response]]
    MakePayload = Callable[[Datasette, Request], Awaitable[Payload]]


# That a template renders before others get their turn.
ROWS_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the navigation.

    Attributes:
        name: the last part of its path; empty for the overview.
        payload: makes what the page shows and its JSON contains.
        post: handles a POST to its path; without it, POST is refused with 405.
    """

    name: str
    payload: MakePayload
    post: ViewFunction | None = None

    @property
    def path(self) -> str:
        """Its path, below `base_url`."""
        return f"{ROOT}/{self.name}" if self.name else ROOT

    @property
    def label(self) -> str:
        """Its name, as in the navigation."""
        return BY_PATH[self.path].label

    @property
    def template(self) -> str:
        """The name of its template, which gets `payload`."""
        return f"llm_console_{self.name or 'overview'}.html"

    def routes(self) -> list[tuple[str, ViewFunction]]:
        """Its routes, for Datasette's `register_routes`, which takes functions only."""
        return [(f"^{self.path}$", _html(self)), (rf"^{self.path}\.json$", _json(self))]


def _html(page: Page) -> ViewFunction:
    async def html(datasette: Datasette, request: Request) -> Response:
        await datasette.ensure_permission(action=MANAGE, actor=request.actor)
        if request.method == "POST" and page.post is not None:
            return await page.post(datasette, request)
        if request.method not in READ_METHODS:
            return method_not_allowed((*READ_METHODS, "POST") if page.post else READ_METHODS)
        return await rendered(page, datasette, request, await page.payload(datasette, request))

    return html


def _json(page: Page) -> ViewFunction:
    async def json(datasette: Datasette, request: Request) -> Response:
        await datasette.ensure_permission(action=MANAGE, actor=request.actor)
        if request.method not in READ_METHODS:
            # Or a program that posts here would take the page's content for the result.
            return method_not_allowed()
        return as_json(await page.payload(datasette, request))

    return json


async def rendered(
    page: Page, datasette: Datasette, request: Request, payload: Payload
) -> Response:
    """Render a payload as HTML."""
    context = {"title": page.label, "payload": payload}
    return await render(
        datasette, request, page.template, context, path=page.path, status=status_of(payload)
    )


async def render(
    datasette: Datasette,
    request: Request,
    template: str,
    context: Mapping[str, Any],
    *,
    path: str | None,
    here: str | None = None,
    status: int = 200,
) -> Response:
    """Render a template that extends `llm_base.html`.

    Args:
        datasette: the Datasette instance.
        request: the request.
        template: its name.
        context: what it shows; `title` is its title and heading.
        path: of the page of the navigation that this is, or that this is below; or None.
        here: the name of a page below that one, for the crumbs.
        status: the HTTP status.
    """
    around = await navigation(datasette, request.actor, path, here)
    tools = {
        "format": formatting,
        "query": _query,
        "paced": _paced,
        "items": items,
        "differences": lambda own, common: list(differences(own, common)),
    }
    html = await datasette.render_template(template, {**around, **tools, **context}, request)
    return html_page(html, status)


async def _paced(rows: Sequence[Row]) -> AsyncIterator[Row]:
    """Rows for a template that may have thousands; others get their turn meanwhile."""
    for number, row in enumerate(rows):
        if number % ROWS_AT_ONCE == 0:
            await asyncio.sleep(0)
        yield row


def _query(**fields: str) -> str:
    """A query string for a link; names with lone surrogates are accepted."""
    return urlencode(fields, errors="replace")
