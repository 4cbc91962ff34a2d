"""What is suggested by rule: by what columns hold, and how they are named."""

from __future__ import annotations

from contextlib import closing

from . import tables
from .test_find import found_in


def test_a1_configuration_follows_the_values():
    with closing(tables.gapminder()) as connection:
        config = found_in(connection, "gapminder").config
    assert config["facets"] == ["continent", "year"]
    assert config["label_column"] is None
    with closing(tables.games()) as connection:
        config = found_in(connection, "games").config
    assert (config["label_column"], config["full_text_columns"]) == ("title", ["title"])
    assert config["facets"] == []
    with closing(tables.weather()) as connection:
        config = found_in(connection, "weather").config
    assert config["sort_desc"] == "day"


def test_a1_a_view_has_no_label():
    with closing(tables.games()) as connection:
        connection.execute("create view v as select * from games")
        config = found_in(connection, "v").config
    assert (config["label_column"], config["full_text_columns"]) == (None, [])
