"""Writes what finished tables say about the papers' claims, with the tables and figures beside it.

python -m ift_components.tables.findings TABLE_FOLDER... --out OUT

OUT/README.md has a verdict on every claim of `claims.yaml`; OUT/PLAN/ holds each table and its figures, or OUT/PLAN-DATASETS/
where the plan has several datasets, so that they can be run apart. Tables that OUT holds from earlier calls count too, and are
replaced by those of the same plan and datasets that are given.
"""

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ift_components.config import CONFIG_DIR, command_line
from ift_components.errors import DataError, UserError
from ift_components.files import write_text
from ift_components.pages import environment, now
from ift_components.tables.findings.claims import read_claims
from ift_components.tables.findings.verdicts import Outcome, TableFile, Verdict, decide, joined, read_table

_KEPT = ("table.md", "table.csv", "differences.csv", "table.tex", "table.json")


def plans() -> dict[str, dict[str, Any]]:
    """Return the packaged plans by file name."""
    found = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(CONFIG_DIR.glob("*.yaml"))}
    return {name: node for name, node in found.items() if {"rows", "stages", "columns"} <= set(node)}


def plan_of(folder: Path, table: TableFile, known: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the file name of the plan whose title a table has.

    Raises:
        DataError: if no packaged plan is called so.
    """
    for name, node in known.items():
        if node["title"] == table.title:
            return name
    raise DataError(f"{folder}: its table is called '{table.title}', as no packaged plan is; titles tell them apart")


def place_of(plan: Mapping[str, Any], name: str, table: TableFile) -> str:
    """Return the folder of a plan's table: the plan's name, and the table's datasets if the plan has several."""
    return "-".join([Path(name).stem, *(table.datasets if len(plan["datasets"]) > 1 else [])])


def outcome_text(outcome: Outcome, known: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a comparison and what was measured as a line."""
    comparison, found = outcome.comparison, outcome.measured
    parts = [comparison.column, *([outcome.dataset] if outcome.dataset else [])]
    other = f" ({comparison.second.plan})" if comparison.second.plan != comparison.first.plan else ""
    text = f"{comparison.first.row} less {comparison.second.row}{other}, {', '.join(parts)}: "
    if found is None:
        return f"{text}{outcome.reason or outcome.verdict}"
    column = known[comparison.first.plan]["columns"][comparison.column]
    number = isinstance(column, dict) and column.get("unit") == "number"
    scale, unit = (1, "") if number else (100, " points")
    digits = 3 if number else 1
    difference, low, high = (f"{scale * x:+z.{digits}f}" for x in (found.difference, found.low, found.high))
    how = {"paired": "paired", "intervals": "by both intervals", "seeds": "over seeds alone"}[found.how]
    margin = f", within {scale * comparison.within:g}{unit}?" if comparison.within is not None else ""
    single = {0: "", 1: f", one run of {'; '.join(found.single)}", 2: ", one run of either"}[len(found.single)]
    return f"{text}{difference}{unit} ({low} to {high}){margin}, p = {found.p:.2g}, {how}{single}"


def _copied(folder: Path, target: Path) -> list[str]:
    """Copy a table and its figures; return the figures' names."""
    if folder.resolve() != target.resolve():
        if target.exists():
            shutil.rmtree(target)
        target.mkdir(parents=True)
        for name in _KEPT:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)
        if (folder / "figures").is_dir():
            shutil.copytree(folder / "figures", target / "figures")
    return sorted(path.name for path in (target / "figures").glob("*.png"))


def write_findings(folders: Sequence[Path], out: Path) -> Path:
    """Write the page and copy the tables; return the page's path.

    Args:
        folders: finished or partly finished table folders.
        out: the folder to write into.

    Raises:
        DataError: if a folder is not there, or holds a table of no packaged plan.
    """
    known = plans()
    found: dict[str, tuple[str, Path, TableFile]] = {}
    earlier = sorted(path.parent for path in out.glob("*/table.json"))
    without = []
    for folder in (*earlier, *folders):
        if not folder.is_dir():
            raise DataError(f"{folder} is not there; give folders that ift_table_recipe wrote")
        table = read_table(folder)
        if table is None:
            without.append(folder)
            continue
        name = plan_of(folder, table, known)
        found[place_of(known[name], name, table)] = name, folder, table
    by_plan: dict[str, TableFile] = {}
    for name, _, table in found.values():
        by_plan[name] = joined(by_plan[name], table) if name in by_plan else table
    out.mkdir(parents=True, exist_ok=True)
    shown = [(table, place, _copied(folder, out / place)) for place, (_, folder, table) in sorted(found.items())]
    for folder in without:
        print(f"note: {folder} holds no table yet: let its plan come to its end", file=sys.stderr)
    decided = decide(read_claims(), by_plan)
    counts = {verdict: sum(f.verdict is verdict for _, some in decided for f in some) for verdict in Verdict}
    values = {"papers": decided, "tables": shown, "counts": counts, "date": now(), "command": command_line()}
    page = environment("ift_components.tables").get_template("findings.md")
    write_text(
        out / "README.md", page.render(values, line=lambda outcome: outcome_text(outcome, known), Verdict=Verdict)
    )
    return out / "README.md"


def main() -> None:
    """Write what the tables in the folders that are given say."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="what ift_table_recipe wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the page")
    arguments = parser.parse_args()
    try:
        print(write_findings(arguments.folders, arguments.out))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
