"""One evaluation from its config: items to predictions.jsonl to results.json and its pages."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

import ift_components
from ift_components.config import config_to_dict, instantiate
from ift_components.data.prepared import read_manifest
from ift_components.distributed import World
from ift_components.errors import DataError
from ift_components.evaluation.items import Item, choice_items, free_items, report_items
from ift_components.evaluation.parsing import PARSERS
from ift_components.evaluation.predictions import RUN_FILE, LineWriter, RunFolder, done_keys, read_lines
from ift_components.evaluation.predictors.base import Answer, Predictor, Work
from ift_components.evaluation.predictors.own import OwnPredictor, checkpoint_hash
from ift_components.evaluation.report import write_pages
from ift_components.evaluation.results import gather_results
from ift_components.evaluation.settings import EvalSettings, check_settings
from ift_components.evaluation.text_metrics import closed_match, exact_match
from ift_components.files import sha256, write_json
from ift_components.models.build import build_for_inference
from ift_components.models.tile_padding import set_tile_padding
from ift_components.proxy import load_proxy
from ift_components.smears.dataset import draw_if_missing
from ift_components.training.settings import parse_dtype

# These decide how fast, where and how it is shown, not what is answered.
_NO_MATTER = ("output_dir", "compare", "label", "batch_size", "device", "bootstrap")


def _read_proxy(path: Path, dim: int) -> Tensor:
    """Return the vectors of a proxy file, however many they are."""
    count = 0
    if path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                count = file.get_slice("proxy_instruction").get_shape()[0]
        except SafetensorError as error:
            raise DataError(f"report.proxy: {path} is no proxy instruction: {error}") from error
    return load_proxy(path, count, dim)[0]


def _own_predictor(cfg: EvalSettings, world: World, identity: dict[str, str | None]) -> OwnPredictor:
    model = build_for_inference(cfg.model, cfg.checkpoint_dir, world.device, parse_dtype(cfg.dtype))
    set_tile_padding(model, cfg.tile_padding)
    proxy = _read_proxy(Path(cfg.report.proxy), model.decoder.output.in_features) if cfg.report.proxy else None
    return OwnPredictor(
        model,
        instantiate(cfg.tokenizer, "tokenizer"),
        batch_size=cfg.batch_size,
        scoring=cfg.scoring,
        temperature=cfg.temperature,
        top_p=cfg.top_p,
        seed=cfg.seed,
        proxy=proxy,
        identity=identity,
    )


def dataset_name(folder: str, given: str | None = None) -> str:
    """Return what a prepared folder's dataset is called: as given, or else by its builder."""
    return given or str(read_manifest(folder)["builder"]["name"])


def load_items(cfg: EvalSettings) -> list[Item]:
    """Return everything that is to be asked, checked.

    Args:
        cfg: a config of `EvalSettings`.

    Raises:
        DataError: if data is missing or wrong.
    """
    main = dataset_name(cfg.data, cfg.dataset)
    limits: dict[str, Any] = {"max_new_tokens": cfg.max_new_tokens, "limit": cfg.limit}
    items = choice_items(Path(cfg.data), cfg.split, main, **limits)
    for name, folder in cfg.unrelated.items():
        if name == main:
            raise DataError(f"unrelated: '{name}' is the name of the main dataset; call it something else")
        items += choice_items(Path(folder), cfg.split, str(name), **limits)
    free, report = cfg.free, cfg.report
    if free.path is not None:
        path, images = Path(free.path), Path(free.images)
        items += free_items(path, images, path.stem, max_new_tokens=free.max_new_tokens, limit=cfg.limit)
    if report.instruction or report.proxy:
        told = report.instruction or ""
        new = report.max_new_tokens
        items += report_items(Path(cfg.data), cfg.split, main, told, max_new_tokens=new, limit=cfg.limit)
    return items


def _data_hashes(cfg: EvalSettings) -> dict[str, str]:
    files = {}
    for name, folder in {"data": cfg.data, **cfg.unrelated}.items():
        for kind in ("questions", "reports"):
            path = Path(folder) / kind / f"{cfg.split}.parquet"
            if path.is_file():
                files[f"{name}/{kind}/{path.name}"] = sha256(path)
        files[f"{name}/manifest.json"] = sha256(Path(folder) / "manifest.json")
    if cfg.free.path is not None:
        files["free"] = sha256(Path(cfg.free.path))
    return files


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {"ift_components": ift_components.__version__, "python": platform.python_version()}
    for name in ("torch", "torchtune", "transformers", "sacrebleu", "rouge-score"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def prediction(work: Work, answer: Answer, parser: str) -> dict[str, Any]:
    """Return the line of predictions.jsonl for an answer.

    Args:
        work: what was asked.
        answer: what was given.
        parser: `paper` or `strict`, the one that decides; both readings are noted.
    """
    item, text = work.item, answer.generated
    row = {**item.facts(), "run": work.run}
    if text is not None:
        row["generated"] = text
    if item.task == "choice":
        if text is not None:
            row |= {name: parse(text, item.options) for name, parse in PARSERS.items()}
        if answer.forced is not None:
            row["forced"] = answer.forced
        row["predicted"] = answer.forced if text is None else row[parser]
        row["correct"] = row["predicted"] == item.answer
    elif item.task == "free" and text is not None:
        match = closed_match if item.kind == "closed" else exact_match
        row["correct"] = match(text, item.reference)
    return {**row, "seconds": round(answer.seconds, 4)}


class Evaluation:
    """The items of a config, what answers them, and the folder that the answers go to.

    Args:
        cfg: a config of `EvalSettings`.
        world: the processes; each answers the questions of its share of the images.

    Raises:
        UserError: for everything wrong with config, data, model or folder; nothing has been written then.
    """

    def __init__(self, cfg: EvalSettings, world: World) -> None:
        check_settings(cfg)
        draw_if_missing(cfg.data)
        self.cfg, self.world = cfg, world
        self.path = Path(cfg.output_dir)
        self.items = load_items(cfg)
        runs = {"choice": cfg.n_runs}
        self.work = [Work(item, run) for item in self.items for run in range(runs.get(item.task, 1))]
        self.data_hashes = _data_hashes(cfg)
        self.predictor: Predictor | None = None
        if cfg.predictor is not None:
            self.predictor = instantiate(cfg.predictor, "predictor")
            self.identity = self.predictor.describe()
        else:
            name = "own engine" if cfg.checkpoint_dir else "own engine, random weights"
            self.identity = {"predictor": name, "sha256": checkpoint_hash(cfg.checkpoint_dir)}
        self.folder: RunFolder | None = None
        resumed = (self.path / RUN_FILE).is_file()
        if world.is_main:
            self.folder = RunFolder(self.path, self._fingerprint())
        rows = self._open() if resumed else []
        done = done_keys(rows)
        left = [one for one in self.work if (*one.item.key, one.run) not in done]
        self.mine = self._share(left)
        self.done = len(self.work) - len(left)
        if self.mine:
            if self.predictor is None:
                self.predictor = _own_predictor(cfg, world, self.identity)
            self.predictor.check(list({one.item.key: one.item for one in self.mine}.values()))
        if not resumed:
            world.barrier()  # whoever finds something wrong stops before anything is written
            self._open()

    def _fingerprint(self) -> dict[str, Any]:
        decisive = {key: value for key, value in self._config().items() if key not in _NO_MATTER}
        return {**decisive, "weights": self.identity, "data_sha256": self.data_hashes}

    def _config(self) -> dict[str, Any]:
        return config_to_dict(self.cfg)

    def _open(self) -> list[dict[str, Any]]:
        """Create or enter the folder; return the answers that are there."""
        if self.folder is not None:
            self.folder.open({"versions": versions(), "config": self._config()})
        self.world.barrier()
        path = self.path / "predictions.jsonl"
        return read_lines(path) if path.is_file() else []

    def _share(self, work: Sequence[Work]) -> list[Work]:
        """Return this process's share: all work on an image goes to one process."""
        images: dict[tuple[str, str], int] = {}
        return [
            one
            for one in work
            if images.setdefault((one.item.dataset, one.item.image_id), len(images)) % self.world.size
            == self.world.rank
        ]

    def run(self) -> dict[str, Any] | None:
        """Give every answer that is not there yet; on the main process, gather results and write the pages.

        Returns:
            The content of results.json; None on other processes.
        """
        try:
            if self.mine:
                self._answer_all()
            self.world.barrier()
            return None if self.folder is None else self._finish(self.folder)
        finally:
            if self.folder is not None:
                self.folder.close()

    def _finish(self, folder: RunFolder) -> dict[str, Any]:
        """Gather the answers of all processes into results.json and the pages."""
        rows = folder.merge(self.work)
        if len(rows) < len(self.work):
            raise DataError(
                f"{self.path}: {len(self.work) - len(rows)} answers are missing; run the same command again"
            )
        results = gather_results(rows, self.cfg, dataset_name(self.cfg.data, self.cfg.dataset))
        results |= {
            "config": self._config(),
            "weights": self.identity,
            "data_sha256": self.data_hashes,
            "versions": versions(),
        }
        write_json(self.path / "results.json", results)
        write_pages(self.path, results, rows, self.items)
        return results

    def _answer_all(self) -> None:
        if self.predictor is None:
            raise RuntimeError("there is work but nothing to do it")
        total = len(self.mine) + (self.done if self.world.size == 1 else 0)
        with (
            LineWriter(self.path, self.world.rank) as lines,
            tqdm(
                total=total,
                initial=total - len(self.mine),
                desc="evaluation",
                unit="answer",
                disable=not self.world.is_main,
            ) as bar,
        ):
            for one, answer in self.predictor.answer(self.mine):
                lines.append(prediction(one, answer, self.cfg.parser))
                bar.update()
