"""`datasette llm …`: what the console's pages do, in a terminal, by the same functions."""

from __future__ import annotations

import click

from ..consultant.cli import analyze_command
from .demo import demo_command
from .model_cli import explain_command, models_command
from .purposes_cli import assign_command, purposes_command
from .trial_cli import test_command

COMMANDS: tuple[click.Command, ...] = (
    models_command,
    purposes_command,
    explain_command,
    test_command,
    assign_command,
    analyze_command,
    demo_command,
)
