"""A model that leaves what its provider returned, as llm's plugins do."""

from __future__ import annotations

from datasette_llm.testing import ScriptedModel


class PlainModel(ScriptedModel):
    """A scripted model that sets `response_json` before each script, and the model's own name."""

    def __init__(self, model_id, *scripts, response_json=None, resolved_model=None):
        super().__init__(model_id, *scripts)
        self.response_json = response_json
        self.resolved_model = resolved_model

    async def execute(self, prompt, stream, response, conversation, key=None):
        response.response_json = self.response_json
        if self.resolved_model is not None:
            response.set_resolved_model(self.resolved_model)
        async for chunk in super().execute(prompt, stream, response, conversation, key):
            yield chunk
