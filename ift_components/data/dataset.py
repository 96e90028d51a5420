"""Reports as training samples: image, prompt (text instruction or proxy slots) and response."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchtune.models.llama3_2_vision import Llama3VisionTransform

from ift_components.data.images import ImageTransform
from ift_components.data.prepared import load_reports
from ift_components.data.prompts import prompt_tokens, response_tokens, slot_id
from ift_components.errors import ConfigError, DataError
from ift_components.models.forward import Batch
from ift_components.shuffling import Shuffling


class Sample(TypedDict):
    """One training sample: its id, prompt and response tokens, and its image [tiles, 3, h, w]."""

    id: str
    prompt: list[int]
    response: list[int]
    image: Tensor


class ReportDataset(Dataset[Sample]):
    """The reports of one split of a prepared folder.

    Args:
        transform: the model's transform.
        source: prepared folder.
        split: `train`, `val` or `test`.
        instruction: the text instruction, or the number of proxy slots in its place.
        shuffling: how responses are reordered each time they are seen; None leaves them as they are.
        seed: seed of the reordering.
        limit: use only the first samples.
        repeat: how often an epoch goes over the samples, each time with another order (the authors repeat small sets 3 times).

    Raises:
        DataError: if the folder or split is missing or empty.
        ConfigError: if a prompt with its longest report does not fit the tokenizer's `max_seq_len`, or `limit` or `repeat` is
            below 1.
    """

    def __init__(
        self,
        transform: Llama3VisionTransform,
        *,
        source: str,
        split: str,
        instruction: str | int,
        shuffling: Shuffling | None = None,
        seed: int = 0,
        limit: int | None = None,
        repeat: int = 1,
    ) -> None:
        for name, value in (("limit", limit), ("repeat", repeat)):
            if value is not None and value < 1:
                raise ConfigError(f"dataset.{name}: {value} is below 1")
        self._transform = transform
        self._image = ImageTransform(transform)
        self._rows = load_reports(Path(source), split)
        if limit is not None:
            self._rows = self._rows.select(range(min(limit, len(self._rows))))
        self._prompt = prompt_tokens(transform, instruction)
        self._shuffling = shuffling
        self._seed = seed
        self._repeat = repeat
        self._epoch = 0
        self._check_lengths()

    def _check_lengths(self) -> None:
        longest = self._transform.max_seq_len
        if longest is None:
            return
        room = longest - len(self._prompt)
        for row in self._rows.select_columns(["id", "report"]):
            # A byte-level token covers at least one byte, so that only long reports need tokenizing.
            if len(row["report"].encode()) + 1 > room and len(response_tokens(self._transform, row["report"])) > room:
                raise ConfigError(
                    f"tokenizer.max_seq_len: {longest} tokens do not hold the prompt and the report of '{row['id']}'; "
                    "raise it or shorten the report"
                )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (from 0) that the next orders are drawn for."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._rows) * self._repeat

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index % len(self._rows)]
        report = row["report"]
        if self._shuffling is not None:
            attributes = [(item["name"], item["value"]) for item in row["attributes"]]
            report = self._shuffling(report, attributes, (self._seed, self._epoch, index))
        return {
            "id": row["id"],
            "prompt": self._prompt,
            "response": response_tokens(self._transform, report),
            "image": self._image(_decoded(row)),
        }


def _decoded(row: dict[str, Any]) -> Image.Image:
    image = row["image"]
    if not isinstance(image, Image.Image):
        raise DataError(f"sample '{row['id']}' has no image; prepare the folder again")
    return image


def collate(samples: Sequence[Sample], transform: Llama3VisionTransform) -> Batch:
    """Right-pad samples to the longest and mark what the loss and the proxy need.

    Args:
        samples: the samples of one batch.
        transform: the model's transform, for its special tokens.

    Raises:
        DataError: if a prompt does not hold exactly one image.
    """
    image_id, slot = transform.tokenizer.image_id, slot_id(transform)
    sequences = [torch.tensor(sample["prompt"] + sample["response"]) for sample in samples]
    tokens = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=transform.pad_id)
    is_image = tokens == image_id
    if not (is_image.sum(dim=1) == 1).all():
        wrong = next(s["id"] for s, row in zip(samples, is_image, strict=True) if row.sum() != 1)
        raise DataError(
            f"sample '{wrong}' does not hold exactly one <|image|> token; every sample needs exactly one image"
        )
    width = tokens.shape[1]
    responses = [
        torch.arange(len(s["prompt"]) - 1, len(s["prompt"]) + len(s["response"]) - 1) + row * width
        for row, s in enumerate(samples)
    ]
    response_index = torch.cat(responses)
    return Batch(
        tokens=tokens,
        images=torch.stack([sample["image"] for sample in samples]).unsqueeze(1),
        aspect_ratio=torch.ones(len(samples), 1, 2, dtype=torch.int),
        sees_image=is_image.cumsum(dim=1) > 0,
        slot_index=(tokens == slot).flatten().nonzero().squeeze(1),
        response_index=response_index,
        labels=tokens.flatten()[response_index + 1],
        ids=[sample["id"] for sample in samples],
    )
