"""Who issues the keys that models need, and the secrets that datasette-secrets lists for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import datasette_secrets

from .keys import endpoint_secret, provider_secret

if TYPE_CHECKING:
    from .sources import AsyncLLM

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


def secrets_to_register(
    models: Iterable[AsyncLLM], secret_names: Iterable[str]
) -> list[datasette_secrets.Secret]:
    """What datasette-secrets shall list: a secret for each provider, then the configured ones."""
    by_name: dict[str, datasette_secrets.Secret] = {}
    # The secret of an endpoint is among the configured ones.
    provided = (model for model in models if not endpoint_secret(model))
    for needs_key in dict.fromkeys(model.needs_key for model in provided if model.needs_key):
        name = provider_secret(needs_key)
        issuer, url = ISSUERS.get(needs_key, (None, None))
        by_name.setdefault(
            name,
            datasette_secrets.Secret(
                name=name,
                description=f"API key for {issuer or needs_key} models",
                obtain_url=url,
                obtain_label=f"Get a key from {issuer}" if issuer else None,
            ),
        )
    for name in secret_names:
        secret = datasette_secrets.Secret(name, "API key named in the datasette-llm configuration")
        by_name.setdefault(name, secret)
    return list(by_name.values())
