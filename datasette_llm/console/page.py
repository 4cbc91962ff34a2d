"""A page of the console: its HTML and its JSON twin from one function that gives the payload.

Only POST changes anything; Datasette itself refuses a POST that comes from another site.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from datasette import Response

from ..permissions import MANAGE
from ..web import as_json, method_not_allowed, status_of
from .call_policies import differing, items
from .navigation import ROOT, links, section

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    from ..web import Payload

    View = Callable[[Datasette, Request], Awaitable[Response]]
    MakePayload = Callable[[Datasette, Request], Awaitable[Payload]]

SHOWING = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the console.

    Attributes:
        name: the last part of its address; empty for the first page.
        label: what it is called, as in the console's navigation.
        payload: what it shows, as its JSON twin gives it.
        post: what a POST to its address does; without one that is refused.
    """

    name: str
    label: str
    payload: MakePayload
    post: View | None = None

    @property
    def path(self) -> str:
        """Its address, below `base_url`."""
        return f"{ROOT}/{self.name}" if self.name else ROOT

    @property
    def template(self) -> str:
        """The name of its template, which gets `payload`."""
        return f"llm_console_{self.name or 'overview'}.html"

    def routes(self) -> list[tuple[str, View]]:
        """Its addresses, for Datasette's `register_routes`, which takes functions only."""
        return [(f"^{self.path}$", _html(self)), (rf"^{self.path}\.json$", _json(self))]


def _html(page: Page) -> View:
    async def html(datasette: Datasette, request: Request) -> Response:
        await datasette.ensure_permission(action=MANAGE, actor=request.actor)
        if request.method == "POST" and page.post is not None:
            return await page.post(datasette, request)
        if request.method not in SHOWING:
            return method_not_allowed((*SHOWING, "POST") if page.post else SHOWING)
        return await rendered(page, datasette, request, await page.payload(datasette, request))

    return html


def _json(page: Page) -> View:
    async def json(datasette: Datasette, request: Request) -> Response:
        await datasette.ensure_permission(action=MANAGE, actor=request.actor)
        if request.method not in SHOWING:
            # A program that posts here must not take what the page shows for its answer.
            return method_not_allowed(SHOWING)
        return as_json(await page.payload(datasette, request))

    return json


async def rendered(
    page: Page, datasette: Datasette, request: Request, payload: Payload
) -> Response:
    """A payload as a page."""
    context = {
        "page": page,
        "payload": payload,
        "links": await links(datasette, request, page.path),
        "documentation": section(datasette, page.path),
        "query": _query,
        "items": items,
        "differing": lambda plans, common: list(differing(plans, common)),
    }
    html = await datasette.render_template(page.template, context, request=request)
    html = html.encode(errors="replace").decode()
    return Response.html(html, status=status_of(payload))


def _query(**fields: str) -> str:
    """What follows the `?` of a link, also of a name that has half a character."""
    return urlencode(fields, errors="replace")
