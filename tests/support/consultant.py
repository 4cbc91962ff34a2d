"""A site with tables to analyze, and models that answer with advice."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette

from datasette_llm.testing import ScriptedModel

ANA = {"id": "ana"}
BEN = {"id": "ben"}
HOSTILE = "<img src=x onerror=alert(1)>\"'&amp;{{7*7}}"

SCHEMA = """
create table pets (id integer primary key, name text, kind text, weight real, owner text);
insert into pets values (1, 'Cleo', 'dog', 12.5, 'ana'), (2, 'Cleo', 'dog', 13, null),
    (3, 'Pancakes', 'cat', 4, 'ben'), (4, 'Bob', 'cat', -1, 'ben');
create table secrets (ssn text, owner text);
insert into secrets values ('111-22', 'ana');
create view light as select name, weight from pets where weight < 10;
create view half_open as select owner from secrets;
"""

CONFIG = {
    "facets": ["kind"],
    "sort": None,
    "sort_desc": "weight",
    "label_column": "name",
    "columns": [{"column": "weight", "description": "How heavy it is", "unit": "kg"}],
    "full_text_columns": ["name"],
    "hidden_columns": ["owner"],
}


def rows_where(
    column: str, op: str = "<", value: Any = 0, expected: int | None = 1
) -> dict[str, Any]:
    """Evidence that counts rows with one condition."""
    condition = {"column": column, "op": op, "value": value, "other_column": None}
    return {"kind": "rows", "any_of": [[condition]], "expected": expected}


def flag(
    evidence: Any = None,
    column: str | None = "weight",
    kind: str = "outliers",
    claim: str = "Some weights are negative",
) -> dict[str, Any]:
    """A claim, by default a true one about the pets."""
    evidence = rows_where("weight") if evidence is None else evidence
    return {"kind": kind, "column": column, "claim": claim, "evidence": evidence}


GOOD_FLAG = flag()


def answer(*flags: Any, **changes: Any) -> dict[str, Any]:
    """The advice of a model."""
    whole = {
        "suggested_action": "Look at the negative weight",
        "suggested_config": CONFIG,
        "reasoning_summary": "Weights of pets are above zero.",
        "risk_flags": list(flags) or [GOOD_FLAG],
    }
    return whole | changes


def answering(*answers: Any, model_id: str = "scripted", **more: Any) -> ScriptedModel:
    """A model with an answer for each prompt; what is no text is sent as JSON."""
    texts = [each if isinstance(each, str) else json.dumps(each) for each in answers]
    return ScriptedModel(model_id, *([text] for text in texts), **more)


class ConsultingSite:
    """A Datasette with the tables above, and requests to it."""

    def __init__(self, datasette: Datasette, path: Path) -> None:
        self.datasette = datasette
        self.path = path

    async def get(self, address: str, status: int = 200, actor: Any = ANA, **more: Any) -> Any:
        response = await self.datasette.client.get(address, actor=actor, **more)
        assert response.status_code == status, response.text
        return response

    async def preview(self, table: str = "pets", query: str = "", **more: Any) -> Any:
        return (await self.get(f"/data/{table}/-/llm-analyze.json{query}", **more)).json()

    async def ask(
        self, table: str = "pets", status: int = 201, actor: Any = ANA, **body: Any
    ) -> Any:
        """The response to a program that posts JSON."""
        response = await self.datasette.client.post(
            f"/data/{table}/-/llm-analyze.json", json=body, actor=actor
        )
        assert response.status_code == status, response.text
        found = response.json()
        return found["consultation"] if status == 201 else found

    async def send(self, fields: Any, table: str = "pets", actor: Any = ANA, **headers: str) -> Any:
        """The response to a browser that posts the form."""
        return await self.datasette.client.post(
            f"/data/{table}/-/llm-analyze", data=fields, actor=actor, headers=headers
        )

    async def rows(self, *, asked: bool = True) -> list[dict[str, Any]]:
        """The stored consultations that asked a model, or those that did not."""
        internal = self.datasette.get_internal_database()
        where = f"{'not ' if asked else ''}(user_prompt is null and outcome = 'ok')"
        found = await internal.execute(f"select * from llm_consultations where {where} order by id")
        return [dict(row) for row in found.rows]


OPEN = {"analyze-table": {"id": ["ana", "eve"]}}
PRIVATE = {"data": {"tables": {"secrets": {"allow": {"id": "eve"}}}}}


@pytest.fixture
def start_site(
    make_datasette: Callable[..., Datasette], tmp_path: Path
) -> Callable[..., Awaitable[ConsultingSite]]:
    """A function that starts a site whose tables ana may analyze, except `secrets`."""

    async def start(
        config: Any = None, *, schema: str = SCHEMA, permissions: Any = OPEN, **more: Any
    ) -> ConsultingSite:
        path = tmp_path / "data.db"
        connection = sqlite3.connect(path)
        connection.executescript(schema)
        connection.close()
        if more.pop("immutable", False):
            more["immutables"] = [str(path)]
        else:
            more["files"] = [str(path)]
        databases = more.pop("databases", PRIVATE)
        config = {"default_model": "scripted"} if config is None else config
        datasette = make_datasette(config, **more)
        datasette.config |= {"permissions": permissions, "databases": databases}
        await datasette.invoke_startup()
        return ConsultingSite(datasette, path)

    return start
