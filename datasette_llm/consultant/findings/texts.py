"""Families about how texts are written."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from .. import text_forms
from ..evidence import Condition, Duplicates, Pattern, Rows
from .column_values import ColumnValues
from .finding import Finding, quoted

MIN_ROWS = 8
# From this share on the texts of a column are of one kind, and the others are faults.
MOST = 0.8
# Up to this share of the texts may look unlike the others.
RARE = 0.05
_CODE_NAME = re.compile(
    r"(^|_)(id|ids|key|code|codes|zip|zipcode|zip_code|postal|postcode|plz|phone|tel|fax|mobile|"
    r"fips|isbn|issn|ean|upc|gtin|sku|ssn|iban|account|uuid|hash|version|no|nr|number|serial|year)$"
)
_ZIP_NAME = re.compile(
    r"(^|_)(zip|zipcode|zip_code|zip5|postal|postal_code|postcode|plz|fips)(_|$)"
)
_EAN_NAME = re.compile(r"(^|_)(isbn|ean|upc|gtin|isbn10|isbn13)$")
# UTF-8 that was read as Windows-1252 or Latin-1.
_MOJIBAKE = re.compile(
    "[\u00c2\u00c3][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc"
    "\u2013\u2014\u2018-\u201a\u201c-\u201e\u2020-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122]"
    "|\u00e2[\u20ac\u0080][\u0080-\u00bf\u0152\u0153\u02dc\u201c\u201d\u2122\u00a6\u2018\u2019]"
    "|\u00ef\u00bb\u00bf|\ufffd"
)


def numbers_as_text(column: ColumnValues) -> Iterator[Finding]:
    """Most texts are numbers, which SQLite sorts and compares as texts."""
    parsed = column.parsed_numbers
    rows = sum(parsed.values())
    if column.text_rows < MIN_ROWS or len(parsed) < 3 or rows < MOST * column.text_rows:
        return
    if column.number_rows > column.text_rows or _are_codes(column, parsed):
        return
    rest = column.text_rows - rows
    others = "1 other text is no number" if rest == 1 else f"{rest:,} other texts are no numbers"
    more = f" {others}." if rest else ""
    yield Finding(
        "numbers_as_text",
        (column.name,),
        "warning",
        f"{quoted(column.name)} has numbers as text, so that 10 sorts before 9: {{rows}}.{more}",
        rows,
        column.rows,
        _condition(column, rows, op="parses as", value="number"),
        examples={v: n for v, n in column.texts.items() if v not in parsed} if rest else parsed,
        exact=column.exact,
    )


def dates_as_text(column: ColumnValues) -> Iterator[Finding]:
    """Most texts are dates in one format that does not sort."""
    formats = column.date_formats
    rows = sum(formats.values())
    if column.text_rows < MIN_ROWS or rows < MOST * column.text_rows:
        return
    named = _merged(formats)
    if len(named) != 1 or next(iter(named)).startswith("YYYY"):
        return
    (name,) = named
    yield Finding(
        "dates_as_text",
        (column.name,),
        "warning",
        f"{quoted(column.name)} has dates as {_explained(name)}, which neither sort nor compare as "
        "dates: {rows}.",
        rows,
        column.rows,
        _condition(column, rows, op="parses as", value="date"),
        examples={v: n for v, n in column.texts.items() if text_forms.date_format(v)},
        exact=column.exact,
    )


def mixed_date_formats(column: ColumnValues) -> Iterator[Finding]:
    """Dates are written in more than one way."""
    formats = column.date_formats
    if sum(formats.values()) < max(3, 0.5 * column.text_rows):
        return
    named = _merged(formats)
    if len(named) < 2:
        return
    usual = max(named, key=lambda name: named[name])
    rows = sum(n for name, n in named.items() if name != usual)
    others = ", ".join(_explained(name) for name, _ in named.most_common(6) if name != usual)
    yield Finding(
        "mixed_date_formats",
        (column.name,),
        "problem",
        f"{quoted(column.name)} has dates in {len(named)} formats: most are {_explained(usual)}, "
        f"but {{rows}} are {others}.",
        rows,
        column.rows,
        Pattern(
            column=column.name,
            of="date format",
            usual=tuple(name for name in formats if _unmerged(name, formats) == usual),
            expected=rows,
        ),
        examples={
            v: n
            for v, n in column.texts.items()
            if (name := text_forms.date_format(v)) and _unmerged(name, formats) != usual
        },
        exact=column.exact,
    )


def mixed_types(column: ColumnValues) -> Iterator[Finding]:
    """Numbers beside texts that are no missing values, or blobs beside either."""
    texts, numbers = column.text_rows + column.long_texts, column.number_rows
    kinds = {"text": texts, "number": numbers, "blob": column.blobs}
    present = {name: rows for name, rows in kinds.items() if rows}
    if len(present) < 2 or sum(present.values()) < MIN_ROWS:
        return
    usual = max(present, key=lambda name: present[name])
    others = {name: rows for name, rows in present.items() if name != usual}
    types = {"text": ("text",), "number": ("integer", "real"), "blob": ("blob",)}
    conditions = [
        Condition(column=column.name, op="type is", value=each)
        for name in others
        for each in types[name]
    ]
    rows = sum(others.values())
    if "text" in others:
        rows += sum(column.missing_texts.values())
    elif "number" in others:
        rows += sum(column.sentinels.values())
    yield Finding(
        "mixed_types",
        (column.name,),
        "problem",
        f"{quoted(column.name)} has {' and '.join(f'{name}s' for name in others)} beside "
        f"{usual}s: {{rows}}.",
        rows,
        column.rows,
        Rows(any_of=tuple((each,) for each in conditions), expected=rows),
        examples=column.texts if "text" in others else column.numbers if numbers else None,
        exact=column.exact,
    )


def rare_patterns(column: ColumnValues) -> Iterator[Finding]:
    """Nearly all texts have one of few forms, with digits or capitals, and few have another."""
    if column.text_rows < 2 * MIN_ROWS or len(column.texts) < MIN_ROWS:
        return
    if column.parsed_numbers and sum(column.parsed_numbers.values()) >= MOST * column.text_rows:
        return
    if sum(column.date_formats.values()) >= 0.5 * column.text_rows:
        return
    # A counter has few short numbers, so that one mask must have nearly all.
    for of, found, least in (("mask", column.masks, 0.95), ("shape", column.shapes, 0.5)):
        usual = _usual(found, least)
        rest = column.text_rows - sum(found[each] for each in usual)
        if usual and 0 < rest <= max(1, RARE * column.text_rows):
            yield _rare_pattern(column, "mask" if of == "mask" else "shape", usual, rest)
            return


def edge_spaces(column: ColumnValues) -> Iterator[Finding]:
    """Texts begin or end with space."""
    edges = text_forms.EDGE_SPACES
    found = {v: n for v, n in column.counts.items() if isinstance(v, str) and v.strip(edges) != v}
    if not found:
        return
    rows = sum(found.values())
    yield Finding(
        "edge_spaces",
        (column.name,),
        "warning",
        f"{quoted(column.name)} has texts that begin or end with space, and so equal none without "
        "it: {rows}.",
        rows,
        column.rows,
        _condition(column, rows, op="has edge spaces"),
        examples=found,
        exact=column.exact,
    )


def case_variants(column: ColumnValues) -> Iterator[Finding]:
    """The same text is written in capitals and in small letters."""
    texts = [text for text in column.counts if isinstance(text, str)]
    stripped = {text.strip(text_forms.EDGE_SPACES) for text in texts}
    if len({text.casefold() for text in stripped}) == len(stripped):
        return
    spelled: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for text in texts:
        stripped_text = text.strip(text_forms.EDGE_SPACES)
        spelled[stripped_text.casefold()][stripped_text] += column.counts[text]
    groups = [group for text, group in spelled.items() if len(group) > 1 and text]
    # Of texts that hardly ever repeat, such as tokens, case may tell them apart.
    repeated = 2 * len(column.texts) <= column.text_rows
    groups = [group for group in groups if repeated or group.total() > 2]
    if not groups:
        return
    minor = {text: n for group in groups for text, n in group.most_common()[1:]}
    rows = sum(group.total() - max(group.values()) for group in groups)
    yield Finding(
        "case_variants",
        (column.name,),
        "warning",
        f"{quoted(column.name)} writes {_number(len(groups), 'value')} in more than one case, "
        "so that they count as different: {rows} differ from the more frequent spelling.",
        rows,
        column.rows,
        Duplicates(columns=(column.name,), ignoring_case=True, expected=rows),
        examples=minor,
        exact=column.exact and len(groups) == len([1 for g in spelled.values() if len(g) > 1]),
    )


def mojibake(column: ColumnValues) -> Iterator[Finding]:
    """Texts whose letters were broken by a wrong encoding."""
    found = {
        v: n for v, n in column.texts.items() if not v.isascii() and _MOJIBAKE.search(v) is not None
    }
    if not found:
        return
    rows = sum(found.values())
    signs = sorted({sign for text in found for sign in _MOJIBAKE.findall(text)})[:40]
    conditions = (Condition(column=column.name, op="contains", value=sign) for sign in signs)
    yield Finding(
        "mojibake",
        (column.name,),
        "problem",
        f"{quoted(column.name)} has letters that a wrong encoding has broken: {{rows}}.",
        rows,
        column.rows,
        Rows(any_of=tuple((each,) for each in conditions), expected=rows),
        from_values=True,
        examples=found,
        # Of text that is not well-formed, SQLite finds no part.
        exact=column.exact and "\ufffd" not in signs,
    )


def lost_leading_zeros(column: ColumnValues) -> Iterator[Finding]:
    """Codes of a fixed length, of which some are shorter."""
    name = column.name.casefold()
    if not (_ZIP_NAME.search(name) or _EAN_NAME.search(name)):
        return
    lengths = _digit_lengths(column)
    total = lengths.total()
    if total < MIN_ROWS or total < MOST * (column.text_rows + column.number_rows):
        return
    length = max(lengths)
    rows = total - lengths[length]
    shortest = min(lengths)
    if length < 5 or not rows or lengths[length] < 0.5 * total or shortest < length - 3:
        return
    yield Finding(
        "lost_leading_zeros",
        (column.name,),
        "problem",
        f"{quoted(column.name)} has codes of {length} digits, of which some have lost their "
        "leading zeros: {rows}.",
        rows,
        column.rows,
        Rows(any_of=_shorter_digits(column, shortest, length), expected=rows),
        examples={
            v: n for v, n in column.counts.items() if str(v).isdigit() and len(str(v)) < length
        },
        exact=column.exact,
    )


def invalid_json(column: ColumnValues) -> Iterator[Finding]:
    """Most texts are JSON objects or lists, and some are not valid; the rows are counted later."""
    begun = sum(n for v, n in column.texts.items() if v.lstrip()[:1] in ("{", "["))
    texts = column.text_rows + column.long_texts
    if texts < MIN_ROWS or begun + column.long_json < MOST * texts:
        return
    ends = sum(n for v, n in column.texts.items() if v.rstrip()[-1:] in ("}", "]"))
    if ends < 0.5 * column.text_rows:
        return
    yield Finding(
        "invalid_json",
        (column.name,),
        "problem",
        f"{quoted(column.name)} has JSON, but not valid JSON in {{rows}}.",
        None,
        column.rows,
        Rows(
            any_of=(
                (
                    Condition(column=column.name, op="does not parse as", value="json"),
                    Condition(column=column.name, op="does not parse as", value="missing"),
                ),
            ),
            expected=None,
        ),
        exact=False,
    )


def _condition(column: ColumnValues, rows: int, **more: object) -> Rows:
    condition = Condition.model_validate({"column": column.name, **more})
    return Rows(any_of=((condition,),), expected=rows)


def _are_codes(column: ColumnValues, parsed: Iterable[str]) -> bool:
    """True if texts of digits are codes rather than numbers."""
    digits = [text for text in parsed if text.isdigit()]
    if any(text.startswith("0") and len(text) > 1 for text in digits):
        return True
    if _CODE_NAME.search(column.name.casefold()):
        return True
    one_length = len({len(text) for text in digits}) == 1 and len(digits[0]) > 2
    return one_length and 2 * len(digits) > len(column.parsed_numbers)


def _merged(formats: Counter[str]) -> Counter[str]:
    """The formats, with those that a date does not tell counted as the only one that it may be."""
    merged: Counter[str] = Counter()
    for name, rows in formats.items():
        merged[_unmerged(name, formats)] += rows
    return merged


def _unmerged(name: str, formats: Counter[str]) -> str:
    if not name.startswith("NN"):
        return name
    separator = name[2]
    options = [
        name.replace(f"NN{separator}NN", f"{first}{separator}{second}")
        for first, second in (("DD", "MM"), ("MM", "DD"))
    ]
    known = [each for each in options if each in formats]
    return max(known, key=lambda each: formats[each]) if known else name


def _explained(name: str) -> str:
    return f"{name} (a day and a month in unknown order)" if name.startswith("NN") else name


def _usual(found: Counter[str], least: float) -> tuple[str, ...]:
    """At most three forms that nearly all texts have; none where words are meant."""
    total = found.total()
    usual = [each for each, rows in found.most_common(3) if rows >= 0.05 * total]
    if not usual or found[usual[0]] < least * total:
        return ()
    tell = all("9" in each or re.fullmatch("A{2,}", each) for each in usual)
    return tuple(usual) if tell and all("…" not in each for each in usual) else ()


def _rare_pattern(column: ColumnValues, of: str, usual: tuple[str, ...], rest: int) -> Finding:
    if of == "mask":
        texts = {v: n for v, n in column.texts.items() if text_forms.mask(v) not in usual}
    else:
        texts = {
            v: n
            for v, n in column.texts.items()
            if text_forms.shape(text_forms.mask(v)) not in usual
        }
    return Finding(
        "rare_patterns",
        (column.name,),
        "warning",
        f"{quoted(column.name)} has texts of one form nearly everywhere, but not in {{rows}}.",
        rest,
        column.rows,
        Pattern.model_validate({"column": column.name, "of": of, "usual": usual, "expected": rest}),
        from_values=True,
        # A mask has characters of the values, as they are.
        hint=f"The form is {' or '.join(usual)}, where 9 is a digit, and a and A are letters.",
        examples=texts,
        exact=column.exact,
        most=RARE,
    )


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + "s" * (count != 1)


def _digit_lengths(column: ColumnValues) -> Counter[int]:
    lengths: Counter[int] = Counter()
    for value, rows in column.counts.items():
        digits = value if isinstance(value, str) else str(value)
        if digits.isascii() and digits.isdigit():
            lengths[len(digits)] += rows
    return lengths


def _shorter_digits(
    column: ColumnValues, shortest: int, length: int
) -> tuple[tuple[Condition, ...], ...]:
    number = [
        Condition(column=column.name, op=">=", value=10 ** (shortest - 1)),
        Condition(column=column.name, op="<", value=10 ** (length - 1)),
    ]
    masks = [
        (Condition(column=column.name, op="mask is", value="9" * digits),)
        for digits in range(shortest, length)
    ]
    return (tuple(number), *masks)
