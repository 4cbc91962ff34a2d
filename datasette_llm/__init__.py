"""Language models for Datasette plugins, with policy, API keys, streaming and hooks.

from datasette_llm import LLM

model = await LLM(datasette).model(purpose="summaries", actor=request.actor)
response = await model.prompt("Say hello")
async for chunk in response:
    ...
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from datasette import hookimpl

if TYPE_CHECKING:
    import click
    import datasette_secrets
    from datasette import Response
    from datasette.app import Datasette
    from datasette.permissions import Action
    from datasette.utils.asgi import Request


@hookimpl
def startup(datasette: Datasette) -> Callable[[], Awaitable[None]]:
    from .consultant.advice.store import update as update_consultations
    from .evaluation.schema import update as update_evaluations
    from .lifecycle import start

    async def run() -> None:
        await start(datasette)
        await update_consultations(datasette)
        await update_evaluations(datasette)

    return run


@hookimpl
def shutdown(datasette: Datasette) -> Callable[[], Awaitable[None]]:
    from .lifecycle import stop

    return lambda: stop(datasette)


@hookimpl
def asgi_wrapper(datasette: Datasette) -> Callable[[Any], Any]:
    from .tags.source import with_path

    return with_path


@hookimpl
def register_secrets(
    datasette: Datasette,
) -> Callable[[], Awaitable[list[datasette_secrets.Secret]]]:
    from .lifecycle import secrets

    return lambda: secrets(datasette)


@hookimpl
def register_routes() -> list[tuple[str, Callable[..., Any]]]:
    from .console.routes import routes

    return routes()


@hookimpl
def register_actions() -> list[Action]:
    from .permissions import actions

    return actions()


@hookimpl
def menu_links(
    datasette: Datasette, actor: dict[str, Any] | None
) -> Callable[[], Awaitable[list[dict[str, str]]]]:
    from .console.routes import menu_links

    return lambda: menu_links(datasette, actor)


@hookimpl
def forbidden(
    datasette: Datasette, request: Request, message: str
) -> Callable[[], Awaitable[Response]] | None:
    from .console.forbidden import handles, response

    return (lambda: response(datasette, request, message)) if handles(message) else None


@hookimpl
def table_actions(
    datasette: Datasette, actor: dict[str, Any] | None, database: str, table: str
) -> Callable[[], Awaitable[list[dict[str, str]]]]:
    from .console.advice.routes import table_links

    return lambda: table_links(datasette, actor, database, table)


@hookimpl
def view_actions(
    datasette: Datasette, actor: dict[str, Any] | None, database: str, view: str
) -> Callable[[], Awaitable[list[dict[str, str]]]]:
    from .console.advice.routes import table_links

    return lambda: table_links(datasette, actor, database, view)


@hookimpl
def register_commands(cli: click.Group) -> None:
    from .cli.main import register

    register(cli)


# If this package is imported before Datasette, this import makes Datasette load its plugins, this
# one included, and register the hooks above. So every import that leads to datasette.plugins
# comes after them.
from datasette.plugins import pm  # noqa: E402

from .hooks import specs as hookspecs  # noqa: E402

pm.add_hookspecs(hookspecs)

from .access.purposes import Purpose, get_purposes  # noqa: E402
from .calls.group import Group  # noqa: E402
from .calls.model import WrappedAsyncModel, WrappedConversation  # noqa: E402
from .calls.prompt_result import PromptResult  # noqa: E402
from .decision import Decision  # noqa: E402
from .errors import (  # noqa: E402
    ConfigError,
    ConversationBusyError,
    GroupClosedError,
    GroupError,
    HookError,
    IncompleteAnswerError,
    LLMError,
    ModelNotAllowedError,
    ModelNotFoundError,
    NewerDatabaseError,
    NotRecordedError,
    ProfileError,
    ProviderError,
    ResponseCancelledError,
    ResponseTimeoutError,
    SchemaError,
    StructuredOutputError,
    TableNotFoundError,
    TagError,
)
from .evaluation.cases import Candidate, Case  # noqa: E402
from .evaluation.engine import evaluate  # noqa: E402
from .facade import LLM  # noqa: E402
from .log.cost import Cost  # noqa: E402
from .log.records import CallRecord  # noqa: E402
from .structured import Structured  # noqa: E402
from .tags.values import tagged  # noqa: E402

__all__ = [
    "LLM",
    "CallRecord",
    "Candidate",
    "Case",
    "ConfigError",
    "ConversationBusyError",
    "Cost",
    "Decision",
    "Group",
    "GroupClosedError",
    "GroupError",
    "HookError",
    "IncompleteAnswerError",
    "LLMError",
    "ModelNotAllowedError",
    "ModelNotFoundError",
    "NewerDatabaseError",
    "NotRecordedError",
    "ProfileError",
    "PromptResult",
    "ProviderError",
    "Purpose",
    "ResponseCancelledError",
    "ResponseTimeoutError",
    "SchemaError",
    "Structured",
    "StructuredOutputError",
    "TableNotFoundError",
    "TagError",
    "WrappedAsyncModel",
    "WrappedConversation",
    "evaluate",
    "get_purposes",
    "tagged",
]
