"""What a prompt has before its own text: the system prompt, and turns that are complete.

Some plugins read `prompt.messages`, others `prompt.prompt`, `prompt.system` and the responses of
the conversation. llm leaves a system prompt out of the messages where there are earlier ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import llm
from llm.parts import AttachmentPart, Message, TextPart


def with_history(
    model: llm.AsyncKeyModel, prompt: str | None, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a prompt, its text included, such that they reach each kind of plugin.

    A text that is at the end of `messages` too is sent once. A system prompt comes before
    `messages`; if there is none, the one that they begin with is also that of the prompt.

    Args:
        model: what is prompted.
        prompt: the text, or None.
        arguments: llm's, for `prompt()` or `chain()`.
    """
    complete = {"prompt": prompt, **arguments}
    if arguments.get("messages") is None:
        return complete
    complete |= _text_apart(prompt, arguments)
    system, fragments = arguments.get("system"), arguments.get("system_fragments")
    if system or fragments:
        complete["messages"] = under_system(model, complete["messages"], system, fragments)
    else:
        complete["system"] = system_of(complete["messages"])
    return complete


def under_system(
    model: llm.AsyncKeyModel,
    messages: Sequence[Message],
    system: str | None,
    fragments: list[Any] | None,
) -> list[Message]:
    """Messages that begin with a system prompt, in place of the one that they began with.

    Args:
        model: what is prompted.
        messages: the messages.
        system: the system prompt, or None.
        fragments: what belongs to it, or None.
    """
    first = llm.Prompt(None, model, system=system, system_fragments=fragments).messages
    replaced = bool(first) and system_of(messages) is not None
    return [*first, *messages[replaced:]]


def answered(turns: Sequence[Any]) -> int:
    """How many turns there are without the last one, if tools that it calls have no results.

    Args:
        turns: the responses of a conversation; those to the results of tools continue a turn.
    """
    count = len(turns)
    if not turns or not turns[-1].tool_calls_or_raise():
        return count
    while count > 1 and turns[count - 1].prompt.tool_results:
        count -= 1
    return count - 1


def _text_apart(prompt: str | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`messages` without the text of the prompt, if they end with it; llm adds it to them."""
    messages = list(arguments["messages"])
    parts = getattr(messages[-1], "parts", ()) if messages else ()
    is_plain = all(isinstance(part, TextPart | AttachmentPart) for part in parts)
    repeated = bool(prompt and parts) and is_plain and messages[-1].role == "user"
    if not repeated or arguments.get("fragments") or _text_of(messages[-1]) != prompt:
        return {"messages": messages}
    attached = [part.attachment for part in parts if isinstance(part, AttachmentPart)]
    attachments = [*attached, *(arguments.get("attachments") or ())]
    return {"messages": messages[:-1], "attachments": attachments}


def system_of(messages: Sequence[Message]) -> str | None:
    # A caller may give anything as messages, which is the plugin's to refuse.
    is_system = bool(messages) and getattr(messages[0], "role", None) == "system"
    return _text_of(messages[0]) if is_system else None


def _text_of(message: Message) -> str:
    return "".join(part.text for part in message.parts if isinstance(part, TextPart))
