"""The supervised limit: a model's vision encoder with one linear head an attribute, trained on the attribute table itself.

    python -m ift_components.evaluation.reference DATA OUT
    python -m ift_components.evaluation.reference DATA OUT --config llama32v_eval.yaml --checkpoint-dir MODEL --lr 2e-5

It reads no words, so its scores say how much of each attribute the encoder can learn to see in these images, beside which the
answers of a tuned model can be read. It starts from the `model`, `checkpoint_dir` and `tokenizer` of an evaluation's config and
computes on its `device` in its `dtype`; weights and optimizer are fp32. Pictures are squashed into one tile. Leaves
`OUT/reference.safetensors` and `OUT/evaluation`, on the questions of any evaluation, for a comparison; with `--no-evaluation`
the file alone, which an evaluation then names as its `predictor.path`.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchtune.modules.model_fusion import DeepFusionModel
from tqdm import tqdm

from ift_components.config import instantiate, load_config
from ift_components.data.images import ImageTransform
from ift_components.data.prepared import load_reports, read_manifest
from ift_components.data.rows import Rows
from ift_components.data.schema import Schema
from ift_components.data.wording import choice_answer
from ift_components.distributed import choose_device, distributed
from ift_components.errors import ConfigError, DataError, UserError
from ift_components.evaluation.predictors.base import GREEDY, Answer, Sampling, Work
from ift_components.evaluation.records import Item
from ift_components.evaluation.results import table
from ift_components.evaluation.run import Evaluation
from ift_components.evaluation.settings import EvalSettings
from ift_components.files import atomic_path, require_new_folder, sha256
from ift_components.models.build import build_for_inference, build_model
from ift_components.training.settings import parse_dtype

FILE = "reference.safetensors"
_NOT_APPLICABLE = -1
_HEADS_RATE = 10  # the heads start from nothing: their learning rate is this many times the encoder's
Classes = Mapping[str, Sequence[str]]  # by attribute, its answers' texts


class AttributeClassifier(nn.Module):
    """A vision encoder with one linear head an attribute on the mean of its output.

    Args:
        model: a model whose encoder is taken, as fp32; nothing else of it is.
        classes: by attribute, its answers' texts.
        dtype: what it computes in.
    """

    def __init__(self, model: DeepFusionModel, classes: Classes, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.encoder: nn.Module = model.encoder.float()
        self.classes = {name: list(texts) for name, texts in classes.items()}
        self.dtype = dtype
        width: int = model.decoder.output.in_features
        self.norm = nn.LayerNorm(width)
        self.heads = nn.Linear(width, sum(map(len, classes.values())))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of each attribute's classes, [b, classes] each.

        Args:
            images: [b, 1, 1, 3, h, w] normalised pixels: one tile each.
        """
        ratio = torch.ones(len(images), 1, 2, dtype=torch.int)  # torchtune loops over it in Python
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features = self.encoder(images, ratio).mean(dim=1)
        features = features.float()
        return self.heads(self.norm(features)).split([len(texts) for texts in self.classes.values()], dim=1)


def attribute_classes(schema: Schema, rows: Rows) -> dict[str, list[str]]:
    """Return the answers of every attribute that is asked, as questions write them, as far as training images show them."""
    texts: dict[str, set[str]] = {attribute.name: set() for attribute in schema.attributes if attribute.asked}
    for row in rows.select_columns(["attributes"]):
        for name, text in _answers(schema, row).items():
            texts[name].add(text)
    return {name: sorted(values) for name, values in texts.items() if len(values) > 1}


def _answers(schema: Schema, row: Mapping[str, Any]) -> dict[str, str]:
    values = {item["name"]: item["value"] for item in row["attributes"]}
    return {a.name: a.text(values[a.name]) for a in schema.attributes if a.asked and a.name in values}


class _LabelledImages(Dataset[tuple[Tensor, Tensor]]):
    """Images, [1, 1, 3, h, w], with the class of each attribute, [attributes]; -1 where it does not apply or is unknown."""

    def __init__(self, rows: Rows, schema: Schema, classes: Classes, picture: ImageTransform) -> None:
        self._rows, self._picture = rows, picture
        self._codes = []
        for row in rows.select_columns(["attributes"]):
            answers = _answers(schema, row)
            numbers = [_code(texts, answers.get(name)) for name, texts in classes.items()]
            self._codes.append(torch.tensor(numbers))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._picture(self._rows[index]["image"]), self._codes[index]


def _code(texts: Sequence[str], text: str | None) -> int:
    return texts.index(text) if text in texts else _NOT_APPLICABLE


@dataclass(frozen=True)
class ReferenceOptions:
    """How the reference is trained."""

    epochs: int = 4
    """Passes over the training images; the one that is best on the validation images is what is saved."""

    batch_size: int = 32
    """Images a step."""

    lr: float = 3e-4
    """The encoder's highest learning rate; it falls to 0 along a cosine."""

    seed: int = 0
    """Seed of the heads and of the order of the images."""


def train_reference(cfg: EvalSettings, out: Path, options: ReferenceOptions) -> Path:
    """Train an encoder with heads on a prepared folder's attributes.

    Args:
        cfg: names the prepared folder, the model, its checkpoint and its transform.
        out: gets `reference.safetensors`.
        options: how.

    Returns:
        The file written.

    Raises:
        DataError: if the folder holds no attribute to learn.
    """
    torch.manual_seed(options.seed)
    rows = load_reports(cfg.data, "train")
    schema = Schema.from_dict(read_manifest(cfg.data)["schema"])
    classes = attribute_classes(schema, rows)
    if not classes:
        raise DataError(f"{cfg.data}: no attribute is asked about and has two values in the training images")
    device, dtype = choose_device(cfg.device), parse_dtype(cfg.dtype)
    model = build_for_inference(cfg.model, cfg.checkpoint_dir, device, dtype)
    classifier = AttributeClassifier(model, classes, dtype).to(device).requires_grad_(requires_grad=True)
    del model  # of its weights the encoder's alone are kept
    picture = ImageTransform(instantiate(cfg.tokenizer, "tokenizer"))
    data = _LabelledImages(rows, schema, classes, picture)
    loader = DataLoader(data, options.batch_size, shuffle=True, drop_last=len(data) >= options.batch_size)
    val = DataLoader(_LabelledImages(load_reports(cfg.data, "val"), schema, classes, picture), options.batch_size)
    heads = [*classifier.norm.parameters(), *classifier.heads.parameters()]
    groups = [
        {"params": list(classifier.encoder.parameters()), "lr": options.lr},
        {"params": heads, "lr": options.lr * _HEADS_RATE},
    ]
    optimizer = torch.optim.AdamW(groups)
    steps = options.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best = -1.0
    with tqdm(total=steps, desc="reference", unit="step") as bar:
        for _ in range(options.epochs):
            for batch in loader:
                images, codes = (tensor.to(device) for tensor in batch)
                losses = [
                    F.cross_entropy(logits, code, ignore_index=_NOT_APPLICABLE, reduction="sum")
                    for logits, code in zip(classifier(images), codes.T, strict=True)
                ]
                (torch.stack(losses).sum() / (codes >= 0).sum()).backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                bar.update()
            score = _mean_accuracy(classifier, val)
            bar.set_postfix_str(f"validation {score:.3f}")
            if score > best:
                best = score
                path = _save(classifier, out, cfg)
    return path


@torch.no_grad()
def _mean_accuracy(classifier: AttributeClassifier, loader: DataLoader[tuple[Tensor, Tensor]]) -> float:
    """Return the mean over attributes of the share of images whose class is right, where it applies."""
    device = classifier.heads.weight.device
    right, applicable = (torch.zeros(len(classifier.classes), device=device) for _ in range(2))
    for batch in loader:
        images, codes = (tensor.to(device) for tensor in batch)
        chosen = torch.stack([logits.argmax(dim=1) for logits in classifier(images)], dim=1)
        right += (chosen == codes).sum(dim=0)
        applicable += (codes >= 0).sum(dim=0)
    return float((right / applicable.clamp(min=1)).mean())


def _save(classifier: AttributeClassifier, out: Path, cfg: EvalSettings) -> Path:
    path = out / FILE
    facts = {"model": cfg.model, "tokenizer": cfg.tokenizer, "classes": classifier.classes, "dtype": cfg.dtype}
    with atomic_path(path) as temporary:
        save_file(classifier.state_dict(), temporary, {"reference": json.dumps(facts)})
    return path


class ReferencePredictor:
    """Answers multiple-choice questions by the class that a trained `AttributeClassifier` finds most probable of the options.

    Args:
        path: what `train_reference` wrote.
        batch_size: images a pass.
        device: `cpu`, `cuda` or `auto`.

    Raises:
        ConfigError: if the file is no such reference.
    """

    def __init__(self, path: str, *, batch_size: int = 64, device: str = "auto") -> None:
        self._device = choose_device(device)
        try:
            with safe_open(path, framework="pt", device=str(self._device)) as file:
                facts = json.loads(file.metadata()["reference"])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"predictor.path: {path} is no reference: {error}; train one first") from error
        self._path, self._batch_size = path, batch_size
        self._picture = ImageTransform(instantiate(facts["tokenizer"], "tokenizer"))
        with torch.device("meta"):  # of a large model no more than the encoder is ever there
            model = build_model(facts["model"], meta=True)
            self._classifier = AttributeClassifier(model, facts["classes"], parse_dtype(facts["dtype"]))
        self._classifier.load_state_dict(state, assign=True)
        self._classifier.eval()

    def describe(self) -> dict[str, str | None]:
        """Return the file's path and SHA-256."""
        return {"predictor": "supervised reference", "path": self._path, "sha256": sha256(Path(self._path))}

    def check(self, items: Sequence[Item]) -> None:
        """Check that every item is a multiple-choice question about an attribute that was learnt.

        Raises:
            ConfigError: naming one that is not.
        """
        for item in items:
            if not item.options or item.attribute not in self._classifier.classes:
                raise ConfigError(
                    f"'{item.id}': a supervised reference answers multiple choice about attributes it learnt"
                )

    @torch.inference_mode()
    def answer(self, work: Sequence[Work], sampling: Sampling = GREEDY) -> Iterator[tuple[Work, Answer]]:  # noqa: ARG002
        """Yield the answers; it has nothing to draw, so that every run answers alike."""
        names = list(self._classifier.classes)
        for start in range(0, len(work), self._batch_size):
            batch = work[start : start + self._batch_size]
            begin = time.perf_counter()
            images = torch.stack([self._picture(one.item.picture()) for one in batch])
            logits = self._classifier(images.to(self._device))
            seconds = (time.perf_counter() - begin) / len(batch)
            for row, one in enumerate(batch):
                number = names.index(one.item.attribute)
                scores = dict(
                    zip(self._classifier.classes[one.item.attribute], logits[number][row].tolist(), strict=True)
                )
                option = max(range(len(one.item.options)), key=lambda i: scores.get(one.item.options[i], -torch.inf))
                yield one, Answer(choice_answer(option), None, seconds)


def main() -> None:
    """Train the reference and evaluate it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="prepared folder")
    parser.add_argument("out", type=Path, help="folder to create")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-4, help="of the encoder, the heads have ten times as much")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="test", help="split that is asked about (default test)")
    parser.add_argument("--no-evaluation", action="store_true", help="train only")
    parser.add_argument("--config", default="tiny_eval.yaml", help="of an evaluation (default tiny_eval.yaml)")
    parser.add_argument("--checkpoint-dir", help="what the encoder starts from; by default what the config says")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args()
    given = [f"data={args.data}", f"output_dir={args.out / 'evaluation'}", *args.overrides]
    given += [f"checkpoint_dir={args.checkpoint_dir}"] if args.checkpoint_dir is not None else []
    predictor = f"predictor._component_={__spec__.name}.ReferencePredictor"
    asked = [f"split={args.split}", "scoring=generate", "checkpoint_dir=null", "label=supervised reference", predictor]
    try:
        cfg = load_config(args.config, given, EvalSettings)
        require_new_folder(args.out, "OUT").mkdir(parents=True, exist_ok=True)
        options = ReferenceOptions(epochs=args.epochs, batch_size=args.batch_size, lr=args.lr, seed=args.seed)
        path = train_reference(cfg, args.out, options)
        if args.no_evaluation:
            print(path)
            return
        evaluation = load_config(args.config, [*given, *asked, f"predictor.path={path}"], EvalSettings)
        with distributed(cfg.device) as world:
            results = Evaluation(evaluation, world).run()
    except UserError as error:
        sys.exit(f"error: {error}")
    if results is not None:
        print(table(results))


if __name__ == "__main__":
    main()
