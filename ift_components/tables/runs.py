"""The runs that a plan asks for: every row, dataset and seed, those that are the same made once.

A run's identity is the SHA-256 of its whole config, in which the runs that it reads stand by their identities. So it does not
depend on where the folder lies, on the names and order of rows, or on keys that only say how fast something is computed.
"""

import hashlib
import importlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf

from ift_components.config import check_components, config_to_dict, read_config, suggest
from ift_components.errors import ConfigError, UserError
from ift_components.evaluation.settings import EvalSettings
from ift_components.evaluation.settings import check_settings as check_evaluation
from ift_components.files import sha256
from ift_components.tables.plan import DATA_STAGE, Dataset, Plan, Row, absolute, flatten
from ift_components.tables.settings import StageSettings
from ift_components.training.checks import check_settings as check_training
from ift_components.training.settings import TrainSettings
from ift_components.training.stages import PlannedStage

_DIGITS = 10
_OUTPUT = "@output"
# How fast and where something is computed, not what: these do not make another run of it.
_NO_MATTER = (
    "output_dir", "resume", "device", "num_workers", "workers", "checkpoint_every_steps", "keep_last", "spare_dir",
    "activation_checkpointing", "activation_offloading", "frozen_weights", "keep_encoded", "metric_logger", "label",
)  # fmt: skip
_FLAG = ("ift_warmup_recipe", "ift_recipe", "ift_stages_recipe")
_ITSELF = ("ift_data_recipe", "ift_eval_recipe", "ift_judge_recipe", "ift_generate_recipe")
_FINISHED = {"ift_warmup_recipe": "run.json", "ift_recipe": "run.json"}
_PATH_KEYS = ("root", "data", "images", "path", "proxy", "source", "table", "folder")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a stage.

    Attributes:
        id: its name, also its folder's: stage, dataset, seed if it has one, and the beginning of its hash.
        stage: its stage, or `data`.
        folder: its folder; `out` in it is what the stage writes.
        command: how it is started; `{config}` stands for the path of its config.
        config: its config, nothing resolved; None for a module.
        needs: the runs that it reads.
        settings: its stage's settings.
        rows: the rows that use it.
    """

    id: str
    stage: str
    folder: Path
    command: tuple[str, ...]
    config: dict[str, Any] | None
    needs: tuple[str, ...]
    settings: StageSettings
    rows: list[str] = field(default_factory=list)

    @property
    def out(self) -> Path:
        """What the stage writes."""
        return self.folder / "out"


@dataclass(frozen=True)
class Planned:
    """All runs of a plan, in an order in which they can be done, and where each row finds its own.

    Attributes:
        runs: by id.
        cells: by row, dataset and stage, the ids of the runs, one a seed; those that are the same once.
    """

    runs: dict[str, PlannedRun]
    cells: dict[tuple[str, str], dict[str, list[str]]]


class _LeftOutError(Exception):
    """An override refers to a stage that the row does not run."""


@dataclass(frozen=True)
class _Target:
    """What a reference stands for: a path, a name that is the same everywhere, and the run that makes it, if one does."""

    path: str
    token: str
    run: str | None = None


@dataclass(frozen=True)
class _Place:
    """What references may stand for in one row, dataset and seed; `needs` collects the runs that were referred to."""

    stages: Mapping[str, StageSettings]
    seed: int
    known: Mapping[str, _Target]
    needs: set[str] = field(default_factory=set)

    def resolve(self, value: Any, where: str, *, real: bool) -> Any:
        """Return a value with its references resolved, to paths or to names.

        Raises:
            _LeftOutError: if it refers to a stage that the row does not run before this one.
            ConfigError: if it refers to nothing.
        """
        if isinstance(value, Mapping):
            return {key: self.resolve(item, where, real=real) for key, item in value.items()}
        if isinstance(value, list):
            return [self.resolve(item, where, real=real) for item in value]
        if not isinstance(value, str) or not value.startswith("@"):
            return value
        name, slash, rest = value[1:].partition("/")
        if name == "seed":
            return self.seed
        if name in self.known:
            target = self.known[name]
            if real and target.run is not None:
                self.needs.add(target.run)
            return f"{target.path if real else target.token}{slash}{rest}"
        if name in self.stages:
            raise _LeftOutError(name)
        raise ConfigError(f"{where}: '{value}' refers to nothing; {suggest(name, ['seed', *self.known, *self.stages])}")


def plan_runs(plan: Plan) -> Planned:
    """Return the runs of a plan, each config checked.

    Raises:
        ConfigError: for a config that is wrong, an override that nobody reads, or two rows that are the same.
    """
    runs: dict[str, PlannedRun] = {}
    prepared = {
        name: _prepared(plan, dataset, runs, where=f"datasets.{name}") for name, dataset in plan.datasets.items()
    }
    cells: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in plan.rows:
        for name in row.datasets:
            cells[row.name, name] = _cell(plan, row, plan.datasets[name], prepared, runs)
    _check_different(plan, cells)
    return Planned(runs, cells)


def _prepared(plan: Plan, dataset: Dataset, runs: dict[str, PlannedRun], *, where: str) -> _Target:
    """Return a dataset's prepared folder; plan its preparation if it has none."""
    if dataset.folder is not None:
        return _Target(str(dataset.folder), f"@{dataset.name}-{sha256(dataset.folder / 'manifest.json')[:_DIGITS]}")
    stage = StageSettings(recipe="ift_data_recipe", config=dataset.config, minutes=2.0)
    names, place = (DATA_STAGE, dataset.name), _Place({}, 0, {})
    run = _planned(plan, stage, names, dataset.overrides, place, where=where, runs=runs)
    return _Target(str(run.out), f"@{run.id}", run.id)


def _prepared_for(plan: Plan, row: Row, dataset: Dataset, runs: dict[str, PlannedRun]) -> _Target:
    """Return the folder of a dataset that a row has prepared in a way of its own."""
    where, own = f"rows.{row.name}.{DATA_STAGE}", row.stages[DATA_STAGE]
    if dataset.folder is not None:
        raise ConfigError(
            f"{where}: {next(iter(own))} cannot be changed in what is prepared already, {dataset.folder}; give "
            f"datasets.{dataset.name}.root=PATH in the place of its folder, or leave the row out: '~rows.{row.name}'"
        )
    return _prepared(plan, replace(dataset, overrides=dataset.overrides | own), runs, where=where)


def _cell(
    plan: Plan, row: Row, dataset: Dataset, prepared: Mapping[str, _Target], runs: dict[str, PlannedRun]
) -> dict[str, list[str]]:
    """Plan the runs of a row on a dataset; return their ids by stage."""
    ids: dict[str, list[str]] = {}
    own_data = _prepared_for(plan, row, dataset, runs) if row.stages[DATA_STAGE] else prepared[dataset.name]
    for seed in row.seeds:
        known = {name: _Target(path, f"@{path}") for name, path in plan.paths.items()}
        known |= {f"dataset:{name}": target for name, target in prepared.items()}
        known["dataset"] = own_data
        for name in row.runs:
            stage, where = plan.settings.stages[name], f"rows.{row.name}.{name}"
            place = _Place(plan.settings.stages, seed, known)
            usual = flatten(stage.overrides) | dataset.stages.get(name, {})
            # What refers to a stage that the row leaves out is left out with it: the config's own value stays.
            overrides = {key: value for key, value in usual.items() if not _left_out(value, place, where)}
            overrides |= row.stages.get(name, {})
            own = row.own.get(name, {})
            run = _planned(plan, stage, (name, dataset.name), overrides, place, where=where, runs=runs, own=own)
            for used in (run, *(runs[needed] for needed in run.needs)):
                if row.name not in used.rows:
                    used.rows.append(row.name)
            if run.id not in ids.setdefault(name, []):
                ids[name].append(run.id)
            known[name] = _Target(str(run.out), f"@{run.id}", run.id)
    return ids


def _left_out(value: Any, place: _Place, where: str) -> bool:
    try:
        place.resolve(value, where, real=False)
    except _LeftOutError:
        return True
    return False


def _planned(
    plan: Plan,
    stage: StageSettings,
    names: tuple[str, str],
    overrides: Mapping[str, Any],
    place: _Place,
    *,
    where: str,
    runs: dict[str, PlannedRun],
    own: Mapping[str, Any] | None = None,
) -> PlannedRun:
    """Return one run of a stage on a dataset, its config checked, and add it to `runs` unless it is there.

    `own` are the overrides that the row itself has.
    """
    name, dataset = names
    try:
        named = _texts(place, overrides, where, real=False)
        words = place.resolve([word for word in stage.arguments if word != _OUTPUT], where, real=False)
        content: Any = [named, words]
        if stage.recipe is not None:
            content = _merged(str(stage.config), tuple(named))
            content = {key: value for key, value in content.items() if key not in _NO_MATTER}
        identity = json.dumps([name, stage.recipe or stage.module, content], sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:_DIGITS]
        seeded = "@seed" in json.dumps([list(overrides.values()), stage.arguments]) or f"-seed{place.seed}-" in identity
        run_id = "-".join([name, dataset, *([f"seed{place.seed}"] if seeded else []), digest])
        if run_id in runs and not own:
            return runs[run_id]
        folder = plan.runs / run_id
        texts = _texts(place, overrides, where, real=True)
        if stage.recipe is None:
            command, config = _module_command(stage, texts, place, folder / "out", where), None
        else:
            command, config = _recipe_command(stage), _checked_config(stage, texts, folder / "out", own or {})
    except _LeftOutError as error:
        raise ConfigError(f"{where}: refers to @{error}, a stage that this row does not run before it") from error
    except UserError as error:
        if str(error).startswith(where):
            raise
        raise type(error)(f"{where}: {error}") from error
    run = PlannedRun(run_id, name, folder, command, config, tuple(sorted(place.needs)), with_defaults(stage))
    return runs.setdefault(run_id, run)


def with_defaults(stage: StageSettings) -> StageSettings:
    """Return a stage's settings with what is known of its recipe: how it goes on, and what it leaves at its end."""
    recipe = stage.recipe or ""
    resume = stage.resume or ("flag" if recipe in _FLAG else "itself" if recipe in _ITSELF else "afresh")
    return replace(stage, resume=resume, finished=stage.finished or _FINISHED.get(recipe))


def _texts(place: _Place, overrides: Mapping[str, Any], where: str, *, real: bool) -> list[str]:
    """Return overrides as one types them."""
    texts = []
    for key, value in overrides.items():
        resolved = place.resolve(value, f"{where}.{key}", real=real)
        last = key.rpartition(".")[2]
        if last in _PATH_KEYS or last.endswith(("_dir", "_path")):
            resolved = absolute(resolved)
        texts.append(key if key.startswith("~") else f"{key}={override_text(resolved)}")
    return texts


def override_text(value: Any) -> str:
    """Return a value as the right-hand side of an override, which reads it back as it is."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    try:
        read = OmegaConf.to_container(OmegaConf.from_dotlist([f"k={value}"])) if value else None
    except yaml.YAMLError:
        read = None
    return value if read == {"k": value} else json.dumps(value, ensure_ascii=False)


@lru_cache(maxsize=4096)
def _merged(config: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    return cast("dict[str, Any]", OmegaConf.to_container(read_config(config, overrides), resolve=False))


def _module_command(
    stage: StageSettings, texts: Iterable[str], place: _Place, out: Path, where: str
) -> tuple[str, ...]:
    words = [str(out) if word == _OUTPUT else word for word in stage.arguments]
    arguments = [str(absolute(word)) for word in place.resolve(words, where, real=True)]
    for text in texts:
        key, _, value = text.partition("=")
        if not key.startswith("--"):
            arguments.append(text)
        elif value != "false":
            arguments += [key] if value == "true" else [key, value]
    return (sys.executable, "-m", str(stage.module), *arguments)


def _recipe_command(stage: StageSettings) -> tuple[str, ...]:
    if stage.processes == 1:
        return (sys.executable, "-m", str(stage.recipe), "--config", "{config}")
    tune = str(Path(sys.executable).with_name("tune"))
    return (tune, "run", "--nproc_per_node", str(stage.processes), str(stage.recipe), "--config", "{config}")


def _checked_config(stage: StageSettings, texts: list[str], out: Path, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's config after the recipe itself has checked it, components too."""
    texts = [*texts, f"output_dir={override_text(str(out))}"]
    loaded = _recipe_load(str(stage.recipe))(str(stage.config), texts)
    for settings in _settings_in(loaded):
        _check(settings, own)
    return _merged(str(stage.config), tuple(texts))


def _recipe_load(recipe: str) -> Any:
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # recipes and components of the user's own, beside their plan
    try:
        load = importlib.import_module(recipe).main.load
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"recipe: '{recipe}' is no recipe of this package's kind: {error}") from error
    return load


def _settings_in(loaded: Any) -> Iterator[Any]:
    if isinstance(loaded, list):
        yield from (item.cfg if isinstance(item, PlannedStage) else item for item in loaded)
    else:
        yield loaded


def _check(settings: Any, own: Mapping[str, Any]) -> None:
    """Check what a recipe would only find when it runs."""
    check_components(config_to_dict(settings))
    if isinstance(settings, TrainSettings):
        check_training(settings)
        unread = [key for key, value in own.items() if key.startswith("proxy.") and value is not None]
        if settings.instruction is not None and unread:
            raise ConfigError(
                f"{unread[0]}: nobody reads it, because instruction='{settings.instruction}' stands in the proxy's place"
            )
    elif isinstance(settings, EvalSettings):
        check_evaluation(settings)


def _check_different(plan: Plan, cells: Mapping[tuple[str, str], Mapping[str, list[str]]]) -> None:
    """Refuse two rows that show the same runs on a dataset; rows that show other keys of a row's runs are meant to be."""
    shown = sorted({plan.stage_of(column) for column in plan.columns.values()})
    for dataset in plan.datasets:
        seen: dict[Any, str] = {}
        for row in plan.rows:
            if row.values is not None or (row.name, dataset) not in cells:
                continue
            same = tuple(tuple(cells[row.name, dataset].get(stage, ())) for stage in shown)
            if same in seen:
                raise ConfigError(
                    f"rows.{row.name}: is the same run as '{seen[same]}' on {dataset}; change what it overrides, or remove it"
                )
            seen[same] = row.name
