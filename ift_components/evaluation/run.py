"""One evaluation from its config: items to predictions.jsonl to results.json and its pages."""

import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

import ift_components
from ift_components.config import command_line, config_to_dict, instantiate, without_credentials
from ift_components.data.prepared import read_manifest
from ift_components.distributed import World
from ift_components.errors import DataError, UserError
from ift_components.evaluation import parsing
from ift_components.evaluation.calibration import check_calibration
from ift_components.evaluation.compare import read_run
from ift_components.evaluation.free_file import free_items
from ift_components.evaluation.items import control_items, question_items, report_items
from ift_components.evaluation.maps import answer_maps
from ift_components.evaluation.pairs import Run, check_alike, compare_labels, correct_for_number
from ift_components.evaluation.predictions import PREDICTIONS, RUN_FILE, LineWriter, RunFolder, read_lines
from ift_components.evaluation.predictors.base import Predictor, Sampling, Work
from ift_components.evaluation.predictors.own import OwnPredictor, checkpoint_hash
from ift_components.evaluation.records import Item, Key, Prediction, line_key
from ift_components.evaluation.report import write_pages
from ift_components.evaluation.results import gather_results, scoring_context
from ift_components.evaluation.settings import EvalSettings, check_settings
from ift_components.evaluation.tasks import CHOICE, FREE, TASKS, score_all
from ift_components.files import owner_only, sha256, write_json
from ift_components.models.adapter_reader import adapter_hash, load_adapter
from ift_components.models.build import build_for_inference, layout_for_answers
from ift_components.models.image_layout import ImageLayout
from ift_components.models.tile_padding import set_tile_padding
from ift_components.pages import now
from ift_components.proxy import load_proxy
from ift_components.smears.dataset import draw_if_missing
from ift_components.statistics import rounded
from ift_components.training.settings import parse_dtype

# These decide how fast, where and how it is shown, not what is answered.
_NO_MATTER = (
    "output_dir",
    "compare",
    "baseline",
    "label",
    "batch_size",
    "device",
    "bootstrap",
    "max_unanswered",
    "saliency",
    "calibration",
)


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
    model = build_for_inference(
        cfg.model, cfg.checkpoint_dir, world.device, parse_dtype(cfg.dtype), frozen_dtype=cfg.frozen_dtype
    )
    layout = ImageLayout(**cfg.asked_layout)  # `_settle_layout` has left nothing open
    set_tile_padding(model, layout.answering_padding, layout.tiles)
    if cfg.adapter_dir is not None:
        load_adapter(model, Path(cfg.adapter_dir), Path(str(cfg.checkpoint_dir)))
    proxy = _read_proxy(Path(cfg.report.proxy), model.decoder.output.in_features) if cfg.report.proxy else None
    return OwnPredictor(
        model,
        instantiate(cfg.tokenizer, "tokenizer"),
        batch_size=cfg.batch_size,
        scoring=cfg.scoring,
        letter_probabilities=cfg.letter_probabilities,
        proxy=proxy,
        identity=identity,
        resize=layout.resize,
        tiles=layout.tiles,
    )


def dataset_name(folder: str, name: str | None = None) -> str:
    """Return what a prepared folder's dataset is called: by `name`, or else by its builder's."""
    return name or str(read_manifest(folder)["builder"]["name"])


def load_items(cfg: EvalSettings) -> list[Item]:
    """Return everything that is to be asked, checked.

    Args:
        cfg: the evaluation's config.

    Raises:
        DataError: if data is missing or wrong.
    """
    main = dataset_name(cfg.data, cfg.dataset)
    limits: dict[str, Any] = {"max_new_tokens": cfg.max_new_tokens, "limit": cfg.limit}
    items = question_items(Path(cfg.data), cfg.split, main, **limits)
    if cfg.image_control:
        items += control_items(items)
    for name, folder in cfg.unrelated.items():
        if name == main:
            raise DataError(f"unrelated: '{name}' is the name of the main dataset; call it something else")
        items += question_items(Path(folder), cfg.split, str(name), **limits)
    free, report = cfg.free, cfg.report
    if free.path is not None:
        items += free_items(
            Path(free.path),
            Path(free.images),
            Path(free.path).stem,
            max_new_tokens=free.max_new_tokens,
            limit=cfg.limit,
            languages=free.languages,
        )
    if report.instruction or report.proxy:
        longest, instruction = report.max_new_tokens, report.instruction or ""
        items += report_items(Path(cfg.data), cfg.split, main, instruction, max_new_tokens=longest, limit=cfg.limit)
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
    if cfg.report.proxy is not None and Path(cfg.report.proxy).is_file():
        files["report.proxy"] = sha256(Path(cfg.report.proxy))
    return files


def _config_hash(cfg: EvalSettings) -> str | None:
    """Return the SHA-256 of the checkpoint's `config.json`, which decides what its weights compute; None without one."""
    path = Path(cfg.checkpoint_dir) / "config.json" if cfg.checkpoint_dir is not None else None
    return sha256(path) if path is not None and path.is_file() else None


def absolute_paths(value: Any, key: str = "") -> Any:
    """Return a config with its paths made absolute, so that one evaluation has one fingerprint wherever it is called from.

    Args:
        value: the config or a part of it.
        key: its key; a text is a path where this says so (`data`, `images`, `proxy`, `path`, `*_dir`, `*_path`, a task of
            `unrelated`) and something lies there: a model's name at the Hugging Face Hub stays as it is.
    """
    if isinstance(value, Mapping):
        return {name: absolute_paths(item, "path" if key == "unrelated" else str(name)) for name, item in value.items()}
    is_path = key in ("data", "images", "proxy", "path") or key.endswith(("_dir", "_path"))
    return (
        str(Path(value).resolve()) if is_path and isinstance(value, str) and value and Path(value).exists() else value
    )


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    present = {"ift_components": ift_components.__version__, "python": platform.python_version()}
    for name in ("torch", "torchtune", "transformers", "sacrebleu", "rouge-score"):
        present[name] = "not installed"
        with suppress(PackageNotFoundError):
            present[name] = version(name)
    return present


def tuning_steps(cfg: EvalSettings) -> int | None:
    """Return the optimizer steps of the run that left the checkpoint or adapter, by its run.json; None if there is none."""
    folder = cfg.adapter_dir or cfg.checkpoint_dir
    run = Path(folder).resolve().parent / RUN_FILE if folder is not None else None
    if run is None or not run.is_file():
        return None
    steps: int | None = json.loads(run.read_text(encoding="utf-8")).get("steps")
    return steps


class Evaluation:
    """The items of a config, what answers them, and the folder that the answers go to.

    Args:
        cfg: the evaluation's config.
        world: the processes; each answers the questions of its share of the images.
    """

    def __init__(self, cfg: EvalSettings, world: World) -> None:
        self.cfg, self.world = cfg, world
        self.path = Path(cfg.output_dir)
        self.items: list[Item] = []
        self._work: list[Work] = []
        self._share: list[Work] = []
        self._data_hashes: dict[str, str] = {}
        self._identity: dict[str, str | None] = {}
        self._predictor: Predictor | None = None
        self._folder: RunFolder | None = None
        self._baseline: Run | None = None
        self._validation: list[Prediction] | None = None
        self._unanswered = 0

    def prepare(self) -> None:
        """Load and check everything, and create or enter the folder: after this there are only answers to give.

        Raises:
            UserError: for everything wrong with config, data, model or folder; nothing has been written then.
        """
        check_settings(self.cfg)
        self._settle_layout()
        draw_if_missing(self.cfg.data)
        self.items = load_items(self.cfg)
        runs = {name: self.cfg.n_runs if task.repeated else 1 for name, task in TASKS.items()}
        self._work = [Work(item, run) for item in self.items for run in range(runs[item.task])]
        self._data_hashes = _data_hashes(self.cfg)
        self._read_baseline()
        self._identify()
        self._read_calibration()
        resumed = (self.path / RUN_FILE).is_file()
        if self.world.is_main:
            self._folder = RunFolder(self.path, self._fingerprint(), private=self._private())
            self._folder.claim()
        present = self._open() if resumed else {}
        self._unanswered = sum("unanswered" in row for row in present.values())
        missing = [work for work in self._work if (*work.item.key, work.run) not in present]
        self._share = self._own_share(missing)
        if self._share:
            if self._predictor is None:
                self._predictor = _own_predictor(self.cfg, self.world, self._identity)
            self._predictor.check(list({work.item.key: work.item for work in self._share}.values()))
        if not resumed:
            self.world.barrier()  # whoever finds something wrong stops before anything is written
            self._open()

    def _settle_layout(self) -> None:
        """Put the layout of pictures that is computed into the config: results are compared and continued by it."""
        cfg = self.cfg
        if cfg.predictor is not None:
            return
        layout = layout_for_answers(cfg.checkpoint_dir, cfg.adapter_dir, cfg.asked_layout, anyway=cfg.other_layout)
        computed = {**layout.note(), "tile_padding": layout.answering_padding}
        self.cfg = replace(cfg, **computed)
        if self.world.is_main:
            print(f"pictures: {layout}", file=sys.stderr)

    def _as_run(self, results: dict[str, Any], predictions: Sequence[Prediction]) -> Run:
        return Run(self.cfg.label or self.path.resolve().name, results, list(predictions))

    def _read_baseline(self) -> None:
        """Read the evaluation before tuning, and check that its questions are these, before any is answered."""
        if self.cfg.baseline is None:
            return
        folder = Path(self.cfg.baseline).resolve()
        self._baseline = read_run(folder, folder.name, "baseline")
        planned = {"parser": self.cfg.parser, "parser_version": parsing.VERSION, "config": self._config()}
        check_alike(self._baseline, self._as_run(planned, [Prediction(item) for item in self.items]))

    def _read_calibration(self) -> None:
        """Read the validation answers that the model's own are calibrated by, before any is given."""
        if self.cfg.calibration is not None:
            folder = Path(self.cfg.calibration).resolve()
            run = read_run(folder, folder.name, "calibration")
            main = dataset_name(self.cfg.data, self.cfg.dataset)
            asked = [item for item in self.items if item.task == CHOICE.name and item.dataset == main]
            self._validation = check_calibration(run, self._identity, asked)

    def _identify(self) -> None:
        """Build a predictor of the user's choice, and note what identifies the one that answers."""
        if self.cfg.predictor is not None:
            self._predictor = instantiate(self.cfg.predictor, "predictor")
            self._identity = self._predictor.describe()
        else:
            name = "own engine" if self.cfg.checkpoint_dir else "own engine, random weights"
            self._identity = {"predictor": name, "sha256": checkpoint_hash(self.cfg.checkpoint_dir)}
            if self.cfg.adapter_dir is not None:
                self._identity["adapter_sha256"] = adapter_hash(Path(self.cfg.adapter_dir))

    def _fingerprint(self) -> dict[str, Any]:
        decisive = {key: value for key, value in self._config().items() if key not in _NO_MATTER}
        readings = {"parser_version": parsing.VERSION, "weights": self._identity, "data_sha256": self._data_hashes}
        return absolute_paths({**decisive, "model_config_sha256": _config_hash(self.cfg), **readings})

    def _config(self) -> dict[str, Any]:
        """Return the config without passwords in addresses."""
        config: dict[str, Any] = json.loads(without_credentials(json.dumps(config_to_dict(self.cfg))))
        return config

    def _open(self) -> dict[Key, dict[str, Any]]:
        """Create or enter the folder; return the answers that are there and need not be asked for again."""
        if self._folder is not None:
            self._folder.open({"versions": versions(), "config": self._config()})
        self.world.barrier()
        path = self.path / PREDICTIONS
        rows = read_lines(path) if path.is_file() else []
        return {line_key(row): row for row in rows if not row.get("passing")}

    def _own_share(self, work: Sequence[Work]) -> list[Work]:
        """Return this process's share: all work on an image goes to one process."""
        images: dict[tuple[str, str], int] = {}
        numbers = [images.setdefault((w.item.dataset, w.item.image_id), len(images)) for w in work]
        size, rank = self.world.size, self.world.rank
        return [w for w, number in zip(work, numbers, strict=True) if number % size == rank]

    def run(self) -> dict[str, Any] | None:
        """Give every answer that is not there yet; on the main process, gather results and write the pages.

        Returns:
            The content of results.json; None on other processes.

        Raises:
            UserError: for everything wrong with config, data, model or folder, before anything is written; and if more
                questions than `max_unanswered` get no answer.
        """
        try:
            self.prepare()
            with self._timed():
                if self._share:
                    self._answer_all()
                self.world.barrier()
            return None if self._folder is None else self._finish(self._folder)
        finally:
            if self._folder is not None:
                self._folder.close()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Note in run.json how many answers were given in how much time by the clock, also when it ends by an error."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            if self._folder is not None:
                self._folder.note_session(time.perf_counter() - begin)

    def _answer_all(self) -> None:
        if self._predictor is None:
            raise RuntimeError("there is work but nothing to do it")
        cfg, alone = self.cfg, self.world.size == 1
        total = len(self._work) if alone else len(self._share)
        sampling = Sampling(cfg.temperature, cfg.top_p, cfg.seed)
        with (
            LineWriter(self.path, self.world.rank) as lines,
            tqdm(
                total=total,
                initial=total - len(self._share),
                desc="evaluation",
                unit="answer",
                disable=not self.world.is_main,
            ) as bar,
        ):
            for work, answer in self._predictor.answer(self._share, sampling):
                if answer.unanswered is not None:
                    self._count_unanswered(work, answer.unanswered)
                lines.append(answer.to(work))
                bar.update()

    def _count_unanswered(self, work: Work, reason: str) -> None:
        self._unanswered += 1
        if self._unanswered > self.cfg.max_unanswered:
            raise UserError(
                f"max_unanswered: more than {self.cfg.max_unanswered} questions got no answer; the last, "
                f"'{work.item.id}': {reason}. Answers so far are kept: run the same command again"
            )

    def _finish(self, folder: RunFolder) -> dict[str, Any]:
        """Derive every verdict from the answers of all processes; write them, results.json and the pages."""
        lines = folder.lines()
        keys = [((*work.item.key, work.run), work.item) for work in self._work]
        missing = sum(key not in lines for key, _ in keys)
        if missing:
            raise DataError(f"{self.path}: {missing} answers are missing; run the same command again")
        predictions = [Prediction.from_line(lines[key], item) for key, item in keys]
        predictions = score_all(predictions, scoring_context(predictions, self.cfg.data, self.cfg.parser))
        folder.rewrite(predictions)
        dataset = dataset_name(self.cfg.data, self.cfg.dataset)
        results = gather_results(predictions, self.cfg, dataset, self._validation)
        results |= folder.speed()
        results |= {
            "date": now(),
            "command": command_line(),
            "config": self._config(),
            "weights": self._identity,
            "data_sha256": self._data_hashes,
            "versions": versions(),
        }
        if self._baseline is not None:
            change = compare_labels([self._baseline], [self._as_run(results, predictions)])
            correct_for_number([change])
            results["change"] = rounded(change)
        write_json(self.path / "results.json", results)
        maps = None if self._private() or self.cfg.saliency is None else self._maps(predictions, self.cfg.saliency)
        write_pages(self.path, results, predictions, private=self._private(), maps=maps)
        if self._private():
            owner_only(self.path)
        return results

    def _private(self) -> bool:
        # A folder prepared before this was noted may hold anybody's reports: it counts as private.
        return bool(read_manifest(self.cfg.data).get("private", True))

    def _maps(self, predictions: Sequence[Prediction], method: str) -> dict[str, Any] | None:
        """Return maps of wrong and right answers to the main dataset's questions by the model that gave them."""
        if self._predictor is None:  # every answer was there already
            self._predictor = _own_predictor(self.cfg, self.world, self._identity)
        if not isinstance(self._predictor, OwnPredictor):
            raise TypeError("the settings' check lets no other predictor through")
        of_questions = [p for p in predictions if p.item.task in (CHOICE.name, FREE.name) and p.run == 0]
        own = [p for p in of_questions if p.item.dataset not in self.cfg.unrelated]
        return answer_maps(self._predictor.mapper(), own, method)
