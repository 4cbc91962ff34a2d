"""What the playground is asked: from an address, a form or JSON."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode

from ...errors import LLMError
from ...sanitize import well_formed

if TYPE_CHECKING:
    from datasette.utils.asgi import Request

MAX_MODELS = 4
MAX_CHARS = 500_000
# Servers and browsers refuse longer addresses.
MAX_ADDRESS_CHARS = 8_000
# The fields that hold what is sent; `model` can be given several times.
FIELDS = ("prompt", "system", "options", "purpose", "model")
_RUN = re.compile("[0-9a-z]{1,32}")


class PlaygroundError(LLMError):
    """What the playground is asked cannot be sent; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class PlaygroundRequest:
    """What the playground sends, as it was typed.

    Attributes:
        prompt: the prompt.
        system: the system prompt; empty for none.
        options: the options of all models, a JSON object; empty for none.
        purpose: the purpose; empty for none.
        models: ids or aliases.
        run: ties the calls together that are sent at once, as a tag.
    """

    prompt: str = ""
    system: str = ""
    options: str = ""
    purpose: str = ""
    models: tuple[str, ...] = ()
    run: str = ""

    @classmethod
    def of(cls, fields: Mapping[str, Sequence[str]]) -> PlaygroundRequest:
        """From the values of fields; whether they can be sent, `problem` says."""
        text = {name: well_formed("".join(fields.get(name, ())[:1])) for name in FIELDS[:-1]}
        run = "".join(fields.get("run", ())[:1])
        names = (well_formed(name.strip()) for name in fields.get("model", ()))
        return cls(
            prompt=text["prompt"].replace("\r\n", "\n"),
            system=text["system"].replace("\r\n", "\n").strip(),
            options=text["options"].strip(),
            purpose=text["purpose"].strip(),
            models=tuple(filter(None, names)),
            run=run if _RUN.fullmatch(run) else secrets.token_hex(6),
        )

    @property
    def problem(self) -> str | None:
        """Why it cannot be sent, or None."""
        if not self.prompt.strip():
            return "Give a prompt"
        if not 1 <= len(self.models) <= MAX_MODELS:
            return f"Name one to {MAX_MODELS} models; there are {len(self.models)}"
        if len(self.prompt) + len(self.system) + len(self.options) > MAX_CHARS:
            return f"Prompt, system prompt and options are longer than {MAX_CHARS:,} characters"
        try:
            self.parsed_options()
        except PlaygroundError as error:
            return str(error)
        return None

    def parsed_options(self) -> dict[str, Any]:
        """The options by name.

        Raises:
            PlaygroundError: they are no JSON object.
        """
        try:
            options = json.loads(self.options or "{}")
        except (ValueError, RecursionError) as error:
            raise PlaygroundError(f"The options are no JSON: {error}") from None
        if not isinstance(options, dict):
            raise PlaygroundError('The options have to be a JSON object, like {"temperature": 1}')
        return options

    def arguments(self) -> dict[str, Any]:
        """What `prompt()` gets besides the prompt.

        Raises:
            PlaygroundError: as for `parsed_options`.
        """
        system = {"system": self.system} if self.system else {}
        return {"options": self.parsed_options(), **system}

    def query(self) -> str | None:
        """It as the query of an address, to share; None if that is too long."""
        given = {name: getattr(self, name) for name in FIELDS[:-1]}
        pairs = [(name, value) for name, value in given.items() if value]
        text = urlencode([*pairs, *(("model", name) for name in self.models)])
        return text if len(text) <= MAX_ADDRESS_CHARS else None


async def posted_fields(request: Request) -> Mapping[str, Sequence[str]]:
    """The values of the fields of a POST, from a form or JSON.

    Raises:
        PlaygroundError: the body is invalid.
    """
    body = await request.post_body()
    try:
        if "json" not in request.headers.get("content-type", ""):
            return parse_qs(body.decode(), max_num_fields=100)
        fields = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise PlaygroundError(
            f"The body can be read neither as a form nor as JSON: {error}"
        ) from None
    if not isinstance(fields, dict):
        raise PlaygroundError('The body has to be a JSON object, such as {"prompt": "…"}')
    return {name: _values(name, value) for name, value in fields.items() if value is not None}


def _values(name: str, value: Any) -> list[str]:
    if name == "options" and isinstance(value, dict):
        return [json.dumps(value)]
    values = value if name == "model" and isinstance(value, list) else [value]
    if not all(isinstance(each, str) for each in values):
        raise PlaygroundError(f"{name}: expected text" + (" or a list of it" * (name == "model")))
    return values
