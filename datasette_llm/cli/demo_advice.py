"""The demo's advice: one consultation about its arrivals, answered by a scripted model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import llm

from ..consultant.advice.consultation import ConsultationRequest, consult
from ..testing import ScriptedModel, registered
from .demo_calls import LARGE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasette.app import Datasette

DATABASE, TABLE = "harbour", "arrivals"
_QUESTION = "Which rows cannot be right, and what do they cost us?"


def _rows(column: str, op: str, value: Any = None, **more: Any) -> dict[str, Any]:
    condition = {"column": column, "op": op, "value": value, "other_column": more.get("than")}
    return {"kind": "rows", "any_of": [[condition]], "expected": more.get("expected")}


def _claim(kind: str, column: str, claim: str, evidence: dict[str, Any]) -> dict[str, Any]:
    return {"kind": kind, "column": column, "claim": claim, "evidence": evidence}


_ADVICE = {
    "suggested_action": "Correct the tonnes first: the fees are computed from them.",
    "suggested_config": {
        "facets": ["berth_id", "remark"],
        "sort": None,
        "sort_desc": "arrived",
        "label_column": None,
        "columns": [
            {"column": "tonnes", "description": "Cargo that was landed or loaded", "unit": "t"},
            {"column": "fee", "description": "Harbour dues of the call", "unit": None},
        ],
        "full_text_columns": ["remark"],
        "hidden_columns": [],
    },
    "reasoning_summary": "A few rows have **tonnes in kilograms**, negative fees, or a departure "
    "before the arrival. Some days are written in another order than the rest.",
    "risk_flags": [
        _claim(
            "outliers",
            "tonnes",
            "Some tonnes are larger than any ship here carries",
            _rows("tonnes", ">", 100_000),
        ),
        _claim("outliers", "fee", "Three fees are negative", _rows("fee", "<", 0, expected=3)),
        _claim(
            "inconsistent_values",
            "departed",
            "Some ships depart before they arrive",
            _rows("departed", "<", than="arrived"),
        ),
        _claim(
            "missing_values",
            "departed",
            "A tenth of the arrivals has no departure",
            _rows("departed", "is null", expected=42),
        ),
    ],
}


async def write_advice(datasette: Datasette, actor: Mapping[str, Any]) -> str:
    """Have a scripted model advise on the arrivals, and give the id of the consultation.

    Args:
        datasette: it has been started, and has the harbour.
        actor: who asks.
    """
    usage = llm.Usage(input=3_900, output=610)
    with registered(ScriptedModel(LARGE, [json.dumps(_ADVICE), usage])):
        request = ConsultationRequest(DATABASE, TABLE, LARGE, _QUESTION)
        done = await consult(datasette, request, dict(actor))
    return str(done.row["id"])
