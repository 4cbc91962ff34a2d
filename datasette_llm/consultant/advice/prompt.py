"""The user prompt: question, profile and findings as data, within a budget of bytes."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ...sanitize import well_formed

# Prose has about four bytes per token; JSON, which most of a prompt is, has fewer. Tokenizers need
# a download, so this estimates too many tokens rather than too few.
BYTES_PER_TOKEN = 3
# What a model gets of a finding, and of how many: the most severe ones.
MAX_FINDINGS = 40
_SENT = ("kind", "columns", "severity", "sentence", "examples")
_FINDINGS_SHARE = 0.25
MAX_TEXT_CHARS = 300
FEW_VALUES = 3

_BEGIN, _END = "<profile>", "</profile>"
_ZERO_IS_NONE = ("null_fraction", "empty_texts")


# What a last sentence takes.
_ROOM_FOR_WORDS = 200
_MAX_DIGITS = 10
_encoded = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_NUMBERED = re.compile(r"(.*?)(\d+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Cut:
    """Figures that are left out together.

    Attributes:
        words: for people and the model.
        column: keys of columns.
        table: keys of the profile.
    """

    words: str
    column: tuple[str, ...] = ()
    table: tuple[str, ...] = ()


# The least telling first.
_CUTS = (
    _Cut("sample rows, and of texts and numbers what is long", table=("sample_rows",)),
    _Cut("masks and lengths", ("masks", "length", "blob_size")),
    _Cut("quartiles and deviations", ("quartiles", "deviation", "empty_texts")),
    _Cut(f"all but {FEW_VALUES} frequent values of a column"),
    _Cut(
        "means, numbers in texts, indexes and conditions",
        ("mean", "numeric_texts", "indexed", "generated", "full_text_search", "column_type"),
        ("checks",),
    ),
    _Cut("frequent values", ("top_values",)),
    _Cut("least and greatest values", ("min", "max")),
    _Cut("descriptions and numbers of values", ("description", "distinct", "grouped", "rows")),
    _Cut(
        "all figures but names and types",
        ("null_fraction", "observed_types", "exact", "error", "not_null", "unique", "unit"),
        ("other_tables", "description", "sample"),
    ),
)
# From this level on there are few values.
_FEW = 4


@dataclass(frozen=True, slots=True)
class UserPrompt:
    """A user prompt.

    Attributes:
        text: the prompt.
        cut: sentences about what was left out to fit the budget.
    """

    text: str
    cut: tuple[str, ...] = ()


def tokens_estimate(size: int) -> int:
    """The estimated number of tokens of some bytes."""
    return math.ceil(size / BYTES_PER_TOKEN)


def user_prompt(
    profile: Mapping[str, Any],
    question: str | None,
    findings: Sequence[Mapping[str, Any]] = (),
    max_bytes: float = math.inf,
) -> UserPrompt:
    """The question, and profile and findings as delimited data.

    What is empty is left out, like columns are one entry, and figures are cut from the least
    telling on until it fits; the names of columns are cut last. The same for the same input.
    No text of the data can contain a delimiter: its angle brackets are escaped.

    Args:
        profile: the profile of the table.
        question: the person's question, or None.
        findings: all of them; dismissed ones are left out.
        max_bytes: of the prompt.
    """
    line = f"The person's question: {as_json(question)}\n\n" if question else ""
    return _Fitting(
        profile, line, *_found(findings, max_bytes * _FINDINGS_SHARE), max_bytes
    ).prompt()


@dataclass(slots=True)
class _Fitting:
    """A profile that is cut until its prompt fits.

    Attributes:
        profile: the profile.
        line: the question, before it.
        found: the findings, after it.
        said: sentences about what was left out of these.
        max_bytes: of the prompt.
    """

    profile: Mapping[str, Any]
    line: str
    found: str
    said: Sequence[str]
    max_bytes: float
    entries: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    def prompt(self) -> UserPrompt:
        # Each level is shorter than the one before.
        levels = range(len(_CUTS) + 1)
        level = bisect_left(levels, True, key=lambda each: self._fits(self._at(each)))
        if level == 0:
            return self._at(0)
        if level == len(levels):
            return self._names_only()
        counts = range(1, len(self._columns(level)) + 1)
        too_many = bisect_left(counts, True, key=lambda n: not self._fits(self._at(level, n)))
        return self._at(level, too_many)

    def _fits(self, prompt: UserPrompt) -> bool:
        return len(prompt.text.encode()) <= self.max_bytes

    def _at(self, level: int, detailed: int = 0) -> UserPrompt:
        """The prompt at a level, with the first columns at the one before."""
        first = self._columns(level - 1)[:detailed] if detailed else []
        columns = _folded([*first, *self._columns(level)[detailed:]])
        return self._made(level, columns, _sentences(level, detailed))

    def _columns(self, level: int) -> list[dict[str, Any]]:
        if level not in self.entries:
            columns = self.profile.get("columns", ())
            self.entries[level] = [_column(each, level) for each in columns]
        return self.entries[level]

    def _made(self, level: int, columns: Sequence[Any], cut: Sequence[str]) -> UserPrompt:
        sentences = (*cut, *self.said)
        data = _delimited(self.profile, columns, level, sentences)
        return UserPrompt(f"{self.line}{data}{self.found}", sentences)

    def _names_only(self) -> UserPrompt:
        last = len(_CUTS)
        sentences = _sentences(last, 0)
        names = [each["name"] for each in self.profile.get("columns", ())]
        size = len(self._made(last, [], sentences).text.encode())
        named = _fitting(names, self.max_bytes - size - _ROOM_FOR_WORDS)
        unnamed = f"{len(names) - len(named):,} columns are not named"
        return self._made(last, [{"names": named}], [*sentences, unnamed])


def as_json(value: object) -> str:
    """Data as JSON on one line, without angle brackets."""
    text = well_formed(_encoded(value))
    return text.replace("<", "\\u003c").replace(">", "\\u003e")


def _found(findings: Sequence[Mapping[str, Any]], max_bytes: float) -> tuple[str, list[str]]:
    """The open findings as delimited data, and a sentence about those that do not fit."""
    open_ = (each for each in findings if not each.get("dismissed"))
    entries = [
        as_json({name: each[name] for name in _SENT if each.get(name)})
        for each in islice(open_, MAX_FINDINGS)
    ]
    kept: list[str] = []
    for entry in entries:
        max_bytes -= len(entry.encode()) + 1
        if max_bytes < 0:
            break
        kept.append(entry)
    more = len(entries) - len(kept)
    text = f"<findings>\n[{','.join(kept)}]\n</findings>\n" if kept else ""
    return text, [f"{more:,} findings of less severity are left out"] if more else []


def _sentences(level: int, detailed: int) -> list[str]:
    """What is left out at a level, but for the first columns, which have the one before."""
    words = [each.words for each in _CUTS[:level]]
    if detailed:
        words[-1] = f"from column {detailed + 1:,} on {words[-1]}"
    start = "To fit the budget of the prompt these are left out: "
    return [f"{start}{'; '.join(words)}"] if words else []


def _delimited(
    profile: Mapping[str, Any], columns: Sequence[Any], level: int, cut: Sequence[str]
) -> str:
    dropped = {key for each in _CUTS[:level] for key in each.table}
    table = {name: each for name, each in profile.items() if name not in dropped}
    rest = _without_empty(table | ({"columns": columns} if "columns" in profile else {}))
    data = (_shortened(rest) if level else rest) | ({"cut": list(cut)} if cut else {})
    return f"{_BEGIN}\n{as_json(data)}\n{_END}\n"


def _column(column: Mapping[str, Any], level: int) -> dict[str, Any]:
    dropped = {key for each in _CUTS[:level] for key in each.column}
    made = _without_empty({name: each for name, each in column.items() if name not in dropped})
    if made.get("exact") is True:
        made.pop("exact")
        made.pop("rows", None)
    if (made.get("grouped") or {}).get("exact"):
        made.pop("grouped")
    distinct = made.get("distinct")
    if isinstance(distinct, dict) and distinct.get("exact"):
        made["distinct"] = distinct["count"]
    if "top_values" in made:
        pairs = [[each["value"], each["count"]] for each in made["top_values"]]
        made["top_values"] = pairs[:FEW_VALUES] if level >= _FEW else pairs
    return made


def _without_empty(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: each
        for name, each in entry.items()
        if not (each is None or each in ("", [], {}) or (each is False and name != "exact"))
        and not (name in _ZERO_IS_NONE and each == 0)
    }


def _folded(columns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Columns that differ in their names only, as one entry with the list of these."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for column in columns:
        like = as_json({name: each for name, each in column.items() if name != "name"})
        groups.setdefault(like, []).append(column)
    return [
        group[0] if len(group) == 1 else {"names": _ranges(group)} | _like(group)
        for group in groups.values()
    ]


def _like(group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: each for name, each in group[0].items() if name != "name"}


def _ranges(group: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of columns, of which runs such as `s1`, `s2`, `s3` are `s1 … s3`."""
    runs: list[list[str]] = []
    for each in group:
        name = each["name"]
        if runs and _follows(runs[-1][-1], name):
            runs[-1].append(name)
        else:
            runs.append([name])
    named = ([f"{run[0]} … {run[-1]}"] if len(run) > FEW_VALUES else run for run in runs)
    return [name for run in named for name in run]


def _follows(before: str, name: str) -> bool:
    first, second = _NUMBERED.fullmatch(before), _NUMBERED.fullmatch(name)
    if not (first and second and first[1] == second[1] and len(first[2]) < _MAX_DIGITS):
        return False
    return f"{int(first[2]) + 1:0{len(first[2])}}" == second[2]


def _fitting(names: Sequence[str], room: float) -> list[str]:
    """The first names that there is room for."""
    fitting = []
    for name in names:
        room -= len(as_json(name).encode()) + 1
        if room < 0:
            break
        fitting.append(name)
    return fitting


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT_CHARS else f"{value[:MAX_TEXT_CHARS]}…"
    if isinstance(value, dict):
        exact = ("name", "names", "table")
        return {n: each if n in exact else _shortened(each) for n, each in value.items()}
    if isinstance(value, list):
        return [_shortened(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
