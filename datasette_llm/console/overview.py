"""The overview page: warnings, and counts of models and purposes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from .. import instance
from ..access.config_warnings import StartupCheck, warnings
from ..access.hook_failures import HookFailures
from ..access.keys import read_status
from ..access.policy import has_key
from ..access.quoting import quoted
from ..access.snapshot import snapshot_of
from .call_policies import has_limits, queues
from .choices import purpose_names
from .log.payloads import log_status

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request


async def overview(datasette: Datasette, request: Request) -> dict[str, Any]:
    """Warnings about the configuration and the call log, and counts of models and purposes."""
    snapshot = await snapshot_of(datasette)
    rules = snapshot.for_purpose(None).rules
    status = await read_status(datasette)
    entries = snapshot.catalog.entries.values()
    permitted = [entry for entry in entries if rules.permits(entry.model_id)]
    purposes, _ = await purpose_names(datasette, snapshot)  # its problem is a hook's failure
    log = await log_status(datasette)
    default = snapshot.for_purpose(None).default()
    check = instance.of(datasette, StartupCheck)
    # Again, for llm may know more or fewer models than at the start.
    found = (
        [check.failure, *snapshot.catalog.problems]
        if check.failure
        else await asyncio.to_thread(warnings, snapshot.settings, snapshot.catalog)
    )
    hooks = instance.of(datasette, HookFailures).warnings()
    return {
        "ok": True,
        "default_model": default.model_id if default is not None else None,
        "models": {
            "known": len(snapshot.catalog.entries),
            "allowed": len(permitted),
            "allowed_with_key": sum(has_key(entry, rules, status) for entry in permitted),
        },
        "purposes": len(purposes),
        "assignments": {
            "count": len(snapshot.assigned),
            "last_until_restart": datasette.get_internal_database().is_temp_disk,
        },
        "limited": has_limits(snapshot.settings),
        "queues": queues(datasette),
        "record": {name: log[name] for name in ("recording", "content_recorded")},
        "warnings": [
            *found,
            *[await quoted(datasette, failure) for failure in hooks],
            *log["warnings"],
        ],
    }
