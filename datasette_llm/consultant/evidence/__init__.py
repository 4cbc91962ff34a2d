"""Evidence: what to count in a table to see whether a claim about it is true, as data.

We write the SQL from it, with quoted names; no text of anyone else is ever run.
"""

from .kinds import (
    MAX_TOP,
    Aggregate,
    AnyOf,
    ClaimEvidence,
    Condition,
    Duplicates,
    Evidence,
    Opinion,
    Orphans,
    Pattern,
    Rows,
    Scalar,
    Top,
    columns_of,
    conditions_of,
    problem_of,
)
from .sql import count, evidence_sql, prepare, shown_sql, top
from .words import in_words

__all__ = [
    "MAX_TOP",
    "Aggregate",
    "AnyOf",
    "ClaimEvidence",
    "Condition",
    "Duplicates",
    "Evidence",
    "Opinion",
    "Orphans",
    "Pattern",
    "Rows",
    "Scalar",
    "Top",
    "columns_of",
    "conditions_of",
    "count",
    "evidence_sql",
    "in_words",
    "prepare",
    "problem_of",
    "shown_sql",
    "top",
]
