"""Attribute schemas: which values an attribute has, how it reads in a report and how it is asked.

A schema is plain data: it is written into the manifest, and `image_table` reads an edited one back from YAML.
"""

import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from ift_components.errors import DataError


@dataclass(frozen=True)
class Attribute:
    """One attribute of an image.

    Attributes:
        name: as reports and questions write it, e.g. `cell size`.
        column: its column in the source table; by default the name with `_` for spaces.
        values: the source's values, in the order in which they are offered as options; None allows any text.
        absent: source values that mean "not applicable": not in the report, never asked.
        lower: write values in lower case with spaces for `_`.
        wording: source value to the text that reports and options use for it, after `lower`.
        phrase: how it reads in a report, with `{value}` and `{name}`; an empty phrase leaves it out.
        phrases: phrases of single values, e.g. `{"yes": "{name}", "no": ""}`.
        asked: whether questions ask it.
        asked_as: the name that questions use instead of `name`.
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

    @property
    def source_column(self) -> str:
        """The column of the source table that holds the attribute."""
        return self.column or self.name.replace(" ", "_")

    @property
    def question(self) -> str:
        """The sentence that asks for the attribute."""
        return f"What is the {self.asked_as or self.name}?"

    def text(self, value: str) -> str:
        """Return how reports and options write a source value."""
        value = value.lower().replace("_", " ").strip() if self.lower else value
        return self.wording.get(value, value)

    def option_texts(self) -> tuple[str, ...] | None:
        """Return the texts that may be offered as options; None where only the data can tell."""
        if self.choices is not None or self.values is None:
            return self.choices
        return tuple(dict.fromkeys(self.text(value) for value in self.values))

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
    """

    attributes: tuple[Attribute, ...]
    separator: str = ", "
    one_per_image: bool = False

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
        return tuple(attribute.source_column for attribute in self.attributes)

    def read(self, row: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
        """Return the applicable source values of a table row by attribute name, and what is wrong with the row."""
        values: dict[str, str] = {}
        wrong: list[str] = []
        for attribute in self.attributes:
            value = row[attribute.source_column]
            if value in attribute.absent:
                continue
            if attribute.values is not None and value not in attribute.values:
                expected = ", ".join((*attribute.values, *attribute.absent))
                wrong.append(f"{attribute.source_column} is '{value}', expected one of: {expected}")
            values[attribute.name] = value
        return values, wrong

    def to_dict(self) -> dict[str, Any]:
        """Return the schema as plain data, attributes without the fields left at their defaults."""
        rows = []
        for attribute in self.attributes:
            given = asdict(attribute)
            rows.append({f.name: _plain(given[f.name]) for f in fields(Attribute) if given[f.name] != _default(f)})
        return {"separator": self.separator, "one_per_image": self.one_per_image, "attributes": rows}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Schema":
        """Return the schema that `to_dict` wrote, or that a user edited.

        Raises:
            DataError: for an unknown key or a value of the wrong type.
        """
        known = {f.name for f in fields(Attribute)}
        attributes = []
        for row in data.get("attributes", ()):
            unknown = sorted(set(row) - known)
            if unknown or "name" not in row:
                what = f"unknown key {', '.join(map(repr, unknown))}" if unknown else "no 'name'"
                raise DataError(f"schema: attribute {row}: {what}; known keys: {', '.join(sorted(known))}")
            attributes.append(Attribute(**{key: _checked(row, key) for key in row}))
        rest = sorted(set(data) - {f.name for f in fields(cls)})
        if rest or not attributes:
            raise DataError(f"schema: expected a list 'attributes' and optional separator, one_per_image; got {data}")
        return cls(tuple(attributes), str(data.get("separator", ", ")), bool(data.get("one_per_image", False)))


def _default(item: Any) -> Any:
    return item.default if item.default is not MISSING else {} if item.default_factory is not MISSING else MISSING


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value


_TYPES: dict[str, type] = {
    "values": list, "absent": list, "choices": list, "wording": dict, "phrases": dict,
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
    wrong = [item for item in items if not isinstance(item, str)]
    if wrong:
        raise DataError(f"schema: {key} of '{row['name']}' holds {wrong[0]!r}, which is no text; put quotes around it")
    return tuple(value) if isinstance(value, list) else value
