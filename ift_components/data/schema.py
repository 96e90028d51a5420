"""Attribute schemas: which values an attribute has, how it reads in a report and how it is asked.

A schema is plain data: it is written into the manifest, and `image_table` reads an edited one back from YAML.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any

from ift_components.errors import ConfigError, DataError

EMPTY_REPORT = "No finding."
UNSET = (
    "",
    "0",
    "0.0",
    "no",
    "n",
    "false",
    "f",
    "negative",
    "neg",
    "absent",
    "-",
    "o",
    "nein",
    "non",
    "na",
    "n/a",
    "nan",
)


@dataclass(frozen=True)
class Attribute:
    """One attribute of an image.

    Attributes:
        name: as reports and questions write it, e.g. `cell size`.
        column: its column in the source table; by default the name with `_` for spaces.
        one_of: instead of `column`, several columns of which one is marked, with the value that each stands for.
        values: the source's values, in the order in which they are offered as options; None allows any text.
        absent: source values that mean "not applicable": not in the report, never asked.
        lower: write values in lower case with spaces for `_`.
        wording: source value to the text that reports and options use for it, after `lower`.
        phrase: how it reads in a report, with `{value}` and `{name}`; an empty phrase leaves it out.
        phrases: phrases of single values, e.g. `{"yes": "{name}", "no": ""}`.
        asked: whether questions ask it.
        asked_as: the name that questions use instead of `name`.
        question: the sentence that asks for it, with `{name}`; by default `What is the {name}?`.
        choices: the texts offered as options; by default those of `values`, or else every text that occurs.
        sampled: number of options, the right one included, that are drawn at random; None offers all, in order.
    """

    name: str
    column: str = ""
    values: tuple[str, ...] | None = None
    absent: tuple[str, ...] = ()
    lower: bool = False
    wording: Mapping[str, str] = field(default_factory=dict)
    phrase: str = "{value} {name}"
    phrases: Mapping[str, str] = field(default_factory=dict)
    asked: bool = True
    asked_as: str = ""
    choices: tuple[str, ...] | None = None
    sampled: int | None = None
    one_of: Mapping[str, str] = field(default_factory=dict)
    question: str = ""

    @property
    def source_column(self) -> str:
        """The column of the source table that holds the attribute."""
        return self.column or self.name.replace(" ", "_")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the source table that it is read from."""
        return tuple(self.one_of) or (self.source_column,)

    @property
    def sentence(self) -> str:
        """The question that asks for the attribute."""
        return (self.question or "What is the {name}?").replace("{name}", self.asked_as or self.name)

    def read(self, row: Mapping[str, str]) -> tuple[str, str]:
        """Return the source value in a table row, empty where it does not apply, and what is wrong with it."""
        if self.one_of:
            marked = [value for column, value in self.one_of.items() if row[column].casefold() not in UNSET]
            fault = f"{self.name} is {' and '.join(marked)} at once, expected one of them" if len(marked) > 1 else ""
            return (marked or [""])[0], fault
        value = row[self.source_column]
        if self.values is None or value in (*self.values, *self.absent):
            return value, ""
        return value, f"{self.source_column} is '{value}', expected one of: {', '.join((*self.values, *self.absent))}"

    def text(self, value: str) -> str:
        """Return how reports and options write a source value."""
        value = value.lower().replace("_", " ").strip() if self.lower else value
        return self.wording.get(value, value)

    def option_texts(self) -> tuple[str, ...] | None:
        """Return the texts that may be offered as options; None where only the data can tell."""
        values = tuple(dict.fromkeys(self.one_of.values())) or self.values
        if self.choices is not None or values is None:
            return self.choices
        return tuple(dict.fromkeys(self.text(value) for value in values))

    def in_report(self, value: str) -> str:
        """Return how a source value reads in a report; empty where it is left out."""
        phrase = self.phrases.get(value, self.phrase)
        slots = {"{value}": self.text(value), "{name}": self.name}
        # Not str.format: values and names are data, and may hold braces.
        return re.sub(r"\{value\}|\{name\}", lambda slot: slots[slot.group()], phrase)


@dataclass(frozen=True)
class Schema:
    """The attributes of a dataset, in the order of its reports.

    Attributes:
        attributes: in report order.
        separator: what joins the phrases of a report.
        one_per_image: whether the dataset's published protocol asks one attribute an image, drawn at random.
        empty_report: the report of an image whose values all read as nothing, such as findings that are all negative.
    """

    attributes: tuple[Attribute, ...]
    separator: str = ", "
    one_per_image: bool = False
    empty_report: str = EMPTY_REPORT

    def __post_init__(self) -> None:
        names = [attribute.name for attribute in self.attributes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"schema: attribute names must be unique; given twice: {', '.join(twice)}")
        for attribute in self.attributes:
            texts = attribute.option_texts()
            if attribute.asked and texts is not None and len(texts) <= 1:
                raise DataError(
                    f"schema: attribute '{attribute.name}' has {len(texts)} option(s), so a question has no wrong one; "
                    "give it more values, or asked: false"
                )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the source table that hold attributes."""
        return tuple(column for attribute in self.attributes for column in attribute.columns)

    def read(self, row: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
        """Return the applicable source values of a table row by attribute name, and what is wrong with the row."""
        values: dict[str, str] = {}
        faults: list[str] = []
        for attribute in self.attributes:
            value, fault = attribute.read(row)
            if fault:
                faults.append(fault)
            if value not in attribute.absent and not (attribute.one_of and not value):
                values[attribute.name] = value
        return values, faults

    def with_phrase(self, phrase: str) -> "Schema":
        """Return the schema with one phrase for all attributes and values, those too that a report would leave out.

        What does not apply to an image (`Attribute.absent`) stays out.

        Args:
            phrase: how each reads in a report, with `{value}` and, if wanted, `{name}`.

        Raises:
            ConfigError: if it has no `{value}`.
        """
        if "{value}" not in phrase:
            raise ConfigError(f"report_phrase: '{phrase}' has no {{value}}; the usual one is '{{value}} {{name}}'")
        return replace(self, attributes=tuple(replace(a, phrase=phrase, phrases={}) for a in self.attributes))

    def to_dict(self) -> dict[str, Any]:
        """Return the schema as plain data, attributes without the fields left at their defaults."""
        rows = []
        for attribute in self.attributes:
            cells = asdict(attribute)
            rows.append({f.name: _plain(cells[f.name]) for f in fields(Attribute) if cells[f.name] != _default(f)})
        own = {name: getattr(self, name) for name in ("separator", "one_per_image", "empty_report")}
        defaults = {f.name: f.default for f in fields(Schema)}
        return {name: value for name, value in own.items() if value != defaults[name]} | {"attributes": rows}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Schema":
        """Return the schema that `to_dict` wrote, or that a user edited.

        Raises:
            DataError: for an unknown key or a value of the wrong type.
        """
        keys = {f.name for f in fields(Attribute)}
        attributes = []
        listed = data.get("attributes")
        for row in listed if isinstance(listed, Sequence) and not isinstance(listed, str) else ():
            if not isinstance(row, Mapping):
                raise DataError(f"schema: expected a mapping with 'name' for each attribute, got {row!r}")
            unknown = sorted(set(row) - keys)
            if unknown or "name" not in row:
                what = f"unknown key {', '.join(map(repr, unknown))}" if unknown else "no 'name'"
                raise DataError(f"schema: attribute {row}: {what}; known keys: {', '.join(sorted(keys))}")
            attributes.append(Attribute(**{key: _checked(row, key) for key in row}))
        unknown = sorted(set(data) - {f.name for f in fields(cls)})
        if unknown or not attributes:
            expected = "a list 'attributes' and optional separator, one_per_image, empty_report"
            raise DataError(f"schema: expected {expected}; got the keys {', '.join(map(str, data)) or 'none'}")
        own = {key: data[key] for key in ("separator", "one_per_image", "empty_report") if key in data}
        for key, value in own.items():
            if type(value) is not (bool if key == "one_per_image" else str):
                raise DataError(
                    f"schema: {key} is {value!r}; expected {'true or false' if key == 'one_per_image' else 'a text'}"
                )
        return cls(tuple(attributes), **own)


def _default(item: Any) -> Any:
    return item.default if item.default is not MISSING else {} if item.default_factory is not MISSING else MISSING


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value


_TYPES: dict[str, type] = {
    "values": list, "absent": list, "choices": list, "wording": dict, "phrases": dict, "one_of": dict,
    "lower": bool, "asked": bool, "sampled": int,
}  # fmt: skip


def _checked(row: Mapping[str, Any], key: str) -> Any:
    value: Any = row[key]
    expected: type = _TYPES.get(key, str)
    if value is None and key in ("values", "choices", "sampled"):
        return None
    if type(value) is not expected:
        hint = "; put quotes around yes, no and numbers" if expected is str else ""
        raise DataError(f"schema: {key} of '{row['name']}' must be a {expected.__name__}, got {value!r}{hint}")
    items = value if isinstance(value, list) else [*value, *value.values()] if isinstance(value, dict) else []
    no_texts = [item for item in items if not isinstance(item, str)]
    if no_texts:
        raise DataError(
            f"schema: {key} of '{row['name']}' holds {no_texts[0]!r}, which is no text; put quotes around it"
        )
    # A header cell's line breaks are spaces in the table as it is read.
    if key == "column" and isinstance(value, str):
        return " ".join(value.split())
    if key == "one_of" and isinstance(value, dict):
        return {" ".join(column.split()): text for column, text in value.items()}
    return tuple(value) if isinstance(value, list) else value
