"""The navigation: path, label and permissions of each page, and the section that explains it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from datasette.utils import tilde_encode

from ..consultant.table_access import may_analyze_any
from ..permissions import ANALYZE, MANAGE, VIEW_LOG
from ..sanitize import well_formed

if TYPE_CHECKING:
    from datasette.app import Datasette

ROOT = "/-/llm"
LOG = f"{ROOT}/log"
USAGE = f"{ROOT}/usage"
MODELS = f"{ROOT}/models"
PURPOSES = f"{ROOT}/purposes"
WHAT_IF = f"{ROOT}/what-if"
TEST = f"{ROOT}/test"
PLAYGROUND = f"{ROOT}/playground"
EVALUATIONS = f"{ROOT}/evaluations"
EXPLAIN = f"{ROOT}/explain"
KEYS = f"{ROOT}/keys"
ADVICE = f"{ROOT}/consultations"
DOCS = f"{ROOT}/docs"


class Link(NamedTuple):
    """A page of the console.

    Attributes:
        path: its path, below `base_url`.
        label: its name, the same in the navigation, in crumbs, in its title and its heading.
        permissions: the actions of which an actor needs one to see it.
        section: the subject and the section that explain it, or None.
    """

    path: str
    label: str
    permissions: tuple[str, ...]
    section: str | None


OVERVIEW = Link(ROOT, "Overview", (MANAGE,), "console#overview")
DOCUMENTATION = Link(DOCS, "Docs", (MANAGE, VIEW_LOG, ANALYZE), None)
LINKS = (
    OVERVIEW,
    Link(USAGE, "Usage", (VIEW_LOG,), "log#usage"),
    Link(LOG, "Calls", (VIEW_LOG,), "log"),
    Link(MODELS, "Models", (MANAGE,), "console#models"),
    Link(PURPOSES, "Purposes", (MANAGE,), "console#purposes"),
    Link(EVALUATIONS, "Evaluations", (MANAGE,), "evaluation"),
    Link(TEST, "Test", (MANAGE,), "console#test"),
    Link(PLAYGROUND, "Playground", (MANAGE,), "console#playground"),
    Link(EXPLAIN, "Explain", (MANAGE,), "console#explain"),
    Link(KEYS, "Keys", (MANAGE,), "console#keys"),
    Link(ADVICE, "Advice", (ANALYZE,), "consultant"),
    DOCUMENTATION,
)
BY_PATH = {link.path: link for link in LINKS}


class Crumb(NamedTuple):
    """A step of the way to a page.

    Attributes:
        label: its name.
        href: its address; None for the page itself.
    """

    label: str
    href: str | None


async def navigation(
    datasette: Datasette, actor: Any, path: str | None, here: str | None = None
) -> dict[str, Any]:
    """What stands around a page, for its template.

    Args:
        datasette: the Datasette instance.
        actor: the actor; only pages that they may see are linked.
        path: of the page of the navigation that this is, or that this is below; or None.
        here: the name of a page below that one.

    Returns:
        `links`, each with its `current`, which is `aria-current`'s value or None; `trail`, the
        crumbs after Datasette's own; `documentation`, the address of the section.
    """
    page, granted = BY_PATH.get(path or ""), await _granted(datasette, actor)
    seen = [link for link in LINKS if granted & set(link.permissions)]
    return {
        "links": [
            {
                "href": datasette.urls.path(link.path),
                "label": link.label,
                "current": ("true" if here else "page") if link is page else None,
            }
            for link in seen
        ],
        "trail": list(_trail(datasette, page, here, first=OVERVIEW in seen)),
        "documentation": section(datasette, page) if page else None,
    }


async def may_see(datasette: Datasette, actor: Any, link: Link) -> bool:
    """Whether an actor may see a page."""
    return bool(await _granted(datasette, actor, link.permissions))


def section(datasette: Datasette, page: Link) -> str | None:
    """The address of the section that explains a page of the navigation, or None."""
    return str(datasette.urls.path(f"{DOCS}/{page.section}")) if page.section else None


def row_address(datasette: Datasette, path: str, name: str) -> str:
    """The address of the page of a model or a purpose.

    Args:
        datasette: the Datasette instance.
        path: `MODELS` or `PURPOSES`.
        name: its name, not empty.
    """
    return str(datasette.urls.path(f"{path}/{tilde_encode(well_formed(name))}"))


def _trail(
    datasette: Datasette, page: Link | None, here: str | None, *, first: bool
) -> Iterator[Crumb]:
    yield Crumb("LLM", datasette.urls.path(ROOT) if first and page is not OVERVIEW else None)
    if page is not None and page is not OVERVIEW:
        yield Crumb(page.label, datasette.urls.path(page.path) if here else None)
    if here:
        yield Crumb(here, None)


async def _granted(
    datasette: Datasette, actor: Any, actions: Iterable[str] = (MANAGE, VIEW_LOG, ANALYZE)
) -> set[str]:
    """Those actions that an actor may take, `analyze-table` on some table."""
    return {action for action in actions if await _has(datasette, actor, action)}


async def _has(datasette: Datasette, actor: Any, action: str) -> bool:
    if action == ANALYZE:
        return await may_analyze_any(datasette, actor)
    allowed: bool = await datasette.allowed(action=action, actor=actor)
    return allowed
