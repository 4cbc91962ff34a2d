"""The outline of a schema, by which an answer is kept or not."""

import pytest

from datasette_llm.structured import Outline


@pytest.mark.parametrize(
    ("schema", "fitting", "unfit"),
    [
        (
            {"type": "object", "required": ["a"]},
            ['{"a": 1}', ' {"a": null, "b": 2}\n'],
            ["{}", "1"],
        ),
        ({"type": "array"}, ["[]", "[1]"], ["{}", '"[]"', "null"]),
        ({"type": ["object", "null"]}, ["{}", "null"], ["[]"]),
        ({"type": "string"}, ['"a"', "1"], ["{}", "a"]),
        ({"$ref": "#/$defs/a"}, ["{}", "[]", "1"], ["", "{", "{} and more", '{"a": NaN}']),
        ({"required": ["a", 1], "type": 3}, ['{"a": 1}', "[]"], ["{}"]),
        ({"type": "object", "required": "a"}, ["{}"], ["[" * 10**5]),
        (None, ["{}", "1"], ["```json\n{}\n```"]),
    ],
    ids=str,
)
def test_outline_is_of_the_outermost_value(schema, fitting, unfit):
    outline = Outline.of(schema)
    assert all(map(outline.fits, fitting))
    assert not any(map(outline.fits, unfit))
