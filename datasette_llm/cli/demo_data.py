"""Example data: a year in a small harbour, reproducible, with errors as in real tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import sqlite_utils

T = TypeVar("T")
Row = dict[str, Any]

_SEED = 1879
_ARRIVALS = 420
_BEGIN = datetime(2025, 1, 1, 5)
BERTHS = (
    ("North Quay 1", 9.5, 180),
    ("North Quay 2", 9.5, 180),
    ("Fish Quay", 5.2, 60),
    ("Timber Wharf", 7.8, 140),
    ("Tank Jetty", 11.0, 220),
    ("Ferry Steps", 6.0, 110),
)
# For each cargo, its berths and the maximum in tonnes.
_CARGOES = {
    "containers": ((1, 2), 9000),
    "fish": ((3,), 180),
    "timber": ((4, 2), 5200),
    "fuel": ((5,), 14000),
    "grain": ((1, 4), 7500),
    "passengers": ((6,), 0),
}
_FLAGS = ("Norway", "Iceland", "Denmark", "Netherlands", "Panama", "Malta")
# fmt: off
SHIPS = (
    "Aurora", "Havørn", "Kittiwake", "Marlin", "Nordlys", "Pelican", "Petrel", "Sildin",
    "Solveig", "Tern", "Vega", "Zeevonk", "Albatros", "Brisa", "Cormorant", "Dunlin", "Eider",
    "Fulmar", "Gannet", "Hilda",
)
# fmt: on
_REMARKS = (
    "",
    "",
    "",
    "",
    "late: fog",
    "late: swell",
    "tug needed",
    "crew change",
    "shifted berth",
)


def write_harbour(path: Path) -> dict[str, int]:
    """Write the database, and count the rows of its tables.

    Args:
        path: a file that does not exist yet.
    """
    random = Random(_SEED)
    ships = list(_ships(random))
    tables: dict[str, list[Row]] = {
        "berths": [
            {"id": i, "name": name, "depth_m": depth, "length_m": length}
            for i, (name, depth, length) in enumerate(BERTHS, 1)
        ],
        "ships": ships,
        "arrivals": list(_arrivals(random, ships)),
    }
    database = sqlite_utils.Database(path)
    try:
        for name, rows in tables.items():
            keys = [("ship_id", "ships"), ("berth_id", "berths")] if name == "arrivals" else []
            database.table(name).insert_all(rows, pk="id", foreign_keys=keys)
    finally:
        database.close()
    return {name: len(rows) for name, rows in tables.items()}


def pick(random: Random, values: Sequence[T]) -> T:
    """One of several values."""
    # Only random() is guaranteed to be the same in every version of Python.
    return values[int(random.random() * len(values))]


def _ships(random: Random) -> Iterator[Row]:
    for number, name in enumerate(SHIPS, 1):
        cargo = pick(random, list(_CARGOES))
        flag = pick(random, _FLAGS)
        yield {
            "id": number,
            "name": name,
            # Written by three people.
            "flag": {5: flag.upper(), 11: f"{flag} ", 17: flag[:2].upper()}.get(number, flag),
            "cargo": cargo,
            "length_m": 25 + int(random.random() * 150),
            "built": None if number == 9 else 1962 + int(random.random() * 60),
        }


def _arrivals(random: Random, ships: list[Row]) -> Iterator[Row]:
    arrived = _BEGIN
    for number in range(1, _ARRIVALS + 1):
        arrived += timedelta(minutes=int(random.random() * 2 * 365 * 24 * 60 / _ARRIVALS))
        ship = pick(random, ships)
        berths, most = _CARGOES[ship["cargo"]]
        stay = timedelta(minutes=90 + int(random.random() * 2400))
        tonnes = round(most * (0.2 + 0.8 * random.random()), 1)
        yield _dirty(
            {
                "id": number,
                "ship_id": ship["id"],
                "berth_id": pick(random, berths),
                "arrived": arrived.isoformat(" ", "minutes"),
                "departed": (arrived + stay).isoformat(" ", "minutes"),
                "tonnes": tonnes,
                "fee": round(120 + ship["length_m"] * 4.5 + tonnes * 0.08, 2),
                "remark": pick(random, _REMARKS),
            }
        )


def _dirty(row: Row) -> Row:
    """Add errors of data entry to some rows."""
    number = row["id"]
    if number % 61 == 0:
        row["departed"] = None
    if number % 97 == 0:
        row["arrived"], row["departed"] = row["departed"], row["arrived"]
    if number % 83 == 0:
        row["tonnes"] = row["tonnes"] * 1000  # entered in kilograms
    if number % 131 == 0:
        row["fee"] = -row["fee"]
    if number % 103 == 0 and row["arrived"]:
        row["arrived"] = datetime.fromisoformat(row["arrived"]).strftime("%d/%m/%Y")
    if number % 71 == 0:
        row["remark"] = "N/A"
    return row
