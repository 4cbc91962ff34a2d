"""Routes and menu links of the console, the call log and the consultant."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..hooks import dispatch
from ..permissions import MANAGE, VIEW_LOG
from . import docs
from .advice import routes as advice_routes
from .cache import CLEAR, clear_view
from .evaluation import routes as evaluation_routes
from .evaluation import what_if
from .evaluation.playground import PAGE as PLAYGROUND
from .explain import explain_page
from .keys import key_page
from .log import routes as log_routes
from .models import PAGE as MODELS
from .navigation import LOG, ROOT
from .overview import overview
from .page import Page
from .probe_page import PAGE as TEST
from .purposes import ASSIGN, assign_view
from .purposes import PAGE as PURPOSES
from .usage import routes as usage_routes

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

PAGES = (
    Page("", overview),
    MODELS,
    PURPOSES,
    TEST,
    PLAYGROUND,
    Page("explain", explain_page),
    Page("keys", key_page),
)


def routes() -> list[tuple[str, Callable[..., Any]]]:
    """All pages, for Datasette's `register_routes`."""
    console = [route for page in PAGES for route in page.routes()]
    every = [
        (f"^{ASSIGN}$", assign_view),
        (f"^{CLEAR}$", clear_view),
        *console,
        *docs.routes(),
        *advice_routes.routes(),
        *evaluation_routes.routes(),
        *log_routes.routes(),
        *usage_routes.routes(),
        *what_if.routes(),
    ]
    return [(pattern, _not_kept_waiting(view)) for pattern, view in every]


def _not_kept_waiting(view: Callable[..., Any]) -> Callable[..., Any]:
    async def limited(datasette: Datasette, request: Request) -> Any:
        with dispatch.answered_in_time():
            return await view(datasette, request)

    return limited


async def menu_links(datasette: Datasette, actor: Any) -> list[dict[str, str]]:
    """Entries of Datasette's menu: links to the pages that the actor may see."""
    found = []
    for action, path, label in ((MANAGE, ROOT, "LLM overview"), (VIEW_LOG, LOG, "LLM calls")):
        if await datasette.allowed(action=action, actor=actor):
            found.append({"href": datasette.urls.path(path), "label": label})
    return [*found, *await advice_routes.menu_links(datasette, actor)]
