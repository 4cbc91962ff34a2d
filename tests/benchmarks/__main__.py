"""Measure what datasette-llm costs, beside llm without it, and print a table."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        stand_alone(folder)
        # Here, since llm and Datasette read the environment at import; these add the rows.
        from . import (  # noqa: F401
            cache_rows,
            concurrency,
            console_rows,
            evaluation_call_rows,
            evaluation_rows,
            growth,
            log_pages_rows,
            log_rows,
            profile_rows,
            usage_rows,
            wire_rows,
        )
        from .measuring import Row
        from .printing import as_json, report
        from .rows import ROWS, settle

        arguments = _parser(list(ROWS)).parse_args()
        settle()
        names = arguments.only or list(ROWS)
        results = [asyncio.run(ROWS[name](arguments.quick)) for name in names]
    print(report(results))
    if arguments.json:
        text = json.dumps(as_json(results, arguments.quick), indent=2, ensure_ascii=False)
        arguments.json.write_text(text + "\n", "utf-8")
    missed = [each for each in results if isinstance(each, Row) and not each.within]
    return 1 if arguments.check and missed else 0


def stand_alone(llm_folder: str) -> None:
    """Measure neither the plugins nor the keys that happen to be installed."""
    for name in list(os.environ):
        if name.startswith("DATASETTE_SECRETS_"):
            del os.environ[name]
    os.environ["LLM_USER_PATH"] = llm_folder
    os.environ["NO_PROXY"] = "127.0.0.1"
    os.environ["LLM_LOAD_PLUGINS"] = ""
    os.environ["DATASETTE_LOAD_PLUGINS"] = "datasette-llm,datasette-secrets"


def _parser(names: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument(
        "--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds, rougher figures")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
