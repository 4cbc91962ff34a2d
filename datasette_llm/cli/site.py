"""Shared by the commands: the site whose configuration they use, output and errors."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pydantic
from datasette.app import Datasette
from datasette.utils import BadMetadataError, StartupError, parse_metadata
from datasette.utils.internal_db import init_internal_db

from .terminal import echo_json

_OPTIONS = (
    click.option(
        "-c",
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="The datasette.yaml (or .json) to use",
    ),
    click.option(
        "--internal",
        type=click.Path(dir_okay=False),
        help="Datasette's internal database, with its secrets",
    ),
    click.option(
        "--plugins-dir",
        type=click.Path(exists=True, file_okay=False),
        help="The folder with the site's own plugins",
    ),
)


class DetachedDatasette(Datasette):
    """Datasette on the internal database of a site that may be running.

    It lacks the site's databases, and maybe its configuration. Its startup would remove the site's
    entries about them: tables and configured queries. Datasette has no public way to skip that,
    so private methods are overridden.
    """

    async def _refresh_schemas(self) -> None:
        await init_internal_db(self.get_internal_database())
        self.internal_db_created = True

    async def _save_queries_from_config(self) -> None:
        pass

    async def _apply_column_types_config(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Site:
    """The site that a command uses.

    Attributes:
        config: its datasette.yaml or .json; None for no configuration.
        internal: its internal database; None for a temporary one.
        plugins_dir: the folder with its own plugins, or None.
    """

    config: Path | None = None
    internal: str | None = None
    plugins_dir: str | None = None

    @asynccontextmanager
    async def started(self, *files: str) -> AsyncIterator[Datasette]:
        """The site's Datasette, without a server, from its startup to its shutdown.

        Args:
            *files: further databases.
        """
        datasette = self._datasette(files)
        await datasette.invoke_startup()
        try:
            yield datasette
        finally:
            await datasette.invoke_shutdown()

    def _datasette(self, files: tuple[str, ...]) -> Datasette:
        try:
            return (DetachedDatasette if self.internal else Datasette)(
                files,
                memory=True,
                config=self._settings(),
                internal=self.internal,
                plugins_dir=self.plugins_dir,
            )
        except (OSError, ValueError, StartupError, BadMetadataError) as error:
            message = f"{self.config or self.internal} cannot be used: {error}"
            raise click.ClickException(message) from None
        except Exception as error:
            # A plugin of the site failed to import.
            raise click.ClickException(
                f"A plugin in {self.plugins_dir} cannot be loaded: {type(error).__name__}: {error}"
            ) from None

    def _settings(self) -> dict[str, Any]:
        settings = (parse_metadata(self.config.read_text("utf-8")) or {}) if self.config else {}
        if not isinstance(settings, dict):
            raise ValueError("it holds no settings, which are a mapping")
        for name in ("plugins", "settings", "databases"):
            if not isinstance(settings.get(name), dict | None):
                raise ValueError(f"{name} is not a mapping")
        return settings


def site_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that name a site; the command gets them as `site`."""

    @functools.wraps(command)
    def with_site(
        config: Path | None, internal: str | None, plugins_dir: str | None, **arguments: Any
    ) -> None:
        command(site=Site(config, internal, plugins_dir), **arguments)

    for option in reversed(_OPTIONS):
        option(with_site)
    return with_site


def as_json(payload: dict[str, Any]) -> None:
    """Print a payload as JSON; exit with 1 if it is not ok."""
    echo_json(payload, indent=2)
    if not payload["ok"]:
        raise click.exceptions.Exit(1)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a command; errors become a message on standard error and an exit status."""
    try:
        asyncio.run(work)
    except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
        raise  # click handles these, BrokenPipeError when the reader of our output has gone
    except StartupError as error:
        raise click.ClickException(str(error)) from None
    except pydantic.ValidationError as error:
        problems = error.errors(include_input=False, include_url=False)
        raise click.ClickException(
            "; ".join(f"option {'.'.join(map(str, p['loc']))}: {p['msg']}" for p in problems)
        ) from None
    except Exception as error:
        # Third-party code: a hook, a provider, an option's validator.
        message = " ".join(str(error).split()) or type(error).__name__
        raise click.ClickException(message) from None
