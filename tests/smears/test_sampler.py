"""Drawn attribute rows: WBCAtt's frequencies, the rule for absent granules, refusals."""

import csv
from collections import Counter

import numpy as np
import pytest

from ift_components.data.builders.wbcatt import SCHEMA
from ift_components.errors import DataError
from ift_components.smears import sample_cells, sampler
from ift_components.smears.sampler import COLUMNS, COUNTS, GRANULES, VALUES, check_codes, rows

LABEL = COLUMNS["label"]


@pytest.mark.parametrize("independent", [False, True])
def test_codes_follow_the_schema_and_the_seed(independent):
    codes = sample_cells(2000, np.random.default_rng(3), independent=independent)
    assert codes.shape == (2000, 12)
    assert codes.dtype == np.int8
    assert (codes == sample_cells(2000, np.random.default_rng(3), independent=independent)).all()
    assert (codes != sample_cells(2000, np.random.default_rng(4), independent=independent)).any()
    absent = codes[:, COLUMNS["granularity"]] == VALUES[COLUMNS["granularity"]].index("no")
    for place, size in enumerate(COUNTS):
        low = np.where(absent, -1, 0) if place in GRANULES else 0
        high = np.where(absent, -1, size - 1) if place in GRANULES else size - 1
        assert ((codes[:, place] >= low) & (codes[:, place] <= high)).all()


def test_independent_attributes_are_even_and_unrelated():
    codes = sample_cells(30_000, np.random.default_rng(0), independent=True)
    for place, size in enumerate(COUNTS):
        shown = codes[codes[:, place] >= 0, place]
        assert np.bincount(shown, minlength=size) / len(shown) == pytest.approx(1 / size, abs=0.015)
    together = np.corrcoef(codes[codes[:, COLUMNS["granularity"]] == 0].T[[0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11]])
    assert np.abs(together - np.eye(11)).max() < 0.04


def test_rows_are_rows_of_the_table():
    for row in rows(sample_cells(200, np.random.default_rng(0))):
        values, wrong = SCHEMA.read(row)
        assert not wrong
        assert len(values) == (12 if row["granularity"] == "yes" else 10)
        assert (row["granule_type"] == "nil") == (row["granule_colour"] == "nil") == (row["granularity"] == "no")


def frequencies(table, name, given=None):
    """Return P(name | label[, given]) from table rows, and how many rows it rests on; labels first."""
    column = SCHEMA.columns[COLUMNS[name]]
    keep = [row for row in table if name.split()[0] != "granule" or row["granularity"] == "yes"]
    counts = Counter((row["label"], row.get(given, ""), row[column]) for row in keep)
    others = [""] if given is None else VALUES[SCHEMA.columns.index(given)]
    values = VALUES[COLUMNS[name]]
    found = np.array([[[counts[label, other, v] for v in values] for label in VALUES[LABEL]] for other in others])
    return found / np.maximum(found.sum(-1, keepdims=True), 1)


def test_written_tables_are_those_of_the_training_table(wbcatt_root):
    with (wbcatt_root / "pbc_attr_v1_train.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    labels = Counter(row["label"] for row in table)
    real = [labels[label] / len(table) for label in VALUES[LABEL]]
    assert np.array(sampler.LABELS) == pytest.approx(np.array(real), abs=0.0011)
    for name, written in {**sampler.GIVEN_LABEL, **sampler.GIVEN_GRANULES}.items():
        assert np.array(written) == pytest.approx(frequencies(table, name)[0], abs=0.0011), name
    for name, (given, written) in sampler.GIVEN_ANOTHER.items():
        column = SCHEMA.columns[COLUMNS[given]]
        assert np.array(written) == pytest.approx(frequencies(table, name, column), abs=0.0011), name
    drawn = rows(sample_cells(20_000, np.random.default_rng(0)))
    for column, values in zip(SCHEMA.columns, VALUES, strict=True):
        for value in values:
            share = [sum(row[column] == value for row in part) / len(part) for part in (table, drawn)]
            assert share[1] == pytest.approx(share[0], abs=0.015), (column, value)


def test_every_table_is_a_probability():
    tables = [sampler.LABELS, *sampler.GIVEN_LABEL.values(), *sampler.GIVEN_GRANULES.values()]
    tables += [table for _, table in sampler.GIVEN_ANOTHER.values()]
    for table in tables:
        assert np.array(table).sum(-1) == pytest.approx(1, abs=0.003)


def test_wrong_codes_are_refused_by_name():
    codes = sample_cells(5, np.random.default_rng(0), independent=True)
    codes[3, [8, 9, 10]] = 1, -1, -1
    for column, value, message in (
        (2, 6, "row 3 has 6 as 'nucleus shape'; expected 0 to 5"),
        (0, -1, "row 3 has -1 as 'cell size'; expected 0 to 1"),
        (9, 1, "row 3 has 1 as 'granule type' and 1 as 'granularity'; expected -1 exactly where"),
        (8, 0, "row 3 has -1 as 'granule type' and 0 as 'granularity'"),
    ):
        wrong = codes.copy()
        wrong[3, column] = value
        with pytest.raises(DataError, match=message):
            check_codes(wrong)
    for wrong in (codes[:, :11], codes[0], codes.astype(np.float32)):
        with pytest.raises(DataError, match=r"expected integers \[count, 12\]"):
            rows(wrong)
    with pytest.raises(ValueError, match="count is -1"):
        sample_cells(-1, np.random.default_rng(0))
    assert sample_cells(0, np.random.default_rng(0)).shape == (0, 12)
