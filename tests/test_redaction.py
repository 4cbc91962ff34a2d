"""Keys are taken out of texts, however they are spelled and wherever the text was cut."""

from __future__ import annotations

import base64
import json
import urllib.parse

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasette_llm.redaction import (
    REDACTED,
    cut,
    redact,
    shortened,
    spellings,
    without_key,
    without_keys,
)
from datasette_llm.sanitize import as_json, brief

KEY = "sk-" + "0a1B2c3D4e5F6g7H8"
ODD = 'sk/"0?>\\1+2~345=é'
KEYS = [KEY, ODD, "secret", "pass word?>~~~"]
# A shorter part of a key may be left.
LEAST = 6


def coded(way, text):
    return way(text.encode()).decode()


WAYS = {
    "hex": lambda key: key.encode().hex(),
    "upper hex": lambda key: key.encode().hex().upper(),
    "base64": lambda key: coded(base64.b64encode, key),
    "Basic": lambda key: coded(base64.b64encode, f"user:{key}"),
    "Basic, another name": lambda key: coded(base64.b64encode, f"users:{key}"),
    "Basic, a key for a user": lambda key: coded(base64.b64encode, f"{key}:"),
    "base64 of JSON": lambda key: coded(base64.b64encode, f'{{"a": "{key}", "b": 1}}'),
    "URL-safe base64": lambda key: coded(base64.urlsafe_b64encode, f"user:{key}"),
    "base64 in a URL": lambda key: urllib.parse.quote(coded(base64.b64encode, f"u:{key}"), safe=""),
    "JSON of PHP": lambda key: key.replace("/", "\\/"),
    "a URL": lambda key: urllib.parse.quote(key, safe=""),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("key", KEYS)
def test_s4_key_is_found_in_other_spellings(key, way):
    written = WAYS[way](key)

    clean = without_key(f"before ({written}) after", key)
    error = redact(ValueError(f"({written})", f"({written})".encode()), key)

    assert clean.count(REDACTED) == 1
    assert clean.startswith("before (")
    assert clean.endswith(") after")
    for text in (clean, repr(error)):
        assert written not in text
        assert key not in text


@given(st.text(max_size=9), st.text(max_size=9), st.sampled_from(KEYS))
def test_s4_base64_of_anything_around_a_key(before, after, key):
    raw = f"{before}{key}{after}".encode("utf-8", "surrogatepass")
    clean = without_key(base64.b64encode(raw).decode(), key)
    assert REDACTED in clean
    # The characters at its ends depend on what is beside it, too.
    at = len(before.encode("utf-8", "surrogatepass"))
    decoded = base64.b64encode(raw).decode()
    whole = decoded[-(at * 8 // -6) : (at + len(key.encode())) * 8 // 6]
    assert whole not in clean


def test_s4_basic_header_of_a_proxy_is_clean():
    credentials = coded(base64.b64encode, f"user:{KEY}")
    request = httpx2.Request(
        "GET", "http://127.0.0.1/", headers={"Proxy-Authorization": f"Basic {credentials}"}
    )
    redact(httpx2.ConnectError("refused", request=request), KEY)

    assert credentials[8:-4] not in request.headers["proxy-authorization"]


@pytest.mark.parametrize("key", KEYS)
def test_s4_ordinary_texts_stay_as_they_are(key):
    text = "\n".join(
        [
            "The secre… ry, a pass..., sk-..., U2Vj.",
            json.dumps({"sha256": "0" * 64, "data": base64.b64encode(bytes(range(256))).decode()}),
            "the user:password of https://example.com/a%20b?c=d+e",
        ]
    )
    if key == "secret":
        text = text.replace("secre… ry", "secr… ry")
    assert without_key(text, key) is text


# Cutting


def parts_of(key):
    """The parts of a key, in any spelling, that no text may show."""
    return {
        form[n : n + LEAST] for form in spellings(key) for n in range(max(1, len(form) - LEAST + 1))
    }


def shown(text, key):
    return sorted(part for part in parts_of(key) if part in text.replace(REDACTED, ""))


@pytest.mark.parametrize("key", KEYS)
def test_s4_no_cut_leaves_a_part_of_a_key(key):
    for form in spellings(key):
        text = f"Bad key {form}, not allowed"
        for longest in range(1, len(text) + 2):
            clean = shortened(text, key, longest)
            assert len(clean) <= longest
            assert without_key(text, key).startswith(clean)
            assert not shown(clean, key), (form, longest)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("cutting", [cut, lambda text, longest: text[:longest] + "..."])
def test_s4_half_a_key_beside_a_mark_is_removed(key, cutting):
    for form in spellings(key):
        text = f"Bad key {form}, not allowed"
        for longest in range(1, len(text) + 2):
            clean = without_key(f"{cutting(text, longest)}. Set another", key)
            assert clean.endswith(". Set another")
            assert not shown(clean, key), (form, longest)
            # As pydantic does in the middle of a value.
            clean = without_key(f"…{text[longest:]}", key)
            assert not shown(clean, key), (form, longest)


@given(
    st.lists(st.sampled_from([KEY, "team", "team-production", "teamteam", " and ", "x"])),
    st.integers(1, 80),
)
def test_s4_cutting_is_as_after_removing(pieces, longest):
    """Also with keys that contain one another, or stand side by side."""
    keys = frozenset({KEY, "team-production", "teamteam"})
    text = "".join(pieces)
    assert without_keys(text, keys).startswith(shortened(text, keys, longest))


@pytest.mark.parametrize("longest", [0, 1, 1_999, 2_000])
def test_s4_cutting_ends_for_keys_of_one_letter(longest):
    assert shortened("a" * 200_000, "a" * 50, longest) == ""


def test_text_without_a_key_is_cut_as_it_is():
    assert shortened("a text", None, 3) == "a t"
    assert shortened("a text", KEY, 3) == "a t"
    assert (cut("a text", 6), cut("a text", 5)) == ("a text", "a te…")


@pytest.mark.parametrize("at", range(1_950, 2_005))
def test_s4_brief_leaves_no_part_of_a_key(at):
    text = "x" * at + KEY + " is bad"
    assert not shown(brief(text, KEY), KEY)
    assert not shown(as_json({"a": [text]}, KEY, 2_000), KEY)


def test_s4_only_what_is_kept_is_searched():
    class Text(str):
        __slots__ = ()

        def replace(self, *args):
            raise AssertionError("the whole text was searched")

    assert shortened(Text(f"{KEY} " * 10), KEY, 30).startswith(REDACTED)
