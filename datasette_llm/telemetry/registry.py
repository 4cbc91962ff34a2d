"""Every span, attribute and metric that datasette-llm emits: each name is declared here, once.

The names under `gen_ai.` and `error.type`, their units and their buckets are those of the
OpenTelemetry semantic conventions 1.41.1, in which the GenAI conventions have the status
"development". Later releases no longer define them: from 1.42 on the GenAI conventions are
worked on in a repository of their own, where some have other names. Change names only together
with `SCHEMA_URL`, by which readers of the telemetry know the version of the names.
The names under `datasette_llm.` are ours.

No attribute holds the text of a prompt or of a response, what a provider's error says (it may
quote either), a key, or anything about the actor. Those of the metrics have few values each,
since every combination of values is a time series.

The entries are strings of Datasette's own classes for this, so that its conformance helpers
in `datasette.telemetry_testing` can compare them with what is emitted.
"""

from datasette.telemetry_registry import HISTOGRAM, Attribute, MetricName, SpanName
from opentelemetry.trace import SpanKind

SCHEMA_URL = "https://opentelemetry.io/schemas/1.41.1"

# The provider by the name of the key that its models need, as llm's plugins name their keys.
# Those after `grok` are not among the conventions' values, which may be added to.
PROVIDERS = {
    "openai": "openai",
    "anthropic": "anthropic",
    "claude": "anthropic",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "groq": "groq",
    "deepseek": "deepseek",
    "cohere": "cohere",
    "perplexity": "perplexity",
    "xai": "x_ai",
    "grok": "x_ai",
    "openrouter": "openrouter",
    "together": "together",
    "fireworks": "fireworks",
    "replicate": "replicate",
}

# What is known before the request

OPERATION_NAME = Attribute("gen_ai.operation.name", "Always `chat`.", values={"chat"})
PROVIDER_NAME = Attribute(
    "gen_ai.provider.name",
    "The provider, where the name of the key that the model needs tells it. Omitted for models "
    "that need no key, or one of another name.",
    optional=True,
    values=PROVIDERS.values(),
)
REQUEST_MODEL = Attribute("gen_ai.request.model", "The id of the model, as llm knows it.")
REQUEST_STREAM = Attribute(
    "gen_ai.request.stream",
    "True for a request that streams; omitted for others.",
    optional=True,
    values={True},
)
REQUEST_TEMPERATURE = Attribute(
    "gen_ai.request.temperature",
    "The option `temperature`, if it was given or configured.",
    optional=True,
)
REQUEST_MAX_TOKENS = Attribute(
    "gen_ai.request.max_tokens",
    "The option `max_tokens`, if it was given or configured.",
    optional=True,
)
CONVERSATION_ID = Attribute(
    "gen_ai.conversation.id",
    "The id of llm's conversation. Omitted for a prompt outside of one.",
    optional=True,
)
CALL_ID = Attribute(
    "datasette_llm.call.id",
    "The id of the row in the log; for a first attempt that of the response.",
)
ATTEMPT = Attribute(
    "datasette_llm.attempt",
    "Which attempt it is, from 2: of a response that was asked again, or of a fallback.",
    optional=True,
)
WAITED = Attribute(
    "datasette_llm.waited",
    "Seconds that it waited for a concurrency limit.",
    optional=True,
)
PURPOSE = Attribute("datasette_llm.purpose", "The purpose, if there is one.", optional=True)
GROUP_ID = Attribute(
    "datasette_llm.group.id", "The id of the group, for a prompt of a group.", optional=True
)
CHAIN_STEP = Attribute(
    "datasette_llm.chain.step",
    "Which request of its chain it is, from 1. Omitted outside of chains.",
    optional=True,
)

# What is known after it

OUTCOME = Attribute(
    "datasette_llm.outcome",
    "How the request ended, as in the call log. A request that was `cancelled`, because its "
    "reader left or a plugin's timeout ended it, is no error.",
    values={"ok", "error", "cancelled"},
)
ERROR_TYPE = Attribute(
    "error.type",
    "The name of the exception's class, for a request that failed.",
    optional=True,
)
RESPONSE_MODEL = Attribute(
    "gen_ai.response.model",
    "The model that answered, where the provider says so.",
    optional=True,
)
FINISH_REASONS = Attribute(
    "gen_ai.response.finish_reasons",
    "Why the answer ended, where the provider says so: a list of one, `stop`, `length`, "
    "`content_filter`, `tool_calls`, `refusal` or `other`.",
    optional=True,
)
TIME_TO_FIRST_CHUNK = Attribute(
    "gen_ai.response.time_to_first_chunk",
    "Seconds until the first chunk of a response that streams.",
    optional=True,
)
INPUT_TOKENS = Attribute(
    "gen_ai.usage.input_tokens",
    "Tokens of the prompt, where the provider says how many.",
    optional=True,
)
OUTPUT_TOKENS = Attribute(
    "gen_ai.usage.output_tokens",
    "Tokens of the response, where the provider says how many.",
    optional=True,
)
TOKEN_TYPE = Attribute(
    "gen_ai.token.type", "Which tokens were counted.", values={"input", "output"}
)

# The span

CHAT = SpanName(
    "chat ",
    "One request to a provider, from before its key is looked up to its end; a chain has one for "
    "each step. Its name goes on with the id of the model. It is current while the provider's "
    "plugin runs, and its parent is the span that was current when the prompt was made, or one "
    "that a `llm_prompt_context` hook opened. After an error its status is `ERROR`, with the "
    "name of the exception's class and the HTTP status, if it has one, as description.",
    (
        OPERATION_NAME,
        PROVIDER_NAME,
        REQUEST_MODEL,
        REQUEST_STREAM,
        REQUEST_TEMPERATURE,
        REQUEST_MAX_TOKENS,
        CONVERSATION_ID,
        CALL_ID,
        ATTEMPT,
        WAITED,
        PURPOSE,
        GROUP_ID,
        CHAIN_STEP,
        OUTCOME,
        ERROR_TYPE,
        RESPONSE_MODEL,
        FINISH_REASONS,
        TIME_TO_FIRST_CHUNK,
        INPUT_TOKENS,
        OUTPUT_TOKENS,
    ),
    prefix=True,
    kind=SpanKind.CLIENT,
)

SPANS = (CHAT,)

# The metrics

_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = tuple(4**power for power in range(14))  # 1 to 67,108,864
_MODEL = (OPERATION_NAME, PROVIDER_NAME, REQUEST_MODEL)

OPERATION_DURATION = MetricName(
    "gen_ai.client.operation.duration",
    HISTOGRAM,
    "s",
    "How long requests to providers took, from before the key is looked up to the end.",
    (*_MODEL, OUTCOME, ERROR_TYPE),
    buckets=_SECONDS,
)
OPERATION_TIME_TO_FIRST_CHUNK = MetricName(
    "gen_ai.client.operation.time_to_first_chunk",
    HISTOGRAM,
    "s",
    "How long it took until the first chunk of each response that streams.",
    _MODEL,
    buckets=_SECONDS,
)
TOKEN_USAGE = MetricName(
    "gen_ai.client.token.usage",
    HISTOGRAM,
    "{token}",
    "Tokens of each request, where the provider says how many.",
    (*_MODEL, TOKEN_TYPE),
    buckets=_TOKENS,
)

METRICS = (OPERATION_DURATION, OPERATION_TIME_TO_FIRST_CHUNK, TOKEN_USAGE)
