"""The hooks that datasette-llm offers to other plugins.

An implementation may take any subset of the arguments, and may be a plain function or a
coroutine function. An actor is Datasette's actor dictionary, or None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pluggy import HookspecMarker

if TYPE_CHECKING:
    import llm
    from datasette.app import Datasette

hookspec = HookspecMarker("datasette")


@hookspec
def llm_prompt_context(
    datasette: Datasette,
    model_id: str,
    prompt: str | None,
    purpose: str | None,
    actor: dict[str, Any] | None,
) -> Any:
    """Wrap a call, from before its first request until it has ended.

    Called once for each `prompt()`, conversation turn and `reply()`, and once for a whole
    chain. `prompt` is the caller's text, for a chain that of its first step.

    Return None to take no part, or a function that takes a `PromptResult` and returns an
    async context manager. Contexts are entered in hook order and left in reverse order, in
    one task. An error raised before the `yield` blocks the call. A call that fails raises the
    provider's error or `ResponseCancelledError` at the `yield`; after a success the response
    is complete there. Swallowing the error does not make the call succeed; raising an error
    after a success makes the call fail.
    """


@hookspec
def llm_group_exit(datasette: Datasette, group: Any) -> Any:
    """A group has been left, and all of its responses have ended.

    Called exactly once for each group, a `datasette_llm.Group`; `group.error` is the error that
    it was left with, or None. May return an awaitable, which is awaited, shielded from
    cancellation. If one raises, the others still run; its error is raised to the caller if there
    is no other error.
    """


@hookspec
def llm_filter_models(
    datasette: Datasette,
    models: Sequence[llm.AsyncModel | llm.AsyncKeyModel],
    actor: dict[str, Any] | None,
    purpose: str | None,
) -> Any:
    """Narrow the models that this actor may use for this purpose.

    `models` are llm's own model objects: those that `LLM.models()` would list, plus the one
    in question. A model without an async version is represented by an async adapter, whose
    `sync_model` is llm's model. Return the models or model ids to keep, or None for no opinion.
    Filters only narrow: the results of several are intersected, in any order, and models that
    were not in `models` are ignored. If one raises, the caller gets a `HookError`.
    """


@hookspec
def llm_default_model(
    datasette: Datasette, purpose: str | None, actor: dict[str, Any] | None
) -> Any:
    """The model to use where the caller names none.

    Return a model id or alias, or None to leave it to the next plugin and then to the
    configuration. The first result is used, if the policy allows the model. Inside this hook
    `LLM` uses only the configuration's defaults, so the hook may list models.
    """


@hookspec
def register_llm_purposes(datasette: Datasette) -> Any:
    """The purposes this plugin uses models for: a list of `Purpose`, shown to administrators.

    `get_purposes()` that is not awaited leaves out those of asynchronous implementations.
    """
