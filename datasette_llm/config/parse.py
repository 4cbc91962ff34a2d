"""Parse `datasette.yaml` into settings, or report every problem in it at once.

pydantic reads and checks. Its messages are replaced by ours, which never hold what may be a
pasted API key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pydantic
from pydantic_core import ErrorDetails

from ..errors import ConfigError
from .fallback_cycles import fallback_cycles
from .settings import Settings, path_of
from .values import described

# By the type of pydantic's error; the message of any other, such as `refusal`, is shown as it is.
_MESSAGES = {
    "bool_type": "expected true or false, without quotes, got {got}",
    "dict_type": "expected a mapping, got {got}",
    "extra_forbidden": "unknown setting ({input})",
    "invalid_key": "names are text, got {got}; put it in quotes",
    "missing": 'needs "{name}"',
    "string_too_short": "expected text, got {got}",
    "string_type": "expected text, in quotes, got {got}",
    "tuple_type": "expected a list, got {got}",
    "float_type": "expected a number, without quotes, got {got}",
    "int_type": "expected a whole number, without quotes or a decimal point, got {got}",
    "int_parsing_size": "expected a smaller number",
    "finite_number": "expected a finite number",
    "greater_than": "expected more than {gt:,g}",
    "greater_than_equal": "expected at least {ge:,g}",
    "less_than_equal": "expected at most {le:,.15g}",
    "literal_error": "expected {expected}, got {got}",
}


def parse_settings(raw: object) -> Settings:
    """Parse the plugin's configuration into settings that share nothing mutable with it.

    Args:
        raw: what YAML or JSON gave for `plugins: datasette-llm:`; None when there is nothing.

    Raises:
        ConfigError: `raw` has problems; the error lists all of them.
    """
    try:
        settings = Settings.model_validate({} if raw is None else raw)
        problems = [f"{path_of(*path)}: {cycle}" for path, cycle in fallback_cycles(settings)]
    except pydantic.ValidationError as refused:
        problems = list(_problems(refused.errors(include_url=False)))
    if problems:  # outside `except`, so that its context does not hold the refused values
        raise ConfigError(problems)
    return settings


def _problems(errors: Sequence[ErrorDetails]) -> Iterator[str]:
    misnamed = {error["loc"][:-1] for error in errors if error["type"] == "extra_forbidden"}
    for error in errors:
        kind, loc, value = error["type"], error["loc"], error["input"]
        if kind == "string_type" and loc[-1] == "[key]":  # a name in a plain mapping
            kind, loc = "invalid_key", loc[:-1]
        if kind == "missing" and loc[:-1] in misnamed:
            continue
        place, name = (loc[:-1], loc[-1]) if kind in ("missing", "invalid_key") else (loc, "")
        # Ours come last, since pydantic's context may have a "name" too.
        ours = {"got": described(value), "input": value, "msg": error["msg"], "name": name}
        message = _MESSAGES.get(kind, "{msg}").format_map({**error.get("ctx", {}), **ours})
        yield f"{path_of(*place)}: {message}"
