"""Any dataset of your own: a folder of images and a table (CSV, XLSX or Parquet) with one row an image."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ift_components.data.builders.own import OwnData
from ift_components.data.infer import infer_schema
from ift_components.data.matching import ImageIndex, image_column, matching_note
from ift_components.data.problems import UNLISTED, Problems
from ift_components.data.schema import EMPTY_REPORT, Schema
from ift_components.data.schema_file import read_schema
from ift_components.data.source import Record, Source, builder, require_files
from ift_components.data.tables import Row, read_table, require_columns
from ift_components.errors import DataError


@builder
def image_table(
    root: str,
    table: str,
    *,
    schema: str | None = None,
    attributes: Sequence[str] | None = None,
    empty_report: str = EMPTY_REPORT,
    options: OwnData,
) -> Source:
    """Return a dataset from a table of attributes.

    Args:
        root: the folder that holds the images.
        table: the table, relative to `root` or absolute.
        schema: YAML file of attributes, commonly an edited copy of the `schema.yaml` that the first build wrote; by
            default the schema is inferred from the table.
        attributes: columns to infer attributes from; by default every column that looks like one.
        empty_report: the report of an image of which nothing holds, unless a schema says it.
        options: where rows lie, how they are divided and stored; each field is a keyword of the builder.

    Raises:
        DataError: if the table, a column or the schema is missing or wrong.
    """
    folder = Path(root)
    (path,) = require_files(folder, [table])
    notes: list[str] = []
    problems = options.problems()
    rows = [row for _, row in read_table(path, [*options.columns, *(attributes or ())], problems, notes)]
    if not rows:
        raise DataError(f"{path.name} has no usable row" + (f"\n{problems.summary()}" if problems.count else ""))
    index = ImageIndex(folder, follow_links=options.follow_links)
    options = replace(
        options, image_column=options.image_column or image_column(index, rows, path.name, private=options.private)
    )
    column = options.key_column
    notes.append(matching_note(index, column, rows, private=options.private))
    if schema is None:
        names = list(attributes or (name for name in rows[0] if name and name not in options.columns))
        chosen = attributes is not None
        own = infer_schema(rows, names, notes, chosen=chosen, private=options.private, empty_report=empty_report)
    else:
        own = read_schema(Path(schema).expanduser())
        require_columns(path, rows[0], own.columns, private=options.private)
    drawn = options.draw(rows)

    def records(problems: Problems) -> Iterator[Record]:
        for number, row in read_table(path, options.columns, problems):
            record = _record(row, f"{path.name} row {number}", own, index, problems)
            if record is not None:
                yield replace(record, split=options.split(row, drawn), group=options.group(row))

    def _record(row: Row, where: str, own: Schema, index: ImageIndex, problems: Problems) -> Record | None:
        values, faults = own.read(row)
        for fault in faults:
            problems.add(where, fault, UNLISTED)
        image = index.find(row[column], where, problems)
        if image is None or faults:
            return None
        return Record(id=image[0], split="", image=image[1], where=where, values=values)

    return Source(
        folder,
        own,
        (path,) if schema is None else (path, Path(schema).expanduser().resolve()),
        records,
        options.images,
        options.on_bad_row,
        splits=options.required(drawn),
        private=options.private,
        notes=tuple(notes),
    )
