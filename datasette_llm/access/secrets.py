"""The secrets that datasette-secrets lists for the models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import datasette_secrets

from ..config.references import secret_names
from ..providers.names import ISSUERS
from .keys import endpoint_secret, provider_secret
from .snapshot import snapshot_of

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..providers.registry import AsyncLLM


async def registered_secrets(datasette: Datasette) -> list[datasette_secrets.Secret]:
    """The secrets of a site's models and configuration, as `secrets_to_register`."""
    snapshot = await snapshot_of(datasette)
    models = [entry.model for entry in snapshot.catalog.entries.values()]
    return secrets_to_register(models, secret_names(snapshot.settings))


def secrets_to_register(
    models: Iterable[AsyncLLM], secret_names: Iterable[str]
) -> list[datasette_secrets.Secret]:
    """The secrets to list: one for each provider, then those that the configuration names."""
    by_name: dict[str, datasette_secrets.Secret] = {}
    # The secrets of endpoints are among `secret_names`.
    provided = (model for model in models if not endpoint_secret(model))
    for needs_key in dict.fromkeys(model.needs_key for model in provided if model.needs_key):
        name = provider_secret(needs_key)
        issuer, url = ISSUERS.get(needs_key, (None, None))
        by_name.setdefault(
            name,
            datasette_secrets.Secret(
                name=name,
                description=f"API key for {issuer or needs_key} models",
                obtain_url=url,
                obtain_label=f"Get a key from {issuer}" if issuer else None,
            ),
        )
    for name in secret_names:
        secret = datasette_secrets.Secret(name, "API key named in the datasette-llm configuration")
        by_name.setdefault(name, secret)
    return list(by_name.values())
