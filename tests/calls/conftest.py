"""A scripted model, and a Datasette with some models and a configuration."""

import pytest

from datasette_llm import LLM
from datasette_llm.testing import ScriptedModel


@pytest.fixture
def model_of(make_datasette, register_models):
    """Register a scripted model, and get it through the facade."""

    async def get(*scripts, **kwargs):
        scripted = ScriptedModel("scripted", *scripts)
        register_models(scripted)
        return scripted, await LLM(make_datasette()).model("scripted", **kwargs)

    return get


@pytest.fixture
def site(make_datasette, register_models):
    """A function that makes an LLM of some models and a configuration."""

    def make(*models, **config):
        register_models(*models)
        return LLM(make_datasette({"log": False, **config}))

    return make
