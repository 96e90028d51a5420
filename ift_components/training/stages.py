"""Several training runs in a chain, from one config: each stage starts from the checkpoint of the one before it.

The config's own keys hold for every stage; under `stages`, by name and in order, stands what a stage has of its own. A mapping
is merged into the config's, key by key; one with a `_component_` takes its place. A stage is a run like any other, in a folder
of its name under `output_dir`, with records and a checkpoint of its own.
"""

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from ift_components.config import check_config, find_config, missing_keys, read_config
from ift_components.distributed import World
from ift_components.errors import ConfigError, UserError
from ift_components.files import require_new_folder
from ift_components.proxy import PROXY_FILE
from ift_components.smears.dataset import draw_if_missing
from ift_components.training.checks import Stage, check_settings, check_warm_up
from ift_components.training.data import build_loader, build_validation_loader
from ift_components.training.run import TrainingRun
from ift_components.training.run_folder import RunFolder, on_main
from ift_components.training.settings import TrainSettings
from ift_components.training.stages_page import write_page


@dataclass(frozen=True)
class PlannedStage:
    """One stage, ready to run.

    Attributes:
        name: its name, also its folder's.
        cfg: its whole config.
        stage: what the config trains.
    """

    name: str
    cfg: TrainSettings
    stage: Stage

    @property
    def folder(self) -> Path:
        """Its folder."""
        return Path(self.cfg.output_dir)


def merge_nodes(shared: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return a config's node with a stage's own keys: mappings are merged, one with a `_component_` takes the other's place."""
    merged = dict(shared)
    for key, value in own.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and "_component_" not in value:
            merged[key] = merge_nodes(below, value)
        else:
            merged[key] = value
    return merged


def load_stages(name: str, overrides: Iterable[str]) -> list[PlannedStage]:
    """Load a config with `stages` and plan them; each but the first starts from what the one before it will leave.

    A stage's `checkpoint_dir` and `proxy.path` are the last that a stage before it leaves, unless it names its own.

    Args:
        name: a path, or the name of a packaged config.
        overrides: `key=value` or `~key`, applied in order.

    Raises:
        ConfigError: if there are no stages, or one is wrong; the message names it.
    """
    cfg, file_name = read_config(name, overrides), find_config(name).name
    nodes = cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=False))
    stages = nodes.pop("stages", None)
    if not isinstance(stages, dict) or not stages:
        raise ConfigError(f"{file_name}: stages: names no stage; give NAME: {{its own keys}}, one after another")
    if "output_dir" in missing_keys(cfg) or "output_dir" not in cfg:
        raise ConfigError(f"{file_name}: give a value for output_dir (on the command line: output_dir=...)")
    output, planned = Path(str(cfg.output_dir)), list[PlannedStage]()
    chained: dict[str, Any] = {}
    for stage_name, own in stages.items():
        where = f"{file_name}: stages.{stage_name}"
        if not isinstance(own, dict) or not re.fullmatch(r"[\w-]+", str(stage_name)):
            raise ConfigError(f"{where}: is not a mapping of keys under a name of letters, digits, _ and -")
        if "output_dir" in own:
            raise ConfigError(
                f"{where}.output_dir: a stage writes into the folder of its name in output_dir; remove it"
            )
        if planned and planned[-1].stage.tuning.adapter_kinds:
            raise ConfigError(
                f"{where}: the stage before it leaves an adapter, which no stage can start from; merge it by ift_merge_recipe "
                "and train on from that"
            )
        place = {"output_dir": str(output / str(stage_name))}
        node = merge_nodes(merge_nodes(merge_nodes(nodes, chained), own), place)
        settings = check_config(OmegaConf.create(node), where, TrainSettings)
        try:
            stage = check_settings(settings)
            if stage.is_warm_up:
                check_warm_up(stage)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        planned.append(PlannedStage(str(stage_name), settings, stage))
        chained = merge_nodes(chained, _outcome(planned[-1]))
    return planned


def _outcome(planned: PlannedStage) -> dict[str, Any]:
    """Return the keys by which a later stage starts from what this one leaves."""
    folder = planned.folder if planned.stage.is_warm_up else planned.folder / planned.stage.result
    checkpoint = {} if planned.stage.is_warm_up else {"checkpoint_dir": str(folder)}
    proxy = {} if planned.stage.rule is None else {"proxy": {"path": str(folder / PROXY_FILE)}}
    return checkpoint | proxy


class StagedRun:
    """Runs planned stages one after another; `resume` goes on with the first that is not finished.

    Args:
        stages: from `load_stages`.
        world: the processes.
    """

    def __init__(self, stages: Sequence[PlannedStage], world: World) -> None:
        self.stages, self.world = stages, world
        self.output = stages[0].folder.parent

    def run(self) -> None:
        """Check all stages and their data, then train those that are not finished, and keep `stages.html` up to date.

        Raises:
            UserError: for everything wrong with any stage's config or data, before the first trains.
        """
        finished = self._finished()
        for planned in self.stages[finished:]:
            try:
                draw_if_missing(planned.cfg.data)
                build_loader(planned.cfg, self.world)
                build_validation_loader(planned.cfg, self.world)
            except UserError as error:
                raise type(error)(f"stage '{planned.name}': {error}") from error
        for number, planned in enumerate(self.stages[finished:], start=finished + 1):
            if self.world.is_main:
                print(f"stage {number} of {len(self.stages)}: {planned.name}", file=sys.stderr)
            try:
                TrainingRun(planned.cfg, self.world, planned.stage).run()
            finally:
                on_main(self.world, self._write_page)

    def _finished(self) -> int:
        """Return how many stages are finished; 0 unless this resumes.

        Raises:
            UserError: if the folder holds something and this does not resume, a finished stage had another config, or one is
                finished and an earlier one is not.
        """
        if not self.stages[0].cfg.resume:
            on_main(self.world, lambda: cast("None", require_new_folder(self.output)))
            return 0
        done = [RunFolder(planned.cfg, self.world).is_finished() for planned in self.stages]
        count = done.index(False) if False in done else len(done)
        if any(done[count:]):
            later = self.stages[count + done[count:].index(True)]
            raise ConfigError(
                f"resume: stage '{later.name}' is finished and '{self.stages[count].name}' before it is not; move "
                f"{later.folder} away, or give another output_dir"
            )
        return count

    def _write_page(self) -> None:
        folders = [planned.folder for planned in self.stages if (planned.folder / "metrics.jsonl").is_file()]
        if folders:
            write_page(self.output / "stages.html", folders)
