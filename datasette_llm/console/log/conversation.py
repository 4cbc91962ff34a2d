"""The recorded content of a call as people read it: messages, with each tool beside its result."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from markupsafe import Markup

from ..formatting import counted
from ..markdown import as_html

# Of a page, and of one text; the newest texts of a page come first.
MAX_PAGE_CHARS = 200_000
MAX_TEXT_CHARS = 20_000
# Of a text for which the page has no room.
MIN_TEXT_CHARS = 300
# Of the newest ones; the earlier ones are in the JSON.
MAX_MESSAGES = 200

ROLES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


class Source(NamedTuple):
    """Recorded messages of a call.

    Attributes:
        call_id: the call.
        messages: as they are recorded.
        parts_before: how many parts the call has before these messages.
    """

    call_id: str
    messages: Sequence[Any]
    parts_before: int = 0


@dataclass(slots=True)
class Passage:
    """A text of a message.

    Attributes:
        call_id: the call.
        number: the place of its part among all of the call, from 1.
        text: what is shown of it.
        left_out: how many characters are not.
        html: the same as HTML, where it may be Markdown.
    """

    call_id: str
    number: int
    text: str
    left_out: int = 0
    html: Markup | None = None


@dataclass(slots=True)
class Block:
    """A part of a message.

    Attributes:
        kind: `text`, `reasoning`, `tool`, `result`, `attachment` or `other`.
        label: the name of the tool, or what is attached.
        passage: the text; None where there is none.
        attachments: what is attached to a result.
        error: what the tool raised, or None.
        result: what came of a tool; None for other parts, and where nothing did.
    """

    kind: str
    label: str = ""
    passage: Passage | None = None
    attachments: Sequence[str] = ()
    error: str | None = None
    result: Block | None = None


@dataclass(slots=True)
class Message:
    """A message, as it is shown.

    Attributes:
        call_id: the call.
        number: its place on the page, from 1.
        role: who speaks, as the provider has it.
        blocks: its parts.
    """

    call_id: str
    number: int
    role: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def speaker(self) -> str:
        """Who speaks, for people to read."""
        return ROLES.get(self.role, self.role)

    @property
    def text(self) -> str:
        """What is copied: the texts that are shown, tools included."""
        return "\n\n".join(each.text for each in self.passages())

    @property
    def is_whole(self) -> bool:
        """Whether nothing of it is left out."""
        return not any(each.left_out for each in self.passages())

    def passages(self) -> Iterator[Passage]:
        """Its texts, in order."""
        for block in self.blocks:
            for each in (block, block.result):
                if each is not None and each.passage is not None:
                    yield each.passage


def messages_of(content: Mapping[str, Any] | None) -> list[Any]:
    """The messages of a call's request and response as they are recorded, in order.

    Args:
        content: its recorded content by part, of any shape.
    """
    found: list[Any] = []
    for part in ("request", "response"):
        recorded = (content or {}).get(part)
        messages = recorded.get("messages") if isinstance(recorded, dict) else None
        found += messages if isinstance(messages, list) else []
    return found


def count_parts(messages: Sequence[Any]) -> int:
    """How many parts recorded messages have."""
    return sum(1 for _ in _numbered(messages))


def text_at(messages: Sequence[Any], number: int) -> str | None:
    """The whole text of a part, by its `Passage.number`; None if there is no such part."""
    part = next(itertools.islice(_numbered(messages), max(0, number - 1), None), None)
    return None if part is None or number < 1 else _text_of(part[1])


def shown(sources: Iterable[Source], budget: int = MAX_PAGE_CHARS) -> list[Message]:
    """Recorded messages as they are shown, each tool with its result, of whichever call.

    It is slow for long ones: call it in a thread.

    Args:
        sources: the messages of calls, in order.
        budget: how many characters may be shown, without the least that is shown of each text.
    """
    called: dict[tuple[bool, str], list[Block]] = {}
    made = [each for source in sources for each in _messages(source, called) if each.blocks]
    made = made[-MAX_MESSAGES:]
    for number, message in enumerate(made, 1):
        message.number = number
    for message in reversed(made):
        for passage in reversed(list(message.passages())):
            budget -= _cut(passage, max(MIN_TEXT_CHARS, min(MAX_TEXT_CHARS, budget)))
        for block in message.blocks:
            if block.kind == "text" and block.passage is not None:
                block.passage.html = as_html(block.passage.text)
    return made


def _messages(source: Source, called: dict[tuple[bool, str], list[Block]]) -> list[Message]:
    """The messages of a call; results go to the tools that were called, as far as there are any."""
    made = [Message(source.call_id, 0, _role(each)) for each in source.messages]
    for number, (at, part) in enumerate(_numbered(source.messages), source.parts_before + 1):
        block = _block(Passage(source.call_id, number, _shown_text(_text_of(part))), part)
        waiting = called.setdefault(_tool_key(part, block), [])
        if block.kind == "result" and waiting:
            waiting.pop(0).result = block
            continue
        made[at].blocks.append(block)
        if block.kind == "tool":
            waiting.append(block)
    return made


def _tool_key(part: Any, block: Block) -> tuple[bool, str]:
    """What a tool's call and its result have in common: the id, or without one the name."""
    call_id = part.get("tool_call_id") if isinstance(part, dict) else None
    return (call_id is not None, block.label if call_id is None else str(call_id))


def _numbered(messages: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """The parts of messages in order, each with the index of its message."""
    for at, message in enumerate(messages):
        parts = message.get("parts") if isinstance(message, dict) else None
        for part in parts if isinstance(parts, list) else [message]:
            yield at, part


def _role(message: Any) -> str:
    role = message.get("role") if isinstance(message, dict) else None
    return role if isinstance(role, str) and role else "unknown"


def _block(passage: Passage, part: Any) -> Block:
    fields = part if isinstance(part, dict) else {}
    match fields.get("type"):
        case "tool_call":
            return Block("tool", str(fields.get("name") or ""), passage)
        case "tool_result":
            attachments = [_attachment(each) for each in _list(fields.get("attachments"))]
            error = fields.get("exception")
            failed = None if error is None else str(error)
            return Block("result", str(fields.get("name") or ""), passage, attachments, failed)
        case "attachment":
            return Block("attachment", _attachment(fields.get("attachment")))
        case "reasoning":
            return Block("reasoning", "", passage if passage.text else None)
        case "text" | None if isinstance(fields.get("text"), str):
            return Block("text", "", passage)
    return Block("other", "", passage)


def as_text(value: Any) -> str:
    """A value of JSON as text, indented unless it is nested too deep for that."""
    for indent in (2, None):
        try:
            return json.dumps(value, indent=indent, ensure_ascii=False)
        except RecursionError:
            continue
    return "(nested too deep to be shown)"


def _text_of(part: Any) -> str:
    """The text of a part as it is recorded; of a tool's call its arguments."""
    fields = part if isinstance(part, dict) else {}
    names = {"tool_call": "arguments", "tool_result": "output", None: "text"}
    kind = fields.get("type")
    text = fields.get(names.get(kind, "text") if isinstance(kind, str | None) else "text", part)
    return text if isinstance(text, str) else as_text(text)


def _shown_text(text: str) -> str:
    """A text for people; of JSON in one line, as tools return, one that is indented."""
    if not text.startswith(("{", "[")) or len(text) > MAX_TEXT_CHARS:
        return text
    try:
        return as_text(json.loads(text))
    except (ValueError, RecursionError):
        return text


def _attachment(attachment: Any) -> str:
    """What is attached: its type, its size and where it is."""
    fields = attachment if isinstance(attachment, dict) else {}
    kind = str(fields.get("type") or "attachment")
    number = fields.get("bytes")
    sized = f", {counted(number, 'byte')}" if isinstance(number, int) else ""
    where = fields.get("url") or fields.get("path")
    return f"{kind}{sized}" + (f", {where}" if where else "")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _cut(passage: Passage, most: int) -> int:
    """Cut a text to so many characters; how many are left of it."""
    passage.left_out = max(0, len(passage.text) - most)
    passage.text = passage.text[:most]
    return len(passage.text)
