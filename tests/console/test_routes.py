"""Every address, for every kind of actor, by every method."""

from __future__ import annotations

import json
import re
from urllib.parse import urlencode

import pytest
from datasette.tokens import TokenRestrictions

from datasette_llm.console import routes
from datasette_llm.console.log import running_page
from datasette_llm.evaluation import run
from tests.support.call_log import add, call_row
from tests.support.console import client
from tests.support.consultant import answer, answering, rows_where
from tests.support.evaluating import made as made_evaluation

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
SHOWS = ("GET", "HEAD")
MANAGE, LOG, ANALYZE = "manage-llm", "view-llm-log", "analyze-table"
POSTED = {200, 201, 400, 409}  # done, or nothing to do
BOTH = frozenset([MANAGE, LOG])  # a set: all of them
EVIDENCE = urlencode({"evidence": json.dumps(rows_where("weight"))})
# Of each address: the permissions of which one is needed, and the methods that it takes.
ADDRESSES = {
    "/-/llm/assign": ((MANAGE,), ("POST",)),
    "/-/llm/cache/clear": ((MANAGE,), ("POST",)),
    "/-/llm/test": ((MANAGE,), (*SHOWS, "POST")),
    "/-/llm/test.json": ((MANAGE,), SHOWS),
    "/-/llm/playground": ((MANAGE,), (*SHOWS, "POST")),
    "/-/llm/playground.json": ((MANAGE,), SHOWS),
    **{f"/-/llm/what-if{twin}": (BOTH, SHOWS) for twin in ("", ".json")},
    **{
        f"/-/llm{page}{twin}": ((MANAGE,), SHOWS)
        for page in ("", "/models", "/purposes", "/explain", "/keys")
        for twin in ("", ".json")
    },
    **{
        f"/-/llm/{page}{twin}": ((MANAGE,), SHOWS)
        for page in ("models/echo", "purposes/dataset-consultant")
        for twin in ("", ".json")
    },
    **{
        f"/-/llm/docs{page}{twin}": ((MANAGE, LOG, ANALYZE), SHOWS)
        for page in ("", "/keys")
        for twin in ("", ".json")
    },
    **{f"/-/llm/log{twin}": ((LOG,), SHOWS) for twin in ("", ".json", ".csv")},
    "/-/llm/log/views": ((LOG,), ("POST",)),
    **{f"/-/llm/usage{twin}": ((LOG,), SHOWS) for twin in ("", ".json", ".csv")},
    **{
        f"/-/llm/log/{page}{twin}": ((LOG,), SHOWS)
        for page in ("CALL", "running", "conversation/birds")
        for twin in ("", ".json")
    },
    **{f"/-/llm/log/{page}": ((LOG,), SHOWS) for page in ("follow", "TOLD/text/1")},
    "/-/llm/log/CALL/stop": ((MANAGE,), ("POST",)),
    **{
        f"/-/llm/consultations{page}{twin}": ((ANALYZE,), SHOWS)
        for page in ("", "/CONSULTATION")
        for twin in ("", ".json")
    },
    **{
        f"/-/llm/evaluations{page}": ((MANAGE,), SHOWS)
        for page in (
            *("", ".json", "/new.json", "/EVALUATION", "/EVALUATION.json", "/EVALUATION/1.json"),
            "/EVALUATION/answers.csv",
        )
    },
    **{
        f"/-/llm/evaluations/{page}": ((MANAGE,), (*SHOWS, "POST"))
        for page in ("new", "EVALUATION/1")
    },
    **{
        f"/-/llm/evaluations/EVALUATION/{action}": ((MANAGE,), ("POST",))
        for action in ("stop", "resume", "judge", "remove")
    },
    "/data/pets/-/llm-analyze/dismiss": ((ANALYZE,), ("POST",)),
    **{
        f"/data/pets/-/llm-analyze/rows{twin}?{EVIDENCE}": ((ANALYZE,), SHOWS)
        for twin in ("", ".json")
    },
    **{f"/data/pets/-/llm-analyze{twin}": ((ANALYZE,), (*SHOWS, "POST")) for twin in ("", ".json")},
}
# Of each token of an actor who may do everything: what it is restricted to, and what it may do.
ANY_TABLE = (ANALYZE, "view-table")
TOKENS = {
    "all": (None, {MANAGE, LOG, ANALYZE}),
    "manage": (TokenRestrictions(all=[MANAGE]), {MANAGE}),
    "log": (TokenRestrictions(all=[LOG]), {LOG}),
    "analyze": (TokenRestrictions(all=[*ANY_TABLE]), {ANALYZE}),
    "database": (TokenRestrictions(database={"data": [*ANY_TABLE]}), {ANALYZE}),
    "table": (TokenRestrictions(resource={"data": {"pets": [*ANY_TABLE]}}), {ANALYZE}),
    "no-view": (TokenRestrictions(all=[ANALYZE]), set()),
    "other-table": (TokenRestrictions(resource={"data": {"secrets": [*ANY_TABLE]}}), set()),
    "nothing": (TokenRestrictions(all=["view-instance"]), set()),
}
ACTORS = {
    None: set(),
    "stranger": set(),
    "manager": {MANAGE},
    "reader": {LOG},
    "analyst": {ANALYZE},
    "root": {MANAGE, LOG, ANALYZE},
}
# What may be seen with a permission for some table, though not for this one.
ANY = ("/-/llm/docs", "/-/llm/consultations")


@pytest.fixture
async def site(start_site, register_models, monkeypatch):
    monkeypatch.setattr(running_page, "STREAM_S", 0.01)
    register_models(answering(*[answer()] * 40))
    permissions = {
        action: {"id": [actor for actor, may in ACTORS.items() if actor and action in may]}
        for action in (MANAGE, LOG, ANALYZE)
    }
    site = await start_site(permissions=permissions, databases={})
    made = await site.ask(actor={"id": "root"})
    told = call_row(conversation_id="birds")
    await site.datasette.get_internal_database().execute_write_fn(lambda c: _tell(c, told))
    evaluation = await made_evaluation(site.datasette, 1)
    await run.start(site.datasette, evaluation, None).ended()
    site.ids = {"CALL": made["call_id"], "CONSULTATION": made["id"], "TOLD": told["id"]}
    site.ids["EVALUATION"] = evaluation.id
    return site


def _tell(connection, row):
    """Add a call with its content."""
    add(connection, row)
    content = '{"messages": [{"role": "user", "parts": [{"type": "text", "text": "Hello"}]}]}'
    sql = "insert into llm_call_content values (?, 'request', ?)"
    connection.execute(sql, [row["id"], content])


async def check(site, client, may, partial=False, methods=METHODS):
    """Ask for every address by every method.

    Args:
        site: the site.
        client: of who asks.
        may: the permissions of who asks.
        partial: whether they may analyze some other table.
        methods: the methods to try.
    """
    tried = methods
    for address, (needed, methods) in ADDRESSES.items():
        for name, each in site.ids.items():
            address = address.replace(name, each)
        enough = needed <= may if needed is BOTH else bool(may & set(needed))
        allowed = enough or (partial and address.split(".")[0] in ANY)
        allowed = allowed or (partial and address.startswith("/-/llm/docs"))
        for method in tried:
            body = {"content": "{}"} if method == "POST" else {}
            if body and "analyze" in address and allowed and ".json" not in address:
                body = {"data": {"digest": "x"}}
            response = await client.request(method, address, **body)
            where = (method, address, response.status_code)
            if not allowed:
                assert response.status_code == (
                    404 if site.ids["CONSULTATION"] in address else 403
                ), where
            elif method not in methods:
                assert response.status_code == 405, where
                assert response.headers["allow"] == ", ".join(methods), where
            else:
                # A POST that asks for nothing, or for what nobody has seen.
                assert response.status_code in (
                    {200} if method != "POST" else {200, 201, 400, 409}
                ), where
                framing = response.headers.get("content-security-policy")
                page = "html" in response.headers["content-type"]
                assert (framing == "frame-ancestors 'self'") is page, where


@pytest.mark.parametrize("actor", ACTORS)
async def test_s9_actors_and_methods(site, actor):
    async with client(site.datasette, {"id": actor} if actor else None) as asking:
        await check(site, asking, ACTORS[actor])


@pytest.mark.parametrize("token", TOKENS)
async def test_s9_restricted_tokens_and_methods(site, token):
    restrictions, may = TOKENS[token]
    made = await site.datasette.create_token("root", restrictions=restrictions)
    # Of some table: the docs, and the list of consultations, which is empty.
    partial = token in ("no-view", "other-table")
    async with client(site.datasette, headers={"authorization": f"Bearer {made}"}) as asking:
        await check(site, asking, may, partial, ("GET", "POST", "DELETE"))


def test_s9_every_route_is_in_the_table():
    paths = [address.partition("?")[0] for address in ADDRESSES]
    known = [path.replace("CALL", "x").replace("CONSULTATION", "x") for path in paths]
    known = [path.replace("EVALUATION", "0" * 26) for path in known]
    for pattern, _ in routes.routes():
        assert any(re.match(pattern, address) for address in known), pattern
