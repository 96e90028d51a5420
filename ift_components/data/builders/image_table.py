"""Any dataset of your own: a folder of images and a table (CSV, XLSX or Parquet) with one row an image."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ift_components.data.builders.own import OwnData
from ift_components.data.schema import Attribute, Schema
from ift_components.data.schema_file import read_schema
from ift_components.data.source import (
    Problems,
    Record,
    Source,
    builder,
    find_image,
    require_files,
)
from ift_components.data.tables import Row, read_table, require_columns
from ift_components.errors import DataError

MAX_VALUES = 26  # an attribute with more different values than letters is taken for text or a measurement
ABSENT = ("", "NA", "N/A", "nan", "NaN", "nil", "None", "null")
_FLAGS = ({"yes", "no"}, {"true", "false"}, {"1", "0"})
_NO = ("no", "false", "0")


@builder
def image_table(
    root: str,
    table: str,
    *,
    schema: str | None = None,
    attributes: Sequence[str] | None = None,
    options: OwnData,
) -> Source:
    """Return a dataset from a table of attributes.

    Args:
        root: the folder that holds the images.
        table: the table, relative to `root` or absolute.
        schema: YAML file of attributes, commonly an edited copy of the `schema.yaml` that the first build wrote; by
            default the schema is inferred from the table.
        attributes: columns to infer attributes from; by default every column with at most 26 different values.
        options: where rows lie, how they are divided and stored; each field is a keyword of the builder.

    Raises:
        DataError: if the table, a column or the schema is missing or wrong.
    """
    folder = Path(root)
    (path,) = require_files(folder, [table])
    rows = list(read_table(path, [*options.columns, *(attributes or ())], Problems()))
    if not rows:
        raise DataError(f"{path.name} has no rows")
    notes: list[str] = []
    if schema is None:
        names = (
            list(attributes) if attributes else [name for name in rows[0][1] if name and name not in options.columns]
        )
        attribute_schema = infer_schema([row for _, row in rows], names, notes, chosen=bool(attributes))
    else:
        attribute_schema = read_schema(Path(schema).expanduser())
        require_columns(path, rows[0][1], attribute_schema.columns)
    drawn = options.draw(row for _, row in rows)

    def records(problems: Problems) -> Iterator[Record]:
        for number, row in read_table(path, options.columns, problems):
            where = f"{path.name} row {number}"
            values, faults = attribute_schema.read(row)
            for fault in faults:
                problems.add(where, fault)
            name = row[options.image_column]
            image = find_image(folder, name, where, problems)
            if image and not faults:
                split, group = options.split(row, drawn), options.group(row)
                yield Record(id=name, split=split, image=image, where=where, values=values, group=group)

    tables = (path,) if schema is None else (path, Path(schema).expanduser().resolve())
    return Source(
        folder,
        attribute_schema,
        tables,
        records,
        options.images,
        options.on_bad_row,
        splits=options.required(drawn),
        notes=tuple(notes),
    )


def infer_schema(rows: Sequence[Row], names: Sequence[str], notes: list[str], *, chosen: bool) -> Schema:
    """Return the schema that a table suggests: a column with few different values is an attribute.

    Columns of yes/no, true/false or 1/0 are named in a report where they hold and left out where they do not; the
    values of others are written before the column's name. A column with one value is reported but not asked.

    Args:
        rows: the table.
        names: the columns to look at.
        notes: takes a line about every column that is left out or not asked.
        chosen: whether the user named these columns, so that none may be left out.

    Raises:
        DataError: if no column can be an attribute, or a chosen one cannot.
    """
    attributes = []
    for column in names:
        counts = Counter(row[column] for row in rows if row[column] not in ABSENT)
        values = sorted(counts)
        if not values or len(values) > MAX_VALUES:
            what = f"column '{column}' has {len(values)} different values"
            if chosen:
                raise DataError(
                    f"{what}, expected 1 to {MAX_VALUES}; take it out of builder.attributes, or give a schema"
                )
            notes.append(f"{what}: not taken for an attribute")
            continue
        flag = any({value.lower() for value in values} == pair for pair in _FLAGS)
        if len(values) == 1:
            notes.append(f"column '{column}' always holds '{values[0]}': in reports, but not asked")
        attributes.append(_flag(column, values) if flag else _named(column, values))
    if not attributes:
        raise DataError(
            f"no column of {', '.join(map(repr, names))} can be an attribute: expected 1 to {MAX_VALUES} values"
        )
    return Schema(tuple(attributes))


def _flag(column: str, values: list[str]) -> Attribute:
    no, yes = sorted(values, key=lambda value: value.lower() not in _NO)
    wording = {} if yes.lower() == "yes" else {yes: "yes", no: "no"}
    phrases = {yes: "{name}", no: ""}
    name = column.replace("_", " ").strip()
    return Attribute(name, column, (yes, no), ABSENT, wording=wording, phrases=phrases)


def _named(column: str, values: list[str]) -> Attribute:
    return Attribute(column.replace("_", " ").strip(), column, tuple(values), ABSENT, asked=len(values) > 1)
