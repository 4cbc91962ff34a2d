"""The text of a model as HTML: Markdown without HTML of its own, and without images."""

from __future__ import annotations

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

# Below the headings of our pages.
_LEVELS_DOWN = 3
_LAST_LEVEL = 6
# A browser asks for an image as soon as it is shown, which would tell its server who reads.
_PARSER = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")


def as_html(text: str) -> Markup:
    """A text of several paragraphs; slow for a long one: call it in a thread.

    Args:
        text: by a model.
    """
    return _rendered(_PARSER.parse(text))


def as_inline_html(text: str) -> Markup:
    """A sentence, whose line breaks begin no paragraph."""
    return _rendered(_PARSER.parseInline(text))


def names_as_code(sentence: str) -> Markup:
    """A sentence of ours, whose names of columns and tables are between backticks."""
    parts = sentence.split("`")
    if len(parts) % 2 == 0:  # a name has a backtick
        return escape(sentence)
    code = Markup('<code class="llm-text">{}</code>')
    return Markup("").join(
        code.format(part) if at % 2 else escape(part) for at, part in enumerate(parts)
    )


def _rendered(tokens: list[Token]) -> Markup:
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            level = min(int(token.tag[1:]) + _LEVELS_DOWN, _LAST_LEVEL)
            token.tag = f"h{level}"
        for child in token.children or ():
            if child.type == "link_open":
                child.attrSet("rel", "nofollow noopener noreferrer")
    return Markup(_PARSER.renderer.render(tokens, _PARSER.options, {}))
