"""Which key a model uses, and which models have one.

Finding out which models have a key reads names only: no key is decrypted, nothing is
written. Using a key goes through datasette-secrets' `get_secret()`, which stamps the secret
as used, and then through llm's own places.
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import cryptography.fernet
import datasette_secrets
import llm
from datasette.utils.sqlite import sqlite3

if TYPE_CHECKING:
    from datasette.app import Datasette

    from .catalog import AsyncLLM

ENVIRONMENT_PREFIX = "DATASETTE_SECRETS_"
Source = Literal["secret environment", "secret", "keys.json", "environment", "model"]

# Where the providers say that keys are made; by the name llm's plugins use for the key.
ISSUERS = {
    "openai": ("OpenAI", "https://platform.openai.com/api-keys"),
    "anthropic": ("Anthropic", "https://console.anthropic.com/settings/keys"),
    "claude": ("Anthropic", "https://console.anthropic.com/settings/keys"),
    "gemini": ("Google AI Studio", "https://aistudio.google.com/apikey"),
    "mistral": ("Mistral", "https://console.mistral.ai/api-keys"),
    "groq": ("Groq", "https://console.groq.com/keys"),
    "openrouter": ("OpenRouter", "https://openrouter.ai/settings/keys"),
    "deepseek": ("DeepSeek", "https://platform.deepseek.com/api_keys"),
    "cohere": ("Cohere", "https://dashboard.cohere.com/api-keys"),
    "perplexity": ("Perplexity", "https://www.perplexity.ai/settings/api"),
    "xai": ("xAI", "https://console.x.ai"),
    "grok": ("xAI", "https://console.x.ai"),
    "together": ("Together AI", "https://api.together.ai/settings/api-keys"),
    "fireworks": ("Fireworks AI", "https://fireworks.ai/account/api-keys"),
    "replicate": ("Replicate", "https://replicate.com/account/api-tokens"),
}


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """Which keys are set, as of one moment. Holds names, never keys.

    Attributes:
        secrets: names in datasette-secrets' encrypted table.
        stored: names in llm's keys.json.
    """

    secrets: frozenset[str] = frozenset()
    stored: frozenset[str] = frozenset()

    def source(self, model: AsyncLLM, secret_names: Iterable[str]) -> Source | None:
        """Where the key of a model would come from, or None where it has none.

        Args:
            model: a model with `needs_key`.
            secret_names: secrets that the configuration names for it, in order.
        """
        for name in candidates(model, secret_names):
            if os.environ.get(ENVIRONMENT_PREFIX + name):
                return "secret environment"
            if name in self.secrets:
                return "secret"
        if model.needs_key in self.stored:
            return "keys.json"
        if model.key_env_var and os.environ.get(model.key_env_var):
            return "environment"
        return "model" if model.key else None


@functools.cache
def provider_secret(needs_key: str) -> str:
    """The name of the secret for a provider's key: `openai` gives `OPENAI_API_KEY`."""
    return re.sub(r"\W", "_", needs_key).upper() + "_API_KEY"


def candidates(model: AsyncLLM, secret_names: Iterable[str]) -> list[str]:
    """The secrets that may hold the key of a model, in the order they are tried."""
    provider = [provider_secret(model.needs_key)] if model.needs_key else []
    return list(dict.fromkeys([*secret_names, *provider]))


def secrets_to_register(
    models: Iterable[AsyncLLM], secret_names: Iterable[str]
) -> list[datasette_secrets.Secret]:
    """What datasette-secrets shall list: a secret for each provider, then the configured ones."""
    by_name: dict[str, datasette_secrets.Secret] = {}
    for needs_key in dict.fromkeys(model.needs_key for model in models if model.needs_key):
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


async def read_status(datasette: Datasette) -> KeyStatus:
    """The names of the keys that are set: one read of the table, one of keys.json."""
    # Looked at as it is written: resolving a `$file` would read it here, on the event loop.
    plugins = (datasette.config or {}).get("plugins") or {}
    config = plugins.get("datasette-secrets") or {}
    if not config.get("encryption-key"):
        stored, _ = await asyncio.to_thread(_stored_keys)
        return KeyStatus(frozenset(), frozenset(stored))
    name = config.get("database")
    named = isinstance(name, str) and name != "_internal"
    database = datasette.get_database(name) if named else datasette.get_internal_database()
    # Both in the thread of the database: a second thread costs more than it saves.
    status: KeyStatus = await database.execute_fn(_status)
    return status


async def find_key(
    datasette: Datasette,
    model: AsyncLLM,
    *,
    explicit: str | None,
    secret_names: Sequence[str],
    actor: Mapping[str, Any] | None,
) -> str | None:
    """The key for a prompt.

    Args:
        datasette: the Datasette instance.
        model: llm's model.
        explicit: what the caller passed as `key=`: a key, or a name in keys.json.
        secret_names: secrets that the configuration names for the model, in order.
        actor: who asks; datasette-secrets notes who used a secret last.

    Returns:
        The key, or None for a model that needs none.

    Raises:
        llm.NeedsKeyException: no place has one; the message names all the places.
    """
    if explicit:
        stored, _ = await asyncio.to_thread(_stored_keys)
        return stored.get(explicit, explicit)
    if not model.needs_key:
        return None
    actor_id = (actor or {}).get("id")
    # It is only noted; datasette-secrets would hand anything else to SQLite as it is.
    actor_id = None if actor_id is None else str(actor_id)
    for name in candidates(model, secret_names):
        key = await _get_secret(datasette, name, actor_id)
        if key:
            return key
    stored, problem = await asyncio.to_thread(_stored_keys)
    key = stored.get(model.needs_key) or os.environ.get(model.key_env_var or "") or model.key
    if key:
        return key
    message = _missing_key_message(model, candidates(model, secret_names))
    raise llm.NeedsKeyException(f"{message} ({problem})" if problem else message)


async def _get_secret(datasette: Datasette, name: str, actor_id: str | None) -> str | None:
    try:
        key: str | None = await datasette_secrets.get_secret(datasette, name, actor_id)
    except ValueError as error:
        raise llm.NeedsKeyException(
            f"The secret {name} cannot be read, because the encryption-key setting of "
            f"datasette-secrets is malformed: {error}"
        ) from None
    except cryptography.fernet.InvalidToken:
        raise llm.NeedsKeyException(
            f"The secret {name} was stored with another encryption key and cannot be read; "
            f"set it again at /-/secrets/{name}"
        ) from None
    return key


def _status(connection: sqlite3.Connection) -> KeyStatus:
    try:
        rows = connection.execute(
            "select distinct name from datasette_secrets where encrypted is not null"
        ).fetchall()
    except sqlite3.OperationalError:
        rows = []  # the table is made at startup; before that there are no secrets in it
    return KeyStatus(frozenset(row[0] for row in rows), frozenset(_stored_keys()[0]))


def _stored_keys() -> tuple[dict[str, str], str | None]:
    """The keys in llm's keys.json, and what is wrong with the file if it cannot be read."""
    try:
        items = llm.load_keys().items()
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        return {}, f"llm's keys.json cannot be read: {type(error).__name__}"
    return {name: key for name, key in items if key and isinstance(key, str)}, None


def _missing_key_message(model: AsyncLLM, names: Sequence[str]) -> str:
    places = [f"the secret {name} at /-/secrets/{name}" for name in names]
    places += [f"the environment variable {ENVIRONMENT_PREFIX}{name}" for name in names]
    places.append(f"'llm keys set {model.needs_key}'")
    if model.key_env_var:
        places.append(f"the environment variable {model.key_env_var}")
    return f"No key for model {model.model_id!r}. Set one in any of: {', '.join(places)}"
