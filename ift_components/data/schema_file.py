"""Schemas as YAML files: what a build writes for a user to edit, and how an edited one is read."""

from pathlib import Path

import yaml

from ift_components.data.schema import Schema
from ift_components.errors import DataError

_HEADER = """\
# The attributes of this dataset, in the order of its reports. Edit a copy and give it to the builder: builder.schema=FILE
#   name: as reports and questions write it       column: its column in the table
#   values: what may occur, in the order of the options; another value is an error
#   absent: values that mean "does not apply"      phrase: how it reads in a report; "" leaves it out
#   phrases: phrases of single values              asked: false asks no question about it
#   wording: how reports and options write a value sampled: number of options drawn at random
"""


def schema_yaml(schema: Schema) -> str:
    """Return a schema as YAML with a header that explains its keys."""
    return _HEADER + yaml.safe_dump(schema.to_dict(), sort_keys=False, allow_unicode=True, width=120)


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
