"""Questions of a prepared folder as training samples: several about an image share its pass through the encoder."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from ift_components.data import instruction_format
from ift_components.data.dataset import DatasetContext, Sample, TrainingDataset, read_image
from ift_components.data.images import CachedCanvases
from ift_components.data.prepared import load_questions
from ift_components.data.prompts import Text, prompt_tokens, response_tokens
from ift_components.data.source import QuestionKind
from ift_components.data.wording import choice_answer, multiple_choice_prompt
from ift_components.errors import ConfigError, DataError
from ift_components.files import sha256

_SHOWN = 10  # ids that an error names

KINDS: tuple[str, ...] = get_args(QuestionKind)
TEMPLATES = ("plain", "instruction_format")

_SHOWN = 10  # ids named in a message


class QuestionDataset(Dataset[Sample], TrainingDataset):
    """The questions of one split of a prepared folder, a `TrainingDataset`; the loss is on their answers alone.

    A sample holds up to `questions_per_image` questions about one image; every question occurs once an epoch. Rotated copies of
    a choice are left out.

    Args:
        context: the run's transform and seed; questions have words of their own, so that the proxy is not used.
        source: prepared folder.
        split: `train`, `val` or `test`.
        kinds: which of `choice`, `closed` and `open`.
        template: `plain` (a choice worded as evaluation words it and answered by its letter, other questions as they stand) or
            `instruction_format` (a form and options drawn anew each time, see the module of that name), answered by the text.
        questions_per_image: at most so many questions about one image share its pass through the encoder.
        name: what its losses are called where a run has several sources.
        limit: use only the first questions.
        cache_images: folder that keeps decoded and resized images, so that each is decoded once; None decodes every time.

    Raises:
        DataError: if folder or split are missing, no question is of these kinds, or a question is not whole.
        ConfigError: if an argument is not one of its values, or a question does not fit the tokenizer's `max_seq_len`.
    """

    has_slots = False

    def __init__(
        self,
        context: DatasetContext,
        *,
        source: str,
        split: str,
        kinds: Sequence[str] = KINDS,
        template: str = "plain",
        questions_per_image: int = 1,
        name: str = "questions",
        limit: int | None = None,
        cache_images: str | None = None,
    ) -> None:
        _check_arguments(kinds, template, questions_per_image=questions_per_image, limit=limit)
        self._transform, self._seed, self._epoch = context.transform, context.seed, 0
        self._template = template
        self.sources = (name,)
        self.prepared_splits = ((Path(source), split),)
        self._image = context.image_transform()
        self._rows = load_questions(Path(source), split)
        texts = list(self._rows.remove_columns("image"))
        # Images are numbered over the whole file, so that their cache is the same for every choice of questions.
        image_numbers = {id_: number for number, id_ in enumerate(dict.fromkeys(row["image_id"] for row in texts))}
        chosen = [place for place, row in enumerate(texts) if row["kind"] in kinds and not row["rotation"]][:limit]
        if not chosen:
            raise DataError(f"{source}: no question of split '{split}' is of kind {' or '.join(kinds)}")
        self._questions = {place: texts[place] for place in chosen}
        where = f"{source}: questions of split '{split}'"
        _refuse(where, self._rows.select(chosen).missing_images(), "have no image")
        _refuse(where, _incomplete(self._questions.values()), "lack a question, an answer or its option")
        self._image_number = {place: image_numbers[row["image_id"]] for place, row in self._questions.items()}
        self.pictures = len(set(self._image_number.values()))
        self._samples = list(_shared_passes(self._questions, questions_per_image))
        self._categories: dict[tuple[str, str], set[str]] = defaultdict(set)
        for row in self._questions.values():
            self._categories[row["attribute"], row["kind"]].add(row["answer_text"])
        self._cache: CachedCanvases | None = None
        if cache_images is not None:
            manifest = sha256(Path(source) / "manifest.json")
            file_name = f"questions-{split}-{manifest[:16]}"
            self._cache = CachedCanvases(Path(cache_images), file_name, len(image_numbers), self._image)
        self._check_lengths()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (from 0) that forms and options are drawn for."""
        self._epoch = epoch

    def longest(self, count: int) -> list[int]:
        """Return the indices of the samples with the longest questions, options and answers, in bytes."""

        def size(places: Sequence[int]) -> int:
            rows = (self._questions[place] for place in places)
            return sum(len("".join([r["question"], r["answer_text"], *(r["options"] or ())]).encode()) for r in rows)

        return sorted(range(len(self._samples)), key=lambda index: -size(self._samples[index]))[:count]

    def texts(self) -> list[str]:
        """Return each sample's answers, one after another."""
        return [" ".join(self._questions[place]["answer_text"] for place in places) for places in self._samples]

    def values(self, attribute: str) -> list[str | None]:
        """Return each sample's first answer about an attribute, None where it is not asked."""
        rows = ([self._questions[place] for place in places] for places in self._samples)
        return [next((row["answer_text"] for row in some if row["attribute"] == attribute), None) for some in rows]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        generator = np.random.default_rng((self._seed, self._epoch, index))
        turns = [self._turn(self._questions[place], generator) for place in self._samples[index]]
        prompts = [prompt_tokens(self._transform, Text(question)) for question, _ in turns]
        # All that comes before the question's words is the same for every question, the image its last token.
        shared = prompts[0].index(self._transform.tokenizer.image_id) + 1
        return Sample(
            id=self._questions[self._samples[index][0]]["id"],
            prompt=prompts[0][:shared],
            questions=[prompt[shared:] for prompt in prompts],
            responses=[response_tokens(self._transform, answer) for _, answer in turns],
            image=self._pixels(self._samples[index][0]),
            source=self.sources[0],
        )

    def _category(self, row: dict[str, Any]) -> Sequence[str] | set[str]:
        return row["options"] if row["kind"] == "choice" else self._categories[row["attribute"], row["kind"]]

    def _turn(self, row: dict[str, Any], generator: np.random.Generator) -> tuple[str, str]:
        """Return a question in words, and its answer."""
        question, answer = row["question"], row["answer_text"]
        if self._template == "instruction_format":
            closed = row["kind"] == "closed"
            category = self._category(row)
            worded = instruction_format.render(question, answer, closed=closed, category=category, generator=generator)
            return worded, answer
        if row["kind"] == "choice":
            return multiple_choice_prompt(question, row["options"]), choice_answer(row["answer"])
        return question, answer

    def _longest(self, row: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield a question in every form that it can take, with the longest options, and its answer."""
        if self._template == "plain":
            yield self._turn(row, np.random.default_rng(0))
            return
        forms, wrong_answers = instruction_format.fitting_forms(
            row["answer_text"], closed=row["kind"] == "closed", category=self._category(row)
        )
        options = [row["answer_text"], *sorted(wrong_answers, key=lambda text: -len(text.encode()))]
        for form in forms:
            yield instruction_format.write(form, row["question"], options[: form.options]), row["answer_text"]

    def _check_lengths(self) -> None:
        longest = self._transform.max_seq_len
        if longest is None:
            return
        frame = len(prompt_tokens(self._transform, Text("")))
        for row in self._questions.values():
            for question, answer in self._longest(row):
                # A byte-level token covers at least one byte, so that only long questions need tokenizing.
                if frame + len(question.encode()) + len(answer.encode()) + 1 <= longest:
                    continue
                prompt = prompt_tokens(self._transform, Text(question))
                if len(prompt) + len(response_tokens(self._transform, answer)) > longest:
                    raise ConfigError(
                        f"tokenizer.max_seq_len: {longest} tokens do not hold question '{row['id']}' and its answer; raise it "
                        "or shorten the question"
                    )

    def _pixels(self, place: int) -> Tensor:
        if self._cache is None:
            return self._image(read_image(self._rows, place))
        return self._cache.get(self._image_number[place], lambda: read_image(self._rows, place))


def _check_arguments(kinds: Sequence[str], template: str, **counts: int | None) -> None:
    for key, value in counts.items():
        if value is not None and value < 1:
            raise ConfigError(f"dataset.{key}: {value} is below 1")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if isinstance(kinds, str) or unknown or not kinds:
        raise ConfigError(f"dataset.kinds: {kinds} is not a list of {', '.join(KINDS)}")
    if template not in TEMPLATES:
        raise ConfigError(f"dataset.template: '{template}' is not one of {', '.join(TEMPLATES)}")


def _incomplete(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Return the ids of questions without words, without an answer, or, of choices, without the option that is the answer."""
    ids = []
    for row in rows:
        options, answer = row["options"] or (), row["answer"]
        has_option = row["kind"] != "choice" or (answer is not None and 0 <= answer < len(options))
        if not (row["question"] or "").strip() or not (row["answer_text"] or "").strip() or not has_option:
            ids.append(f"'{row['id']}'")
    return ids


def _refuse(where: str, ids: Sequence[str], what: str) -> None:
    if ids:
        shown = ", ".join(ids[:_SHOWN]) + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")
        raise DataError(f"{where}: {len(ids)} {what}: {shown}; prepare the folder again")


def _shared_passes(questions: dict[int, dict[str, Any]], most: int) -> Iterator[list[int]]:
    """Yield the places of up to `most` questions about one image at a time, images in the order of their first question."""
    places_of: dict[str, list[int]] = defaultdict(list)
    for place, row in questions.items():
        places_of[row["image_id"]].append(place)
    for places in places_of.values():
        for start in range(0, len(places), most):
            yield places[start : start + most]
