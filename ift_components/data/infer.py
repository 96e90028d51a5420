"""What a table suggests: which columns are attributes, how their values read, and which columns belong together."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from ift_components.data.headers import Header, read_header
from ift_components.data.matching import named
from ift_components.data.schema import EMPTY_REPORT, UNSET, Attribute, Schema
from ift_components.data.splitting import NAMES
from ift_components.errors import DataError

MAX_VALUES = 26  # an attribute with more different values than letters is taken for text or a measurement
ABSENT = ("", "NA", "N/A", "n/a", "na", "nan", "NaN", "nil", "None", "null", "-")
MARKS = ("x", "✓", "✔", "✗", "•", "*", "+", "1", "yes", "y", "true")  # alone in a column, a blank is a no
# Pairs that say whether something is there: the word for yes first.
PAIRS = (
    ("yes", "no"), ("y", "n"), ("true", "false"), ("t", "f"), ("1", "0"), ("1.0", "0.0"), ("positive", "negative"),
    ("pos", "neg"), ("p", "n"), ("present", "absent"), ("+", "-"), ("x", "o"), ("ja", "nein"), ("oui", "non"),
    ("j", "n"), ("o", "n"), ("s", "n"),
)  # fmt: skip
_CODED = (("p", "n"), ("o", "n"), ("s", "n"))  # flags only where the header says so: letters may stand for anything
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[./-]\d{1,2}[./-]\d{2,4}")
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")
_ID_NAME = re.compile(r"\b(id|ids|uid|mrn|nr|no|number|patient|accession|case|file|filename|path)\b", re.IGNORECASE)
_TEXT_NAME = re.compile(
    r"(comment|remark|note|kommentar|bemerkung|anmerkung|remarque|free ?text|freitext)s?(en|e)?\b", re.IGNORECASE
)
_FEW_ROWS, _LONG, _REPEATS = 5, 60, 0.5
COVERED = 0.9  # share of rows in which one of several columns must hold for them to be one attribute


@dataclass(frozen=True)
class _Column:
    """One column of a table: its header, its values by frequency, and those of its cells that hold none."""

    column: str
    header: Header
    counts: Mapping[str, int]
    absent: tuple[str, ...]

    @property
    def values(self) -> list[str]:
        return sorted(self.counts)

    @property
    def filled(self) -> int:
        return sum(self.counts.values())


def infer_schema(
    rows: Sequence[Mapping[str, str]],
    names: Sequence[str],
    notes: list[str],
    *,
    chosen: bool,
    private: bool = False,
    empty_report: str = EMPTY_REPORT,
) -> Schema:
    """Return the schema that a table suggests: a column with few different values is an attribute.

    A column of yes/no, 1/0, positive/negative or of marks and blanks is named in a report where it holds and left out where
    it does not. Neighbouring columns of that kind of which just one holds in nearly every row become one attribute. The
    values of others are written before the column's name, in the words of the header's legend if it has one. Columns that
    look like identifiers, dates or free text are left out.

    Args:
        rows: the table.
        names: the columns to look at.
        notes: takes a line about every column that is left out, not asked or joined with others.
        chosen: whether the user named these columns, so that none may be left out.
        private: leave values out of the notes, and name columns by their place.
        empty_report: the report of an image of which nothing holds.

    Raises:
        DataError: if no column can be an attribute, or a chosen one cannot.
    """
    columns = []
    for name in names:
        column = _column(rows, name)
        title = named(name, rows[0], private=True) if private else f"'{column.header.name}'"
        fault = _fault(column, chosen=chosen, private=private)
        if fault and chosen:
            raise DataError(f"column '{name}' {fault}; take it out of builder.attributes, or give a schema")
        if fault:
            notes.append(f"column {title} {fault}: not taken for an attribute")
        else:
            columns.append(column)
    attributes = []
    while columns:
        group = _one_hot(columns, rows)
        if len(group) > 1:
            attributes.append(_joined(group, notes))
        else:
            attributes.append(_attribute(columns[0], notes, private=private))
        columns = columns[max(1, len(group)) :]
    if not attributes:
        listed = f"{len(names)} columns" if private else ", ".join(repr(read_header(name).name) for name in names)
        raise DataError(f"none of {listed} can be an attribute: expected 1 to {MAX_VALUES} values")
    return Schema(_unique(attributes), empty_report=empty_report)


def _column(rows: Sequence[Mapping[str, str]], name: str) -> _Column:
    counts = Counter(row[name] for row in rows)
    absent = [value for value in ABSENT if not (value == "-" and "+" in counts)]  # beside a plus, a minus is a value
    values = {value: count for value, count in counts.items() if value not in absent}
    return _Column(name, read_header(name, values), values, tuple(value for value in absent if value in counts))


def _fault(column: _Column, *, chosen: bool, private: bool) -> str:
    """Return why a column cannot be an attribute; empty if it can."""
    values = column.values
    if not chosen and sum(bool(_DATE.match(value)) for value in values) > len(values) / 2:
        return "looks like dates"
    if not values or len(values) > MAX_VALUES:
        return f"has {len(values)} different values" + (f", expected 1 to {MAX_VALUES}" if chosen else "")
    return "" if chosen or column.header.legend else _looks_like(column, private=private)


def _looks_like(column: _Column, *, private: bool) -> str:
    """Return what a column looks like instead of an attribute; empty if it looks like one."""
    values = column.values
    if all(value.casefold() in NAMES for value in values) and len(values) > 1:
        return "looks like a split" + ("" if private else f" (builder.split_column={column.column})")
    if _TEXT_NAME.search(column.header.name) and any(" " in value for value in values):
        return "looks like free text"
    mostly_different = len(values) >= _FEW_ROWS and len(values) / column.filled > _REPEATS
    if mostly_different or (len(values) > 2 and _ID_NAME.search(column.header.name)):  # noqa: PLR2004
        if all(_NUMBER.fullmatch(value) for value in values) and not _ID_NAME.search(column.header.name):
            return f"looks like measurements ({len(values)} different ones)"
        long = any(len(value) > _LONG or len(value.split()) > 4 for value in values)  # noqa: PLR2004
        return "looks like free text" if long else "looks like identifiers"
    return ""


def _flag_words(column: _Column) -> tuple[list[str], list[str]] | None:
    """Return the values of a column that say yes and those that say no; None if it is no flag."""
    legend = {code.casefold(): meaning.casefold() for code, meaning in column.header.legend.items()}
    read = {value: legend.get(value.casefold(), value.casefold()) for value in column.values}
    folded = set(read.values())
    if len(folded) == 1 and folded <= set(MARKS) and "" in column.absent and not legend:
        return column.values, [""]
    codes = set(legend.values()) or {code.casefold() for code in column.header.codes}
    for yes, no in PAIRS:
        listed = codes == {yes, no}
        # Where the header lists both, one of them may never occur.
        if (folded == {yes, no} and (listed or (yes, no) not in _CODED)) or (listed and folded < {yes, no}):
            return [v for v in column.values if read[v] == yes], [v for v in column.values if read[v] == no]
    return None


def _attribute(column: _Column, notes: list[str], *, private: bool) -> Attribute:
    words, values, name = _flag_words(column), column.values, column.header.name
    if len(values) == 1 and not (words and all(words)):
        value = "the same value" if private else f"'{values[0]}'"
        notes.append(f"column '{name}' always holds {value}: in reports, but not asked")
    if words is not None:
        return _flag(column, *words)
    legend = {code.casefold(): meaning for code, meaning in column.header.legend.items()}
    wording = {value: legend[value.casefold()] for value in values if value.casefold() in legend}
    spelled = _spellings(column)
    wording = {value: wording.get(usual, usual) for value, usual in spelled.items()} | wording
    if spelled and not private:
        read = ", ".join(f"'{value}' as '{usual}'" for value, usual in spelled.items())
        notes.append(f"column '{name}' spells values in several ways: {read}")
    unread = [value for value in values if value not in wording]
    if column.header.codes and unread and not private:
        notes.append(
            f"column '{name}' holds codes without a meaning ({', '.join(unread)}): give their wording in the schema"
        )
    return Attribute(
        name,
        _source(name, column.column),
        tuple(values),
        column.absent or ("",),
        wording=wording,
        asked=len({wording.get(value, value) for value in values}) > 1,
    )


def _spellings(column: _Column) -> dict[str, str]:
    """Return the usual spelling of each value that differs from it by case or spaces alone."""
    usual: dict[str, str] = {}
    for value in sorted(column.values, key=lambda value: -column.counts[value]):
        usual.setdefault(" ".join(value.casefold().split()), value)
    spellings = {value: usual[" ".join(value.casefold().split())] for value in column.values}
    return {value: spelling for value, spelling in spellings.items() if value != spelling}


def _source(name: str, column: str) -> str:
    return "" if column == name.replace(" ", "_") else column


def _flag(column: _Column, yes: list[str], no: list[str]) -> Attribute:
    values = (*yes, *no)
    wording = {v: "yes" for v in yes if v != "yes"} | {v: "no" for v in no if v != "no"}
    phrases = dict.fromkeys(yes, "{name}") | dict.fromkeys(no, "")
    absent = tuple(value for value in column.absent or ("",) if value not in no)
    name = column.header.name
    bare = re.sub(r"^(has|is|with)\s+", "", name, flags=re.IGNORECASE)
    return Attribute(
        name,
        _source(name, column.column),
        values,
        absent,
        wording=wording,
        phrases=phrases,
        asked=bool(yes and no),
        asked_as=bare if bare != name else "",
        question="Is there {name}?",
    )


def _is_one_hot(column: _Column) -> bool:
    words = _flag_words(column)
    return words is not None and all(words) and not column.header.legend


def _one_hot(columns: Sequence[_Column], rows: Sequence[Mapping[str, str]]) -> list[_Column]:
    """Return the columns at the front of which just one holds in nearly every row; an empty list if there are none."""
    group: list[_Column] = []
    holds = [0] * len(rows)
    for column in takewhile(_is_one_hot, columns):
        marks = [row[column.column].casefold() not in UNSET for row in rows]
        if any(count and mark for count, mark in zip(holds, marks, strict=True)):
            break
        holds = [count + mark for count, mark in zip(holds, marks, strict=True)]
        group.append(column)
    return group if len(group) > 1 and sum(holds) >= COVERED * len(rows) else []


def _joined(group: Sequence[_Column], notes: list[str]) -> Attribute:
    """Return one attribute for columns that exclude each other; it is named by what their names share."""
    words = [column.header.name.split() for column in group]
    shared = [w[0] for w in takewhile(lambda pair: len(set(pair)) == 1, zip(*words, strict=False))]
    prefix = len(shared) if all(len(w) > len(shared) for w in words) else 0
    values = {c.column: " ".join(w[prefix:]).strip(" :-") for c, w in zip(group, words, strict=True)}
    name = " ".join(shared[:prefix]).strip(" :-") or "diagnosis"
    notes.append(
        f"columns {', '.join(repr(value) for value in values.values())} exclude each other: one attribute '{name}'"
    )
    return Attribute(name, one_of=values, phrase="{value}")


def _unique(attributes: Sequence[Attribute]) -> tuple[Attribute, ...]:
    """Return the attributes with a number behind names that occur again: headers may differ by their legends alone."""
    seen: Counter[str] = Counter()
    unique = []
    for attribute in attributes:
        seen[attribute.name] += 1
        number = seen[attribute.name]
        column = attribute.source_column if not attribute.one_of else ""
        unique.append(
            attribute if number == 1 else replace(attribute, name=f"{attribute.name} {number}", column=column)
        )
    return tuple(unique)
