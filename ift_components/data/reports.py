"""Reports made from attributes."""

from collections.abc import Mapping

from ift_components.data.schema import Schema
from ift_components.data.source import Record
from ift_components.shuffling import PHRASE


def make_report(schema: Schema, values: Mapping[str, str]) -> str:
    """Return the report of one image: the phrases of its attributes in schema order, joined by the separator.

    Where every value reads as nothing, as findings that are all negative do, it is the schema's `empty_report`; without any
    value it is empty.

    Args:
        schema: the dataset's attributes.
        values: applicable source values by attribute name.
    """
    return schema.separator.join(report_phrases(schema, values)) or (schema.empty_report if values else "")


def report_phrases(schema: Schema, values: Mapping[str, str]) -> list[str]:
    """Return the phrases of a report in schema order."""
    phrases = (a.in_report(values[a.name]) for a in schema.attributes if a.name in values)
    return [phrase for phrase in phrases if phrase]


def whole_phrases(schema: Schema, record: Record) -> list[tuple[str, str]]:
    """Return the phrases of a record's report, if one holds the text that separates phrases; otherwise nothing.

    Shuffling takes a report apart at its separator. Where a phrase holds it too, the phrases go with the report, as entries
    `PHRASE` of its attributes.
    """
    separator = schema.separator.strip()
    if record.report is not None or not separator:
        return []
    phrases = report_phrases(schema, record.values)
    return [(PHRASE, phrase) for phrase in phrases] if any(separator in phrase for phrase in phrases) else []
