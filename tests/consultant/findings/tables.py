"""Small tables in the manner of real ones: with faults that people met, and without any.

Each is a script of SQL. The rows are ours; the faults are those of public data sets.
"""

from __future__ import annotations

import datetime
import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any


def table(
    name: str, columns: str, rows: Iterable[Sequence[Any]], *, more: str = ""
) -> sqlite3.Connection:
    """A database in memory with one table, and what a script adds."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(more)
    connection.execute(f"create table {name} ({columns})")
    rows = list(rows)
    connection.executemany(f"insert into {name} values ({', '.join('?' * len(rows[0]))})", rows)
    return connection


NAMES = (  # noqa: SIM905  # a list of so many would be a page
    "Goku Vegeta Gohan Piccolo Krillin Trunks Goten Bulma Videl Tien Yamcha Chiaotzu Frieza Cell "
    "Nappa Raditz Dende Nail Guldo Recoome Burter Jeice Ginyu Zarbon Dodoria"
).split()


def fighters() -> sqlite3.Connection:
    """Heights in feet and inches, and one power that is over 9000."""
    rows = [
        (at, name, f"{5 + at % 2}'{at % 12}\"", ">9000" if name == "Goku" else str(310 + 317 * at))
        for at, name in enumerate(NAMES, 1)
    ]
    return table("fighters", "id integer primary key, name text, height text, power text", rows)


def games() -> sqlite3.Connection:
    """Release dates in five formats."""
    first = datetime.date(2015, 1, 14)
    formats = ["%Y-%m-%d"] * 8 + ["%d/%m/%Y", "%b %d, %Y", "%d %B %Y", "%d.%m.%Y"]
    rows = []
    for at in range(48):
        day = first + datetime.timedelta(days=41 * at)
        rows.append((at, f"Game number {at} of all", day.strftime(formats[at % 12])))
    return table("games", "id integer primary key, title text, released text", rows)


def orders() -> sqlite3.Connection:
    """Prices with a currency and separators, days with the day first, orders of nobody."""
    rows = [
        (
            at,
            at % 9 + 1 if at != 7 else 99,
            f"${1234.5 + 311 * at:,.2f}",
            f"{at % 28 + 1:02}/03/2024",
        )
        for at in range(1, 41)
    ]
    more = "create table customers (id integer primary key, name text);" + "".join(
        f"insert into customers values ({at}, 'C {at}');" for at in range(1, 11)
    )
    columns = (
        "id integer primary key, customer_id integer references customers(id), price text, day text"
    )
    return table("orders", columns, rows, more=more)


def visits() -> sqlite3.Connection:
    """The same customers, but no foreign key is declared."""
    rows = [(at, at % 9 + 1, at * 37 % 11) for at in range(1, 41)]
    more = "create table customers (id integer primary key, name text);" + "".join(
        f"insert into customers values ({at}, 'C {at}');" for at in range(1, 11)
    )
    return table("visits", "id integer primary key, customer_id integer, items", rows, more=more)


def weather() -> sqlite3.Connection:
    """Temperatures with NA, rain with -999, days that are left out."""
    first = datetime.date(2024, 3, 1)
    rows = []
    for at in range(60):
        if at in (20, 21, 40):
            continue
        day = (first + datetime.timedelta(days=at)).isoformat()
        temperature = "NA" if at % 11 == 3 else round(4 + at * 0.21 + at % 5, 1)
        rows.append((day, temperature, -999 if at in (5, 17) else at * 7 % 13))
    return table("weather", "day text primary key, temperature, rain", rows)


def flights() -> sqlite3.Connection:
    """Departures at 24:00."""
    rows = []
    for at in range(50):
        hour, minute = (5 + at * 3) % 19, at * 7 % 60
        time = "24:00" if at in (9, 30) else f"{hour:02}:{minute:02}"
        number = 2400 if at == 9 else 100 * (hour + 4) + minute
        rows.append((at, f"UA{1100 + at}" if at != 12 else "UA-12", time, number))
    return table(
        "flights", "id integer primary key, flight text, departs text, sched_dep_time integer", rows
    )


def penguins() -> sqlite3.Connection:
    """NA among measures, and a species in capitals."""
    species = ("Adelie", "Gentoo", "Chinstrap")
    rows = []
    for at in range(60):
        name = "ADELIE" if at in (6, 33) else species[at % 3]
        missing = at in (3, 27, 44)
        rows.append(
            (name, "NA" if missing else 3200 + at * 31 % 900, "unknown" if missing else "f")
        )
    return table("penguins", "species text, body_mass_g, sex text", rows)


def addresses() -> sqlite3.Connection:
    """Zip codes with lost zeros, names with spaces, letters of a wrong encoding."""
    rows = []
    for at in range(40):
        city = ("Boston", "Chicago", " Denver", "Z\u00fcrich")[at % 4]
        city = "Z\u00c3\u00bcrich" if at == 11 else city
        rows.append((at, city, 2108 + at if at % 4 == 0 else 60601 + at))
    return table("addresses", "id integer primary key, city text, zip integer", rows)


def events() -> sqlite3.Connection:
    """JSON with one bad row, a column that is always the same, one that is empty."""
    rows = []
    for at in range(30):
        payload = json.dumps({"at": at, "tags": ["a", "b"], "text": "x" * (at * 10)})
        rows.append((at, payload if at != 17 else payload[:-2], "web", None))
    return table("events", "id integer primary key, payload text, source text, note text", rows)


def members() -> sqlite3.Connection:
    """No primary key; emails that repeat, columns that are copies, an age of 230."""
    rows = []
    for at in range(60):
        age = 230 if at == 31 else 18 + at * 7 % 60
        email = f"m{at if at != 44 else 43}@example.org"
        rows.append((at, email, age, age, f"{1940 + at % 60}-0{at % 9 + 1}-30"))
    return table("members", "member_id integer, email text, age, years, birth_date", rows)


def sales() -> sqlite3.Connection:
    """Rows that were imported twice, one amount with a lost decimal point."""
    rows = [
        (
            f"2024-01-{at % 28 + 1:02}",
            ("north", "south")[at % 2],
            500_000 if at == 50 else round(20 + at * 13.37 % 37, 2),
        )
        for at in range(80)
    ]
    return table("sales", "day text, region text, amount real", [*rows, *rows[5:8]])


def readings() -> sqlite3.Connection:
    """Numbers beside words."""
    rows = [(at, "broken sensor" if at in (4, 9) else at * 3.5) for at in range(30)]
    return table("readings", "id integer primary key, value", rows)


def iris() -> sqlite3.Connection:
    """Flowers, measured; nothing is wrong."""
    rows = []
    for at in range(150):
        kind = at // 50
        rows.append(
            (
                round(5.0 + 0.9 * kind + at * 7 % 13 / 10, 1),
                round(3.4 - 0.3 * kind + at * 5 % 11 / 10, 1),
                round(1.4 + 2.1 * kind + at * 3 % 7 / 10 + at % 50 / 1000, 2),
                round(0.2 + 0.9 * kind + at * 11 % 5 / 10, 1),
                ("setosa", "versicolor", "virginica")[kind],
            )
        )
    columns = "sepal_length real, sepal_width real, petal_length real, petal_width real, species"
    return table("iris", columns, rows)


def gapminder() -> sqlite3.Connection:
    """Countries over years, of very different sizes; nothing is wrong."""
    countries = [
        (f"Country {chr(65 + at // 26)}{chr(97 + at % 26)}", at % 5, 60_000 * 1.34**at)
        for at in range(34)
    ]
    continents = ("Africa", "Americas", "Asia", "Europe", "Oceania")
    rows = []
    for at, (country, continent, people) in enumerate(countries):
        for year in range(1952, 2008, 5):
            age = 41 + at * 0.7 + (year - 1952) * 0.21
            income = 400 * 1.11**at * 1.014 ** (year - 1952)
            grown = int(people * 1.018 ** (year - 1952))
            rows.append((country, continents[continent], year, round(age, 3), grown, income))
    columns = (
        "country text, continent text, year integer, life_exp real, pop integer, gdp_per_cap real"
    )
    return table("gapminder", columns, rows)


def staff() -> sqlite3.Connection:
    """People with codes, days and notes as they should be; nothing is wrong."""
    first = datetime.date(2011, 4, 1)
    rows = []
    for at in range(1, 61):
        day = first + datetime.timedelta(days=at * 53)
        name = f"{NAMES[at % 25]} {NAMES[at * 7 % 25]}son"
        phone = f"555-01{at % 100:02}"
        zip_code = f"{1001 + at * 1613:05}"
        note = None if at % 3 == 0 else f"Works at place {at}, likes it"
        rows.append((at, name, day.isoformat(), phone, zip_code, 2100 + at * 53 % 1900, note))
    columns = (
        "id integer primary key, name text, hired text, phone text, zip text, salary integer, "
        "note text"
    )
    return table("staff", columns, rows)


def countries() -> sqlite3.Connection:
    """Codes of countries, with Namibia, and coordinates; nothing is wrong."""
    codes = "NA DE FR ES IT PT NL BE LU DK SE NO FI PL CZ AT CH HU RO BG".split()  # noqa: SIM905  # as above
    rows = [
        (code, f"Land of {code}", round(-30 + at * 4.7, 2), round(-170 + at * 17.3, 2))
        for at, code in enumerate(codes)
    ]
    columns = "code text primary key, name text, latitude real, longitude real"
    return table("countries", columns, rows)
