"""The console's navigation: path, label and permission of each page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..permissions import MANAGE, VIEW_LOG

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

ROOT = "/-/llm"
LOG = f"{ROOT}/log"
ADVICE = f"{ROOT}/consultations"


class Link(NamedTuple):
    """A page of the console.

    Attributes:
        path: its path, below `base_url`.
        label: its title.
        permission: the action that an actor needs to see it.
    """

    path: str
    label: str
    permission: str


LINKS = (
    Link(ROOT, "Overview", MANAGE),
    Link(f"{ROOT}/models", "Models", MANAGE),
    Link(f"{ROOT}/purposes", "Purposes", MANAGE),
    Link(f"{ROOT}/test", "Test", MANAGE),
    Link(f"{ROOT}/explain", "Explain", MANAGE),
    Link(f"{ROOT}/keys", "Keys", MANAGE),
    Link(LOG, "Call log", VIEW_LOG),
)


async def links(datasette: Datasette, request: Request, current: str) -> list[dict[str, Any]]:
    """The navigation of a page: links to the pages that the actor may see.

    Args:
        datasette: the Datasette instance.
        request: the request, with its actor.
        current: the path of the page.
    """
    permissions = {link.permission for link in LINKS}
    allowed = {
        each for each in permissions if await datasette.allowed(action=each, actor=request.actor)
    }
    return [
        {
            "href": datasette.urls.path(link.path),
            "label": link.label,
            "current": link.path == current,
        }
        for link in LINKS
        if link.permission in allowed
    ]
