"""API keys: where they are set, which models have one, and the key for a prompt.

To see which models have a key, only names are read: no key is decrypted, nothing is written.
A prompt takes its key from datasette-secrets' `get_secret()`, which records the use, and else
from where llm itself looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import cryptography.fernet
import datasette_secrets
import llm
from datasette.utils.sqlite import sqlite3

from ..providers.registry import user_folder

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

    from ..providers.registry import AsyncLLM

ENVIRONMENT_PREFIX = "DATASETTE_SECRETS_"
Source = Literal["secret environment", "secret", "keys.json", "environment", "model"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key is set.

    Attributes:
        source: the kind of place.
        name: the name of the key there: of the secret, in keys.json, of the variable; for a
            key that the model's own plugin has set, llm's name for the key.
    """

    source: Source
    name: str


@dataclass(frozen=True, slots=True)
class KeyName:
    """The name of a key, which a caller gives in place of a key.

    Attributes:
        name: of a secret, or in llm's keys.json.
    """

    name: str


class CallerKey(str):
    """A key that a caller gave, which is never taken for the name of a stored one.

    llm's models look into keys.json for what they are given, which may have changed since a name
    was refused. So this is found in no dictionary of names.
    """

    __slots__ = ()

    def __hash__(self) -> int:
        return hash((CallerKey, str(self)))


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """The names of the keys that are set at one moment; it never holds keys.

    Attributes:
        secrets: names in datasette-secrets' encrypted table.
        stored: names in llm's keys.json.
    """

    secrets: frozenset[str] = frozenset()
    stored: frozenset[str] = frozenset()

    def source(self, model: AsyncLLM, secret_names: Iterable[str]) -> Source | None:
        """The kind of place that the key of a model would come from; None for no key.

        Args:
            model: a model with `needs_key`.
            secret_names: secrets that the configuration names for it, in order.
        """
        place = next(self.places(model, secret_names), None)
        return place.source if place is not None else None

    def places(self, model: AsyncLLM, secret_names: Iterable[str]) -> Iterator[Place]:
        """Every place that has a key for a model, in the order in which they are tried.

        Args:
            model: a model with `needs_key`.
            secret_names: secrets that the configuration names for it, in order.
        """
        for name in candidates(model, secret_names):
            if _variable(ENVIRONMENT_PREFIX + name):
                yield Place("secret environment", name)
            if name in self.secrets:
                yield Place("secret", name)
        needs_key = str(model.needs_key)
        if needs_key in self.stored:
            yield Place("keys.json", needs_key)
        if _variable(model.key_env_var):
            yield Place("environment", str(model.key_env_var))
        if _stripped(model.key):
            yield Place("model", needs_key)


@functools.cache
def provider_secret(needs_key: str) -> str:
    """The name of the secret for a provider's key: `openai` gives `OPENAI_API_KEY`."""
    return re.sub(r"\W", "_", needs_key).upper() + "_API_KEY"


def endpoint_secret(model: AsyncLLM) -> str | None:
    """The secret that an endpoint names for its model; None for any other model."""
    # By attribute, since importing the class of endpoints takes a second.
    return getattr(model, "own_secret", None)


def own_secret(model: AsyncLLM) -> str | None:
    """The secret of the model's endpoint, else of its provider, else None."""
    return endpoint_secret(model) or (provider_secret(model.needs_key) if model.needs_key else None)


def candidates(model: AsyncLLM, secret_names: Iterable[str]) -> list[str]:
    """The secrets that may hold the key of a model, in the order in which they are tried."""
    own = own_secret(model)
    return list(dict.fromkeys([*secret_names, *([own] if own else [])]))


async def read_status(datasette: Datasette) -> KeyStatus:
    """Read the names of the keys that are set: from datasette-secrets' table and keys.json."""
    if not can_store(datasette):
        stored, _ = await asyncio.to_thread(_stored_keys)
        return KeyStatus(frozenset(), frozenset(stored))
    # Both in the database's thread: a second thread costs more than it saves.
    status: KeyStatus = await _secrets_database(datasette).execute_fn(_status)
    return status


async def last_uses(datasette: Datasette) -> dict[str, tuple[str, str | None]]:
    """When each stored secret was last used, in UTC, and by which actor; unused ones are left out.

    Raises:
        sqlite3.Error: the database of datasette-secrets cannot be read.
    """
    if not can_store(datasette):
        return {}
    sql = (
        "select name, max(last_used_at) as used_at, last_used_by from datasette_secrets "
        "where encrypted is not null and last_used_at is not null group by name"
    )
    rows = await _secrets_database(datasette).execute(sql)
    return {
        row["name"]: (f"{row['used_at'].replace(' ', 'T')}Z", row["last_used_by"])
        for row in rows.rows
    }


async def every_key(datasette: Datasette, models: Iterable[AsyncLLM]) -> frozenset[str]:
    """Every key that is set on this site, to remove them from third-party texts.

    No secret is recorded as used.

    Args:
        datasette: the Datasette instance.
        models: their own keys and environment variables are included.
    """
    models = list(models)
    stored, _ = await asyncio.to_thread(_stored_keys)
    found = {*environment_keys(), *stored.values(), *await _decrypted(datasette)}
    found |= {_variable(model.key_env_var) for model in models}
    found |= {_stripped(model.key) for model in models}
    return frozenset(found - {""})


def environment_keys() -> frozenset[str]:
    """The secrets that the environment holds for datasette-secrets."""
    return frozenset({_variable(ENVIRONMENT_PREFIX + name) for name in _environment_names()} - {""})


def can_store(datasette: Datasette) -> bool:
    """Whether datasette-secrets has the encryption key that it stores secrets with."""
    return bool(_secrets_config(datasette).get("encryption-key"))


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
        explicit: what the caller passed as `key=`; a key, not the name of one.
        secret_names: secrets that the configuration names for the model, in order.
        actor: the actor; datasette-secrets records who used a secret last.

    Returns:
        The key, without white space around it; None for a model that needs none.

    Raises:
        llm.NeedsKeyException: no key is set, and the message lists where it can be set; or the
            first that is set cannot be sent, and the message says where it is; or what the caller
            passed is the name of a key.
    """
    if given := _stripped(explicit):
        _sendable(given, model, "what the caller passed as key=")
        await _refuse_name(datasette, given)
        return CallerKey(given)
    if not model.needs_key:
        return None
    names = candidates(model, secret_names)
    for name in names:
        if key := await _secret(datasette, name, actor):
            return _sendable(key, model, _place(name))
    stored, problem = await asyncio.to_thread(_stored_keys)
    places = {
        f"{model.needs_key!r} in llm's keys.json": stored.get(model.needs_key),
        f"the environment variable {model.key_env_var}": _variable(model.key_env_var),
        "its llm plugin": _stripped(model.key),
    }
    for place, found in places.items():
        if found:
            return _sendable(found, model, place)
    message = _missing_key_message(model, names)
    raise llm.NeedsKeyException(f"{message} ({problem})" if problem else message)


async def find_named_key(
    datasette: Datasette,
    model: AsyncLLM,
    name: str,
    *,
    registered: Collection[str],
    actor: Mapping[str, Any] | None,
) -> str:
    """The key that a caller names.

    Args:
        datasette: the Datasette instance.
        model: llm's model.
        name: what the caller passed as `key_name=`.
        registered: the names of our secrets.
        actor: as for `find_key`.

    Raises:
        llm.NeedsKeyException: there is no such key, or it cannot be sent.
    """
    key = await _secret(datasette, name, actor) if name in registered else None
    if key:
        return _sendable(key, model, _place(name))
    stored, problem = await asyncio.to_thread(_stored_keys)
    if name in stored:
        return _sendable(stored[name], model, f"{name!r} in llm's keys.json")
    known = name in registered
    advice = (
        f"Set it at /-/secrets/{name}, or in the environment variable {ENVIRONMENT_PREFIX}{name}"
        if known
        else "key_name= takes the name of a secret that the configuration or a provider of a "
        "model names, or one that was set with 'llm keys set'"
    )
    message = f"The key {name!r} is {'not set' if known else 'unknown'}. {advice}"
    raise llm.NeedsKeyException(f"{message} ({problem})" if problem else message)


async def _refuse_name(datasette: Datasette, given: str) -> None:
    try:
        status = await read_status(datasette)
    except sqlite3.Error:  # a `CallerKey` is no name even so
        status = KeyStatus()
    if given in status.secrets | status.stored | _environment_names():
        raise llm.NeedsKeyException(
            "What the caller passed as key= is the name of a stored key, and not a key. Pass a "
            "key, or the name as key_name="
        )


async def _decrypted(datasette: Datasette) -> list[str]:
    if not can_store(datasette):
        return []
    keys = []
    try:
        # In a thread, because resolving `$file` reads files.
        config = await asyncio.to_thread(datasette_secrets.get_config, datasette)
        cipher = cryptography.fernet.Fernet(config["encryption_key"].encode())
        sql = "select encrypted from datasette_secrets where encrypted is not null"
        rows = await _secrets_database(datasette).execute(sql)
    except (OSError, ValueError, sqlite3.Error):
        return []  # then no prompt can use them either
    for row in rows:
        with contextlib.suppress(cryptography.fernet.InvalidToken):
            keys.append(_stripped(cipher.decrypt(row["encrypted"]).decode()))
    return keys


def _secrets_config(datasette: Datasette) -> Mapping[str, Any]:
    # The raw configuration: resolving a `$file` would read it here, on the event loop.
    plugins = (datasette.config or {}).get("plugins") or {}
    return plugins.get("datasette-secrets") or {}


def _secrets_database(datasette: Datasette) -> Database:
    name = _secrets_config(datasette).get("database")
    named = isinstance(name, str) and name != "_internal"
    return datasette.get_database(name) if named else datasette.get_internal_database()


async def _secret(datasette: Datasette, name: str, actor: Mapping[str, Any] | None) -> str:
    """The key of a secret; empty where it is not set."""
    actor_id = (actor or {}).get("id")
    # Only recorded; datasette-secrets passes it to SQLite, which takes no other types.
    actor_id = None if actor_id is None else str(actor_id)
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
    return _stripped(key)


def _environment_names() -> set[str]:
    """The names of the secrets that the environment holds for datasette-secrets."""
    found = (name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX))
    return {name.removeprefix(ENVIRONMENT_PREFIX) for name in found}


def _place(secret: str) -> str:
    if _variable(ENVIRONMENT_PREFIX + secret):
        return f"the environment variable {ENVIRONMENT_PREFIX}{secret}"
    return f"the secret {secret}, which is set at /-/secrets/{secret}"


def _variable(name: str | None) -> str:
    """A key in the environment; empty where it is not set."""
    return os.environ.get(name, "").strip() if name else ""


def _stripped(key: str | None) -> str:
    """A key without white space around it, as a file has or a user pastes."""
    return key.strip() if key else ""


def _sendable(key: str, model: AsyncLLM, place: str) -> str:
    """A key that can be sent in an HTTP header.

    Raises:
        llm.NeedsKeyException: it cannot. A model that names no key and is of no endpoint is in
            this process, and may get anything.
    """
    sent = bool(model.needs_key) or hasattr(model, "own_secret")
    if not sent or (key.isascii() and key.isprintable()):
        return key
    raise llm.NeedsKeyException(
        f"The key for model {model.model_id!r} cannot be sent: it has characters that an HTTP "
        "header cannot have, such as a line break or a letter with an accent. It comes from "
        f"{place}; set it again there"
    )


def _status(connection: sqlite3.Connection) -> KeyStatus:
    try:
        rows = connection.execute(
            "select distinct name from datasette_secrets where encrypted is not null"
        ).fetchall()
    except sqlite3.OperationalError:
        rows = []  # datasette-secrets creates the table at startup
    return KeyStatus(frozenset(row[0] for row in rows), frozenset(_stored_keys()[0]))


def _stored_keys() -> tuple[dict[str, str], str | None]:
    """The keys in llm's keys.json, and the problem if the file cannot be read."""
    if user_folder() is None:
        return {}, "llm's folder cannot be made; set LLM_USER_PATH to one that can be written"
    try:
        items = llm.load_keys().items()
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        return {}, f"llm's keys.json cannot be read: {type(error).__name__}"
    keys = {name: _stripped(key) for name, key in items if isinstance(key, str)}
    return {name: key for name, key in keys.items() if key}, None


def _missing_key_message(model: AsyncLLM, names: Sequence[str]) -> str:
    places = [f"the secret {name} at /-/secrets/{name}" for name in names]
    places += [f"the environment variable {ENVIRONMENT_PREFIX}{name}" for name in names]
    places.append(f"'llm keys set {model.needs_key}'")
    if model.key_env_var:
        places.append(f"the environment variable {model.key_env_var}")
    return f"No key for model {model.model_id!r}. Set one in any of: {', '.join(places)}"
