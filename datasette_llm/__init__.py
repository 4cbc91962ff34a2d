"""Language models for Datasette plugins: allowed, keyed, streaming, and seen by policy hooks.

from datasette_llm import LLM

model = await LLM(datasette).model(purpose="summaries", actor=request.actor)
response = await model.prompt("Say hello")
async for chunk in response:
    ...
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import datasette_secrets
from datasette import hookimpl
from datasette.plugins import pm

from . import hookspecs
from .calls import PromptResult
from .errors import (
    ConfigError,
    ConversationBusyError,
    GroupClosedError,
    GroupError,
    HookError,
    LLMError,
    ModelNotAllowedError,
    ModelNotFoundError,
    ResponseCancelledError,
)
from .facade import LLM
from .groups import Group
from .models import WrappedAsyncModel, WrappedConversation
from .policy import Decision
from .purposes import Purpose, get_purposes

if TYPE_CHECKING:
    import click
    from datasette.app import Datasette

__all__ = [
    "LLM",
    "ConfigError",
    "ConversationBusyError",
    "Decision",
    "Group",
    "GroupClosedError",
    "GroupError",
    "HookError",
    "LLMError",
    "ModelNotAllowedError",
    "ModelNotFoundError",
    "PromptResult",
    "Purpose",
    "ResponseCancelledError",
    "WrappedAsyncModel",
    "WrappedConversation",
    "get_purposes",
]

pm.add_hookspecs(hookspecs)


@hookimpl
def startup(datasette: Datasette) -> Callable[[], Awaitable[None]]:
    from .lifecycle import start

    return lambda: start(datasette)


@hookimpl
def shutdown(datasette: Datasette) -> Callable[[], Awaitable[None]]:
    from .lifecycle import stop

    return lambda: stop(datasette)


@hookimpl
def register_secrets(
    datasette: Datasette,
) -> Callable[[], Awaitable[list[datasette_secrets.Secret]]]:
    from .lifecycle import secrets

    return lambda: secrets(datasette)


@hookimpl
def register_commands(cli: click.Group) -> None:
    from .cli import register

    register(cli)
