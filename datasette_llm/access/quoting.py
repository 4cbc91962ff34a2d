"""Third-party error messages for pages: bounded in length, without API keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..redaction import shortened
from ..sanitize import message_of, well_formed
from .keys import every_key
from .snapshot import snapshot_of

if TYPE_CHECKING:
    from datasette.app import Datasette

# Some servers answer with a whole page of HTML.
MAX_MESSAGE_CHARS = 10_000


async def keys_of_site(datasette: Datasette) -> frozenset[str]:
    """Every key that is set on this site, as `every_key`."""
    try:
        catalog = (await snapshot_of(datasette)).catalog
    except ConfigError:
        return await every_key(datasette, [])
    return await every_key(datasette, [entry.model for entry in catalog.entries.values()])


async def quoted(datasette: Datasette, text: str) -> str:
    """A third-party text, shortened, without any key that is set on this site.

    A hook may have read any key by itself, so all keys are removed.

    Args:
        datasette: the Datasette instance.
        text: the text.
    """
    clean = well_formed(shortened(text, await keys_of_site(datasette), MAX_MESSAGE_CHARS))
    return clean if len(text) <= MAX_MESSAGE_CHARS else f"{clean}…"


async def quoted_error(datasette: Datasette, error: Exception) -> str:
    """The type and message of a plugin's exception, as `quoted`."""
    return await quoted(datasette, f"{type(error).__name__}: {message_of(error)}")
