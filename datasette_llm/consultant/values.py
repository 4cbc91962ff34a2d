"""How a value of a cell is shown."""

from __future__ import annotations

import math
from typing import Any

SHOWN_CHARS = 80
CUT_MARK = "…"


def shown(value: Any) -> Any:
    """A value of a cell as JSON has it: a long text cut, with a mark, and infinity as text.

    Args:
        value: None, a number or a text; of a long one no more than the first of its characters
            that are not shown needs to be there.
    """
    if isinstance(value, str) and len(value) > SHOWN_CHARS:
        return value[:SHOWN_CHARS] + CUT_MARK
    if isinstance(value, float) and not math.isfinite(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value
