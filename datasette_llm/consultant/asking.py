"""What somebody wants to know about a table, and what a model is sent for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..state import state_of
from ..structured import prompt_text
from .advice import TableFacts
from .profile import make_profile
from .prompting import Prompts
from .types import DATASET_ANALYSIS, ConsultationType

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..models import WrappedAsyncModel


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody wants to know.

    Attributes:
        database: the name of the database.
        table: the name of the table or view.
        model_id: an id or alias; None for the default.
        question: what they want to know in particular, or None.
        exclude: the columns to leave out of the profile.
        kind: the type of consultation.
    """

    database: str
    table: str
    model_id: str | None = None
    question: str | None = None
    exclude: tuple[str, ...] = ()
    kind: ConsultationType = DATASET_ANALYSIS


async def profile_of(datasette: Datasette, asked: Asked) -> dict[str, Any]:
    """The profile of a table, by the configuration's rules.

    Raises:
        LLMError: the table is gone.
    """
    settings = (await state_of(datasette).settings(datasette)).consultant
    return await make_profile(
        datasette, asked.database, asked.table, exclude=asked.exclude, settings=settings
    )


def sent_prompts(
    asked: Asked, profile: Mapping[str, Any], model: WrappedAsyncModel | None
) -> Prompts:
    """What a model is sent, to the letter; it depends on whether the model takes schemas."""
    prompts = asked.kind.prompts(profile, asked.question)
    if model is None:
        return prompts
    return Prompts(prompts.system, prompt_text(model, prompts.user, asked.kind.schema) or "")


async def table_facts(datasette: Datasette, database: str, table: str) -> TableFacts:
    """What advice about a table is held against."""
    db = datasette.get_database(database)
    sortable = (await datasette.table_config(database, table)).get("sortable_columns")
    return TableFacts(
        columns=tuple(await db.table_columns(table)),
        primary_keys=tuple(await db.primary_keys(table)),
        sortable=None if sortable is None else frozenset(sortable),
        is_view=bool(await db.view_exists(table)),
    )
