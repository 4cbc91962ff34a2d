"""The console's navigation: path, label and permissions of each page, and its documentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..consultant.table_access import may_analyze_any
from ..permissions import ANALYZE, MANAGE, VIEW_LOG

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

ROOT = "/-/llm"
LOG = f"{ROOT}/log"
ADVICE = f"{ROOT}/consultations"
DOCS = f"{ROOT}/docs"


class Link(NamedTuple):
    """A page of the console.

    Attributes:
        path: its path, below `base_url`.
        label: its title.
        permissions: the actions of which an actor needs one to see it.
    """

    path: str
    label: str
    permissions: tuple[str, ...] = (MANAGE,)


DOCUMENTATION = Link(DOCS, "Docs", (MANAGE, VIEW_LOG, ANALYZE))
LINKS = (
    Link(ROOT, "Overview"),
    Link(f"{ROOT}/models", "Models"),
    Link(f"{ROOT}/purposes", "Purposes"),
    Link(f"{ROOT}/test", "Test"),
    Link(f"{ROOT}/explain", "Explain"),
    Link(f"{ROOT}/keys", "Keys"),
    Link(LOG, "Call log", (VIEW_LOG,)),
    DOCUMENTATION,
)

# The subject and the section that explain a page.
SECTIONS = {
    ROOT: "console#overview",
    f"{ROOT}/models": "console#models",
    f"{ROOT}/purposes": "console#purposes",
    f"{ROOT}/test": "console#test",
    f"{ROOT}/explain": "console#explain",
    f"{ROOT}/keys": "console#keys",
    LOG: "log",
    ADVICE: "consultant",
}


async def links(datasette: Datasette, request: Request, current: str) -> list[dict[str, Any]]:
    """The navigation of a page: links to the pages that the actor may see.

    Args:
        datasette: the Datasette instance.
        request: the request, with its actor.
        current: the path of the page.
    """
    return [
        {
            "href": datasette.urls.path(link.path),
            "label": link.label,
            "current": link.path == current,
        }
        for link in LINKS
        if await may_see(datasette, request.actor, link)
    ]


async def may_see(datasette: Datasette, actor: Any, link: Link) -> bool:
    """Whether an actor may see a page."""
    for permission in link.permissions:
        if await _has(datasette, actor, permission):
            return True
    return False


def section(datasette: Datasette, path: str) -> str:
    """The address of the section that explains a page.

    Args:
        datasette: the Datasette instance.
        path: that of the page, below `base_url`.
    """
    address: str = datasette.urls.path(f"{DOCS}/{SECTIONS[path]}")
    return address


async def _has(datasette: Datasette, actor: Any, permission: str) -> bool:
    """Whether an actor has a permission, `analyze-table` for some table."""
    if permission == ANALYZE:
        return await may_analyze_any(datasette, actor)
    allowed: bool = await datasette.allowed(action=permission, actor=actor)
    return allowed
