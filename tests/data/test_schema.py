"""Schemas: how values read in reports and options, and schemas as plain data."""

import pytest

from ift_components.data.reports import make_report
from ift_components.data.schema import Attribute, Schema
from ift_components.data.schema_file import read_schema, schema_yaml
from ift_components.errors import DataError

FLAG = {"yes": "{name}", "no": ""}
SCHEMA = Schema(
    (
        Attribute("cell size", values=("big", "small")),
        Attribute("granularity", values=("yes", "no"), phrases=FLAG),
        Attribute("granule type", values=("coarse", "small"), absent=("nil",)),
        Attribute("margin", "mass margins", lower=True, wording={"well defined": "circumscribed"}),
        Attribute("label", values=("A", "B"), phrase="{value}"),
    )
)


def test_report_leaves_out_absent_values_and_those_with_an_empty_phrase():
    row = {"cell_size": "big", "granularity": "no", "granule_type": "nil", "mass margins": "ILL_DEFINED", "label": "B"}
    values, wrong = SCHEMA.read(row)
    assert wrong == []
    assert values == {"cell size": "big", "granularity": "no", "margin": "ILL_DEFINED", "label": "B"}
    assert make_report(SCHEMA, values) == "big cell size, ill defined margin, B"
    assert make_report(SCHEMA, {"granularity": "yes", "margin": "WELL_DEFINED"}) == "granularity, circumscribed margin"


def test_braces_in_data_are_data():
    assert Attribute("{value}").in_report("{name}") == "{name} {value}"


def test_unknown_values_are_named_with_what_was_expected():
    row = {"cell_size": "huge", "granularity": "", "granule_type": "nil", "mass margins": "X", "label": "A"}
    _, wrong = SCHEMA.read(row)
    assert wrong == [
        "cell_size is 'huge', expected one of: big, small",
        "granularity is '', expected one of: yes, no",
    ]


def test_schema_survives_yaml(tmp_path):
    path = tmp_path / "schema.yaml"
    path.write_text(schema_yaml(SCHEMA), encoding="utf-8")
    assert read_schema(path) == SCHEMA


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("attributes: [{name: size, vales: [a, b]}]", "unknown key 'vales'"),
        ("attributes: [{values: [a, b]}]", "no 'name'"),
        ("attributes: [{name: flag, values: [yes, no]}]", "holds True, which is no text; put quotes around it"),
        ("attributes: [{name: a, values: [x, y], asked: 'no'}]", "asked of 'a' must be a bool"),
        ("attributes: [{name: a, values: [x]}]", "has 1 option"),
        ("attributes: [{name: a, values: [x, y]}, {name: a, values: [x, y]}]", "given twice: a"),
        ("attributes: []", "expected a list 'attributes'"),
        ("- a", "must hold a mapping"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_wrong_schema_files_are_refused(tmp_path, text, message):
    path = tmp_path / "schema.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read_schema(path)
    assert message in str(error.value)
