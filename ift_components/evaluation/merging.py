"""Merging adapters into checkpoints and blending checkpoints, with the share chosen on validation questions.

The rule: of the candidates whose accuracy on unrelated tasks is at most `keep` below the base's, the one with the best accuracy
on the validation questions; of equals the first listed. If none keeps so much, the one that keeps most.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from omegaconf import MISSING
from torch import Tensor
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.config import instantiate
from ift_components.distributed import World
from ift_components.errors import ConfigError
from ift_components.evaluation.metrics import headline
from ift_components.evaluation.run import Evaluation
from ift_components.evaluation.settings import EvalSettings, check_settings
from ift_components.files import atomic_path, require_new_folder, write_json
from ift_components.models.adapter_reader import load_adapter, read_facts
from ift_components.models.build import build_for_inference, build_model, layout_for_answers
from ift_components.models.forward import embed_tokens, encode_images, run_decoder
from ift_components.models.hf_layout import hf_config, read_config, save_checkpoint
from ift_components.models.hf_names import HFNames
from ift_components.models.merge import CheckpointWeights, adapter_weights, blended_weights, check_same_shapes
from ift_components.models.parts import PARTS
from ift_components.models.tile_padding import set_tile_padding
from ift_components.statistics import mean
from ift_components.training.settings import parse_dtype

MEASURES = ("accuracy", "balanced_accuracy")


@dataclass
class MergeSettings:
    """What `ift_merge_recipe` reads."""

    output_dir: str = MISSING
    """Folder to create; `checkpoint` in it is the result."""

    checkpoint_dir: str = MISSING
    """The base: the checkpoint that tuning started from."""

    adapter_dir: str | None = None
    """The adapter to merge; or else"""

    tuned_dir: str | None = None
    """the tuned checkpoint to blend with the base."""

    model: dict[str, Any] = MISSING
    """Component that builds the model."""

    tokenizer: dict[str, Any] = MISSING
    """Component that builds the model's transform."""

    tiles: int | None = None
    """As in training; null takes what the adapter or the tuned checkpoint notes, as do the next two."""

    tile_padding: str | None = None
    """As in training."""

    resize: str | None = None
    """As in training."""

    blend: Any = None
    """Shares of the way from base (0) to tuned (1): one, or a mapping of parts to shares (parts left out: 1), or a list of such
    candidates, of which `validation` chooses; null is 1."""

    validation: dict[str, Any] | None = None
    """Keys of an evaluation: `data`, `unrelated`, `limit` and so on; `split` is val."""

    measure: str = "accuracy"
    """What is best on the validation questions: `accuracy` or `balanced_accuracy`."""

    keep: float = 0.02
    """How far accuracy on unrelated tasks may fall below the base's."""

    save_dtype: str = "bf16"
    """Type of the saved weights; arithmetic is fp32."""

    check: bool = True
    """After merging an adapter whole, print the largest difference between its logits and the merged checkpoint's."""


Shares = dict[str, float]


def parse_blend(node: Any) -> list[Shares]:
    """Return the candidates of `blend`, each a share for every part.

    Raises:
        ConfigError: if a part is unknown or a share is no number from 0 to 1.
    """
    candidates = []
    for candidate in node if isinstance(node, list | tuple) else [1.0 if node is None else node]:
        shares = dict(candidate) if isinstance(candidate, Mapping) else dict.fromkeys(PARTS, candidate)
        unknown = [part for part in shares if part not in PARTS]
        if unknown:
            raise ConfigError(f"blend: '{unknown[0]}' is not one of {', '.join(PARTS)}")
        for part, share in shares.items():
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
                raise ConfigError(f"blend: {share} for the {part} is not a number from 0 (base) to 1 (tuned)")
        candidates.append({part: float(shares.get(part, 1.0)) for part in PARTS})
    if not candidates:
        raise ConfigError("blend: the list is empty; give shares from 0 to 1, such as [0.5, 0.7, 0.85, 1]")
    return candidates


def check_merge(cfg: MergeSettings) -> list[Shares]:
    """Check what no type can and return the candidates.

    Raises:
        ConfigError: naming the key, its value and what is expected.
    """
    if (cfg.adapter_dir is None) == (cfg.tuned_dir is None):
        raise ConfigError(
            "adapter_dir and tuned_dir: give one of them, the adapter to merge or the checkpoint to blend"
        )
    candidates = parse_blend(cfg.blend)
    if len(candidates) > 1 and not (cfg.validation or {}).get("data"):
        raise ConfigError("validation: give validation.data, a prepared folder, to choose one of several blends")
    if cfg.tuned_dir is not None and candidates == parse_blend(1):
        raise ConfigError("blend: 1 is tuned_dir itself; give a share below 1 for a part, or several")
    if cfg.measure not in MEASURES:
        raise ConfigError(f"measure: '{cfg.measure}' is not one of {', '.join(MEASURES)}")
    if not 0 <= cfg.keep <= 1:
        raise ConfigError(f"keep: {cfg.keep} is not a number from 0 to 1")
    parse_dtype(cfg.save_dtype, "save_dtype")
    return candidates


def choose(rows: list[dict[str, Any]], base: Mapping[str, Any], measure: str, keep: float) -> int:
    """Return the number of the candidate that the rule chooses.

    Args:
        rows: for each candidate its `measure` and, if there are unrelated tasks, `unrelated`.
        base: the same of the base.
        measure: what is to be best.
        keep: how far `unrelated` may fall below the base's.
    """

    def kept(row: Mapping[str, Any]) -> float:
        return float(row.get("unrelated", 0.0)) - float(base.get("unrelated", 0.0))

    numbers = range(len(rows))
    allowed = [i for i in numbers if kept(rows[i]) >= -keep - 1e-9]
    if not allowed:
        return max(numbers, key=lambda i: (kept(rows[i]), -i))
    return max(allowed, key=lambda i: (rows[i][measure], -i))


class Merging:
    """Merges or blends, and chooses among several blends.

    Args:
        cfg: the recipe's config.
        candidates: what `check_merge` returned.
        world: one process.
    """

    def __init__(self, cfg: MergeSettings, candidates: list[Shares], world: World) -> None:
        self.cfg, self.candidates, self.world = cfg, candidates, world
        self.folder = Path(cfg.output_dir)
        self.base = Path(cfg.checkpoint_dir)
        asked = {"tiles": cfg.tiles, "tile_padding": cfg.tile_padding, "resize": cfg.resize}
        self.layout = layout_for_answers(cfg.tuned_dir or cfg.checkpoint_dir, cfg.adapter_dir, asked)

    def run(self) -> dict[str, Any]:
        """Write `checkpoint`, `merge.json` and, of several blends, `blend.png`; return what `merge.json` holds."""
        cfg = self.cfg
        require_new_folder(self.folder)
        read_config(self.base)
        if cfg.adapter_dir is not None:
            read_facts(Path(cfg.adapter_dir))
        for _ in self._weights(self.candidates[0]):
            break  # everything that can be wrong with base, adapter or shapes is, before anything is written
        evaluations = [self._evaluation(number) for number in range(len(self.candidates))] if self._chooses else []
        self.folder.mkdir(parents=True, exist_ok=True)
        facts: dict[str, Any] = {"measure": cfg.measure, "keep": cfg.keep, "shares": self.candidates[0]}
        if evaluations:
            base_row = self._score(self._evaluation(None))
            rows = [{"shares": shares, **self._try(i)} for i, shares in enumerate(self.candidates)]
            best = choose(rows, base_row, cfg.measure, cfg.keep)
            facts |= {"base": base_row, "candidates": rows, "chosen": best, "shares": self.candidates[best]}
            self._draw(rows, base_row, best)
        self._write(self.folder / "checkpoint", facts["shares"])
        if cfg.check and cfg.adapter_dir is not None and set(facts["shares"].values()) == {1.0}:
            facts["max_logit_difference"] = self._logit_difference()
        write_json(self.folder / "merge.json", facts)
        return facts

    @property
    def _chooses(self) -> bool:
        return len(self.candidates) > 1

    def _model(self) -> DeepFusionModel:
        return build_model(self.cfg.model, meta=True)

    def _weights(self, shares: Shares) -> Iterator[tuple[str, Tensor]]:
        model = self._model()
        names = HFNames(model)
        start = CheckpointWeights(self.base, names)
        if self.cfg.adapter_dir is not None:
            tuned = adapter_weights(model, self.base, Path(self.cfg.adapter_dir))
        else:
            folder = Path(str(self.cfg.tuned_dir))
            check_same_shapes(self.base, folder, names)
            tuned = iter(CheckpointWeights(folder, names).items())
        return blended_weights(start, tuned, shares)

    def _write(self, folder: Path, shares: Shares) -> None:
        save_checkpoint(
            folder,
            self._weights(shares),
            hf_config(self._model()),
            dtype=parse_dtype(self.cfg.save_dtype, "save_dtype"),
            source=self.base,
            transform=instantiate(self.cfg.tokenizer, "tokenizer"),
            layout=self.layout,
        )

    def _evaluation(self, number: int | None) -> EvalSettings:
        """Return the checked settings of a candidate's evaluation; None is the base."""
        name = "base" if number is None else f"candidate_{number}"
        checkpoint = self.base if number is None else self.folder / name
        own = {
            "model": self.cfg.model,
            "tokenizer": self.cfg.tokenizer,
            **self.layout.note(),
            "other_layout": True,  # the base is compared as the candidates are
            "split": "val",
        }
        try:
            settings = EvalSettings(**{**own, **(self.cfg.validation or {})})
        except TypeError as error:
            raise ConfigError(f"validation: {error}") from error
        settings.output_dir, settings.checkpoint_dir = str(self.folder / "validation" / name), str(checkpoint)
        check_settings(settings)
        return settings

    def _try(self, number: int) -> dict[str, Any]:
        """Write a candidate, evaluate it and remove it again."""
        settings = self._evaluation(number)
        folder = Path(str(settings.checkpoint_dir))
        self._write(folder, self.candidates[number])
        row = self._score(settings)
        shutil.rmtree(folder)
        return row

    def _score(self, settings: EvalSettings) -> dict[str, Any]:
        results = Evaluation(settings, self.world).run()
        if results is None:
            raise RuntimeError("blends are compared by one process")
        row = {"accuracy": headline(results)["accuracy"]}
        row |= {measure: results[measure] for measure in MEASURES if measure in results}
        if self.cfg.measure not in row:
            raise ConfigError(f"measure: '{self.cfg.measure}' needs multiple-choice questions; use measure=accuracy")
        if "image_control" in results:
            row["other_image"] = results["image_control"]["accuracy"]
        if "unrelated" in results:
            row["unrelated"] = mean(headline(entry)["accuracy"] for entry in results["unrelated"].values())
        return row

    @torch.no_grad()
    def _logit_difference(self) -> float:
        """Return the largest difference between the logits of base with adapter and of the merged checkpoint."""
        transform = instantiate(self.cfg.tokenizer, "tokenizer")
        generator = torch.Generator().manual_seed(0)
        size = hf_config(self._model())["vision_config"]["image_size"]
        images = torch.randn(1, 1, 1, 3, size, size, generator=generator)
        tokens = torch.tensor([[transform.tokenizer.bos_id, transform.tokenizer.image_id, *range(10, 20)]])
        build = partial(build_for_inference, self.cfg.model, device=torch.device("cpu"), dtype=torch.float32)
        logits = []
        for checkpoint, adapter in ((self.base, self.cfg.adapter_dir), (self.folder / "checkpoint", None)):
            model = set_tile_padding(build(str(checkpoint)), self.layout.answering_padding, self.layout.tiles)
            if adapter is not None:
                load_adapter(model, Path(adapter), self.base)
            image = encode_images(model, images, torch.ones(1, 1, 2, dtype=torch.int))
            logits.append(model.decoder.unembed(run_decoder(model, embed_tokens(model.decoder, tokens), image=image)))
            del model
        return float((logits[0] - logits[1]).abs().max())

    def _draw(self, rows: list[dict[str, Any]], base: Mapping[str, Any], best: int) -> None:
        """Draw the measure and the accuracy on unrelated tasks over the candidates."""
        figure = Figure(figsize=(6.4, 4), dpi=120)
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        labels = ["base", *(_label(row["shares"]) for row in rows)]
        for name, colour in ((self.cfg.measure, "#1b6ca8"), ("unrelated", "#d1495b")):
            if name in base:
                axes.plot(labels, [base[name], *(row[name] for row in rows)], marker="o", color=colour, label=name)
        axes.axvline(best + 1, color="#777777", linestyle="--", linewidth=1, label="chosen")
        axes.set_ylabel("accuracy on validation")
        axes.set_xlabel("share of the way from base to tuned")
        axes.tick_params(axis="x", labelrotation=30)
        axes.legend()
        figure.tight_layout()
        with atomic_path(self.folder / "blend.png") as temporary:
            canvas.print_png(temporary)


def _label(shares: Shares) -> str:
    if len(set(shares.values())) == 1:
        return f"{next(iter(shares.values())):g}"
    return " ".join(f"{part[0]}{share:g}" for part, share in shares.items())
