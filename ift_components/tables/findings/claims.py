"""The papers' claims, `claims.yaml`: which comparison of which plan tests each, or why none does."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from ift_components.errors import ConfigError

CLAIMS = Path(__file__).with_name("claims.yaml")


@dataclass(frozen=True)
class Side:
    """A row of a plan's table."""

    plan: str
    row: str


@dataclass(frozen=True)
class Comparison:
    """Two rows in one column: the first is said to be higher, or, with `within`, to differ by no more than that.

    `control` is a column that must be above 0 in one of both rows to say anything, such as what was read from the image, or a
    column and one that it must be above, such as what another image's pixels give.
    """

    first: Side
    second: Side
    column: str
    datasets: tuple[str, ...] = ()
    within: float | None = None
    control: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """What a paper claims.

    Attributes:
        says: the claim.
        where: its place in the paper.
        paper: the paper's own figures, as text.
        tests: what must be seen for it to show here.
        cannot: why it cannot be tested here.
    """

    says: str
    where: str
    paper: str
    tests: tuple[Comparison, ...]
    cannot: str


@dataclass(frozen=True)
class Paper:
    """A paper and its claims."""

    title: str
    claims: tuple[Claim, ...]


def read_claims(path: Path = CLAIMS) -> list[Paper]:
    """Read papers' claims.

    Raises:
        ConfigError: naming the claim that is wrong.
    """
    nodes = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [Paper(str(node["paper"]), tuple(_claim(claim, path) for claim in node["claims"])) for node in nodes]


def _claim(node: Mapping[str, Any], path: Path) -> Claim:
    where = f"{path.name}: '{node.get('says')}'"
    unknown = sorted(set(node) - {f.name for f in fields(Claim)})
    if unknown or "says" not in node or "where" not in node:
        raise ConfigError(f"{where}: {unknown[0] if unknown else 'says or where'} is unknown or missing")
    tests = tuple(one for test in node.get("tests", ()) for one in _comparisons(test, where))
    if not tests and not node.get("cannot"):
        raise ConfigError(f"{where}: give tests, or cannot, why there are none")
    return Claim(node["says"], node["where"], node.get("paper", ""), tests, node.get("cannot", ""))


def _comparisons(node: Mapping[str, Any], where: str) -> Iterator[Comparison]:
    kinds = ({"plan", "column", "higher", "than"}, {"plan", "column", "same", "within"})
    if set(node) - {"datasets", "than_plan", "control"} not in kinds:
        raise ConfigError(
            f"{where}: a test has plan, column, and higher and than, or same and within; not {dict(node)}"
        )
    plan, other = str(node["plan"]), str(node.get("than_plan", node["plan"]))
    firsts, seconds = (node["same"][:1], node["same"][1:]) if "same" in node else (node["higher"], node["than"])
    for first, second in product(_listed(firsts), _listed(seconds)):
        sides = Side(plan, first), Side(other, second)
        datasets, control = _listed(node.get("datasets", [])), _listed(node.get("control", []))
        yield Comparison(*sides, node["column"], datasets, node.get("within"), control)


def _listed(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
