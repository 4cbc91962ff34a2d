"""What the commands print: the only place where text goes out to a terminal.

Answers, errors and names are untrusted, and a terminal obeys escape sequences.
"""

from __future__ import annotations

import io
import json
import logging
import sys
from typing import Any

import click

from ..sanitize import without_controls


def echo(text: str = "", *, nl: bool = True, err: bool = False) -> None:
    """Print text, without control characters other than newline and tab.

    Each character is judged by itself, so a text may come in pieces.
    """
    click.echo(without_controls(text), nl=nl, err=err)


def echo_json(payload: object, *, indent: int | None = None) -> None:
    """Print JSON, with every control character escaped."""
    # The only one that JSON leaves as it is.
    echo(json.dumps(payload, indent=indent).replace("\x7f", "\\u007f"))


def printable(text: str) -> str:
    """Text on one line, without control characters of terminals."""
    if text.isprintable():
        return text
    visible = (c if c.isprintable() or c.isspace() else "\ufffd" for c in text)
    return " ".join("".join(visible).split())


class Commands(click.Group):
    """A group whose errors and log messages are printed as `echo` prints."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        if logging.lastResort is not None:
            logging.lastResort.setFormatter(_Formatter())
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # For characters that the terminal's encoding lacks.
                stream.reconfigure(errors="replace")
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            error.message = without_controls(error.message)  # type: ignore[misc]  # printed later
            raise


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return without_controls(super().format(record))
