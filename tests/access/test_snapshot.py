"""Snapshots: taken anew when a part has changed, and freed when they are replaced."""

from __future__ import annotations

import gc

from datasette_llm.access.snapshot import Snapshot, snapshot_of
from datasette_llm.testing import ScriptedModel


def snapshots_alive() -> int:
    return sum(type(each) is Snapshot for each in gc.get_objects())


async def test_snapshot_is_kept_while_nothing_changes(make_datasette, register_models) -> None:
    register_models(ScriptedModel("m"))
    datasette = make_datasette({"default_model": "m"})
    assert await snapshot_of(datasette) is await snapshot_of(datasette)


async def test_replaced_snapshot_is_freed_without_gc(make_datasette, register_models) -> None:
    register_models(ScriptedModel("m"))
    datasette = make_datasette({"default_model": "m", "purposes": {"chat": {"retries": 1}}})
    (await snapshot_of(datasette)).for_purpose("chat").route("m")
    gc.collect()
    gc.disable()
    try:
        before = snapshots_alive()
        for retries in range(3):
            datasette.config["plugins"]["datasette-llm"]["retries"] = retries
            (await snapshot_of(datasette)).for_purpose("chat").route("m")
        assert snapshots_alive() == before
    finally:
        gc.enable()


async def test_options_of_a_route_are_copies(make_datasette, register_models) -> None:
    register_models(ScriptedModel("m"))
    options = {"stop": ["a"]}
    datasette = make_datasette({"default_model": {"model": "m", "options": options}})
    held = (await snapshot_of(datasette)).for_purpose(None)
    held.route("m").options["stop"].append("b")
    assert held.route("m").options == {"stop": ["a"]}
