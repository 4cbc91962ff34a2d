"""`datasette.yaml` → frozen, typed settings, or every problem with them at once.

Adding a setting is adding a field: its annotation carries the kind of value that it takes and the
sentence for the README's table. Reading is written out rather than left to pydantic, since every
message is our own and what may be a pasted API key must never get into one.
"""

import difflib
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, get_type_hints

from .errors import ConfigError

_SHOWN_CHARS = 60
_OPTION_VALUES = 10_000
_OPTION_LEVELS = 20


class _ReadError(Exception):
    """A value cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the configuration a value stands, and all the problems found so far."""

    path: str
    problems: list[str]

    def at(self, part: str | int) -> "_Place":
        shown = _quoted(part) if isinstance(part, str) else str(part)
        step = f".{part}" if re.fullmatch(r'"[\w-]+"', shown) else f"[{shown}]"
        return _Place(self.path + step, self.problems)

    def note(self, problem: object) -> None:
        self.problems.append(f"{self.path}: {problem}")

    def read(self, read: "_Read", value: object) -> Any:
        try:
            return read(value, self)
        except _ReadError as refused:
            self.note(refused)


_Read = Callable[[object, _Place], Any]


class _Kind(NamedTuple):
    words: str
    read: _Read
    section: type | None = None


def _quoted(text: str) -> str:
    # A problem stays one line whatever the text holds, and costs little however long the text is.
    escaped = json.dumps(text[: _SHOWN_CHARS + 1], ensure_ascii=False)[1:-1]
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in escaped)
    return f'"{line}"' if len(line) <= _SHOWN_CHARS else f'"{line[: _SHOWN_CHARS - 1]}…"'


def _described(value: object) -> str:
    match value:
        case None | bool():
            return json.dumps(value)
        case int() if abs(value) >= 10**_SHOWN_CHARS:
            return "a huge number"  # str() refuses integers of several thousand digits
        case int() | float():
            return f"the number {json.dumps(value)}"
        case str():
            # Not the text itself: what stands in a wrong place may be a key.
            return "text" if value.strip() else "empty text"
        case list() | tuple():
            return "a list"
        case Mapping():
            return "a mapping"
    return f"a value of type {_quoted(type(value).__name__)[1:-1]}"


def _refusal(expected: str, value: object, advice: str = "") -> _ReadError:
    return _ReadError(f"expected {expected}, got {_described(value)}{advice}")


def _model_id(value: object, _: _Place, expected: str = "a model id") -> str:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, Mapping):
        raise _refusal(expected, value, "; only a model reference has a key and options")
    advice = "; ids are text, so put it in quotes" if isinstance(value, int | float) else ""
    raise _refusal(expected, value, advice)


def _flag(value: object, _: _Place) -> bool:
    if isinstance(value, bool):
        return value
    raise _refusal("true or false, without quotes", value)


def _secret_name(value: object, _: _Place) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        return value
    expected = "expected the name of a secret, such as OPENAI_API_KEY"
    got = ", got null" if value is None else ""
    advice = "the key itself goes to /-/secrets or into DATASETTE_SECRETS_<NAME>"
    raise _ReadError(f"{expected}{got}; {advice}")


def _option(value: object, _: _Place) -> object:
    if value is None:
        raise _refusal("a value", value)
    return _frozen(value, iter(range(_OPTION_VALUES)), _OPTION_LEVELS)


def _frozen(value: object, spare: Iterator[int], levels: int) -> object:
    if not levels or next(spare, None) is None:
        limits = f"{_OPTION_VALUES:,} values on {_OPTION_LEVELS} levels"
        raise _ReadError(f"expected at most {limits}, got more, or something that contains itself")
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return tuple(_frozen(item, spare, levels - 1) for item in value)
        case Mapping() if all(isinstance(name, str) for name in value):
            return MappingProxyType({k: _frozen(v, spare, levels - 1) for k, v in value.items()})
    raise _refusal("text, a number, true, false, a list, or a mapping whose names are text", value)


def _thawed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _thawed(item) for name, item in value.items()}
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value


def _list_of(words: str, expected: str, read_item: _Read) -> _Kind:
    def read(value: object, place: _Place) -> tuple[Any, ...]:
        if isinstance(value, str) and value:
            text = _quoted(value)
            raise _ReadError(f"expected {expected}, got the text {text}; write it as [{text}]")
        if not isinstance(value, list | tuple):
            raise _refusal(expected, value)
        return tuple(place.at(index).read(read_item, item) for index, item in enumerate(value))

    return _Kind(words, read)


def _items(value: object, place: _Place, names: str, expected: str) -> Iterator[tuple[str, object]]:
    if not isinstance(value, Mapping):
        raise _refusal(expected, value)
    for name, item in value.items():
        if isinstance(name, str):
            yield name, item
        else:
            place.note(f"{names} are text, got {_described(name)}; put it in quotes")


def _named(names: str, values: str, read_item: _Read, section: type | None = None) -> _Kind:
    def read(value: object, place: _Place) -> Mapping[str, Any]:
        items = _items(value, place, names, f"a mapping of {names} to {values}")
        return MappingProxyType({k: place.at(k).read(read_item, v) for k, v in items})

    return _Kind("mapping", read, section)


def _section(section: type, expected: str) -> _Read:
    def read(value: object, place: _Place) -> Any:
        known = _settings_of(section)
        found = {}
        for name, item in _items(value, place, "setting names", expected):
            if name in known:
                found[name] = place.at(name).read(known[name][0].read, item)
            else:
                _note_unknown(name, sorted(known), place)
        return None if place.problems else section(**found)

    return read


def _note_unknown(name: str, known: Sequence[str], place: _Place) -> None:
    head, *rest = re.split(r"[:=\s]", name, maxsplit=1)
    if rest:  # YAML reads {model: x, key:sk-1} as a setting "key:sk-1": show no more than "key"
        place.at(f"{head}…").note("unknown setting; a name ends with a colon and then a space")
        return
    spelling = name[:_SHOWN_CHARS].lower().replace("-", "_")
    near = difflib.get_close_matches(spelling, known, n=1)
    advice = f"did you mean {_quoted(near[0])}?" if near else f"known here: {', '.join(known)}"
    place.at(name).note(f"unknown setting ({advice})")


@functools.cache
def _settings_of(section: Any) -> Mapping[str, tuple[_Kind, str]]:
    hints = get_type_hints(section, include_extras=True)
    return {each.name: hints[each.name].__metadata__ for each in fields(section)}


def _reference(value: object, place: _Place) -> Any:
    if not isinstance(value, Mapping):
        return ModelReference(_model_id(value, place, 'a model id, or a mapping with "model"'))
    if "model" not in value:
        place.note('a model reference needs "model"')
    return _section(ModelReference, "a mapping")(value, place)


_ID = _Kind("id", _model_id)
_IDS = _list_of("list of ids", "a list of model ids", _model_id)
_NAME = _Kind("name of a secret", _secret_name)
_BOOL = _Kind("bool", _flag)
_OPTIONS = _named("option names", "values", _option)
_REFERENCE = _Kind("reference", _reference)
_REFERENCES = _list_of("list of references", "a list of model references", _reference)
_EMPTY = functools.partial(MappingProxyType[str, Any], {})


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model as the configuration names it; its options are read-only all the way down."""

    model: Annotated[str, _ID, "Id or alias of the model."]
    key: Annotated[str | None, _NAME, "Name of the secret that holds its key."] = None
    options: Annotated[Mapping[str, Any], _OPTIONS, "Defaults for the model's options."] = field(
        default_factory=_EMPTY, hash=False
    )

    def plain_options(self) -> dict[str, Any]:
        """The options as a fresh copy in ordinary dicts and lists, which models and JSON take."""
        return {name: _thawed(value) for name, value in self.options.items()}


@dataclass(frozen=True, slots=True)
class PurposeSettings:
    """What the configuration says about one purpose; None where a setting is absent."""

    model: Annotated[ModelReference | None, _REFERENCE, "The default for this purpose."] = None
    models: Annotated[
        tuple[ModelReference, ...] | None, _REFERENCES, "Added to the allowlist for this purpose."
    ] = None
    blocked_models: Annotated[tuple[str, ...], _IDS, "Removed for this purpose."] = ()


_PURPOSE = _section(PurposeSettings, "a mapping of settings such as {model: gpt-4o}")
_PURPOSES = _named("purpose names", "settings", _PURPOSE, PurposeSettings)


@dataclass(frozen=True, slots=True)
class Settings:
    """What stands under `plugins: datasette-llm:`; None where a setting is absent."""

    default_model: Annotated[ModelReference | None, _REFERENCE, "Used when none is named."] = None
    models: Annotated[
        tuple[str, ...] | None, _IDS, "The allowlist; the default model is always part of it."
    ] = None
    blocked_models: Annotated[tuple[str, ...], _IDS, "Removed whatever else allows them."] = ()
    require_keys: Annotated[bool, _BOOL, "List only models whose key is set."] = True
    purposes: Annotated[Mapping[str, PurposeSettings], _PURPOSES, "Settings by purpose."] = field(
        default_factory=_EMPTY, hash=False
    )


def parse_settings(raw: object) -> Settings:
    """Reads the plugin's configuration into settings that share nothing mutable with it.

    Args:
        raw: what YAML or JSON gave for `plugins: datasette-llm:`; None when nothing stands there.

    Raises:
        ConfigError: `raw` has problems; the error lists all of them.
    """
    place = _Place("plugins.datasette-llm", [])
    read = _section(Settings, "a mapping of settings")
    settings: Settings = place.read(read, {} if raw is None else raw)
    if place.problems:
        raise ConfigError(place.problems)
    return settings


def secret_names(settings: Settings) -> tuple[str, ...]:
    """The secrets that model references name, each once, in the order of the configuration."""
    own = (each for p in settings.purposes.values() for each in (p.model, *(p.models or ())))
    references = (settings.default_model, *own)
    return tuple(dict.fromkeys(each.key for each in references if each and each.key))


def settings_table() -> list[tuple[str, str, str, str]]:
    """Every setting for the README: its path, type, default and description."""
    return list(_rows(Settings))


def _rows(section: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    for name, (kind, description) in _settings_of(section).items():
        default = getattr(section(), name)
        if kind.section:
            yield from _rows(kind.section, f"{prefix}{name}.<name>.")
        else:
            text = "not set" if default is None else json.dumps(default)
            yield f"{prefix}{name}", kind.words, text, description
