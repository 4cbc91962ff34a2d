"""Names of providers, for people to read."""

from __future__ import annotations

from urllib.parse import urlsplit

from .sync_adapter import ThreadedModel

# The company and the page where it issues keys, by the name that llm's plugins use for the key.
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

# llm's own module of OpenAI's models; every other module belongs to an installed plugin.
_OPENAI_MODULE = "llm.default_plugins.openai_models"


def provider_of(model: object) -> str:
    """The provider of a model, which llm itself does not tell.

    Args:
        model: llm's own model, or the async adapter of one.

    Returns:
        The host for a model with an address, as models with OpenAI's protocol have; else the
        company that issues its key; else the name of its llm plugin.
    """
    model = model.sync_model if isinstance(model, ThreadedModel) else model
    needs_key = getattr(model, "needs_key", None)
    # The needs_key of an endpoint is the name of a secret, and says nothing about the issuer.
    issued = isinstance(needs_key, str) and not hasattr(model, "own_secret")
    issuer = ISSUERS.get(str(needs_key)) if issued else None
    # A compatible server may use OpenAI's name for the key.
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
    """The host and port of an address, without user and password."""
    if not isinstance(address, str):
        return None
    try:
        return urlsplit(address).netloc.rpartition("@")[2] or None
    except ValueError:
        return None
