"""This package's own engine as a predictor."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor
from torchtune.models.llama3_2_vision import Llama3VisionTransform
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.data.images import ImageTransform
from ift_components.data.prompts import Slots, Text, prompt_tokens
from ift_components.data.wording import ANSWER_PREFIX, letters
from ift_components.errors import ConfigError
from ift_components.evaluation import engine
from ift_components.evaluation.engine import EncodedImages, Engine
from ift_components.evaluation.predictors.base import GREEDY, Answer, Sampling, Work
from ift_components.evaluation.records import Item
from ift_components.evaluation.tasks import TASKS
from ift_components.files import sha256
from ift_components.models.hf_layout import checkpoint_files
from ift_components.saliency.mapper import Mapper


def checkpoint_hash(folder: str | Path | None) -> str | None:
    """Return one SHA-256 over the hashes of a checkpoint's weight files; None without a checkpoint."""
    if folder is None:
        return None
    whole = hashlib.sha256()
    for path in checkpoint_files(Path(folder)):
        whole.update(f"{path.name} {sha256(path)}\n".encode())
    return whole.hexdigest()


def answer_tokens(transform: Llama3VisionTransform) -> tuple[list[int], list[tuple[int, list[int]]]]:
    """Return the tokens of the answer's beginning, and every way to go on: pairs of an option's index and tokens.

    A letter may stand alone or in brackets, as the prompt writes it, with or without what closes the sentence.

    Raises:
        ConfigError: if the tokenizer does not keep the beginning's tokens apart from what follows.
    """

    def encode(text: str) -> list[int]:
        return list(transform.tokenizer.encode(text, add_bos=False, add_eos=False))

    prefix = encode(ANSWER_PREFIX)
    ways = []
    for index, letter in enumerate(letters(26)):
        for form in (" {}", " {}.", " [{}", " [{}]", " [{}].", " **{}", " **{}**"):
            tokens = encode(ANSWER_PREFIX + form.format(letter))
            if tokens[: len(prefix)] != prefix:
                raise ConfigError(
                    f"tokenizer: '{ANSWER_PREFIX}' changes its tokens before '{letter}'; use scoring=generate"
                )
            ways.append((index, tokens[len(prefix) :]))
    return prefix, ways


class OwnPredictor:
    """Answers with torchtune's model, all prompts about one image in one group.

    Args:
        model: the model, on its device and in its compute dtype.
        transform: the model's transform.
        batch_size: prompts per forward pass.
        scoring: `generate`, `logits` (multiple-choice answers are forced and the letter chosen) or `both`.
        letter_probabilities: return how probable every letter is too, where the letter is chosen.
        proxy: [K, d] vectors that stand where an item has no instruction text.
        identity: what `describe` returns.
        resize: how pictures are resized, as in training: `bilinear` or `bicubic`.
        tiles: most tiles of a picture, as in training.
    """

    def __init__(
        self,
        model: DeepFusionModel,
        transform: Llama3VisionTransform,
        *,
        batch_size: int,
        scoring: str = "generate",
        letter_probabilities: bool = False,
        proxy: Tensor | None = None,
        identity: dict[str, str | None] | None = None,
        resize: str = "bilinear",
        tiles: int = 1,
    ) -> None:
        self._engine = Engine(model, transform, proxy)
        self._model, self._transform = model, transform
        self._picture = ImageTransform(transform, resize, tiles)
        self._batch_size = batch_size
        self._scoring = scoring
        self._letter_probabilities = letter_probabilities
        self._slots = 0 if proxy is None else len(proxy)
        self._longest = min(filter(None, (transform.max_seq_len, model.decoder.max_seq_len)))
        self._identity = identity or {}
        self._encoded: tuple[tuple[str, ...], EncodedImages] | None = None
        if scoring != "generate":
            self._prefix, self._ways = answer_tokens(transform)

    def describe(self) -> dict[str, str | None]:
        """Return what identifies the model."""
        return self._identity

    def mapper(self) -> Mapper:
        """Return what maps the answers of this model; nothing else may use the model at the same time."""
        return Mapper(self._model, self._transform, self._picture.resize, tiles=self._picture.tiles)

    def _room(self, item: Item) -> int:
        """Return the tokens that are fed after an item's prompt at most."""
        forced = TASKS[item.task].lettered and self._scoring != "generate"
        room = len(self._prefix) + max(len(tokens) for _, tokens in self._ways) if forced else 0
        return room if forced and self._scoring == "logits" else max(room, item.max_new_tokens)

    def _prompt(self, item: Item) -> list[int]:
        return prompt_tokens(self._transform, Text(item.prompt) if item.prompt else Slots(self._slots))

    def check(self, items: Sequence[Item]) -> None:
        """Check that every prompt and its answer fit.

        Raises:
            ConfigError: if one does not, or if an item needs a proxy instruction and there is none.
        """
        for item in items:
            if not item.prompt and not self._slots:
                raise ConfigError(
                    f"'{item.id}' has no instruction, and there is no proxy instruction to stand in its place"
                )
            needed = len(self._prompt(item)) + self._room(item)
            if needed > self._longest:
                raise ConfigError(
                    f"tokenizer.max_seq_len: {self._longest} tokens do not hold '{item.id}' and its answer ({needed} tokens); "
                    "raise it, or lower max_new_tokens"
                )

    def answer(self, work: Sequence[Work], sampling: Sampling = GREEDY) -> Iterator[tuple[Work, Answer]]:
        """Yield the answers, batch by batch."""
        for batch, rows in self._batches(work):
            begin = time.perf_counter()
            answers = self._answer(batch, rows, sampling)
            seconds = (time.perf_counter() - begin) / len(batch)
            for unit, (generated, forced, probabilities) in zip(batch, answers, strict=True):
                yield unit, Answer(generated, forced, seconds, probabilities=probabilities)

    def _batches(self, work: Sequence[Work]) -> Iterator[tuple[list[Work], int]]:
        """Yield batches of images with the same number of answers, and that number; answers of one image stay together."""
        # Work about one image forms a group, so that the image is encoded once; groups of equal size, task and length fill up
        # a batch together, because the engine takes the same number of prompts for every image of a batch.
        groups: dict[tuple[str, str, str, int], list[Work]] = {}
        for unit in work:
            item = unit.item
            groups.setdefault((item.dataset, item.image_id, item.task, item.max_new_tokens), []).append(unit)
        waiting: dict[tuple[int, str, int], list[list[Work]]] = {}
        for group in groups.values():
            if len(group) > self._batch_size:  # one after the other: the second finds the image encoded
                for start in range(0, len(group), self._batch_size):
                    piece = group[start : start + self._batch_size]
                    yield piece, len(piece)
                continue
            key = (len(group), group[0].item.task, group[0].item.max_new_tokens)
            waiting.setdefault(key, []).append(group)
            if (len(waiting[key]) + 1) * len(group) > self._batch_size:
                yield [unit for full in waiting.pop(key) for unit in full], len(group)
        for (rows, _, _), unfilled in waiting.items():
            yield [unit for group in unfilled for unit in group], rows

    def _encode(self, batch: Sequence[Work], rows: int) -> EncodedImages:
        firsts = [work.item for work in batch[::rows]]
        names = tuple(f"{item.dataset}/{item.image_id}" for item in firsts)
        # More questions about the images of the batch before are answered from the same pass.
        if self._encoded is None or names != self._encoded[0]:
            pictures = [self._picture(item.picture()) for item in firsts]
            self._encoded = (names, self._engine.encode(pictures))
        return self._encoded[1]

    def _answer(
        self, batch: Sequence[Work], rows: int, sampling: Sampling
    ) -> list[tuple[str | None, int | None, tuple[float, ...] | None]]:
        room = max(self._room(work.item) for work in batch)
        prompts = [self._prompt(work.item) for work in batch]
        state = self._engine.start(self._encode(batch, rows), prompts, room)
        lettered = TASKS[batch[0].item.task].lettered
        texts: Sequence[str | None] = [None] * len(batch)
        forced: Sequence[int | None] = [None] * len(batch)
        probabilities: list[tuple[float, ...] | None] = [None] * len(batch)
        if not lettered or self._scoring != "logits":
            seeds = [work.seed(sampling.seed) for work in batch]
            drawn = engine.Sampling(sampling.temperature, sampling.top_p, seeds)
            texts = self._engine.generate(state, batch[0].item.max_new_tokens, drawn)
        if lettered and self._scoring != "generate":
            ways = [[way for way in self._ways if way[0] < len(work.item.options)] for work in batch]
            forced = self._engine.choose(state, self._prefix, ways)
            if self._letter_probabilities:
                found = self._engine.probabilities(state, self._prefix, ways)
                probabilities = [tuple(float(f"{row[index]:.6g}") for index in sorted(row)) for row in found]
        return list(zip(texts, forced, probabilities, strict=True))
