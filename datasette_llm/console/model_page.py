"""The page of the models: what was searched for, and what the form offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..state import state_of
from .choices import purpose_names, secret_pages
from .model_list import SOURCES, STATES, matching, models
from .views import refused

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

FILTERS = ("q", "purpose", "provider", "availability", "key")


async def model_page(datasette: Datasette, request: Request) -> dict[str, Any]:
    """The models that a search finds, with the search and what else could be searched for."""
    given = {name: (request.args.get(name) or "").strip() for name in FILTERS}
    listed = await models(datasette, given["purpose"] or None)
    purposes, problems = await purpose_names(datasette, await state_of(datasette).view(datasette))
    providers = {row["provider"] for row in listed["models"]}
    # Also one that has no models any more, so that the form shows what was asked for.
    wanted = {given["provider"]} - {""}
    about: dict[str, Any] = {
        "filter": given,
        "choices": {
            "purpose": purposes,
            "provider": sorted({*providers, *wanted}, key=str.casefold),
            "availability": STATES,
            "key": SOURCES,
        },
        "problems": problems,
        "known": len(listed["models"]),
    }
    for name, known in (("availability", STATES), ("key", SOURCES)):
        if given[name] and given[name] not in known:
            nothing = listed | about | {"models": []}
            return nothing | refused(f"{name}: expected one of {', '.join(known)}")
    search = {name: value for name, value in given.items() if name != "purpose"}
    found = matching(listed["models"], **search)
    secrets = dict.fromkeys(name for row in found for name in row["key"]["secrets"])
    pages = await secret_pages(datasette, request.actor, secrets)
    return listed | about | {"models": found, "secret_pages": pages}
