"""A plan of many runs, read from its YAML and checked as far as that goes without knowing the stages' configs."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ift_components.config import find_config, missing_keys, read_config, suggest
from ift_components.errors import ConfigError, DataError
from ift_components.tables.settings import ColumnSettings, FigureSettings, PlanSettings, StageSettings

DATA_STAGE = "data"
"""Name of the stage that prepares a dataset by its config."""

EXECUTORS = ("local", "slurm")
UNITS = ("percent", "number")
RESUMES = ("flag", "itself", "afresh")
_DATASET_KEYS = ("folder", "config", "root", "overrides", "title")
_ROW_KEYS = ("like", "without", "stages", "seeds", "datasets", "paper", "values", "x", "series", "against")
_NAME = re.compile(r"[A-Za-z]\w*")


@dataclass(frozen=True)
class Dataset:
    """A dataset of a plan: `folder` is a prepared one, else `config` and `overrides` prepare it."""

    name: str
    title: str
    folder: Path | None
    config: str | None
    overrides: dict[str, Any]
    stages: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """A row of a plan; `own` and `stages` hold overrides by stage: the row's own, and with those of the rows it is like.

    Those of `data` are of how its datasets are prepared. `named` are the datasets that it asks for, none for all of them;
    `datasets` those of them that the plan has, since one may be left out on the command line. `against` holds columns in
    which it is compared with other rows than the baseline, by row.
    """

    name: str
    stages: dict[str, dict[str, Any]]
    own: dict[str, dict[str, Any]]
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    named: tuple[str, ...]
    datasets: tuple[str, ...]
    paper: dict[str, Any]
    values: dict[str, str | None] | None
    x: float | None
    series: str
    against: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Plan:
    """A plan whose own keys are right.

    Attributes:
        file: where it was read.
        settings: what it holds.
        output: its folder, absolute.
        runs: the folder of its runs, absolute.
        datasets: by name.
        paths: by name, absolute where something lies there.
        rows: in order.
        columns: by title.
        baseline: name of the row that the others are compared with.
    """

    file: Path
    settings: PlanSettings
    output: Path
    runs: Path
    datasets: dict[str, Dataset]
    paths: dict[str, str]
    rows: tuple[Row, ...]
    columns: dict[str, ColumnSettings]
    baseline: str | None

    @property
    def tabled(self) -> dict[str, Dataset]:
        """The datasets that a row runs on; others are there for stages to refer to."""
        return {name: one for name, one in self.datasets.items() if any(name in row.datasets for row in self.rows)}

    def compared(self, row: Row, column: str) -> list[str]:
        """Return the rows that a row is compared with in a column: the baseline, and those that it names."""
        named = [other for other, columns in row.against.items() if column in columns]
        usual = [self.baseline] if self.baseline is not None else []
        return [name for name in dict.fromkeys([*usual, *named]) if name != row.name]

    def stage_of(self, column: ColumnSettings) -> str:
        """Return the stage whose file a column reads."""
        usual = [name for name, stage in self.settings.stages.items() if not stage.optional]
        return column.stage or (usual or list(self.settings.stages))[-1]


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested overrides as dotted keys; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def absolute(value: Any) -> Any:
    """Return a path as it is from anywhere, if something lies there from here; any other value as it is."""
    return str(Path(value).expanduser().absolute()) if isinstance(value, str) and value and _lies(value) else value


def _lies(value: str) -> bool:
    try:
        return Path(value).expanduser().exists()
    except (OSError, RuntimeError):  # longer than a name may be, or of a user who is not there
        return False


def load_plan(name: str, overrides: Iterable[str]) -> Plan:
    """Read a plan and check its own keys.

    Args:
        name: a path, or the name of a packaged plan.
        overrides: `key=value` or `~key`, applied in order.

    Raises:
        ConfigError: naming the key that is wrong.
        DataError: if a dataset is not there; the message says what to download or prepare.
    """
    overrides = list(overrides)
    cfg, file = read_config(name, overrides), find_config(name)
    _check_present(cfg, file.name)
    settings = _typed(cfg, file.name)
    _check_numbers(settings)
    stages = settings.stages
    for stage_name, stage in stages.items():
        _check_stage(stage_name, stage)
    datasets = {
        key: _dataset(key, _mapping(f"datasets.{key}", node), stages) for key, node in settings.datasets.items()
    }
    rows: dict[str, Row] = {}
    for key, node in settings.rows.items():
        rows[key] = _row(key, _mapping(f"rows.{key}", node), rows, settings)
    columns = {key: _column(key, node, stages) for key, node in settings.columns.items()}
    left_out = {one.removeprefix("~rows.") for one in overrides if one.startswith("~rows.")}
    for row in rows.values():
        _check_cells(row, columns)
        _check_against(row, rows, columns, left_out)
    baseline = settings.baseline or ("baseline" if "baseline" in rows else None)
    if baseline is not None and baseline not in rows:
        raise ConfigError(f"baseline: there is no row '{baseline}'; {suggest(baseline, rows)}")
    for title, chosen, known in (
        ("figures.radar", settings.figures.radar, rows),
        ("figures.bars", settings.figures.bars, columns),
        ("figures.line", settings.figures.line, columns),
    ):
        for one in chosen or []:
            if one not in known:
                raise ConfigError(f"{title}: there is no '{one}'; {suggest(one, known)}")
    output = Path(settings.output_dir).expanduser().absolute()
    runs = Path(settings.runs_dir).expanduser().absolute() if settings.runs_dir else output / "runs"
    paths = {key: absolute(value) for key, value in settings.paths.items()}
    return Plan(file, settings, output, runs, datasets, paths, tuple(rows.values()), columns, baseline)


def _check_present(cfg: DictConfig, file: str) -> None:
    """Check that every `???` has been given; a dataset's folder stands for all else of it."""
    datasets = cfg.get("datasets")
    for key in missing_keys(cfg):
        words = key.split(".")
        if words[0] == "datasets" and isinstance(datasets, DictConfig) and len(words) > 1:
            dataset = datasets[words[1]]
            if isinstance(dataset, DictConfig) and dataset.get("folder") is not None and words[-1] != "folder":
                continue
            download = download_note(dataset.get("config")) if isinstance(dataset, DictConfig) else ""
            leave = f"or leave the dataset out: '~datasets.{words[1]}'"
            raise DataError(
                f"{file}: give {key}=PATH, or its prepared folder, datasets.{words[1]}.folder=PATH, {leave}{download}"
            )
        raise ConfigError(f"{file}: give a value for {key} (on the command line: {key}=...)")


def download_note(config: str | None) -> str:
    """Return what the header of a dataset's config says of where it comes from, as the end of a message."""
    if config is None:
        return ""
    lines = [line for line in find_config(config).read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    begin = next((number for number, line in enumerate(lines) if line.startswith("# Download")), None)
    if begin is None:
        return f". What it is stands in {find_config(config)}"
    end = next((n for n in range(begin, len(lines)) if lines[n].strip() == "#"), len(lines))
    return ". " + " ".join(" ".join(line.removeprefix("#").strip() for line in lines[begin:end]).split())


def _typed(cfg: DictConfig, file: str) -> PlanSettings:
    declared = [f.name for f in fields(PlanSettings)]
    raw = cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=False))
    for key in raw:
        if key not in declared:
            raise ConfigError(f"{file}: unknown key '{key}'; {suggest(key, declared)}")
    for key in ("title", "output_dir", "datasets", "stages", "rows", "columns"):
        if not raw.get(key):
            raise ConfigError(f"{file}: give a value for {key}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(PlanSettings), cfg)
        # Nothing is resolved: what stands in overrides belongs to the stages' configs.
        node = cast("dict[str, Any]", OmegaConf.to_container(merged, resolve=False))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{file}: {error.full_key}: {str(error).splitlines()[0]}") from error
    node["stages"] = {name: StageSettings(**stage) for name, stage in node["stages"].items()}
    node["figures"] = FigureSettings(**node["figures"])
    return PlanSettings(**node)


def _check_numbers(settings: PlanSettings) -> None:
    if settings.jobs < 1:
        raise ConfigError(f"jobs: {settings.jobs} is below 1")
    if settings.executor not in EXECUTORS:
        raise ConfigError(f"executor: '{settings.executor}' is not one of {', '.join(EXECUTORS)}")
    for key in ("partition", "account"):
        if getattr(settings, key) is not None and settings.executor != "slurm":
            raise ConfigError(f"{key}: only executor=slurm has one; remove it, or set executor=slurm")
    _check_seeds("seeds", settings.seeds)


def _check_seeds(where: str, seeds: Any) -> None:
    if not isinstance(seeds, list) or not seeds or any(isinstance(s, bool) or not isinstance(s, int) for s in seeds):
        raise ConfigError(f"{where}: {seeds} is not a list of numbers, such as [0, 1, 2]")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{where}: {seeds} holds a number twice")


def _check_stage(name: str, stage: StageSettings) -> None:
    where = f"stages.{name}"
    if not _NAME.fullmatch(name) or name in (DATA_STAGE, "dataset", "seed", "output", *_DATASET_KEYS, *_ROW_KEYS):
        raise ConfigError(f"{where}: a stage cannot be called so; take letters, digits and _, and another word")
    if (stage.recipe is None) == (stage.module is None):
        raise ConfigError(f"{where}: give either recipe (with config) or module (with arguments)")
    if stage.recipe is not None and stage.config is None:
        raise ConfigError(f"{where}.config: give the config that {stage.recipe} is run with")
    if stage.recipe is not None and stage.arguments:
        raise ConfigError(f"{where}.arguments: only a module has them; a recipe takes overrides")
    if stage.module is not None and stage.config is not None:
        raise ConfigError(f"{where}.config: a module takes none; give arguments and overrides")
    if stage.resume is not None and stage.resume not in RESUMES:
        raise ConfigError(f"{where}.resume: '{stage.resume}' is not one of {', '.join(RESUMES)}")
    if stage.processes < 1:
        raise ConfigError(f"{where}.processes: {stage.processes} is below 1")
    if stage.processes > 1 and stage.module is not None:
        raise ConfigError(f"{where}.processes: a module is one process")


def _mapping(where: str, node: Any) -> dict[str, Any]:
    if node is None:
        return {}
    if not isinstance(node, dict):
        raise ConfigError(f"{where}: {node!r} is not a mapping of keys to values")
    return node


def _of_stages(
    where: str, node: Mapping[str, Any], reserved: Iterable[str], stages: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """Return the overrides of each stage in a node, flat.

    Raises:
        ConfigError: for a key that is neither a stage nor reserved.
    """
    found = {}
    for key, value in node.items():
        if key in reserved:
            continue
        if key not in stages:
            raise ConfigError(f"{where}.{key}: no stage is called so; {suggest(str(key), [*stages, *reserved])}")
        found[key] = flatten(_mapping(f"{where}.{key}", value))
    return found


def _dataset(name: str, node: dict[str, Any], stages: Iterable[str]) -> Dataset:
    where = f"datasets.{name}"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: a dataset cannot be called so; take letters, digits and _")
    of_stages = _of_stages(where, node, _DATASET_KEYS, stages)
    config, title = node.get("config"), str(node.get("title") or name)
    if node.get("folder") is not None:
        folder = Path(str(node["folder"])).expanduser().absolute()
        if not (folder / "manifest.json").is_file():
            recipe = f"tune run ift_data_recipe --config {config or 'data_NAME.yaml'} output_dir={folder}"
            raise DataError(
                f"{where}.folder: {folder} is no prepared folder (no manifest.json); prepare it by: {recipe}"
                f"{download_note(config)}"
            )
        return Dataset(name, title, folder, config, {}, of_stages)
    if config is None:
        raise ConfigError(f"{where}: give folder (a prepared one) or config (of ift_data_recipe)")
    overrides = flatten(_mapping(f"{where}.overrides", node.get("overrides")))
    if node.get("root") is not None:
        root = absolute(str(node["root"]))
        if not Path(root).exists():
            raise DataError(f"{where}.root: {root} is not there{download_note(config)}")
        overrides["builder.root"] = root
    return Dataset(name, title, None, config, overrides, of_stages)


def _row(name: str, node: dict[str, Any], earlier: Mapping[str, Row], settings: PlanSettings) -> Row:
    where, stages = f"rows.{name}", settings.stages
    like = node.get("like")
    if like is not None and like not in earlier:
        raise ConfigError(f"{where}.like: no row above it is called '{like}'; {suggest(str(like), earlier)}")
    before = earlier.get(like) if like is not None else None
    own = _of_stages(where, node, _ROW_KEYS, [*stages, DATA_STAGE])
    for key in ("without", "stages"):
        for stage in _listed(f"{where}.{key}", node.get(key)):
            if stage not in stages:
                raise ConfigError(f"{where}.{key}: no stage is called '{stage}'; {suggest(stage, stages)}")
    usual = before.runs if before is not None else tuple(n for n, stage in stages.items() if not stage.optional)
    chosen = _listed(f"{where}.stages", node.get("stages")) or usual
    without = _listed(f"{where}.without", node.get("without"))
    runs = tuple(stage for stage in stages if stage in chosen and stage not in without)
    if not runs:
        raise ConfigError(f"{where}: no stage is left to run")
    for stage in own:
        if stage not in (*runs, DATA_STAGE):
            raise ConfigError(f"{where}.{stage}: the row does not run this stage, so that nobody reads its overrides")
    merged = {
        stage: (before.stages.get(stage, {}) if before else {}) | own.get(stage, {}) for stage in (DATA_STAGE, *runs)
    }
    seeds = node.get("seeds") or (list(before.seeds) if before else settings.seeds)
    _check_seeds(f"{where}.seeds", seeds)
    named = _listed(f"{where}.datasets", node.get("datasets")) or (before.named if before else ())
    x, values = node.get("x"), node.get("values")
    if x is not None and (isinstance(x, bool) or not isinstance(x, int | float)):
        raise ConfigError(f"{where}.x: {x!r} is not a number")
    return Row(
        name=name,
        stages=merged,
        own=own,
        runs=runs,
        seeds=tuple(seeds),
        named=named,
        datasets=tuple(key for key in settings.datasets if not named or key in named),
        paper=_mapping(f"{where}.paper", node.get("paper")),
        values=None if values is None else _mapping(f"{where}.values", values),
        x=None if x is None else float(x),
        series=str(node.get("series") or ""),
        against={
            str(other): _listed(f"{where}.against.{other}", columns)
            for other, columns in _mapping(f"{where}.against", node.get("against")).items()
        },
    )


def _listed(where: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{where}: {value!r} is not a list of names")
    return tuple(value)


def _column(title: str, node: Any, stages: Mapping[str, StageSettings]) -> ColumnSettings:
    where = f"columns.{title}"
    if isinstance(node, str):
        return ColumnSettings(key=node)
    node = _mapping(where, node)
    declared = [f.name for f in fields(ColumnSettings)]
    for key in node:
        if key not in declared:
            raise ConfigError(f"{where}.{key}: unknown key; {suggest(str(key), declared)}")
    if "key" not in node:
        raise ConfigError(f"{where}.key: give the key that the column shows")
    column = ColumnSettings(**node)
    if column.unit not in UNITS:
        raise ConfigError(f"{where}.unit: '{column.unit}' is not one of {', '.join(UNITS)}")
    if column.stage is not None and column.stage not in stages:
        raise ConfigError(f"{where}.stage: no stage is called '{column.stage}'; {suggest(column.stage, stages)}")
    return column


def _check_cells(row: Row, columns: Mapping[str, ColumnSettings]) -> None:
    """Check what a row says of cells: the paper's numbers by column, or by dataset and column, and keys of its own."""
    where = f"rows.{row.name}"
    for key, value in row.paper.items():
        cells = value.items() if isinstance(value, dict) else [(key, value)]
        for column, number in cells:
            if column not in columns:
                raise ConfigError(f"{where}.paper: there is no column '{column}'; {suggest(str(column), columns)}")
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise ConfigError(f"{where}.paper.{column}: {number!r} is not a number")
            if columns[column].unit == "percent" and not 0 <= number <= 1:
                raise ConfigError(f"{where}.paper.{column}: {number} is no share; write 0.617 for 61.7 %")
    for column in row.values or {}:
        if column not in columns:
            raise ConfigError(f"{where}.values: there is no column '{column}'; {suggest(str(column), columns)}")


def _check_against(
    row: Row, rows: Mapping[str, Row], columns: Mapping[str, ColumnSettings], left_out: Iterable[str]
) -> None:
    """Check which rows a row is compared with; one of them may have been left out on the command line."""
    where = f"rows.{row.name}.against"
    for other, titles in row.against.items():
        if other in left_out:
            continue
        if other not in rows or other == row.name:
            raise ConfigError(f"{where}: there is no other row '{other}'; {suggest(other, rows)}")
        for one in (row, rows[other]):
            if one.values is not None:
                raise ConfigError(f"{where}.{other}: '{one.name}' shows keys of its own (values) and is not compared")
        if row.named and rows[other].named and not set(row.named) & set(rows[other].named):
            raise ConfigError(f"{where}.{other}: the two rows have no dataset in common")
        for title in titles:
            if title not in columns:
                raise ConfigError(f"{where}.{other}: there is no column '{title}'; {suggest(title, columns)}")
