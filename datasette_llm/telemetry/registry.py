"""Every span, attribute and metric that datasette-llm emits: each name is declared here, once.

The names under `gen_ai.` and `error.type`, their units and their buckets are those of the
OpenTelemetry semantic conventions 1.41.1, in which the GenAI conventions have the status
"development". Later releases no longer define them: from 1.42 on the GenAI conventions are
worked on in a repository of their own, where some have other names. Change names only together
with `SCHEMA_URL`, by which readers of the telemetry know the version of the names.
The names under `datasette_llm.` are ours.

No attribute holds a key, or what a provider's error says, which may quote the prompt. Texts of
prompts, answers and tools, and the id of the actor, are in those of `CONTENT` and in `USER_ID`,
which are left out unless the configuration asks for them. Attributes of the metrics have few
values each, since every combination of values is a time series.

The entries are strings of Datasette's own classes for this, so that its conformance helpers
in `datasette.telemetry_testing` can compare them with what is emitted.
"""

from datasette.telemetry_registry import COUNTER, HISTOGRAM, Attribute, MetricName, SpanName
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

# By the host of an endpoint, or the domain that it belongs to.
HOSTS = {
    "anthropic.com": "anthropic",
    "googleapis.com": "gcp.gemini",
    "mistral.ai": "mistral_ai",
    "groq.com": "groq",
    "deepseek.com": "deepseek",
    "cohere.com": "cohere",
    "perplexity.ai": "perplexity",
    "x.ai": "x_ai",
    "openrouter.ai": "openrouter",
    "together.xyz": "together",
    "fireworks.ai": "fireworks",
    "openai.azure.com": "azure.ai.openai",
    "amazonaws.com": "aws.bedrock",
}

# What is known before the request

OPERATION_NAME = Attribute(
    "gen_ai.operation.name",
    "`chat` for a request, `invoke_agent` for a chain, `execute_tool` for a tool.",
    values={"chat", "invoke_agent", "execute_tool"},
)
PROVIDER_NAME = Attribute(
    "gen_ai.provider.name",
    "The provider, where the address of the model's server or the name of its key tells it; "
    "`openai` for another server with OpenAI's protocol.",
    optional=True,
    values={*PROVIDERS.values(), *HOSTS.values()},
)
REQUEST_MODEL = Attribute("gen_ai.request.model", "The id of the model, as llm knows it.")
SERVER_ADDRESS = Attribute(
    "server.address",
    "The host of the model's server, for a model with an address of its own.",
    optional=True,
)
SERVER_PORT = Attribute("server.port", "Its port.", optional=True)
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
CACHED = Attribute(
    "datasette_llm.cached",
    "True for an answer that another call has paid for: of the response cache, or shared.",
    optional=True,
)
PURPOSE = Attribute("datasette_llm.purpose", "The purpose, if there is one.", optional=True)
GROUP_ID = Attribute(
    "datasette_llm.group.id", "The id of the group, for a prompt of a group.", optional=True
)
CHAIN_ID = Attribute(
    "datasette_llm.chain.id",
    "The id of the first response of its chain. Omitted outside of chains.",
    optional=True,
)
CHAIN_STEP = Attribute(
    "datasette_llm.chain.step",
    "Which request of its chain it is, from 1. Omitted outside of chains.",
    optional=True,
)
PROMPT_ID = Attribute(
    "datasette_llm.prompt.id",
    "For a later attempt the id of the response; for a repair by `structured()` that of the "
    "response that it repairs.",
    optional=True,
)
# The beginning of a name, which ends with the key of a tag.
TAGS = Attribute("datasette_llm.tags.", "A tag, under its key.", optional=True)
USER_ID = Attribute("user.id", "The id of the actor, if `telemetry.actor` is set.", optional=True)
# Of a link, from a later attempt to the one before.
LINK = Attribute(
    "datasette_llm.link",
    "What the linked attempt was followed by: a `retry`, or a `fallback` to another model.",
    values={"retry", "fallback"},
)

# What is known after it

OUTCOME = Attribute(
    "datasette_llm.outcome",
    "How it ended, as in the call log; a tool that asked for a pause is `paused`. A request that "
    "was `cancelled`, because its reader left or a plugin's timeout ended it, is no error.",
    values={"ok", "error", "cancelled", "blocked", "paused"},
)
BLOCKED_BY = Attribute(
    "datasette_llm.blocked_by",
    "The plugin or the rule that blocked the call.",
    optional=True,
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
RESPONSE_ID = Attribute(
    "gen_ai.response.id", "The provider's id of the answer, where it has one.", optional=True
)
GATEWAY_CALL_ID = Attribute(
    "datasette_llm.gateway.call_id",
    "The id of the request at a gateway, where that says so.",
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
    "Tokens of the prompt, where the provider says how many; those from its cache included.",
    optional=True,
)
CACHE_READ_TOKENS = Attribute(
    "gen_ai.usage.cache_read.input_tokens",
    "Those of them that were read from the provider's cache.",
    optional=True,
)
CACHE_CREATION_TOKENS = Attribute(
    "gen_ai.usage.cache_creation.input_tokens",
    "Those of them that were written to the provider's cache.",
    optional=True,
)
OUTPUT_TOKENS = Attribute(
    "gen_ai.usage.output_tokens",
    "Tokens of the response, where the provider says how many.",
    optional=True,
)
REASONING_TOKENS = Attribute(
    "gen_ai.usage.reasoning.output_tokens",
    "Those of them that the model thought with.",
    optional=True,
)
COST = Attribute(
    "datasette_llm.cost",
    "What the request cost, in US dollars, where tokens and price are known.",
    optional=True,
)
# No name of the conventions. Langfuse reads it, from spans of others than its own SDK.
USAGE_COST = Attribute(
    "gen_ai.usage.cost", "The same, under the name that Langfuse reads.", optional=True
)
TOKEN_TYPE = Attribute(
    "gen_ai.token.type", "Which tokens were counted.", values={"input", "output"}
)

CHAIN_STEPS = Attribute("datasette_llm.chain.steps", "How many requests the chain has made.")

# Of tools

TOOL_NAME = Attribute("gen_ai.tool.name", "The name of the tool.")
TOOL_TYPE = Attribute("gen_ai.tool.type", "Always `function`.", values={"function"})
TOOL_CALL_ID = Attribute("gen_ai.tool.call.id", "The id of the tool call.", optional=True)

# What is said, as JSON

INPUT_MESSAGES = Attribute(
    "gen_ai.input.messages",
    "The messages of the request, if `telemetry.content` is set.",
    optional=True,
)
OUTPUT_MESSAGES = Attribute(
    "gen_ai.output.messages", "The answer, if `telemetry.content` is set.", optional=True
)
TOOL_ARGUMENTS = Attribute(
    "gen_ai.tool.call.arguments",
    "The arguments of a tool call of a chain, if `telemetry.content` is set.",
    optional=True,
)
TOOL_RESULT = Attribute(
    "gen_ai.tool.call.result",
    "What the tool returned, if `telemetry.content` is set.",
    optional=True,
)
CONTENT = (INPUT_MESSAGES, OUTPUT_MESSAGES, TOOL_ARGUMENTS, TOOL_RESULT)

# The spans

_MODEL = (OPERATION_NAME, PROVIDER_NAME, REQUEST_MODEL, SERVER_ADDRESS, SERVER_PORT)
_TIES = (CONVERSATION_ID, CHAIN_ID, PURPOSE, GROUP_ID, TAGS, USER_ID)

CHAT = SpanName(
    "chat ",
    "One request to a provider, from before its key is looked up to its end; a chain has one for "
    "each step. Its name goes on with the id of the model. It is current while the provider's "
    "plugin runs. Its parent is the span of its chain, else the span that was current when the "
    "prompt was made, or one that a `llm_prompt_context` hook opened. A retry and a fallback link "
    "to the attempt before. A call that was not sent, because it was blocked or ended while it "
    "waited, has one without length. After an error its status is `ERROR`, with the name of the "
    "exception's class and the HTTP status, if it has one, as description.",
    (
        *_MODEL,
        *_TIES,
        REQUEST_STREAM,
        REQUEST_TEMPERATURE,
        REQUEST_MAX_TOKENS,
        CALL_ID,
        PROMPT_ID,
        ATTEMPT,
        WAITED,
        CACHED,
        CHAIN_STEP,
        OUTCOME,
        BLOCKED_BY,
        ERROR_TYPE,
        RESPONSE_ID,
        RESPONSE_MODEL,
        GATEWAY_CALL_ID,
        FINISH_REASONS,
        TIME_TO_FIRST_CHUNK,
        INPUT_TOKENS,
        CACHE_READ_TOKENS,
        CACHE_CREATION_TOKENS,
        OUTPUT_TOKENS,
        REASONING_TOKENS,
        COST,
        USAGE_COST,
        INPUT_MESSAGES,
        OUTPUT_MESSAGES,
    ),
    prefix=True,
    kind=SpanKind.CLIENT,
)
INVOKE_AGENT = SpanName(
    "invoke_agent",
    "A chain, from its admission by the hooks to its end; its requests and its tools are its "
    "children.",
    (*_MODEL, *_TIES, CHAIN_STEPS, OUTCOME, ERROR_TYPE),
)
EXECUTE_TOOL = SpanName(
    "execute_tool ",
    "A tool that runs. Its name goes on with that of the tool. It is current while the tool "
    "runs, and its parent is the span of the chain; outside of chains the span that is current.",
    (
        OPERATION_NAME,
        TOOL_NAME,
        TOOL_TYPE,
        TOOL_CALL_ID,
        OUTCOME,
        ERROR_TYPE,
        TOOL_ARGUMENTS,
        TOOL_RESULT,
    ),
    prefix=True,
)

SPANS = (CHAT, INVOKE_AGENT, EXECUTE_TOOL)

# The metrics

_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = tuple(4**power for power in range(14))  # 1 to 67,108,864

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

CALLS = MetricName(
    "datasette_llm.calls",
    COUNTER,
    "{call}",
    "Requests by outcome, with those that were blocked or ended while they waited. Without the "
    "model for one that was refused before its model was known to be allowed.",
    (*_MODEL, OUTCOME, ERROR_TYPE),
)
COST_SUM = MetricName(
    "datasette_llm.cost",
    COUNTER,
    "USD",
    "What requests cost, where tokens and price are known.",
    _MODEL,
)

METRICS = (
    OPERATION_DURATION,
    OPERATION_TIME_TO_FIRST_CHUNK,
    TOKEN_USAGE,
    CALLS,
    COST_SUM,
)
