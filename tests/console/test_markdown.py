"""A model's text as HTML: Markdown that loads nothing, runs nothing and has no HTML of its own."""

from __future__ import annotations

import pytest

from datasette_llm.console.markdown import as_html, as_inline_html, names_as_code

from ..support.console import HOSTILE, Page, assert_harmless


@pytest.mark.parametrize(
    "text",
    [
        HOSTILE,
        "<script>alert(1)</script>",
        "[x](javascript:alert(1)) [y](JaVaScRiPt&colon;alert(1)) [z](data:text/html,x)",
        "![tracks](https://example.com/x.png)",
        "![a][b]\n\n[b]: https://example.com/x.png",
        "<https://example.com/?<img src=x>>",
        '[a](<https://example.com/" onclick="x> \'title" onfocus="y\')',
        "```\n</code><img src=x>\n```",
        "| a |\n| - |\n| <img src=x> |",
    ],
)
def test_a8_hostile_markdown_is_harmless(text):
    for html in (as_html(text), as_inline_html(text)):
        page = Page(str(html))
        assert_harmless(page)
        assert not page.all("script")
        for link in page.links():
            assert link.startswith("https://example.com"), link
        for link in page.all("a"):
            assert link["rel"] == "nofollow noopener noreferrer"


def test_a8_markdown_is_rendered():
    html = as_html("# Title\n\nSome **bold** text\n\n1. one\n2. two\n\n| a |\n| - |\n| 1 |")
    for tag in ("<h4>Title</h4>", "<strong>bold</strong>", "<li>one</li>", "<td>1</td>"):
        assert tag in html
    assert as_inline_html("*one*\n\n# two").count("<p>") == 0


def test_names_in_our_sentences_are_code():
    assert names_as_code("`a<b` is & `c`") == (
        '<code class="llm-text">a&lt;b</code> is &amp; <code class="llm-text">c</code>'
    )
    assert names_as_code("`a`b` is <x>") == "`a`b` is &lt;x&gt;"
