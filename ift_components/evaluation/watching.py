"""The questions that a run asks its model on validation while it trains: `val_questions` of the training configs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
from torch import Tensor
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.data.prepared import read_manifest
from ift_components.data.schema import Schema
from ift_components.errors import ConfigError, DataError
from ift_components.evaluation.constancy import balanced_accuracy, most_frequent_answer
from ift_components.evaluation.free_file import free_items
from ift_components.evaluation.instruction import instruction_dependence
from ift_components.evaluation.items import question_items, report_items
from ift_components.evaluation.predictors.base import Work
from ift_components.evaluation.predictors.own import OwnPredictor
from ift_components.evaluation.records import Item, Prediction
from ift_components.evaluation.scorers import ScoringContext
from ift_components.evaluation.tasks import CHOICE, score_all
from ift_components.statistics import mean
from ift_components.training.watch import WatchContext


class ValidationQuestions:
    """Multiple-choice questions about a prepared folder's images, their reports, and tasks that have nothing to do with them.

    Args:
        context: the run's transform, processes and instruction.
        data: prepared folder.
        split: its split that is asked about; never the one that the model is tested on.
        limit: ask only the first questions.
        unrelated: prepared folders by name, whose multiple-choice questions of the same split have nothing to do with `data`.
        free: file of further unrelated questions (see `free_items`), whose images lie beside it.
        batch_size: prompts a forward pass.
        max_new_tokens: longest answer in tokens.
        report_max_new_tokens: longest report in tokens.

    Raises:
        ConfigError: if a number is below 1.
        DataError: if data are missing or wrong.
    """

    def __init__(
        self,
        context: WatchContext,
        *,
        data: str,
        split: str = "val",
        limit: int | None = None,
        unrelated: Mapping[str, str] | None = None,
        free: str | None = None,
        batch_size: int = 32,
        max_new_tokens: int = 50,
        report_max_new_tokens: int = 256,
    ) -> None:
        numbers = {"limit": limit, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
        for key, value in {**numbers, "report_max_new_tokens": report_max_new_tokens}.items():
            if value is not None and value < 1:
                raise ConfigError(f"val_questions.{key}: {value} is below 1")
        self._context, self._batch_size = context, batch_size
        folder = Path(data)
        self._choices = [
            item
            for item in question_items(folder, split, "main", max_new_tokens=max_new_tokens, limit=limit)
            if item.task == CHOICE.name
        ]
        if not self._choices:
            raise DataError(f"val_questions.data: {folder} has no multiple-choice question in split '{split}'")
        asked = {item.image_id for item in self._choices}
        instruction, longest = context.instruction or "", report_max_new_tokens
        has_reports = bool(read_manifest(data)["counts"]["reports"].get(split))
        reports = report_items(folder, split, "main", instruction, max_new_tokens=longest) if has_reports else []
        self._reports = [item for item in reports if item.image_id in asked]
        self._unrelated: list[Item] = []
        for name, other in (unrelated or {}).items():
            more = question_items(Path(other), split, name, max_new_tokens=max_new_tokens, limit=limit)
            self._unrelated += [replace(item, dataset=f"unrelated/{name}") for item in more]
        if free is not None:
            path = Path(free)
            self._unrelated += free_items(path, path.parent, "unrelated", max_new_tokens=max_new_tokens, limit=limit)
        schema = read_manifest(data).get("schema")
        self._schema = Schema.from_dict(schema) if schema else None

    def reports(self, model: DeepFusionModel, proxy: Tensor | None) -> dict[str, str]:
        """Return by image the report that a model writes under the proxy, [K, d], or the run's instruction."""
        return {p.item.image_id: p.generated or "" for p in self._answers(model, self._reports, proxy)}

    def measures(self, model: DeepFusionModel, reports: Mapping[str, str]) -> dict[str, float]:
        """Return the measures of a model's answers.

        Args:
            model: the model.
            reports: by image, what `reports` returned.

        Returns:
            `questions` (accuracy), `balanced` (mean over attributes of balanced accuracy), `constant` (attributes answered
            alike whatever the image); where there are reports `read_out` (accuracy of what they state) and `gap` (`read_out`
            less the accuracy of the same questions); where there are unrelated tasks `unrelated` (accuracy).
        """
        context = ScoringContext(reports=reports, schema=self._schema)
        choices = score_all(self._answers(model, self._choices), context)
        groups: dict[str, list[Prediction]] = {}
        for prediction in choices:
            groups.setdefault(prediction.item.attribute, []).append(prediction)
        measures = {
            "questions": mean(float(p.correct) for p in choices),
            "balanced": mean(map(balanced_accuracy, groups.values())),
            "constant": float(sum(most_frequent_answer(group)["constant"] for group in groups.values())),
        }
        dependence = instruction_dependence(choices)
        if dependence is not None:
            measures |= {"read_out": float(dependence["read_out_accuracy"]), "gap": float(dependence["gap"])}
        if self._unrelated:
            unrelated = score_all(self._answers(model, self._unrelated), ScoringContext())
            measures["unrelated"] = mean(float(p.correct) for p in unrelated)
        return measures

    def _answers(self, model: DeepFusionModel, items: Sequence[Item], proxy: Tensor | None = None) -> list[Prediction]:
        """Return the answers to all items in their order, each process having given those to its share of the images."""
        world = self._context.world
        images = {name: number for number, name in enumerate(dict.fromkeys(item.image_id for item in items))}
        mine = [n for n, item in enumerate(items) if images[item.image_id] % world.size == world.rank]
        predictor = OwnPredictor(
            model,
            self._context.transform,
            batch_size=self._batch_size,
            proxy=proxy,
            resize=self._context.resize,
            tiles=self._context.tiles,
        )
        numbers = {items[n].key: n for n in mine}
        texts = {
            numbers[work.item.key]: answer.generated
            for work, answer in predictor.answer([Work(items[n]) for n in mine])
        }
        if world.size > 1:
            shares: list[dict[int, str | None]] = [{} for _ in range(world.size)]
            dist.all_gather_object(shares, texts)
            texts = {number: text for share in shares for number, text in share.items()}
        return [Prediction(item, generated=texts[number]) for number, item in enumerate(items)]
