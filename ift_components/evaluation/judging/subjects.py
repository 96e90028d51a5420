"""What is judged: answers out of finished evaluations, and planted ones of which the right order is known."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ift_components.data.prepared import read_manifest
from ift_components.data.wording import letters
from ift_components.errors import DataError, UserError
from ift_components.evaluation.predictions import PREDICTIONS, RUN_FILE, read_lines
from ift_components.evaluation.records import Item, Prediction
from ift_components.evaluation.text_metrics import normalise

PLANTED = ("reference", "other", "empty", "padded")
# True of every image and about none: it makes an answer longer, and nothing else.
PADDING = (
    "The image was reviewed carefully and systematically, and its quality is adequate for interpretation. All regions were "
    "examined in turn, and the findings were weighed against each other. In summary, the appearances should be interpreted in "
    "the light of the clinical context, and correlation with further examinations can be considered where appropriate."
)


@dataclass(frozen=True)
class Subject:
    """One text that is to be graded.

    Attributes:
        evaluation: whose answer it is; empty for planted ones.
        item: what was asked.
        run: which of the item's repeated runs.
        answer: the text; empty where a server refused the question.
        planted: one of `PLANTED`; None for an answer of a model.
    """

    evaluation: str
    item: Item
    run: int
    answer: str
    planted: str | None = None

    @property
    def reference(self) -> str:
        """The right answer, of multiple-choice questions with its letter."""
        item = self.item
        return f"{letters(len(item.options))[item.answer]}. {item.answer_text}" if item.options else item.reference

    @property
    def code(self) -> str:
        """A short name of question and answer that does not tell whose answer it is."""
        name = json.dumps([*self.item.key, self.answer])
        return hashlib.sha256(name.encode()).hexdigest()[:12]

    @property
    def group(self) -> str:
        """What figures are given apart for: the task, and the kind of question where there is one."""
        item = self.item
        return item.task if item.task == "report" or item.kind in (None, item.task) else f"{item.task}, {item.kind}"


def _answer(prediction: Prediction) -> str:
    """Return what a prediction says: its text, or the option whose letter was chosen; nothing if it was not answered."""
    item, forced = prediction.item, prediction.forced
    if prediction.generated is None and forced is not None:
        return f"{letters(len(item.options))[forced]}. {item.options[forced]}"
    return prediction.generated or ""


@dataclass(frozen=True)
class JudgedEvaluation:
    """A finished evaluation as far as judges need it.

    Attributes:
        label: what pages call it.
        predictions: its answers to the judged tasks.
        private: why its texts may not leave this machine; None if they may.
    """

    label: str
    predictions: tuple[Prediction, ...]
    private: str | None

    def subjects(self) -> list[Subject]:
        """Return its answers as subjects."""
        return [Subject(self.label, p.item, p.run, _answer(p)) for p in self.predictions]


def _private(config: dict[str, Any]) -> str | None:
    """Return why an evaluation's texts are private: a folder that says so, or one that cannot be asked."""
    for folder in (config.get("data"), *(config.get("unrelated") or {}).values()):
        try:
            if not folder or read_manifest(folder).get("private", True):
                return f"the prepared folder {folder or '(not named)'} is private"
        except UserError:
            return f"the prepared folder {folder} is not there to say that it is not private"
    return None


def read_evaluation(folder: Path, tasks: Iterable[str], label: str | None = None) -> JudgedEvaluation:
    """Return an evaluation's answers to some tasks; nothing in its folder is touched.

    Args:
        folder: what `ift_eval_recipe` wrote; `run.json` and `predictions.jsonl` are read.
        tasks: names of the tasks.
        label: what to call it; None takes the folder's own label, or else its name.

    Raises:
        DataError: if there are no answers, none to these tasks, or the evaluation has not come to its end.
    """
    path, run_file = folder / PREDICTIONS, folder / RUN_FILE
    if not path.is_file():
        raise DataError(f"evaluations: {folder} holds no {PREDICTIONS}; give folders that ift_eval_recipe wrote")
    rows = read_lines(path, mend=False)
    run: dict[str, Any] = {}
    if run_file.is_file():
        try:
            run = dict(json.loads(run_file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise DataError(f"evaluations: {run_file} is damaged ({error})") from error
    # Scores come last: answers without them are those of an evaluation that is still under way.
    if run and any("correct" not in row and "rouge1" not in row for row in rows):
        raise DataError(f"evaluations: {folder} has not been finished; run its evaluation again first")
    wanted = set(tasks)
    predictions = tuple(p for p in map(Prediction.from_line, rows) if p.item.task in wanted)
    if not predictions:
        present = ", ".join(sorted({row["task"] for row in rows})) or "none at all"
        raise DataError(
            f"evaluations: {folder} has no answer to {', '.join(sorted(wanted))} (it has {present}); choose others by "
            "judge.templates, or evaluate with free.path or report.instruction"
        )
    config = run.get("config") or {}
    # The fingerprint's path is absolute; the config's is relative to wherever the evaluation was started.
    config = config | {"data": (run.get("fingerprint") or {}).get("data") or config.get("data")}
    return JudgedEvaluation(label or config.get("label") or folder.resolve().name, predictions, _private(config))


def planted_subjects(predictions: Sequence[Prediction], count: int, seed: int) -> list[Subject]:
    """Return sets of planted answers: the reference, another image's reference, an empty one, and the other padded.

    The padded one is another image's reference with `PADDING` behind it: longer, and as wrong.

    Args:
        predictions: answers whose questions are used; each question once.
        count: sets at most; fewer where references are alike.
        seed: seed of the draw.
    """
    items = list({p.item.key: p.item for p in predictions}.values())

    def order(item: Item, salt: str) -> bytes:
        return hashlib.sha256(f"{seed}/{salt}/{item.key}".encode("utf-8", "backslashreplace")).digest()

    subjects: list[Subject] = []
    for item in sorted(items, key=lambda item: order(item, "planted")):
        if len(subjects) >= count * len(PLANTED):
            break
        own = normalise(item.answer_text)
        others = [o for o in items if o.image_id != item.image_id and normalise(o.answer_text) not in ("", own)]
        # Of the same question, if there is one: an answer to another question is too easily told.
        same = [o for o in others if o.prompt == item.prompt and o.kind == item.kind] or others
        if not own or not same:
            continue
        other = min(same, key=lambda o: order(o, str(item.key))).answer_text
        texts = {"reference": item.answer_text, "other": other, "empty": "", "padded": f"{other}. {PADDING}"}
        subjects += [Subject("", item, 0, text, name) for name, text in texts.items()]
    return subjects
