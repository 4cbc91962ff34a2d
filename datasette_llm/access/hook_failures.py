"""Hooks that raised: a line in the server's log, and a warning on the console's overview."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import instance
from ..errors import HookError
from ..redaction import Keys, redact
from ..sanitize import brief, now, one_line
from .keys import environment_keys
from .quoting import keys_of_site

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger("datasette_llm")

# How long the overview shows a failure after it was last seen.
SHOWN_S = 3_600.0


@dataclass(slots=True)
class _Failure:
    message: str
    at: str
    seen_at: float
    count: int


class HookFailures:
    """The failures of a Datasette instance's hooks, the last of each hook and plugin."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], _Failure] = {}

    def note(self, hook: str, plugin: str, error: BaseException, keys: Keys = None) -> str:
        """Log what a hook raised, and keep it for the overview.

        Args:
            hook: the hook.
            plugin: the plugin's name.
            error: what it raised.
            keys: what to take out of its message, besides the keys in the environment.

        Returns:
            The hook, its plugin and what it raised, as logged.
        """
        known = keys if isinstance(keys, frozenset) else {keys} if keys else ()
        text = one_line(brief(error, environment_keys().union(known)))
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
        line = f"{hook} of plugin {plugin!r} raised {text}"
        logger.warning("%s", line)
        before = self._last.get((hook, plugin))
        count = before.count + 1 if before else 1
        self._last[hook, plugin] = _Failure(text, now(), time.monotonic(), count)
        return line

    def warnings(self) -> list[str]:
        """One sentence for each hook of a plugin that raised in the last hour."""
        shown_after = time.monotonic() - SHOWN_S
        return [
            f"{hook} of plugin {plugin!r} raised {failure.message} (last at {failure.at}, "
            f"{'once' if failure.count == 1 else f'{failure.count:,} times'} since the start)"
            for (hook, plugin), failure in self._last.items()
            if failure.seen_at > shown_after
        ]


async def noted(datasette: Datasette, error: HookError) -> HookError:
    """The error for the caller of a hook that failed, after its failure is noted.

    Args:
        datasette: the Datasette instance.
        error: says which hook of which plugin failed; changed in place.

    Returns:
        The same error without any key of this site, for the hook may have read one.
    """
    redact(error, await keys_of_site(datasette))
    cause = error.__cause__ or error
    instance.of(datasette, HookFailures).note(str(error.hook), str(error.plugin), cause)
    return error
