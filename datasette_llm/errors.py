"""The errors of datasette-llm.

One root, so that `except LLMError` catches all that is ours:

    LLMError
    ├── ConfigError             the configuration is invalid (also a Datasette StartupError)
    ├── NewerDatabaseError      a newer version wrote the database (also a StartupError)
    ├── ModelNotFoundError      no such model, or no default (also an llm.UnknownModelError)
    │   └── ModelNotAllowedError    policy refused the model; has the Decision
    ├── NotRecordedError        the call log is required, and cannot be written
    ├── HookError               a plugin hook raised, or returned something invalid
    ├── ConversationBusyError   the previous turn is still running
    ├── ResponseCancelledError  the call was stopped before its response was complete
    ├── ResponseTimeoutError    the provider took too long (also a TimeoutError)
    ├── ProviderError           a server's answer cannot be used (also an llm.ModelError)
    │   └── IncompleteAnswerError   it broke off, or said nothing (also a ConnectionError)
    ├── TagError                a tag of a call is invalid (also a ValueError)
    ├── SchemaError             a schema cannot be closed (also a ValueError)
    ├── StructuredOutputError   no answer fits the schema; has the raw text
    ├── ProfileError            a table cannot be profiled
    │   └── TableNotFoundError      there is no such table or view, or no longer
    ├── GroupClosedError        the group of this model has been left
    └── GroupError              unread responses of a group failed (also an ExceptionGroup)

Other exceptions of providers are passed on with keys removed. A missing key is llm's own
`llm.NeedsKeyException`. No message holds a key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import llm
from datasette.utils import StartupError

if TYPE_CHECKING:
    from .decision import Decision

PROMPT_EXCERPT_CHARS = 60

# Kinds of failure, as pages, the command line and the call log name them.
FailureKind = Literal[
    "no_key",
    "key_refused",
    "unknown_model",
    "rate_limit",
    "network",
    "timeout",
    "bad_answer",
    "blocked",
    "not_allowed",
    "other",
]


class LLMError(Exception):
    """The root of every error that datasette-llm raises itself."""


class ConfigError(LLMError, StartupError):
    """The configuration is invalid, so Datasette does not start.

    Attributes:
        problems: one line each, `path.of.the.setting: what is wrong and what to do`.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        noun = "problem" if count == 1 else "problems"
        heading = f"datasette-llm cannot start: {count} {noun} in its configuration"
        super().__init__("\n  ".join([heading, *self.problems]))


class ModelNotFoundError(LLMError, llm.UnknownModelError):
    """No installed model has this id or alias, or there is no default."""

    # llm's error is a KeyError, whose str() is the repr of its argument.
    __str__ = Exception.__str__


class ModelNotAllowedError(ModelNotFoundError):
    """The model exists, but policy does not allow it to this actor for this purpose.

    Attributes:
        decision: the results of the rules, the refusal included.
    """

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        super().__init__(decision.reason)


class NewerDatabaseError(LLMError, StartupError):
    """The internal database was written by a newer version of datasette-llm."""


class NotRecordedError(LLMError):
    """The configuration requires the call log, and its row cannot be written."""


class HookError(LLMError):
    """A plugin's hook raised something, which is the cause, or returned something invalid.

    Attributes:
        hook: its name, or None where the error is not about one hook.
        plugin: the plugin's name, as at `/-/plugins`, or None.
    """

    def __init__(self, message: str, hook: str | None = None, plugin: str | None = None) -> None:
        self.hook = hook
        self.plugin = plugin
        super().__init__(message)


class ConversationBusyError(LLMError):
    """A turn was started while the conversation's previous one is still running."""


class ResponseCancelledError(LLMError):
    """The call was stopped before its response was complete."""


class ResponseTimeoutError(LLMError, TimeoutError):
    """The provider took longer than the configured timeout.

    Attributes:
        setting: `timeout`, the time in total, or `idle_timeout`, the time without an event.
        seconds: the value of the setting.
    """

    def __init__(self, setting: str, seconds: float) -> None:
        self.setting = setting
        self.seconds = seconds
        what = "no complete answer" if setting == "timeout" else "no event of the answer"
        super().__init__(
            f"There was {what} for {seconds:g} seconds, which is the {setting} that the "
            "configuration of datasette-llm sets"
        )


class ProviderError(LLMError, llm.ModelError):
    """What a server answered cannot be used.

    Attributes:
        kind: the kind of failure; None where status and body tell it.
        status_code: the HTTP status, or the one that an event of the stream names, or None.
        headers: of the response, by names in lower case: those about pauses and ids only.
        body: what the server says, as values of JSON or as text; None where it says nothing.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: FailureKind | None = None,
        status_code: int | None = None,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> None:
        self.kind = kind
        self.status_code = status_code
        self.headers = dict(headers or {})
        self.body = body
        super().__init__(message)


class IncompleteAnswerError(ProviderError, ConnectionError):
    """A server ended its answer without calling it complete, or says that it gave up."""

    def __init__(self, message: str, **details: Any) -> None:
        """
        Args:
            message: what happened.
            **details: those of `ProviderError`.
        """
        super().__init__(message, **{"kind": "network", **details})


class TagError(LLMError, ValueError):
    """A tag of a call is invalid, or there are too many; nothing was sent."""


class SchemaError(LLMError, ValueError):
    """A schema cannot be closed, so that strict providers would refuse it; nothing was sent.

    Attributes:
        path: the part that cannot be closed, such as `pets[].owner`; empty for the whole schema.
    """

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        super().__init__(
            f"The schema {problem}" if not path else f"In the schema, {path} {problem}"
        )


class StructuredOutputError(LLMError):
    """No answer of the model fits the schema.

    Attributes:
        problems: the problems of the last answer, one sentence each.
        attempts: the responses: the first answer and the repair, if there was one.
        response: the last of them.
        text: its raw text.
    """

    def __init__(self, problems: Sequence[str], attempts: Sequence[llm.AsyncResponse]) -> None:
        """
        Args:
            problems: at least one.
            attempts: complete responses, at least one.
        """
        self.problems = tuple(problems)
        self.attempts = tuple(attempts)
        self.response = self.attempts[-1]
        self.text = self.response.text_or_raise()
        model = self.response.model.model_id
        which = "The answer" if len(self.attempts) == 1 else "The second answer"
        heading = f"{which} of model {model!r} does not fit the schema:"
        super().__init__("\n  ".join([heading, *self.problems]))


class ProfileError(LLMError):
    """A table or view cannot be profiled; the message explains why."""


class TableNotFoundError(ProfileError):
    """There is no table or view of this name, or it was dropped meanwhile."""

    def __init__(self, table: str) -> None:
        """
        Args:
            table: its name.
        """
        super().__init__(f"There is no table or view {table!r}; it may have been dropped")


class GroupClosedError(LLMError):
    """The model belongs to a group that has been left."""


class GroupError(LLMError, ExceptionGroup[Exception]):
    """Responses of a group failed that were not read.

    Attributes:
        responses: the failed responses, in the order of `exceptions`; each has its prompt.
    """

    responses: tuple[llm.AsyncResponse, ...]

    def __new__(cls, failures: Sequence[tuple[llm.AsyncResponse, Exception]]) -> GroupError:
        lines = [f"  {_excerpt(response)}: {error}" for response, error in failures]
        noun = "response" if len(lines) == 1 else "responses"
        heading = f"{len(lines)} {noun} of the group failed and were not read:"
        self = super().__new__(cls, "\n".join([heading, *lines]), [e for _, e in failures])
        self.responses = tuple(response for response, _ in failures)
        return self

    def __init__(self, failures: Sequence[tuple[llm.AsyncResponse, Exception]]) -> None:
        """
        Args:
            failures: each failed response with its error; at least one.
        """
        super().__init__(self.message, self.exceptions)

    def derive(self, excs: Sequence[Exception], /) -> ExceptionGroup[Exception]:  # type: ignore[override]  # typeshed's generic
        """A part of the group, as `except*` and `split()` make it."""
        return ExceptionGroup(self.message, excs)


def _excerpt(response: llm.AsyncResponse) -> str:
    text = response.prompt.prompt
    if len(text) > PROMPT_EXCERPT_CHARS:
        text = text[:PROMPT_EXCERPT_CHARS] + "…"
    return f"prompt {text!r}"
