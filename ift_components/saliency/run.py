"""Maps from a config: questions, answers, maps, tests, and the folder of pages, pictures and arrays."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ift_components.config import config_to_dict, instantiate
from ift_components.data.prepared import load_questions, read_manifest
from ift_components.data.rows import Rows
from ift_components.data.wording import choice_answer, multiple_choice_prompt
from ift_components.distributed import World
from ift_components.errors import ConfigError, DataError
from ift_components.files import complete_folder, owner_only, require_new_folder, write_json
from ift_components.models.adapter_reader import load_adapter
from ift_components.models.build import build_for_inference, layout_for_answers
from ift_components.models.tile_padding import set_tile_padding
from ift_components.saliency.checks import Question, measure, sanity, summary
from ift_components.saliency.mapper import AnswerMap, Mapper
from ift_components.saliency.methods import METHODS, CrossAttention
from ift_components.saliency.overlay import overlay
from ift_components.saliency.pages import Sample, write_index, write_sample
from ift_components.saliency.settings import SaliencySettings, check_settings
from ift_components.smears.dataset import draw_if_missing, smear_masks
from ift_components.training.settings import parse_dtype


@dataclass(frozen=True)
class _Row:
    """A question of the prepared folder."""

    id: str
    image_id: str
    attribute: str
    question: str
    prompt: str
    right: str
    index: int


def build_mapper(cfg: SaliencySettings, world: World) -> Mapper:
    """Build the model that a config names and what maps its answers.

    Raises:
        ConfigError: if a component, the checkpoint or the adapter is wrong.
    """
    model = build_for_inference(
        cfg.model, cfg.checkpoint_dir, world.device, parse_dtype(cfg.dtype), frozen_dtype=cfg.frozen_dtype
    )
    layout = layout_for_answers(cfg.checkpoint_dir, cfg.adapter_dir, cfg.asked_layout, anyway=cfg.other_layout)
    set_tile_padding(model, layout.answering_padding, layout.tiles)
    if cfg.adapter_dir is not None:
        load_adapter(model, Path(cfg.adapter_dir), Path(str(cfg.checkpoint_dir)))
        model.requires_grad_(requires_grad=False)
    return Mapper(model, instantiate(cfg.tokenizer, "tokenizer"), layout.resize, tiles=layout.tiles)


def _row(row: dict[str, Any], index: int) -> _Row:
    is_choice = (row.get("kind") or "choice") == "choice"
    prompt = multiple_choice_prompt(row["question"], row["options"]) if is_choice else row["question"]
    right = choice_answer(row["answer"]) if is_choice else row["answer_text"]
    return _Row(row["id"], row["image_id"], row["attribute"] or "", row["question"], prompt, right, index)


def _chosen(rows: Sequence[_Row], samples: int | list[str], where: str) -> list[_Row]:
    if isinstance(samples, int):
        return list(rows[:samples])
    by_id = {row.id: row for row in rows}
    for name in samples:
        if name not in by_id:
            close = difflib.get_close_matches(name, by_id, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"ids look like '{rows[0].id}'"
            raise ConfigError(f"samples: {where} has no question '{name}'; {hint}")
    return [by_id[name] for name in samples]


class Maps:
    """The maps of a config.

    Args:
        cfg: the config.
        world: one process.
    """

    def __init__(self, cfg: SaliencySettings, world: World) -> None:
        self.cfg, self.world = cfg, world
        self.path = Path(cfg.output_dir)

    def run(self) -> dict[str, Any]:
        """Make the folder.

        Returns:
            The tests' figures by method, as in `checks.json`; empty if there are none.

        Raises:
            UserError: for everything wrong with config, data or model, before anything is written.
        """
        cfg = self.cfg
        check_settings(cfg)
        require_new_folder(self.path)
        draw_if_missing(cfg.data)
        # A folder prepared before this was noted may hold anybody's images: it counts as private.
        private = bool(read_manifest(cfg.data).get("private", True))
        data = load_questions(cfg.data, cfg.split)
        missing = data.missing_images()
        if missing:
            raise DataError(
                f"{cfg.data}: {len(missing)} questions of split '{cfg.split}' have no image; prepare it again"
            )
        texts = data.remove_columns("image")
        rows = [_row(row, index) for index, row in enumerate(texts)]
        chosen = _chosen(rows, cfg.samples, f"{cfg.data}, split '{cfg.split}',")
        mapper = build_mapper(cfg, self.world)
        self._check_layer(mapper)
        with complete_folder(self.path) as folder:
            checks = self._checks(mapper, rows, data)
            write_json(folder / "checks.json", checks)
            samples = self._samples(mapper, chosen, data, folder, checks, shown=not private or cfg.show_private)
            write_json(folder / "run.json", {"config": config_to_dict(cfg), "samples": [s.facts() for s in samples]})
            write_index(folder, samples, checks, cfg.methods, private=private and not cfg.show_private)
            if private:
                owner_only(folder)
        return checks

    def _check_layer(self, mapper: Mapper) -> None:
        """Check layer and head on an even picture, before the long work."""
        if self.cfg.layer is None and self.cfg.head is None:
            return
        if "attention" not in self.cfg.methods:
            raise ConfigError(
                "layer and head: only method 'attention' has them; add it to methods, or set them to null"
            )
        asked = mapper.walk.ask("?", "?")
        size = mapper.picture.size
        pixels = mapper.pixels(Image.new("RGB", (size, size)))
        mapper.cross_attention(pixels, asked).select(self.cfg.layer, self.cfg.head)

    def _answer(self, mapper: Mapper, row: _Row, picture: Image.Image) -> str:
        if self.cfg.answer_text is not None:
            return self.cfg.answer_text
        return row.right if self.cfg.answer == "right" else mapper.answer(picture, row.prompt, self.cfg.max_new_tokens)

    def _checks(self, mapper: Mapper, rows: Sequence[_Row], data: Rows) -> dict[str, Any]:
        cfg = self.cfg.checks
        if not cfg.samples:
            return {}
        masks = smear_masks(self.cfg.data, self.cfg.split)
        questions = []
        for row in rows[: cfg.samples]:
            picture: Image.Image = data[row.index]["image"]
            answer = mapper.answer(picture, row.prompt, self.cfg.max_new_tokens)
            if answer.strip():
                asked = mapper.walk.ask(row.prompt, answer)
                mask = None if masks is None else masks.get(row.image_id)
                questions.append(Question(row.image_id, mapper.pixels(picture), asked, row.attribute, mask))
        if not questions:
            return {}
        shown = tqdm(questions, desc="testing maps", unit="answer")
        table = summary(measure(mapper, shown, self.cfg.methods, self.cfg.seed), cfg.bootstrap)
        if cfg.sanity_samples:
            by_stage = sanity(mapper, questions[: cfg.sanity_samples], self.cfg.methods, self.cfg.seed)
            for name, correlations in by_stage.items():
                table[name]["sanity"] = correlations
        return table

    def _samples(
        self, mapper: Mapper, rows: Sequence[_Row], data: Rows, folder: Path, checks: dict[str, Any], *, shown: bool
    ) -> list[Sample]:
        (folder / "samples").mkdir()
        samples = []
        for number, row in enumerate(tqdm(rows, desc="maps", unit="answer"), start=1):
            picture: Image.Image = data[row.index]["image"]
            answer = self._answer(mapper, row, picture)
            name = f"{number:03d}-{re.sub(r'[^A-Za-z0-9_-]+', '-', row.id).strip('-')[:60]}"
            sample = Sample(row.id, name, row.question, row.prompt, answer, row.right)
            samples.append(sample)
            if not answer.strip():
                continue  # the index says so
            pixels, asked = mapper.pixels(picture), mapper.walk.ask(row.prompt, answer)
            maps, whole = {}, {}
            for method in self.cfg.methods:
                maps[method] = mapper.explain_pixels(pixels, asked, method, **self._choice(method))
                is_split = METHODS[method].by_token and method != "attention"  # whose page reads the raw weights
                tokens = range(len(asked.answer))
                whole[method] = (
                    mapper.explain_pixels(pixels, asked, method, tokens=tokens) if is_split else maps[method]
                )
            raw = mapper.cross_attention(pixels, asked) if "attention" in self.cfg.methods else None
            _write_arrays(folder / "samples" / f"{name}.npz", maps, raw, asked.pieces if shown else None)
            if shown:
                for method, made in maps.items():
                    overlay(mapper.canvas(picture), made.grid).save(folder / "samples" / f"{name}.{method}.png")
                write_sample(
                    folder / "samples" / f"{name}.html",
                    sample,
                    mapper.canvas(picture),
                    by_token=whole,
                    maps=maps,
                    raw=raw,
                    checks=checks,
                )
        return samples

    def _choice(self, method: str) -> dict[str, Any]:
        return {"layer": self.cfg.layer, "head": self.cfg.head} if method == "attention" else {}


def _write_arrays(
    path: Path, maps: dict[str, AnswerMap], raw: CrossAttention | None, pieces: Sequence[str] | None
) -> None:
    """Write a sample's maps: `METHOD` [rows, columns], `METHOD_signed`, the chosen tokens, raw attention of every head."""
    arrays: dict[str, Any] = {}
    for method, made in maps.items():
        arrays |= {method: made.grid, f"{method}_signed": made.signed}
        arrays["chosen"] = np.array(made.chosen)
    if raw is not None:
        arrays["attention_by_layer_head_token_patch"] = raw.weights.numpy()
        arrays["attention_layers"], arrays["attention_gates"] = np.array(raw.layers), np.array(raw.gates)
    if pieces is not None:
        arrays["tokens"] = np.array(pieces)
    np.savez_compressed(path, **arrays)
