"""The addresses of the console: each page and its JSON twin from one function.

A page is a function that gives its payload. One with `"ok": False` has `error` and `status`,
as Datasette's own JSON errors have. Only POST changes anything; Datasette itself refuses a POST
that comes from another site.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from datasette import Response
from datasette.permissions import Action

from ..log.list_page import PATH as LOG
from ..log.views import VIEW_LOG

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    Payload = dict[str, Any]
    View = Callable[[Datasette, Request], Awaitable[Response]]
    MakePayload = Callable[[Datasette, Request], Awaitable[Payload]]

MANAGE = "manage-llm"
PATH = "/-/llm"
SHOWING = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the console.

    Attributes:
        name: the last part of its address; empty for the first page.
        label: what it is called in the console's navigation.
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
        return f"{PATH}/{self.name}" if self.name else PATH

    @property
    def template(self) -> str:
        """The name of its template, which gets `payload`."""
        return f"llm_console_{self.name or 'overview'}.html"


def refused(message: str, status: int = 400, **payload: object) -> Payload:
    """The payload of a request that cannot be answered.

    Args:
        message: what is wrong, and what to do.
        status: the HTTP status.
        **payload: what the page needs all the same, for example for its form.
    """
    return {"ok": False, "error": message, "status": status, **payload}


def pages() -> tuple[Page, ...]:
    """The pages, in the order of the navigation."""
    from . import trial_page
    from .explain import explain_page
    from .key_list import key_page
    from .model_page import model_page
    from .overview import overview
    from .purposes import PAGE as PURPOSES

    return (
        Page("", "Overview", overview),
        Page("models", "Models", model_page),
        PURPOSES,
        trial_page.PAGE,
        Page("explain", "Explain", explain_page),
        Page("keys", "Keys", key_page),
    )


def routes() -> list[tuple[str, View]]:
    """The pages, for Datasette's `register_routes`."""
    from .assigning import ASSIGN, assign_view

    found: list[tuple[str, View]] = []
    found.append((f"^{ASSIGN}$", assign_view))
    for page in pages():
        found.append((f"^{page.path}$", _html(page)))
        found.append((rf"^{page.path}\.json$", _json(page)))
    return found


def actions() -> list[Action]:
    """The permissions, for Datasette's `register_actions`."""
    return [Action(name=MANAGE, description="Manage the language models of plugins")]


async def menu_links(datasette: Datasette, actor: Any) -> list[dict[str, str]]:
    """The menu's entry, for those who may see the pages."""
    if not await datasette.allowed(action=MANAGE, actor=actor):
        return []
    return [{"href": datasette.urls.path(PATH), "label": "LLM models"}]


def _html(page: Page) -> View:
    async def html(datasette: Datasette, request: Request) -> Response:
        await datasette.ensure_permission(action=MANAGE, actor=request.actor)
        if request.method == "POST" and page.post is not None:
            return await page.post(datasette, request)
        if request.method not in SHOWING:
            return _not_allowed((*SHOWING, "POST") if page.post else SHOWING)
        return await rendered(page, datasette, request, await page.payload(datasette, request))

    return html


def _json(page: Page) -> View:
    async def json(datasette: Datasette, request: Request) -> Response:
        await datasette.ensure_permission(action=MANAGE, actor=request.actor)
        if request.method not in SHOWING:
            # A program that posts here must not take what the page shows for its answer.
            return _not_allowed(SHOWING)
        return as_json(await page.payload(datasette, request))

    return json


def _not_allowed(methods: Sequence[str]) -> Response:
    allow = ", ".join(methods)
    return Response.error(f"Only {allow}", 405, headers={"Allow": allow})


async def rendered(
    page: Page, datasette: Datasette, request: Request, payload: Payload
) -> Response:
    """A payload as a page."""
    from .plans import differing, items

    links = await _links(page, datasette, request)
    context = {
        "page": page,
        "payload": payload,
        "links": links,
        "query": _query,
        "items": items,
        "differing": lambda plans, common: list(differing(plans, common)),
    }
    html = await datasette.render_template(page.template, context, request=request)
    html = html.encode(errors="replace").decode()
    return Response.html(html, status=_status(payload))


def _query(**fields: str) -> str:
    """What follows the `?` of a link, also of a name that has half a character."""
    return urlencode(fields, errors="replace")


async def _links(page: Page, datasette: Datasette, request: Request) -> list[dict[str, Any]]:
    links = [
        {"href": datasette.urls.path(each.path), "label": each.label, "current": each == page}
        for each in pages()
    ]
    # The record has a permission of its own.
    if await datasette.allowed(action=VIEW_LOG, actor=request.actor):
        links.append({"href": datasette.urls.path(LOG), "label": "Log", "current": False})
    return links


def as_json(payload: Payload) -> Response:
    """A payload as JSON."""
    return Response.json(payload, status=_status(payload))


def _status(payload: Payload) -> int:
    return 200 if payload["ok"] else int(payload.get("status", 400))


def wants_html(request: Request) -> bool:
    """Whether whoever posts is a browser that shows the answer, rather than a program."""
    sent = request.headers.get("content-type", "")
    return "json" not in sent and "text/html" in request.headers.get("accept", "")


async def posted(request: Request) -> Mapping[str, str]:
    """The fields of a POST, from a form or from JSON; a field that is empty is not there.

    In JSON a field may also be true, which is `"true"` then, or false, which is not there.

    Raises:
        PostError: the body is neither.
    """
    is_json = "json" in request.headers.get("content-type", "")
    fields: Any
    try:
        if is_json:
            fields = json.loads(await request.post_body() or b"{}")
        else:
            fields = await request.post_vars()
    except (ValueError, RecursionError) as error:
        raise PostError(f"The body is no {'JSON' if is_json else 'form'}: {error}") from None
    if not isinstance(fields, dict):
        raise PostError('The body has to be a JSON object, such as {"model_id": "…"}')
    wrong = [name for name, value in fields.items() if not isinstance(value, str | bool | None)]
    if wrong:
        raise PostError(f"{', '.join(wrong)}: expected text")
    return {name: "true" if value is True else value for name, value in fields.items() if value}


class PostError(Exception):
    """The body of a POST cannot be used; the message says why."""
