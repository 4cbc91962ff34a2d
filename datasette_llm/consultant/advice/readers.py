"""What a reader of a stored consultation sees of other tables: only of those that they may view."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from .dataset import MALFORMED
from .verdicts import unchecked

NOT_SHOWN = "(not shown: it names a table that you may not view)"
_NOTHING = unchecked(NOT_SHOWN)
_TEXTS = ("suggested_action", "reasoning_summary")


def readable(row: Mapping[str, Any], viewable: Collection[str]) -> dict[str, Any]:
    """A consultation without what names, or was counted in, tables that its reader may not view.

    Args:
        row: a row of the table of consultations, with JSON columns as values.
        viewable: the tables of its database that the reader may view.
    """
    profile, findings = row["profile"] or {}, row["findings"] or []
    flags = (row["advice"] or {}).get("risk_flags", ())
    named = {*profile.get("other_tables", ()), *map(_other_table, (*findings, *flags))}
    hidden = named - {*viewable, row["table_name"], None}
    if not hidden:
        return dict(row)
    others = [name for name in profile.get("other_tables", ()) if name not in hidden]
    shown = [each for each in findings if _other_table(each) not in hidden]
    return dict(row) | {
        "profile": row["profile"] and {**profile, "other_tables": others},
        "user_prompt": row["user_prompt"] and NOT_SHOWN,
        "raw_answer": _text(row["raw_answer"], hidden),
        "rejected": [_text(each, hidden) for each in row["rejected"]],
        "findings": row["findings"] and shown,
        "advice": row["advice"] and _advice(row["advice"], hidden),
        "checks": _checks(flags, row["checks"], hidden),
    }


def _other_table(item: Mapping[str, Any]) -> str | None:
    """The other table that a finding or a claim is about."""
    other: str | None = (item.get("evidence") or {}).get("other_table")
    return other


def _advice(advice: Mapping[str, Any], hidden: Collection[str]) -> dict[str, Any]:
    texts = {name: _text(advice[name], hidden) for name in _TEXTS if name in advice}
    flags = [_flag(each, hidden) for each in advice.get("risk_flags", ())]
    return {**advice, **texts} | ({"risk_flags": flags} if "risk_flags" in advice else {})


def _flag(flag: Mapping[str, Any], hidden: Collection[str]) -> dict[str, Any]:
    if _other_table(flag) in hidden:
        return {**flag, "claim": NOT_SHOWN, "evidence": None}
    return {**flag, "claim": _text(flag["claim"], hidden)}


def _checks(
    flags: Collection[Mapping[str, Any]], checks: list[Any], hidden: Collection[str]
) -> list[Any]:
    claims = [flag for flag in flags if flag["kind"] != MALFORMED]
    if len(claims) != len(checks):  # of an earlier version, whose checks are not shown
        return checks
    pairs = zip(claims, checks, strict=True)
    return [_NOTHING if _other_table(claim) in hidden else check for claim, check in pairs]


def _text(text: str | None, hidden: Collection[str]) -> str | None:
    if text is None:
        return None
    words = "|".join(map(re.escape, hidden))
    return NOT_SHOWN if re.search(rf"(?<!\w)(?:{words})(?!\w)", text, re.IGNORECASE) else text
