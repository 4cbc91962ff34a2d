"""The documentation as pages: the Markdown files of `datasette_llm/docs`.

Links between the files become links between the pages. Anchors are those of GitHub, so that a link
works in both places.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasette import Forbidden, NotFound, Response
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup

from ..permissions import MANAGE
from ..web import READ_METHODS, as_json, method_not_allowed
from .navigation import DOCS, DOCUMENTATION, may_see
from .page import render

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    from ..web import Payload

    View = Callable[[Datasette, Request], Any]

FOLDER = Path(__file__).parents[1] / "docs"
SUBJECTS = (
    "configuration",
    "keys",
    "models",
    "prompting",
    "hooks",
    "structured",
    "console",
    "log",
    "ties",
    "consultant",
    "evaluation",
    "command-line",
    "telemetry",
    "testing",
    "benchmarks",
)

# The comments before examples and around tables are for the tests.
_COMMENT = re.compile(r"^<!--.*-->\n", re.M)
_FILE_LINK = re.compile(r"([a-z-]+)\.md(#.*)?")


@dataclass(frozen=True, slots=True)
class Document:
    """The documentation of one subject.

    Attributes:
        subject: the last part of its address.
        title: its heading.
        summary: its first paragraph, in one line of Markdown.
        markdown: all of it.
    """

    subject: str
    title: str
    summary: str
    markdown: str


@cache
def documents() -> tuple[Document, ...]:
    """The documentation, in order; the files are read at the first call."""
    return tuple(_read(subject) for subject in SUBJECTS)


def _read(subject: str) -> Document:
    markdown = (FOLDER / f"{subject}.md").read_text("utf-8")
    title, _, summary = markdown.split("\n", 3)[:3]
    return Document(subject, title.removeprefix("# "), summary, markdown)


@lru_cache(maxsize=64)
def as_html(markdown: str, root: str) -> str:
    """Markdown as HTML, without any HTML of its own.

    Args:
        markdown: as in the files.
        root: the address of the documentation, `base_url` included.
    """
    parser = _parser()
    tokens = parser.parse(_COMMENT.sub("", markdown))
    _set_anchors(tokens)
    _set_links(tokens, root)
    html: str = parser.renderer.render(tokens, parser.options, {})
    return html


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", _table_close)
    parser.add_render_rule("fence", _fence)
    return parser


def _table_open(*_: object) -> str:
    return '<div class="llm-wide-table"><table class="llm-table">\n'


def _table_close(*_: object) -> str:
    return "</table></div>\n"


def _fence(renderer: RendererHTML, *arguments: Any) -> str:
    """A block of code, which is scrolled by keyboard too where it is wider than the screen."""
    return renderer.fence(*arguments).replace("<pre>", '<pre tabindex="0">', 1)


def _set_anchors(tokens: list[Token]) -> None:
    """Give each heading an id and a link to itself."""
    used: dict[str, int] = {}
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            anchor = unique_slug("".join(each.content for each in inline.children or ()), used)
            opening.attrSet("id", anchor)
            inline.children = [*(inline.children or ()), *_link_to(anchor)]


def _link_to(anchor: str) -> list[Token]:
    space = Token("text", "", 0, content=" ")
    attrs: dict[str, str | int | float] = {
        "href": f"#{anchor}",
        "class": "llm-anchor",
        "aria-label": "Link to this section",
    }
    opening = Token("link_open", "a", 1, attrs=attrs)
    return [space, opening, Token("text", "", 0, content="#"), Token("link_close", "a", -1)]


def unique_slug(heading: str, used: dict[str, int]) -> str:
    """The anchor of a heading, as GitHub makes it.

    Args:
        heading: its text.
        used: how often each slug occurs in the page so far; the heading is added.
    """
    slug = re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-")
    count = used[slug] = used.get(slug, -1) + 1
    return f"{slug}-{count}" if count else slug


def _set_links(tokens: list[Token], root: str) -> None:
    """Let links to other files lead to their pages."""
    for token in tokens:
        for child in token.children or ():
            found = _FILE_LINK.fullmatch(str(child.attrGet("href") or ""))
            if child.type == "link_open" and found:
                child.attrSet("href", f"{root}/{found[1]}{found[2] or ''}")


# The pages


def routes() -> list[tuple[str, View]]:
    """The pages, for Datasette's `register_routes`."""
    subject = rf"^{DOCS}/(?P<subject>[^/]+?)"
    return [
        (f"^{DOCS}$", _checked(_list_page)),
        (rf"^{DOCS}\.json$", _checked(_list_json)),
        (rf"{subject}\.json$", _checked(_subject_json)),
        (f"{subject}$", _checked(_subject_page)),
    ]


def _checked(view: View) -> View:
    async def checked(datasette: Datasette, request: Request) -> Response:
        if not await may_see(datasette, request.actor, DOCUMENTATION):
            raise Forbidden(MANAGE)
        if request.method not in READ_METHODS:
            return method_not_allowed()
        response: Response = await view(datasette, request)
        return response

    return checked


async def _list_page(datasette: Datasette, request: Request) -> Response:
    listed = await _subjects(datasette)
    root = datasette.urls.path(DOCS)
    for each in listed:
        each["html"] = Markup(await asyncio.to_thread(as_html, each["summary"], root))
    return await _page(datasette, request, {"subjects": listed})


async def _list_json(datasette: Datasette, request: Request) -> Response:
    return as_json({"ok": True, "subjects": await _subjects(datasette)})


async def _subject_page(datasette: Datasette, request: Request) -> Response:
    found = await _document(request)
    html = await asyncio.to_thread(as_html, found.markdown, datasette.urls.path(DOCS))
    context = {"document": Markup(html), "subject": found.subject}
    return await _page(datasette, request, context, found.title)


async def _subject_json(datasette: Datasette, request: Request) -> Response:
    found = await _document(request)
    names = ("subject", "title", "markdown")
    return as_json({"ok": True} | {name: getattr(found, name) for name in names})


async def _subjects(datasette: Datasette) -> list[Payload]:
    return [
        {
            "subject": each.subject,
            "title": each.title,
            "summary": each.summary,
            "path": datasette.urls.path(f"{DOCS}/{each.subject}"),
        }
        for each in await asyncio.to_thread(documents)
    ]


async def _document(request: Request) -> Document:
    subject = request.url_vars["subject"]
    for each in await asyncio.to_thread(documents):
        if each.subject == subject:
            return each
    raise NotFound(f"There is no documentation about {subject!r}")


async def _page(
    datasette: Datasette,
    request: Request,
    context: dict[str, Any],
    here: str | None = None,
) -> Response:
    context |= {
        "title": here or DOCUMENTATION.label,
        "payload": {"ok": True},
        "docs_path": datasette.urls.path(DOCS),
    }
    return await render(datasette, request, "llm_console_docs.html", context, path=DOCS, here=here)
