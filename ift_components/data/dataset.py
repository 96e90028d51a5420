"""Training samples: image, prompt (text or proxy slots) and responses; and reports as such samples."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from torchtune.models.llama3_2_vision import Llama3VisionTransform

from ift_components.data import instructions
from ift_components.data.images import CachedCanvases, ImageTransform, stack_images
from ift_components.data.prepared import load_reports
from ift_components.data.prompts import Prompt, Slots, Text, header_tokens, prompt_tokens, response_tokens, slot_id
from ift_components.data.rows import Rows
from ift_components.data.value_spans import ValueWeights
from ift_components.errors import ConfigError, DataError
from ift_components.files import sha256
from ift_components.models.forward import Batch
from ift_components.shuffling import Shuffling


@dataclass(frozen=True)
class Sample:
    """One training sample.

    Attributes:
        id: its name, unique within the dataset's pass.
        prompt: token ids that all responses share: up to and including the assistant's header, or, where the sample holds
            `questions`, up to and including the image.
        responses: the token ids of one or more responses, each with its end-of-turn token.
        image: [tiles down, tiles across, 3, h, w] normalised pixels.
        source: name of the data source, one of the dataset's `sources`; losses are logged by it.
        questions: one for each response, the rest of its own prompt, up to and including the assistant's header; they carry
            no loss. Empty where all responses share the whole prompt.
        weights: one list for each response, how much each of its tokens counts in the loss; empty if all count 1.
    """

    id: str
    prompt: list[int]
    responses: list[list[int]]
    image: Tensor
    source: str = "reports"
    questions: Sequence[list[int]] = ()
    weights: Sequence[list[float]] = ()

    def weighed(self, factor: float) -> "Sample":
        """Return the sample with every token's weight multiplied."""
        weights = self.weights or [[1.0] * len(response) for response in self.responses]
        return replace(self, weights=[[factor * weight for weight in row] for row in weights])


class TrainingDataset(Protocol):
    """What the training loop reads samples from; a class that names it as its base has the defaults below."""

    sources: Sequence[str]
    """Names of the data sources that its samples are from, each once; the same on every process."""

    has_slots: bool
    """Whether any sample's prompt holds proxy slots."""

    is_ordered: bool = False
    """Whether the samples are to be trained on in the order of their indices; otherwise the sampler shuffles them."""

    prepared_splits: Sequence[tuple[Path, str]] = ()
    """The prepared folders, each with the split, that the samples are from; empty for those that are drawn."""

    pictures: int | None = None
    """How many different pictures the samples of all epochs show; None where they are drawn or changed anew each time."""

    def notes(self) -> list[str]:
        """Return lines that a user should read before training starts."""
        return []

    def __len__(self) -> int:
        """Samples of one epoch."""

    def __getitem__(self, index: int) -> Sample:
        """Return a sample, a function of (seed, epoch, index) alone."""

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (from 0) that the next samples are drawn for."""


@runtime_checkable
class KnowsLongest(Protocol):
    """A dataset that can say which samples are the longest, so that a run tries them out before it starts."""

    def longest(self, count: int) -> list[int]:
        """Return the indices of the longest samples."""


@dataclass(frozen=True)
class DatasetContext:
    """What a run hands to every dataset component, before the arguments of its YAML.

    Attributes:
        transform: the model's transform.
        proxy_vectors: K, the proxy slots of a prompt without an instruction; 0 if the run has no proxy.
        seed: seed of every random choice.
        resize: how pictures are resized, `bilinear` or `bicubic`.
        tiles: most tiles of a picture.
    """

    transform: Llama3VisionTransform
    proxy_vectors: int
    seed: int
    resize: str = "bilinear"
    tiles: int = 1

    def image_transform(self) -> ImageTransform:
        """Return what turns a picture into the encoder's input."""
        return ImageTransform(self.transform, self.resize, self.tiles)

    def prompts(self, instruction: Any, key: str = "dataset.instruction") -> list[Prompt]:
        """Return the prompts of an instruction or a pool of them, or the proxy's slots without one.

        Args:
            instruction: what `read_instructions` takes, or None.
            key: where it stands in the config, for messages.

        Raises:
            ConfigError: if there is neither an instruction nor a proxy, or the instruction is wrong.
        """
        if instruction is not None:
            return [Text(text) for text in instructions.read_instructions(instruction, key)]
        if not self.proxy_vectors:
            raise ConfigError(
                f"{key}: is null, and a run under an `instruction` has no proxy to stand in its place; give "
                f"{key}: ${{instruction}}, or set instruction to null to train under the proxy"
            )
        return [Slots(self.proxy_vectors)]


class ReportDataset(Dataset[Sample], TrainingDataset):
    """The reports of one split of a prepared folder, a `TrainingDataset`.

    Args:
        context: the run's transform, number of proxy slots and seed.
        source: prepared folder.
        split: `train`, `val` or `test`.
        instruction: a text, a list of texts or a `.txt` file of one a line; of several each sample gets one that is drawn anew
            in every epoch. None leaves its place to the proxy.
        name: what its losses are called where a run has several sources.
        shuffling: how responses are reordered each time they are seen; None leaves them as they are.
        limit: use only the first samples.
        repeat: how often an epoch goes over the samples, each time with another order (the authors repeat small sets 3 times).
        responses_per_image: differently shuffled responses to one image, which share its pass through the encoder.
        value_weight: how much a token that holds a part of an attribute's value counts in the loss; the fixed wording counts 1.
        value_balance: 0 to 1, how much more such tokens of rare values count than those of frequent ones (`balanced_weights`).
        cache_images: folder that keeps decoded and resized images, so that each is decoded once; None decodes every time.

    Raises:
        DataError: if the folder or split is missing or empty.
        ConfigError: if a prompt with its longest report does not fit the tokenizer's `max_seq_len`, a number is below 1, there
            is neither instruction nor proxy, several responses are asked for without shuffling, or values are to be weighed
            and no report holds any.
    """

    def __init__(
        self,
        context: DatasetContext,
        *,
        source: str,
        split: str,
        instruction: str | Sequence[str] | None = None,
        name: str = "reports",
        shuffling: Shuffling | None = None,
        limit: int | None = None,
        repeat: int = 1,
        responses_per_image: int = 1,
        value_weight: float = 1.0,
        value_balance: float = 0.0,
        cache_images: str | None = None,
    ) -> None:
        for key, value in (("limit", limit), ("repeat", repeat), ("responses_per_image", responses_per_image)):
            if value is not None and value < 1:
                raise ConfigError(f"dataset.{key}: {value} is below 1")
        if responses_per_image > 1 and shuffling is None:
            raise ConfigError(
                f"dataset.responses_per_image: {responses_per_image} responses are all the same without shuffling; set "
                "dataset.shuffling or 1"
            )
        self._transform = context.transform
        self._seed = context.seed
        prompts = context.prompts(instruction)
        self._prompts = [prompt_tokens(context.transform, prompt) for prompt in prompts]
        self.sources = (name,)
        self.has_slots = isinstance(prompts[0], Slots)
        self.prepared_splits = ((Path(source), split),)
        self._image = context.image_transform()
        self._rows = load_reports(Path(source), split)
        if limit is not None:
            self._rows = self._rows.select(range(min(limit, len(self._rows))))
        self.pictures = len(self._rows)
        self._texts = self._rows.remove_columns("image")  # reading a row of these decodes no image
        if not self._texts[0]["report"]:
            raise DataError(f"{source} holds images with questions but no reports; train on its questions instead")
        self._shuffling = shuffling
        self._repeat = repeat
        self._responses_per_image = responses_per_image
        self._epoch = 0
        self._cache: CachedCanvases | None = None
        if cache_images is not None:
            manifest = sha256(Path(source) / "manifest.json")
            name = f"{split}-{manifest[:16]}"
            self._cache = CachedCanvases(Path(cache_images), name, len(self._rows), self._image)
        self._values = None
        if value_weight != 1 or value_balance:
            reports = [(_attributes(row), row["report"]) for row in self._texts]
            self._values = ValueWeights(context.transform, Path(source), value_weight, value_balance, reports)
        self._bytes = [len(report.encode()) for report in self._texts["report"]]
        self._check_lengths()

    def _check_lengths(self) -> None:
        longest = self._transform.max_seq_len
        if longest is None:
            return
        room = longest - max(map(len, self._prompts))
        for row, size in zip(self._texts, self._bytes, strict=True):
            # A byte-level token covers at least one byte, so that only long reports need tokenizing.
            if size + 1 > room and len(response_tokens(self._transform, row["report"])) > room:
                raise ConfigError(
                    f"tokenizer.max_seq_len: {longest} tokens do not hold the prompt and the report of '{row['id']}'; "
                    "raise it or shorten the report"
                )

    def longest(self, count: int) -> list[int]:
        """Return the indices of the samples with the longest reports in tokens, among the longest in bytes."""
        by_bytes = sorted(range(len(self._bytes)), key=lambda number: -self._bytes[number])[: max(64, 4 * count)]
        tokens = {number: len(response_tokens(self._transform, self._texts[number]["report"])) for number in by_bytes}
        return sorted(by_bytes, key=lambda number: -tokens[number])[:count]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (from 0) that the next orders are drawn for."""
        self._epoch = epoch

    def texts(self) -> list[str]:
        """Return each sample's report, unshuffled."""
        return list(self._texts["report"]) * self._repeat

    def values(self, attribute: str) -> list[str | None]:
        """Return each sample's value of an attribute, None where it has none."""
        rows = [{item["name"]: item["value"] for item in row} for row in self._texts["attributes"]]
        return [row.get(attribute) for row in rows] * self._repeat

    def __len__(self) -> int:
        return len(self._rows) * self._repeat

    def __getitem__(self, index: int) -> Sample:
        number = index % len(self._rows)
        row = self._texts[number]
        reports = [self._report(row, index, order) for order in range(self._responses_per_image)]
        responses = [response_tokens(self._transform, report) for report in reports]
        prompt = instructions.draw(len(self._prompts), self._seed, self._epoch, index)
        weights = () if self._values is None else self._values.weights(_attributes(row), reports, responses)
        pixels = self._pixels(number)
        return Sample(row["id"], self._prompts[prompt], responses, pixels, self.sources[0], weights=weights)

    def _report(self, row: dict[str, Any], index: int, order: int) -> str:
        if self._shuffling is None:
            return row["report"]
        attributes = _attributes(row)
        key = (self._seed, self._epoch, index) + ((order,) if order else ())
        return self._shuffling(row["report"], attributes, key)

    def _pixels(self, number: int) -> Tensor:
        if self._cache is None:
            return self._image(read_image(self._rows, number))
        return self._cache.get(number, lambda: read_image(self._rows, number))


def _attributes(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(item["name"], item["value"]) for item in row["attributes"]]


def read_image(rows: Rows, place: int) -> Image.Image:
    """Return the decoded image of a row of a prepared folder.

    Raises:
        DataError: if it has none or a damaged one; the message names the sample.
    """
    row = rows[place]
    if not isinstance(row["image"], Image.Image):
        raise DataError(f"sample '{row['id']}' has no image; prepare the folder again")
    return row["image"]


def _row(sample: Sample, header: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lay out one sample: the prompt, then its responses one after another, each with its question before it if it has one.

    Args:
        sample: the sample.
        header: tokens before each response that are supervised too.

    Returns:
        Tokens, positions and segment (0 for the prompt, k for question and response k), each [s], and the places that predict a
        supervised token, [n]; the last place of its prompt, shared or its own, predicts the first token of a response.
    """
    prompt = len(sample.prompt)
    tokens, positions, segments = list(sample.prompt), list(range(prompt)), [0] * prompt
    places: list[int] = []
    for number, response in enumerate(sample.responses):
        question = sample.questions[number] if sample.questions else []
        start = len(tokens) + len(question)
        last = start - 1 if question else prompt - 1
        places += [*range(last - header, last + 1), *range(start, start + len(response) - 1)]
        tokens += [*question, *response]
        positions += range(prompt, prompt + len(question) + len(response))
        segments += [number + 1] * (len(question) + len(response))
    return torch.tensor(tokens), torch.tensor(positions), torch.tensor(segments), torch.tensor(places, dtype=torch.long)


def collate(
    samples: Sequence[Sample],
    transform: Llama3VisionTransform,
    sources: Sequence[str] = ("reports",),
    *,
    supervise_header: bool = False,
) -> Batch:
    """Right-pad samples to the longest and mark what the loss and the proxy need; prompts may have slots or text.

    Args:
        samples: the samples of one batch.
        transform: the model's transform, for its special tokens.
        sources: names of all data sources of the run; with several, every label is marked with its own.
        supervise_header: whether the assistant's header before a response is supervised too, as in the authors' code.

    Raises:
        DataError: if a prompt does not hold exactly one image.
    """
    header = header_tokens(transform) if supervise_header else []
    rows = [_row(sample, len(header)) for sample in samples]
    tokens = pad_sequence([row[0] for row in rows], batch_first=True, padding_value=transform.pad_id)
    is_image = tokens == transform.tokenizer.image_id
    if not (is_image.sum(dim=1) == 1).all():
        id_ = next(s.id for s, row in zip(samples, is_image, strict=True) if row.sum() != 1)
        raise DataError(
            f"sample '{id_}' does not hold exactly one <|image|> token; every sample needs exactly one image"
        )
    # Several responses lie behind one prompt in a row: each counts its positions from the prompt's end and sees the prompt, its
    # own question and itself alone, so that the row computes what one row a response would. A single one is causal: no mask.
    positions = mask = None
    if any(len(sample.responses) > 1 for sample in samples):
        positions = pad_sequence([row[1] for row in rows], batch_first=True)
        segments = pad_sequence([row[2] for row in rows], batch_first=True, padding_value=-1)
        same = segments.unsqueeze(2) == segments.unsqueeze(1)
        mask = (same | (segments == 0).unsqueeze(1)).tril()
    # The loss and the proxy are found by their places in the flattened [b * s] batch: gathering those few rows is what keeps
    # the vocabulary's logits, and the slots of a batch that mixes prompts, from having a shape that depends on padding.
    width = tokens.shape[1]
    labels = [
        torch.tensor([t for r in sample.responses for t in (*header, *r)], dtype=torch.long) for sample in samples
    ]
    source_index = None
    if len(sources) > 1:
        numbers = torch.tensor([sources.index(sample.source) for sample in samples])
        source_index = numbers.repeat_interleave(torch.tensor([len(row) for row in labels]))
    weights = None
    if any(sample.weights for sample in samples):
        # The assistant's header counts as much as the response's end, which is fixed wording too.
        rows_of = [sample.weights or sample.weighed(1.0).weights for sample in samples]
        weights = torch.tensor([w for each in rows_of for row in each for w in (*[row[-1]] * len(header), *row)])
    images, aspect_ratio = stack_images([sample.image for sample in samples])
    return Batch(
        tokens=tokens,
        images=images,
        aspect_ratio=aspect_ratio,
        sees_image=is_image.cumsum(dim=1) > 0,
        slot_index=(tokens == slot_id(transform)).flatten().nonzero().squeeze(1),
        response_index=torch.cat([row[3] + number * width for number, row in enumerate(rows)]),
        labels=torch.cat(labels),
        ids=[sample.id for sample in samples],
        positions=positions,
        mask=mask,
        source_index=source_index,
        weights=weights,
        sources=len(sources),
    )
