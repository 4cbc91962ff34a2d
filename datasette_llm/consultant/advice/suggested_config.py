"""Checked advice as configuration to copy, in the form that Datasette 1.0 reads.

`facets`, `sort`, `sort_desc` and `label_column` go into `datasette.yaml`; descriptions of columns
are metadata and go into `metadata.yaml`, with the unit as part of the description. No setting
hides a column or makes it searchable: the first takes a URL, the second a command that changes the
database.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import yaml

_WIDTH = 10**6  # no line breaks


def datasette_yaml(database: str, table: str, config: Mapping[str, Any]) -> str:
    """The table's part of `datasette.yaml`; empty where nothing is suggested."""
    settings = {
        name: config[name]
        for name in ("facets", "sort", "sort_desc", "label_column")
        if config[name]
    }
    return _nested(database, table, settings)


def metadata_yaml(database: str, table: str, config: Mapping[str, Any]) -> str:
    """The table's part of `metadata.yaml`; empty where no column is described."""
    columns = {each["column"]: _described(each) for each in config["columns"]}
    return _nested(database, table, {"columns": columns} if columns else {})


def search_command(database: str, table: str, config: Mapping[str, Any]) -> str:
    """The command that makes the table searchable; empty where nothing is suggested."""
    columns = config["full_text_columns"]
    if not columns:
        return ""
    # After `--`, since the name of a column may look like an option.
    words = ["sqlite-utils", "enable-fts", "--create-triggers", "--"]
    return shlex.join([*words, f"{database}.db", table, *columns])


def hiding_query(config: Mapping[str, Any]) -> str:
    """The query string of the table's URL that hides columns; empty for none."""
    return urlencode([("_nocol", name) for name in config["hidden_columns"]])


def _described(column: Mapping[str, Any]) -> str:
    unit = f" ({column['unit']})" if column["unit"] else ""
    return f"{column['description']}{unit}"


def _nested(database: str, table: str, settings: Mapping[str, Any]) -> str:
    if not settings:
        return ""
    whole = {"databases": {database: {"tables": {table: dict(settings)}}}}
    return yaml.safe_dump(whole, allow_unicode=True, sort_keys=False, width=_WIDTH)
