"""The hooks that datasette-llm offers to other plugins.

An implementation may take any subset of the arguments, and may be a plain function or a
coroutine function. An actor is Datasette's actor dictionary, or None for nobody.
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
    """Wrap a call: everything from before the provider hears of it to its true end.

    Asked once for each `prompt()`, conversation turn and `reply()`, and once for a whole
    chain. `prompt` is the text the caller gave, for a chain that of its first step.

    Return None to take no part, or a function that takes a `PromptResult` and returns an
    async context manager. Contexts are entered in hook order and left in reverse order, in
    one task. What is raised before the `yield` blocks the call. At the `yield` arrives what
    ended the call: nothing on success (the response is complete then), the provider's error,
    or `ResponseCancelledError`. Swallowing it does not make the call succeed; raising
    another error after a success makes it fail.
    """


@hookspec
def llm_group_exit(datasette: Datasette, group: Any) -> Any:
    """A group has been left, and all of its responses have ended.

    `group` is a `datasette_llm.Group`.

    Called exactly once a group, whichever way it was left; `group.error` says which. May
    return an awaitable, which is awaited, shielded from cancellation. One that raises does
    not keep the others from running; its error reaches the caller if nothing else did.
    """


@hookspec
def llm_filter_models(
    datasette: Datasette,
    models: Sequence[llm.AsyncModel | llm.AsyncKeyModel],
    actor: dict[str, Any] | None,
    purpose: str | None,
) -> Any:
    """Narrow the models that this actor may use for this purpose.

    `models` are llm's own model objects, those that `LLM.models()` would show, plus the one
    in question; where llm has no async one, its sync model is the `sync_model` of what stands
    for it. Return those to keep (models or model ids), or None for no opinion. Filters
    only narrow: what several of them keep is intersected, whatever their order, and models
    that were not in `models` are ignored. What is raised reaches the caller.
    """


@hookspec
def llm_default_model(
    datasette: Datasette, purpose: str | None, actor: dict[str, Any] | None
) -> Any:
    """The model to use where the caller names none.

    Return a model id or alias, or None to leave it to the next plugin and then to the
    configuration. The first answer is used, and policy is applied to it like to any other.
    Inside this hook `LLM` knows only the configuration's defaults, so it may list models.
    """


@hookspec
def register_llm_purposes(datasette: Datasette) -> Any:
    """The purposes this plugin uses models for: a list of `Purpose`, for people to see."""
