"""Names of actors for other services, which do not show who the actors are."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..sanitize import message_of

if TYPE_CHECKING:
    from datasette.app import Datasette

_CHARS = 32  # 128 bits in hex


def pseudonym(datasette: Datasette, actor: Mapping[str, Any] | None) -> str | None:
    """A name of an actor that stays the same, and from which its id cannot be computed.

    It is an HMAC of the id, with a key that is derived from the secret that Datasette signs with:
    another site gives the same actor another name.

    Args:
        datasette: the Datasette instance.
        actor: Datasette's actor dictionary, or None.

    Returns:
        32 hexadecimal digits; None for no actor, or one without an id.
    """
    actor_id = actor.get("id") if isinstance(actor, Mapping) else None
    if actor_id in (None, ""):
        return None
    key: str = datasette.sign("actor", namespace="datasette-llm pseudonyms")
    text = message_of(actor_id).encode(errors="surrogatepass")
    return hmac.new(key.encode(), text, hashlib.sha256).hexdigest()[:_CHARS]
