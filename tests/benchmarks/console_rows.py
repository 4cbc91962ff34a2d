"""The rows about the console: that its pages stay quick on a site with many models.

The reference is what one would write first: `explain()` for each of the models, which reads the
names of the keys for each of them. It makes no page.
"""

from __future__ import annotations

from typing import Any

import llm
from cryptography.fernet import Fernet

from datasette_llm import LLM
from datasette_llm.testing import ScriptedModel

from .measuring import Row, measured, timed
from .rows import known, row, running

MODELS = 500
PURPOSES = 50
PROVIDERS = 10
ROOT = {"id": "root"}


@row("console-models")
async def console_models(name: str, quick: bool) -> Row:
    others = ("models.json", "keys", "explain?model=filler-1&purpose=purpose-1")
    return await _page(name, quick, "models?purpose=purpose-1", "models", others)


@row("console-purposes")
async def console_purposes(name: str, quick: bool) -> Row:
    return await _page(name, quick, "purposes", "purposes, each with its menu", ("purposes.json",))


async def _page(name: str, quick: bool, path: str, what: str, others: tuple[str, ...]) -> Row:
    # The models come first: a site that starts without those it configures warns of each.
    with known(MODELS, filler=_keyed) as count:
        llm_models = llm.get_async_models()
        async with running(_config()) as datasette:

            def page(path: str) -> Any:
                async def get() -> None:
                    response = await datasette.client.get(f"/-/llm/{path}", actor=ROOT)
                    if response.status_code != 200:
                        raise RuntimeError(f"{path} gives {response.status_code}")

                return get

            async def each_by_explain() -> None:
                for model in llm_models:
                    await LLM(datasette).explain(model.model_id, "purpose-1")

            pair = await measured(timed(each_by_explain), timed(page(path)), 2 if quick else 9)
            beside = {f"{other}, ms": await timed(page(other))() * 1e3 for other in others}
    return Row(
        name,
        f"page of {what}; {count} models, {PURPOSES} purposes",
        pair,
        "median",
        200,
        "ms",
        raw_is="explain() for each of the models, without a page",
        beside=beside,
    )


def _keyed(model_id: str) -> ScriptedModel:
    number = int(model_id.rpartition("-")[2])
    return ScriptedModel(
        model_id, needs_key=f"provider-{number % PROVIDERS}", attachment_types=("image/png",)
    )


def _config() -> dict[str, Any]:
    purposes = {
        f"purpose-{number}": {
            "model": {"model": f"filler-{number}", "key": f"PURPOSE_{number}"},
            "blocked_models": [f"filler-{number + 100}"],
        }
        for number in range(PURPOSES)
    }
    return {
        "plugins": {
            "datasette-llm": {"purposes": purposes},
            "datasette-secrets": {"encryption-key": Fernet.generate_key().decode()},
        },
        "permissions": {"manage-llm": ROOT, "manage-secrets": ROOT},
    }
