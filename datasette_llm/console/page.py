"""A page of the console: HTML and JSON from one function that makes the payload.

Only POST changes anything; Datasette itself refuses cross-site POSTs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from datasette import Response
from datasette.utils import tilde_decode

from ..permissions import MANAGE
from ..web import READ_METHODS, as_json, html_page, method_not_allowed, status_of
from . import formatting
from .call_policies import differences, items
from .navigation import BY_PATH, MODELS, PURPOSES, ROOT, navigation, row_address

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import AsgiStream, Request

    from ..web import Payload

    Row = dict[str, Any]
    ViewFunction = Callable[[Datasette, Request], Awaitable[Response | AsgiStream]]
    MakePayload = Callable[[Datasette, Request], Awaitable[Payload]]
    MakeInnerPayload = Callable[[Datasette, Request, str], Awaitable[Payload]]


# That a template renders before others get their turn.
ROWS_AT_ONCE = 10


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the navigation.

    Attributes:
        name: the last part of its path; empty for the overview.
        payload: makes what the page shows and its JSON contains.
        post: handles a POST to its path; without it, POST is refused with 405.
        inner: makes what the page of one of its rows shows, whose address ends with the row's
            name, tilde-encoded; without it, rows have no pages.
    """

    name: str
    payload: MakePayload
    post: ViewFunction | None = None
    inner: MakeInnerPayload | None = None

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

    @property
    def inner_template(self) -> str:
        """The name of the template of a row's page."""
        return f"llm_console_{self.name.removesuffix('s')}.html"

    def routes(self) -> list[tuple[str, ViewFunction]]:
        """Its routes, for Datasette's `register_routes`, which takes functions only."""
        routes = [(f"^{self.path}$", _html(self)), (rf"^{self.path}\.json$", _json(self.payload))]
        if self.inner is not None:
            # An encoded name has no dot.
            row = rf"^{self.path}/(?P<name>[^/.]+)"
            routes += [
                (f"{row}$", _inner_html(self, self.inner)),
                (rf"{row}\.json$", _json(_of_row(self.inner))),
            ]
        return routes


def _html(page: Page) -> ViewFunction:
    async def html(datasette: Datasette, request: Request) -> Response | AsgiStream:
        await datasette.ensure_permission(action=MANAGE, actor=request.actor)
        if request.method == "POST" and page.post is not None:
            return await page.post(datasette, request)
        if request.method not in READ_METHODS:
            return method_not_allowed((*READ_METHODS, "POST") if page.post else READ_METHODS)
        return await rendered(page, datasette, request, await page.payload(datasette, request))

    return html


def _inner_html(page: Page, make_payload: MakeInnerPayload) -> ViewFunction:
    async def html(datasette: Datasette, request: Request) -> Response:
        await datasette.ensure_permission(action=MANAGE, actor=request.actor)
        if request.method not in READ_METHODS:
            return method_not_allowed()
        payload = await _of_row(make_payload)(datasette, request)
        name = tilde_decode(request.url_vars["name"])
        return await rendered(page, datasette, request, payload, name)

    return html


def _json(make_payload: MakePayload) -> ViewFunction:
    async def json(datasette: Datasette, request: Request) -> Response:
        await datasette.ensure_permission(action=MANAGE, actor=request.actor)
        if request.method not in READ_METHODS:
            # Or a program that posts here would take the page's content for the result.
            return method_not_allowed()
        return as_json(await make_payload(datasette, request))

    return json


def _of_row(make_payload: MakeInnerPayload) -> MakePayload:
    async def payload(datasette: Datasette, request: Request) -> Payload:
        return await make_payload(datasette, request, tilde_decode(request.url_vars["name"]))

    return payload


async def rendered(
    page: Page,
    datasette: Datasette,
    request: Request,
    payload: Payload,
    row: str | None = None,
) -> Response:
    """Render the payload of a page, or of the page of one of its rows, as HTML."""
    template = page.template if row is None else page.inner_template
    context = {"title": page.label if row is None else row, "payload": payload}
    status = status_of(payload)
    return await render(
        datasette, request, template, context, path=page.path, here=row, status=status
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
        "model_page": partial(row_address, datasette, MODELS),
        "purpose_page": partial(row_address, datasette, PURPOSES),
        "query": _query,
        "paced": _paced,
        "sorted_by": _sorted_by,
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


def _sorted_by(name: str, current: str, *, descending: bool = False) -> tuple[str, str | None]:
    """Of a column the argument that sorts by it, or in the other direction, and its `aria-sort`."""
    first, second = (f"-{name}", name) if descending else (name, f"-{name}")
    if current not in (first, second):
        return first, None
    direction = "descending" if current.startswith("-") else "ascending"
    return (second if current == first else first), direction


def _query(**fields: str) -> str:
    """A query string for a link; names with lone surrogates are accepted."""
    return urlencode(fields, errors="replace")
