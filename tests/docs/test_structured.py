"""The examples and tables of `structured.md`."""

from __future__ import annotations

from typing import Any

import pytest

from datasette_llm import (
    LLM,
)
from datasette_llm.testing import ScriptedModel

from .examples import (
    run,
    shows,
)


async def _structured_model(make_datasette, register_models, *answers: str, **kwargs: Any):
    scripted = ScriptedModel("claude-haiku-4.5", *[[answer] for answer in answers], **kwargs)
    register_models(scripted)
    return await LLM(make_datasette()).model("claude-haiku-4.5"), scripted


@shows(source="structured")
@pytest.mark.parametrize("supports_schema", [True, False])
async def test_object_comes_back_validated(
    source, make_datasette, register_models, capsys, supports_schema
):
    pet = '{"name": "Marigold", "kind": "bird", "age": 4, "owner": null}'
    model, _ = await _structured_model(
        make_datasette, register_models, pet, supports_schema=supports_schema
    )
    names = await run(source, model=model)
    assert capsys.readouterr().out == "Marigold, a bird of 4\n"
    assert await names["response"].text() == pet
    assert names["pet"].owner is None


@shows(definition="structured", source="structured error", output="structured error output")
@pytest.mark.parametrize("cut_off", [True, False])
async def test_failed_repair_raises_with_the_problems(
    definition, source, output, make_datasette, register_models, capsys, cut_off
):
    pet = '{"name": "Marigold", "kind": "bird", "age": 4}'
    cut = '{"name": "Marigold", "kind": "bi'
    model, scripted = await _structured_model(
        make_datasette, register_models, pet, cut, cut if cut_off else pet
    )
    names = await run(definition, model=model)
    capsys.readouterr()
    await run(source, model=model, Pet=names["Pet"])
    printed = capsys.readouterr().out
    assert len(scripted.calls) == 3
    assert (printed == output) == cut_off
    assert cut_off or printed.endswith(" 2\n")
