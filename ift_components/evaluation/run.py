"""One evaluation from its config: questions to predictions.jsonl to results.json."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torchtune.models.llama3_2_vision import Llama3VisionTransform
from tqdm import tqdm

import ift_components
from ift_components.config import instantiate
from ift_components.data.images import ImageTransform
from ift_components.data.prepared import load_questions
from ift_components.data.prompts import prompt_tokens
from ift_components.errors import ConfigError
from ift_components.evaluation.generation import Generator
from ift_components.evaluation.metrics import summarise
from ift_components.evaluation.parsing import parse_paper, parse_strict
from ift_components.evaluation.questions import ANSWER_PREFIX, letters, multiple_choice_prompt
from ift_components.files import require_new_folder, sha256, write_json, write_text
from ift_components.models.build import build_for_inference
from ift_components.training.distributed import choose_device
from ift_components.training.settings import parse_dtype


def check_settings(cfg: DictConfig) -> None:
    """Check the values that no type can.

    Raises:
        ConfigError: naming the key, its value and what is allowed.
    """
    if cfg.scoring not in ("generate", "logits", "both"):
        raise ConfigError(f"scoring: '{cfg.scoring}' is not one of generate, logits, both")
    for key in ("max_new_tokens", "batch_size", "limit"):
        if cfg[key] is not None and cfg[key] < 1:
            raise ConfigError(f"{key}: {cfg[key]} is below 1")
    parse_dtype(cfg.dtype)


def _letter_tokens(transform: Llama3VisionTransform) -> tuple[list[int], list[int]]:
    """Return the tokens of the answer's beginning, and the token that each letter adds to it."""

    def encode(text: str) -> list[int]:
        return transform.tokenizer.encode(text, add_bos=False, add_eos=False)

    prefix = encode(ANSWER_PREFIX)
    return prefix, [encode(f"{ANSWER_PREFIX} {letter}")[len(prefix)] for letter in letters(26)]


class Evaluation:
    """A model, the questions of a split and their prompts.

    Args:
        cfg: a config of `EvalSettings`.

    Raises:
        UserError: for everything wrong with config, data or checkpoint; nothing has been written then.
    """

    def __init__(self, cfg: DictConfig) -> None:
        check_settings(cfg)
        self.cfg = cfg
        self.folder = require_new_folder(Path(cfg.output_dir))
        self.questions: Dataset = load_questions(cfg.data, cfg.split)
        if cfg.limit is not None:
            self.questions = self.questions.select(range(min(cfg.limit, len(self.questions))))
        self.transform = instantiate(cfg.tokenizer)
        self.image = ImageTransform(self.transform)
        self.prefix, self.letters = _letter_tokens(self.transform)
        texts = self.questions.select_columns(["question", "options"])
        self.prompts = [
            prompt_tokens(self.transform, multiple_choice_prompt(row["question"], row["options"])) for row in texts
        ]
        longest = max(map(len, self.prompts)) + max(cfg.max_new_tokens, len(self.prefix))
        if self.transform.max_seq_len is not None and longest > self.transform.max_seq_len:
            raise ConfigError(
                f"tokenizer.max_seq_len: {self.transform.max_seq_len} does not hold the longest question and its answer "
                f"({longest} tokens)"
            )
        device = choose_device(cfg.device)
        model = build_for_inference(cfg.model, cfg.checkpoint_dir, device, parse_dtype(cfg.dtype))
        self.generator = Generator(model, self.transform, cfg.batch_size, longest)

    def _batch(self, start: int) -> Iterator[dict[str, Any]]:
        """Yield the predictions of one batch of questions."""
        cfg = self.cfg
        rows = [self.questions[i] for i in range(start, min(start + cfg.batch_size, len(self.questions)))]
        prompts = self.prompts[start : start + len(rows)]
        images: dict[str, Tensor] = {}
        for row in rows:
            if row["image_id"] not in images:
                images[row["image_id"]] = self.image(row["image"])
        order = list(images)
        which = [order.index(row["image_id"]) for row in rows]
        stacked = torch.stack(list(images.values()))
        results: list[dict[str, Any]] = [
            {
                "id": row["id"],
                "image_id": row["image_id"],
                "attribute": row["attribute"],
                "prompt": multiple_choice_prompt(row["question"], row["options"]),
                "run": 0,
                "options": row["options"],
                "answer": row["answer"],
            }
            for row in rows
        ]
        if cfg.scoring != "logits":
            texts = self.generator.generate(stacked, which, prompts, cfg.max_new_tokens)
            for result, text in zip(results, texts, strict=True):
                result |= {"generated": text, "paper": parse_paper(text, result["options"])}
                result["strict"] = parse_strict(text, result["options"])
        if cfg.scoring != "generate":
            logits = self.generator.next_logits(stacked, which, [prompt + self.prefix for prompt in prompts])
            for result, row in zip(results, logits[:, self.letters], strict=True):
                result["forced"] = int(row[: len(result["options"])].argmax())
        for result in results:
            result["predicted"] = result["paper"] if cfg.scoring != "logits" else result["forced"]
            result["correct"] = result["predicted"] == result["answer"]
        yield from results

    def run(self) -> dict[str, Any]:
        """Answer every question; write predictions.jsonl as it goes, then results.json, and return its content."""
        cfg = self.cfg
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "config.yaml", OmegaConf.to_yaml(cfg))
        begin = time.perf_counter()
        predictions: list[dict[str, Any]] = []
        with (
            (self.folder / "predictions.jsonl").open("w", encoding="utf-8") as file,
            tqdm(total=len(self.questions), desc="evaluation", unit="question") as bar,
        ):
            for start in range(0, len(self.questions), cfg.batch_size):
                for prediction in self._batch(start):
                    predictions.append(prediction)
                    file.write(json.dumps(prediction, ensure_ascii=False) + "\n")
                    bar.update()
                file.flush()
        results = {
            **summarise(predictions),
            "seconds": round(time.perf_counter() - begin, 2),
            "split": cfg.split,
            "scoring": cfg.scoring,
            "checkpoint_dir": cfg.checkpoint_dir,
            "data_manifest_sha256": sha256(Path(cfg.data) / "manifest.json"),
            "package_version": ift_components.__version__,
        }
        write_json(self.folder / "results.json", results)
        return results


def table(results: dict[str, Any]) -> str:
    """Return results as a text table, one row an attribute and one for all."""
    names = ("questions", "chance", "accuracy", "well_formed", "forced_accuracy")
    columns = [name for name in names if results.get(name) is not None]
    width = max(map(len, [*results["attributes"], "attribute"]))
    lines = ["  ".join(["attribute".ljust(width), *columns])]
    for name, rates in [*results["attributes"].items(), ("all", results)]:
        cells = [f"{rates[c]:.3f}" if isinstance(rates[c], float) else str(rates[c]) for c in columns]
        lines.append(
            "  ".join([name.ljust(width), *(cell.rjust(len(c)) for cell, c in zip(cells, columns, strict=True))])
        )
    return "\n".join(lines)
