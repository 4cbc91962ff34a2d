"""Finding the object in an answer: where it may stand, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasette_llm.structured.json_extraction import MAX_DEPTH, UnfitError, fitting, pieces

GOOD = '{"name": "Pim", "pets": [{"name": "a}{"}]}'


def named(text: str, plain: Any) -> str:
    """Fits an object with a name."""
    if not isinstance(plain, dict) or "name" not in plain:
        raise UnfitError([f"{text} has no name."])
    return plain["name"]


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        f"\n\n {GOOD}\n",
        f"```json\n{GOOD}\n```",
        f"Here it is:\n```\n{GOOD}\n```\nCan I do more for you?",
        f"Sure {{smile}}, as [you](asked) [1]: {GOOD} Isn't it?",
        f'It is not {{"pet": 1}} but {GOOD}',
        f'It is not {{"pet": 1,}} but {GOOD}',
        f"{GOOD} and once more {GOOD}",
        "\ufeff" + GOOD,
    ],
)
def test_the_object_is_found_wherever_it_stands(answer):
    assert fitting(answer, named) == "Pim"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("", "There is no JSON object"),
        ("I cannot help with that.", "There is no JSON object"),
        ('"name"', "There is no JSON object"),
        (GOOD[:-1], "cut off"),
        (GOOD[:20], "cut off"),
        ('{"name": "Pim", "pets": {"name": "Pam"}', "cut off"),
        (f'[{GOOD}, {{"name": "', "cut off"),
        (f"[{GOOD}]", "has no name"),
        (f'{{"pets": {GOOD}}}', "has no name"),
        (f'{{"pets": {GOOD}, oops}}', "cannot be read"),
        ('{"name": "Pim", "name": "Pam"}', "'name' is there twice"),
        ("{" + "".join(f'"{n}": 0, ' for n in range(100_000)) + '"99999": 0}', "there twice"),
        ('{"name": NaN}', "NaN is not JSON"),
        ('{"name": -Infinity}', "-Infinity is not JSON"),
        ('{"name": 1e999}', "too large"),
        ('{"name": "\\ud800"}', "surrogate"),
        ('{"name": 1' + "0" * 5_000 + "}", "cannot be read"),
        ("{'name': 'Pim'}", "There is no JSON object"),
        ('{"name": "Pim"} or {"name": "Pam"}', "more than one"),
        ('{"name": ' * 60 + "1" + "}" * 60, "nested more than 50"),
        ('{"name": ' * 100_000, "nested more than 50"),
        ("[{" * 100_000, "nested more than 50"),
        ('{"' * 100_000, "nested more than 50"),
        ('{"a": 1} ' * 101, "more than 100 JSON objects"),
        ("{ " * 100_000, "There is no JSON object"),
        ('{"name": "' + "\\" * 100_001, "cut off"),
    ],
    ids=lambda text: text[:40],
)
def test_what_is_not_one_whole_object_is_refused(answer, problem):
    with pytest.raises(UnfitError, match=problem):
        fitting(answer, named)


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("<think>Perhaps {rex}? No.</think>\n{tom}", "Tom"),
        ("<thinking>{rex}</thinking>```json\n{tom}\n```", "Tom"),
        ('<reasoning effort="high">{rex}</reasoning>{tom}', "Tom"),
        ("[THINK]{rex}[/THINK] {tom}", "Tom"),
        ("{rex}? No.</think>{tom}", "Tom"),
        ('<think>First {{"name": ..., then</think>{tom}', "Tom"),
        ('<think>A "quote and {{"</think>{tom}', "Tom"),
        ("<think>One</think><THINK>{rex}</THINK>{tom}", "Tom"),
        ("<think>a <think>{rex}</think> {rex}</think>{tom}", "Tom"),
        ("<think>One</think>{tom}<think>Was it {rex}?</think>", "Tom"),
        ("{tom}\n<think>Was it {rex}?", "Tom"),
        ("<think>Okay. {tom}", "Tom"),
        ("<think>Perhaps {rex}? No.\n\n{tom}\n", "Tom"),
        ('<think>First {{"name": ..., then\n{tom}', "Tom"),
        ("<think></think>\n\n{tom}", "Tom"),
        ("{rex} <think>One</think> two</think>{tom}", "Tom"),
        ("<|START_THINKING|>{rex}<|END_THINKING|><|START_RESPONSE|>{tom}", "Tom"),
        ("<|begin_of_thought|>{rex}<|end_of_thought|>{tom}", "Tom"),
        ("<seed:think>{rex}</seed:think>{tom}", "Tom"),
        ("< think >{rex}</ think >{tom}", "Tom"),
        ("<scratchpad>{rex}</scratchpad><answer>{tom}</answer>", "Tom"),
        (
            "<|channel|>analysis<|message|>{rex}<|end|><|start|>assistant"
            "<|channel|>final<|constrain|>json<|message|>{tom}",
            "Tom",
        ),
        ('{{"name": "<think>Tim</think>"}}', "<think>Tim</think>"),
        ('{{"name": "</think>"}}', "</think>"),
        ('{{"name": "a <think> b"}}', "a <think> b"),
        ('<think>{rex}</think>{{"name": "a </think> b"}}', "a </think> b"),
    ],
)
def test_e6_object_is_found_after_reasoning(answer, name):
    """A draft among the thoughts is not the answer; a tag within the object is part of it."""
    text = answer.format(tom='{"name": "Tom"}', rex='{"name": "Rex"}')
    assert fitting(text, named) == name


@pytest.mark.parametrize(
    "answer",
    [
        '<think>{"name": "Rex"}</think>',
        '<think>{"name": "Rex"}</think>Sorry.',
        '<think>Perhaps {"name": "Rex"}? No, I will',
        'Perhaps {"name": "Rex"}</think>',
    ],
)
def test_e6_a_thought_is_not_the_answer(answer):
    with pytest.raises(UnfitError, match="There is no JSON object"):
        fitting(answer, named)


@pytest.mark.parametrize(
    "prose",
    [
        'I will write {"name": ..., and then the kind.\n',
        'The form is {"name": "…", and so on:\n```json\n',
        'Perhaps {"name": "Rex"}? No:\n',
    ],
)
def test_e6_object_is_found_after_prose(prose):
    assert fitting(prose + '{\n  "name": "Tom",\n  "pets": [\n{}]\n}\n```', named) == "Tom"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ('Options:\n{"name": "Rex"}\n{"name": "Tom"}', "more than one"),
        ('Perhaps {"name": "Rex"}? Or {"name": "Tom"}', "more than one"),
        ('{"name": "A", "pets": [\n{"name": "B"}', "cut off"),
        ('Sure:\n{"name": "A", "pets": [\n{"name": "B"}', "cut off"),
        ('```json\n[\n{"name": "B"}', "cut off"),
    ],
)
def test_e6_what_is_unclear_is_refused(answer, problem):
    with pytest.raises(UnfitError, match=problem):
        fitting(answer, named)


def test_problems_are_those_of_the_longest_piece():
    with pytest.raises(UnfitError) as caught:
        fitting('{"a": 1} {"the answer": "that was meant"} {"b": 2}', named)
    assert caught.value.problems == ('{"the answer": "that was meant"} has no name.',)


def test_an_object_may_be_as_deep_as_the_bound():
    answer = '{"name": ' + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1) + "}"

    assert fitting(answer, named) is not None


def test_not_more_than_twenty_problems_are_told():
    error = UnfitError([str(n) for n in range(50)])

    assert len(error.problems) == 21
    assert error.problems[-1] == "And 30 more."


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(), parts, max_size=4),
    max_leaves=20,
)


@settings(max_examples=30)
@given(
    value=st.dictionaries(st.text(), JSON), spaces=st.sampled_from([None, 2]), escaped=st.booleans()
)
def test_any_object_is_found_in_prose(value, spaces, escaped):
    text = json.dumps(value, indent=spaces, ensure_ascii=escaped)

    assert fitting(f"Well: {text}, there.", lambda _, plain: plain) == value


@settings(max_examples=50)
@given(text=st.text(alphabet='{}[]":,\\ a1\n', max_size=60))
def test_pieces_of_any_text_never_overlap_and_end(text):
    try:
        found = list(pieces(text))
    except UnfitError:
        return
    assert sum(map(len, found)) <= len(text)
