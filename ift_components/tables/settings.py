"""The keys of a plan."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class StageSettings:
    """A stage of every row: a recipe with its config, or a module of this package with its arguments."""

    recipe: str | None = None
    """The recipe's module, e.g. `ift_recipe`."""

    config: str | None = None
    """Its config: a path, or the name of a packaged one."""

    overrides: dict[str, Any] = field(default_factory=dict)
    """What the plan changes in the config, dotted or nested; rows change it further."""

    module: str | None = None
    """Instead of a recipe, a module that is run as `python -m MODULE ARGUMENTS`; overrides `--key` become its options."""

    arguments: list[Any] = field(default_factory=list)
    """The module's arguments; `@output` is the folder that it is to write."""

    optional: bool = False
    """Whether only rows that name it in `stages` run it."""

    processes: int = 1
    """Processes of the recipe (torchrun's), e.g. one a GPU."""

    resume: str | None = None
    """How it goes on after an interruption: `flag` (by `resume=true`), `itself` (the same command) or `afresh` (what it left is
    removed). Null takes what is known of the recipe; modules start afresh."""

    finished: str | None = None
    """File in its folder by which it is seen to have ended; null takes what is known of the recipe."""

    minutes: float | None = None
    """About how long one run takes, for `dry_run` and a cluster's time limit (of which it gets three times as much)."""

    memory_gb: float = 2.0
    """About how much memory one run takes."""

    resources: dict[str, Any] = field(default_factory=dict)
    """Further resources that a cluster is asked for, e.g. `gres: gpu:1` or `cpus_per_task: 8`."""


@dataclass
class ColumnSettings:
    """What a column of the table shows."""

    key: str = MISSING
    """Dotted key in the stage's file; of a list or mapping the length is shown. `trained_share` is computed from run.json."""

    stage: str | None = None
    """The stage; null is the last one that is not optional."""

    file: str = "results.json"
    """The file in the stage's folder: JSON, or JSON lines, of which the last with the key counts."""

    unit: str = "percent"
    """`percent` (the key holds a share) or `number`."""

    digits: int | None = None
    """Digits behind the point; null is 1, of numbers 3."""


@dataclass
class FigureSettings:
    """Which figures are drawn."""

    radar: list[str] | None = None
    """Rows of a radar chart by attribute; null takes all, if they are no more than six; an empty list draws none."""

    bars: list[str] | None = None
    """Columns drawn as bars with intervals; null takes the first column, if it is a share."""

    line: list[str] | None = None
    """Columns drawn over the rows' `x`; null takes the first two, where rows have an `x`."""

    x_title: str = "x"
    """The axis' title."""

    x_log: bool = True
    """Whether the axis is logarithmic."""


@dataclass
class PlanSettings:
    """The keys of a plan."""

    title: str = MISSING
    """Heading of the table."""

    output_dir: str = MISSING
    """Folder of the table and of all runs; one in which the same or an earlier plan was run is gone on with."""

    runs_dir: str | None = None
    """Folder of the runs, which plans may share: what several of them ask for is done once. Null is `runs` in `output_dir`."""

    notes: str = ""
    """A paragraph above the table."""

    seeds: list[int] = field(default_factory=lambda: [0])
    """A row is run once for each, where a stage refers to `@seed`."""

    datasets: dict[str, Any] = MISSING
    """By name: `folder` (prepared), or `config` with `root` and `overrides`; a stage's name holds overrides of that stage."""

    paths: dict[str, str] = field(default_factory=dict)
    """Files and folders that stages refer to as `@NAME`; `???` has the user give them."""

    stages: dict[str, StageSettings] = MISSING
    """The stages, in order."""

    rows: dict[str, Any] = MISSING
    """The rows, in order: what each changes in the stages."""

    columns: dict[str, Any] = MISSING
    """By title: a key of results.json, or a `ColumnSettings`."""

    baseline: str | None = None
    """The row that the others are compared with; null takes the one called `baseline`, if there is one."""

    figures: FigureSettings = field(default_factory=FigureSettings)
    """Which figures are drawn."""

    jobs: int = 1
    """Runs at a time; locally each computes with its share of the cores."""

    executor: str = "local"
    """`local`, or `slurm` (Snakemake's plugin)."""

    partition: str | None = None
    """Slurm's partition."""

    account: str | None = None
    """Slurm's account."""

    dry_run: bool = False
    """Print what would be run, and stop."""
