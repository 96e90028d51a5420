"""Schemas as YAML files: what a build writes for a user to edit, and how an edited one is read."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from ift_components.data.schema import Schema
from ift_components.errors import DataError

_HEADER = """\
# The attributes of this dataset, in the order of its reports. Edit a copy and give it to the builder: builder.schema=FILE
#   name: as reports and questions write it        column: its column in the table, where that is called otherwise
#   values: what may occur, in the order of options; another value is an error       absent: "does not apply"
#   wording: how reports and options write a value phrase: how it reads in a report ("{value} {name}"; "" leaves it out)
#   phrases: phrases of single values              question: the question's words ("What is the {name}?")
#   asked: false asks no question about it         sampled: number of options drawn at random
#   one_of: several columns of which one is marked, with the value that each stands for
# Beside the list, empty_report is the report of an image of which nothing holds ("No finding.").
"""


def schema_yaml(schema: Schema, notes: Sequence[str] = ()) -> str:
    """Return a schema as YAML with a header that explains its keys; what has its default is left out.

    Args:
        schema: the schema.
        notes: what was found out about the table, as comments.
    """
    comments = "".join(f"# {' '.join(note.split())}\n" for note in notes)
    text = yaml.safe_dump(schema.to_dict(), sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)
    return _HEADER + comments + text


def read_schema(path: Path) -> Schema:
    """Read a schema from YAML.

    Raises:
        DataError: if the file is missing, is not YAML or does not hold a schema.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"builder.schema: {path} cannot be read as YAML: {error}") from error
    if not isinstance(data, dict):
        raise DataError(f"builder.schema: {path} must hold a mapping with the key 'attributes'")
    return Schema.from_dict(data)
