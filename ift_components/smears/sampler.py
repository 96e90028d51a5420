"""Attribute rows of drawn white blood cells: as frequent together as in WBCAtt, or each on its own.

The numbers are the frequencies of WBCAtt's training table (6,169 cells; github.com/apple2373/wbcatt, MIT licence).
Rows of a table are the five labels, columns an attribute's values, both in the schema's order.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from ift_components.data.builders.wbcatt import SCHEMA
from ift_components.errors import DataError

Codes = npt.NDArray[np.int8]
Table = tuple[tuple[float, ...], ...]

ABSENT = -1
COLUMNS = {attribute.name: place for place, attribute in enumerate(SCHEMA.attributes)}
VALUES = tuple(attribute.values or () for attribute in SCHEMA.attributes)
COUNTS = tuple(len(values) for values in VALUES)
GRANULES = (COLUMNS["granule type"], COLUMNS["granule colour"])  # absent where granularity is `no`
GRANULARITY = COLUMNS["granularity"]
GRANULAR = VALUES[GRANULARITY].index("yes")

LABELS = (0.121, 0.304, 0.119, 0.134, 0.322)
GIVEN_LABEL: dict[str, Table] = {
    "cell size": ((0.261, 0.739), (0.635, 0.365), (0.008, 0.992), (0.867, 0.133), (0.596, 0.404)),
    "nucleus shape": (
        (0.411, 0.290, 0.183, 0.073, 0.016, 0.027),
        (0.008, 0.695, 0.181, 0.106, 0.006, 0.004),
        (0.030, 0.000, 0.000, 0.000, 0.189, 0.781),
        (0.203, 0.004, 0.000, 0.000, 0.729, 0.065),
        (0.008, 0.190, 0.126, 0.673, 0.001, 0.003),
    ),
    "nuclear cytoplasmic ratio": ((0.005, 0.995), (0.001, 0.999), (0.920, 0.080), (0.075, 0.925), (0.001, 0.999)),
    "chromatin density": ((1.000, 0.000), (0.993, 0.007), (0.980, 0.020), (0.413, 0.587), (0.989, 0.011)),
    "cytoplasm texture": ((1.000, 0.000), (1.000, 0.000), (0.363, 0.637), (0.119, 0.881), (1.000, 0.000)),
    "cytoplasm colour": (
        (0.000, 0.995, 0.005),
        (0.001, 0.999, 0.000),
        (0.613, 0.033, 0.355),
        (0.457, 0.086, 0.457),
        (0.000, 1.000, 0.000),
    ),
    "granularity": ((1.000, 0.000), (1.000, 0.000), (0.001, 0.999), (0.002, 0.998), (0.999, 0.001)),
}
# Of the cells with granules. A single lymphocyte and two monocytes have any.
GIVEN_GRANULES: dict[str, Table] = {
    "granule type": (
        (0.996, 0.000, 0.004),
        (0.000, 0.999, 0.001),
        (0.000, 0.000, 1.000),
        (0.000, 0.000, 1.000),
        (0.001, 0.001, 0.998),
    ),
    "granule colour": (
        (0.000, 1.000, 0.000),
        (0.000, 0.000, 1.000),
        (0.000, 1.000, 0.000),
        (1.000, 0.000, 0.000),
        (0.976, 0.024, 0.000),
    ),
}
# Given the label and one attribute more; a row of five labels for each value of that attribute.
GIVEN_ANOTHER: dict[str, tuple[str, tuple[Table, ...]]] = {
    "cell shape": (
        "cell size",
        (
            ((0.253, 0.747), (0.106, 0.894), (0.833, 0.167), (0.629, 0.371), (0.316, 0.684)),
            ((0.064, 0.936), (0.032, 0.968), (0.321, 0.679), (0.155, 0.845), (0.101, 0.899)),
        ),
    ),
    "cytoplasm vacuole": (
        "cell shape",
        (
            ((0.000, 1.000), (0.007, 0.993), (0.000, 1.000), (0.723, 0.277), (0.084, 0.916)),
            ((0.003, 0.997), (0.002, 0.998), (0.000, 1.000), (0.139, 0.861), (0.020, 0.980)),
        ),
    ),
}


def sample_cells(count: int, generator: np.random.Generator, *, independent: bool = False) -> Codes:
    """Draw the attributes of cells.

    Args:
        count: number of cells.
        generator: source of the draws.
        independent: draw every attribute evenly and on its own, so that any combination occurs, instead of as in WBCAtt.

    Returns:
        Codes [count, 12], columns in the schema's order: a code is a place among the attribute's `values`, -1 is absent.

    Raises:
        ValueError: if `count` is negative.
    """
    if count < 0:
        raise ValueError(f"count is {count}; expected 0 or more")
    codes = np.empty((count, len(VALUES)), np.int8)
    if independent:
        for place, size in enumerate(COUNTS):
            codes[:, place] = generator.integers(0, size, count)
    else:
        label = _pick(np.broadcast_to(np.array(LABELS), (count, len(LABELS))), generator)
        codes[:, COLUMNS["label"]] = label
        for name, table in {**GIVEN_LABEL, **GIVEN_GRANULES}.items():
            codes[:, COLUMNS[name]] = _pick(np.array(table)[label], generator)
        for name, (given, tables) in GIVEN_ANOTHER.items():
            codes[:, COLUMNS[name]] = _pick(np.array(tables)[codes[:, COLUMNS[given]], label], generator)
    codes[np.ix_(codes[:, GRANULARITY] != GRANULAR, GRANULES)] = ABSENT
    return codes


def _pick(weights: npt.NDArray[np.float64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw a column from each row of weights [count, values]; rounded rows need not add up to one."""
    steps = weights.cumsum(1)
    return (generator.random((len(steps), 1)) * steps[:, -1:] >= steps).sum(1)


def check_codes(codes: npt.NDArray[Any]) -> Codes:
    """Return codes as int8 once they are known to describe cells.

    Args:
        codes: integers [count, 12].

    Raises:
        DataError: at a wrong shape or type, a code that no value has, or granules that contradict the granularity.
    """
    if codes.ndim != 2 or codes.shape[1] != len(VALUES) or not np.issubdtype(codes.dtype, np.integer):  # noqa: PLR2004
        raise DataError(
            f"codes have shape {list(codes.shape)} and type {codes.dtype}; expected integers [count, {len(VALUES)}]"
        )
    for place, (attribute, size) in enumerate(zip(SCHEMA.attributes, COUNTS, strict=True)):
        low = ABSENT if place in GRANULES else 0
        wrong = np.flatnonzero((codes[:, place] < low) | (codes[:, place] >= size))
        if len(wrong):
            raise DataError(
                f"codes: row {wrong[0]} has {codes[wrong[0], place]} as '{attribute.name}'; expected {low} to {size - 1}"
            )
    granular = codes[:, GRANULARITY] == GRANULAR
    for place in GRANULES:
        wrong = np.flatnonzero((codes[:, place] != ABSENT) != granular)
        if len(wrong):
            raise DataError(
                f"codes: row {wrong[0]} has {codes[wrong[0], place]} as '{SCHEMA.attributes[place].name}' and "
                f"{codes[wrong[0], GRANULARITY]} as 'granularity'; expected {ABSENT} exactly where granularity is 'no'"
            )
    return codes.astype(np.int8, copy=False)


def rows(codes: npt.NDArray[Any]) -> list[dict[str, str]]:
    """Return codes as rows of WBCAtt's table: source values by column name, `nil` where absent.

    Args:
        codes: integers [count, 12].

    Raises:
        DataError: if the codes do not describe cells.
    """
    return [
        {
            attribute.source_column: values[code] if code != ABSENT else attribute.absent[0]
            for attribute, values, code in zip(SCHEMA.attributes, VALUES, row, strict=True)
        }
        for row in check_codes(codes).tolist()
    ]
