"""Reports made from attributes."""

from collections.abc import Mapping

from ift_components.data.schema import Schema


def make_report(schema: Schema, values: Mapping[str, str]) -> str:
    """Return the report of one image: the phrases of its attributes in schema order, joined by the separator.

    Args:
        schema: the dataset's attributes.
        values: applicable source values by attribute name.
    """
    phrases = (a.in_report(values[a.name]) for a in schema.attributes if a.name in values)
    return schema.separator.join(phrase for phrase in phrases if phrase)
