"""Reports as training samples: image, prompt (text instruction or proxy slots) and response."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from torchtune.models.llama3_2_vision import Llama3VisionTransform

from ift_components.data.images import ImageTransform, SquashedImages
from ift_components.data.prepared import load_reports
from ift_components.data.prompts import prompt_tokens, response_tokens, slot_id
from ift_components.errors import ConfigError, DataError
from ift_components.files import sha256
from ift_components.models.forward import Batch
from ift_components.shuffling import Shuffling


class Sample(TypedDict):
    """One training sample: its id, prompt tokens, the tokens of one or more responses, and its image [tiles, 3, h, w]."""

    id: str
    prompt: list[int]
    responses: list[list[int]]
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
        responses_per_image: differently shuffled responses to one image, which share its pass through the encoder.
        cache_images: folder that keeps decoded and squashed images, so that each is decoded once; None decodes every time.

    Raises:
        DataError: if the folder or split is missing or empty.
        ConfigError: if a prompt with its longest report does not fit the tokenizer's `max_seq_len`, a number is below 1, or
            several responses are asked for without shuffling.
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
        responses_per_image: int = 1,
        cache_images: str | None = None,
    ) -> None:
        for name, value in (("limit", limit), ("repeat", repeat), ("responses_per_image", responses_per_image)):
            if value is not None and value < 1:
                raise ConfigError(f"dataset.{name}: {value} is below 1")
        if responses_per_image > 1 and shuffling is None:
            raise ConfigError(
                f"dataset.responses_per_image: {responses_per_image} responses are all the same without shuffling; set "
                "dataset.shuffling or 1"
            )
        self._transform = transform
        self._image = ImageTransform(transform)
        self._rows = load_reports(Path(source), split)
        if limit is not None:
            self._rows = self._rows.select(range(min(limit, len(self._rows))))
        self._texts = self._rows.remove_columns("image")  # reading a row of these decodes no image
        self._prompt = prompt_tokens(transform, instruction)
        self._shuffling = shuffling
        self._seed = seed
        self._repeat = repeat
        self._responses_per_image = responses_per_image
        self._epoch = 0
        self._cache: SquashedImages | None = None
        if cache_images is not None:
            manifest = sha256(Path(source) / "manifest.json")
            name = f"{split}-{manifest[:16]}-{len(self._rows)}-{self._image.size}"
            self._cache = SquashedImages(Path(cache_images), name, len(self._rows), self._image.size)
        self._check_lengths()

    def _check_lengths(self) -> None:
        longest = self._transform.max_seq_len
        if longest is None:
            return
        room = longest - len(self._prompt)
        for row in self._texts:
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
        number = index % len(self._rows)
        row = self._texts[number]
        return {
            "id": row["id"],
            "prompt": self._prompt,
            "responses": [
                response_tokens(self._transform, self._report(row, index, order))
                for order in range(self._responses_per_image)
            ],
            "image": self._pixels(number),
        }

    def _report(self, row: dict[str, Any], index: int, order: int) -> str:
        if self._shuffling is None:
            return row["report"]
        attributes = [(item["name"], item["value"]) for item in row["attributes"]]
        key = (self._seed, self._epoch, index) + ((order,) if order else ())
        return self._shuffling(row["report"], attributes, key)

    def _pixels(self, number: int) -> Tensor:
        if self._cache is None:
            return self._image(_decoded(self._rows[number]))
        squashed = self._cache.get(number, lambda: self._image.squash(_decoded(self._rows[number])))
        return self._image.normalise(squashed)


def _decoded(row: dict[str, Any]) -> Image.Image:
    image = row["image"]
    if not isinstance(image, Image.Image):
        raise DataError(f"sample '{row['id']}' has no image; prepare the folder again")
    return image


def _row(sample: Sample) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lay out one sample: the prompt, then its responses one after another, each continuing from the prompt.

    Returns:
        Tokens, positions and segment (0 for the prompt, k for response k), each [s], and the places that predict a response's
        token, [n] (the prompt's last place predicts the first token of every response).
    """
    prompt = len(sample["prompt"])
    tokens, positions, segments = list(sample["prompt"]), list(range(prompt)), [0] * prompt
    places: list[int] = []
    for number, response in enumerate(sample["responses"], start=1):
        start = len(tokens)
        places += [prompt - 1, *range(start, start + len(response) - 1)]
        tokens += response
        positions += range(prompt, prompt + len(response))
        segments += [number] * len(response)
    return torch.tensor(tokens), torch.tensor(positions), torch.tensor(segments), torch.tensor(places, dtype=torch.long)


def collate(samples: Sequence[Sample], transform: Llama3VisionTransform) -> Batch:
    """Right-pad samples to the longest and mark what the loss and the proxy need.

    Args:
        samples: the samples of one batch.
        transform: the model's transform, for its special tokens.

    Raises:
        DataError: if a prompt does not hold exactly one image.
    """
    image_id, slot = transform.tokenizer.image_id, slot_id(transform)
    rows = [_row(sample) for sample in samples]
    tokens = pad_sequence([row[0] for row in rows], batch_first=True, padding_value=transform.pad_id)
    is_image = tokens == image_id
    if not (is_image.sum(dim=1) == 1).all():
        wrong = next(s["id"] for s, row in zip(samples, is_image, strict=True) if row.sum() != 1)
        raise DataError(
            f"sample '{wrong}' does not hold exactly one <|image|> token; every sample needs exactly one image"
        )
    positions = mask = None
    if any(len(sample["responses"]) > 1 for sample in samples):
        positions = pad_sequence([row[1] for row in rows], batch_first=True)
        segments = pad_sequence([row[2] for row in rows], batch_first=True, padding_value=-1)
        same = segments.unsqueeze(2) == segments.unsqueeze(1)
        mask = (same | (segments == 0).unsqueeze(1)).tril()  # a token sees the prompt and its own response up to itself
    width = tokens.shape[1]
    labels = [torch.tensor([t for r in s["responses"] for t in r], dtype=torch.long) for s in samples]
    return Batch(
        tokens=tokens,
        images=torch.stack([sample["image"] for sample in samples]).unsqueeze(1),
        aspect_ratio=torch.ones(len(samples), 1, 2, dtype=torch.int),
        sees_image=is_image.cumsum(dim=1) > 0,
        slot_index=(tokens == slot).flatten().nonzero().squeeze(1),
        response_index=torch.cat([row[3] + number * width for number, row in enumerate(rows)]),
        labels=torch.cat(labels),
        ids=[sample["id"] for sample in samples],
        positions=positions,
        mask=mask,
    )
