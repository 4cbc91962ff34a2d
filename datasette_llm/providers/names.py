"""Who answers when a model is prompted, in a word for people."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .sync_adapter import ThreadedModel

if TYPE_CHECKING:
    pass


# llm's own module with the models of OpenAI; every other module is an installed plugin's.
_OPENAI_MODULE = "llm.default_plugins.openai_models"


def provider_of(model: object) -> str:
    """The provider of a model, for people to read.

    llm does not know providers.

    Args:
        model: llm's own model, or what stands for one that has no async version.

    Returns:
        For a model with an address of its own, as those have that speak OpenAI's protocol, the
        host of that address; else the company that issues its key; else the name of the llm
        plugin that it comes from.
    """
    model = model.sync_model if isinstance(model, ThreadedModel) else model
    needs_key = getattr(model, "needs_key", None)
    # An endpoint's is the name of a secret, which may be that of any key.
    issued = isinstance(needs_key, str) and not hasattr(model, "own_secret")
    issuer = ISSUERS.get(str(needs_key)) if issued else None
    # OpenAI's key may be given to a server that only speaks its protocol.
    host = _host(getattr(model, "api_base", None))
    if host and (issuer is None or needs_key == "openai"):
        return host
    if issuer is not None:
        return issuer[0]
    module = type(model).__module__
    if module == _OPENAI_MODULE:
        return ISSUERS["openai"][0]
    return module.partition(".")[0].replace("_", "-")


def _host(address: object) -> str | None:
    """The host and port of an address, without the name and the password it may hold."""
    if not isinstance(address, str):
        return None
    try:
        return urlsplit(address).netloc.rpartition("@")[2] or None
    except ValueError:
        return None


# Where the providers say that keys are made; by the name llm's plugins use for the key.
ISSUERS = {
    "openai": ("OpenAI", "https://platform.openai.com/api-keys"),
    "anthropic": ("Anthropic", "https://console.anthropic.com/settings/keys"),
    "claude": ("Anthropic", "https://console.anthropic.com/settings/keys"),
    "gemini": ("Google AI Studio", "https://aistudio.google.com/apikey"),
    "mistral": ("Mistral", "https://console.mistral.ai/api-keys"),
    "groq": ("Groq", "https://console.groq.com/keys"),
    "openrouter": ("OpenRouter", "https://openrouter.ai/settings/keys"),
    "deepseek": ("DeepSeek", "https://platform.deepseek.com/api_keys"),
    "cohere": ("Cohere", "https://dashboard.cohere.com/api-keys"),
    "perplexity": ("Perplexity", "https://www.perplexity.ai/settings/api"),
    "xai": ("xAI", "https://console.x.ai"),
    "grok": ("xAI", "https://console.x.ai"),
    "together": ("Together AI", "https://api.together.ai/settings/api-keys"),
    "fireworks": ("Fireworks AI", "https://fireworks.ai/account/api-keys"),
    "replicate": ("Replicate", "https://replicate.com/account/api-tokens"),
}
