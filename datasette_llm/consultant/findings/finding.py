"""A finding: something remarkable about a table, with the evidence that it is counted by."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ...sanitize import well_formed, without_controls
from ..evidence import Evidence, Rows

Severity = Literal["problem", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("problem", "warning", "info")
MAX_EXAMPLES = 5
MAX_EXAMPLE_CHARS = 80


@dataclass(frozen=True, slots=True)
class Finding:
    """Something remarkable about a table.

    Attributes:
        kind: what kind of thing, such as `numbers_as_text`.
        columns: the columns concerned; all where empty.
        severity: a problem makes answers wrong, a warning may, an info is good to know.
        sentence: for people; it has no value of a cell.
        rows: the number of rows concerned; None where it is not about rows.
        of: the number of rows that were looked at.
        evidence: how the rows are counted; it has no value of a cell but those that stand for
            missing ones everywhere.
        from_values: whether the evidence has figures that were computed from values.
        hint: another sentence, from values.
        examples: values of cells, with their number of rows.
        extremes: values that may be shown as the extremes of the column.
        exact: whether all rows of the table were looked at.
        most: the share of rows above which it is no finding.
    """

    kind: str
    columns: tuple[str, ...]
    severity: Severity
    sentence: str
    rows: int | None
    of: int
    evidence: Evidence
    from_values: bool = False
    hint: str = ""
    examples: Mapping[Any, int] | None = None
    extremes: tuple[Any, ...] = ()
    exact: bool = True
    most: float = 1

    @property
    def share(self) -> float | None:
        """The share of the rows that were looked at."""
        return self.rows / self.of if self.rows is not None and self.of else None

    @property
    def which(self) -> str:
        """What tells it from other findings of its kind and columns, whatever the data is."""
        evidence = self.evidence
        if isinstance(evidence, Rows):
            conditions = {
                f"{each.column} {each.op}" for all_of in evidence.any_of for each in all_of
            }
            return " | ".join(sorted(conditions))
        fields = evidence.model_dump(include={"kind", "function", "of", "other_table"})
        return " ".join(map(str, fields.values()))

    def counted(self, rows: int, of: int) -> Finding:
        """The finding with the number of rows of the whole table."""
        evidence = self.evidence.model_copy(update={"expected": rows})
        return replace(self, rows=rows, of=of, evidence=evidence, exact=True)

    def payload(self, values: str) -> dict[str, Any]:
        """The finding as JSON.

        Args:
            values: the setting `consultant.values`: which values of cells may be shown.
        """
        share = self.share
        hidden = values == "none" and self.from_values
        return {
            "kind": self.kind,
            "columns": [well_formed(name) for name in self.columns],
            "which": plain(self.which),
            "severity": self.severity,
            "sentence": plain(self.text(hint=values != "none")),
            "rows": self.rows,
            "share": None if share is None else float(f"{share:.4g}"),
            "exact": self.exact,
            "examples": self._shown(values),
            "evidence": None if hidden else _well_formed(self.evidence.model_dump(mode="json")),
        }

    def text(self, *, hint: bool) -> str:
        """The sentence with its figures, and the hint."""
        text = self.sentence.format(rows=_rows(self.rows, self.of), of=f"{self.of:,}")
        return f"{text} {self.hint}" if hint and self.hint else text

    def _shown(self, values: str) -> list[Any]:
        # As in profiles: a value of a single row may identify a person.
        least = {"sample": 1, "top": 2}.get(values)
        if least is None:
            return []
        examples = (self.examples or {}).items()
        allowed = (each for each in examples if each[1] >= least or each[0] in self.extremes)
        found = heapq.nlargest(MAX_EXAMPLES, allowed, key=lambda each: each[1])
        return [_example(value) for value, _ in found]


def quoted(name: str) -> str:
    """A column's name in a sentence that is formatted later."""
    return f"`{name}`".replace("{", "{{").replace("}", "}}")


def plain(text: str) -> str:
    """A text that controls nothing and can be encoded."""
    return without_controls(well_formed(text))


def _rows(rows: int | None, of: int) -> str:
    if rows is None:
        return ""
    return f"{rows:,} of {of:,} rows ({_percent(rows / of if of else 0)})"


def _percent(share: float) -> str:
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    if share > 0.999:
        return "over 99.9 %"
    return "below 0.1 %" if share < 0.001 else f"{100 * share:.3g} %"


def _example(value: Any) -> Any:
    return plain(value)[:MAX_EXAMPLE_CHARS] if isinstance(value, str) else _finite(value)


def _finite(value: Any) -> Any:
    # JSON has no infinity.
    return str(value) if value in (float("inf"), float("-inf")) else value


def _well_formed(value: Any) -> Any:
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, dict):
        return {key: _well_formed(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_well_formed(each) for each in value]
    return str(value) if value in (float("inf"), float("-inf")) else value
