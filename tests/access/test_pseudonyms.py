"""K3: pseudonyms of actors for other services."""

from __future__ import annotations

import re
from typing import Any

import pytest
from datasette.app import Datasette

from datasette_llm.access.pseudonyms import pseudonym

ANA = {"id": "ana"}


@pytest.fixture
def site() -> Datasette:
    return Datasette(memory=True, secret="one")


def test_k3_pseudonym_is_stable_and_hides_the_id(site: Datasette) -> None:
    name = pseudonym(site, ANA)
    assert name is not None
    assert re.fullmatch("[0-9a-f]{32}", name)
    assert name == pseudonym(site, {"id": "ana", "name": "Ana"})
    assert name == pseudonym(Datasette(memory=True, secret="one"), ANA)
    assert "ana" not in name


def test_k3_pseudonym_differs_by_actor_and_secret(site: Datasette) -> None:
    """Without the secret of the site the id cannot be tried out."""
    actors = [ANA, {"id": "bob"}, {"id": "Ana"}, {"id": 7}, {"id": "ana "}, {"id": "\ud800"}]
    names = {pseudonym(site, actor) for actor in actors}
    names.add(pseudonym(Datasette(memory=True, secret="two"), ANA))
    assert len(names) == len(actors) + 1
    assert pseudonym(site, {"id": 7}) == pseudonym(site, {"id": "7"})


@pytest.mark.parametrize("actor", [None, {}, {"id": None}, {"id": ""}, {"name": "ana"}, "ana", 7])
def test_k3_no_actor_has_no_pseudonym(site: Datasette, actor: Any) -> None:
    assert pseudonym(site, actor) is None
