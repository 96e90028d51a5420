"""Maps of some wrong and right answers for the page of an evaluation (`saliency: METHOD`), tested on those answers."""

import random
from collections.abc import Sequence
from typing import Any

from ift_components.data.wording import choice_answer
from ift_components.evaluation.records import Prediction
from ift_components.pages import data_url
from ift_components.saliency.checks import Question, measure, summary
from ift_components.saliency.mapper import CAUTION, Mapper
from ift_components.saliency.methods import method_of
from ift_components.saliency.overlay import overlay
from ift_components.saliency.pages import mark

_COUNT = 8  # wrong answers, and as many right ones
_SIDE = 280  # pixels


def _answer(prediction: Prediction) -> str:
    """Return an answer's text; where the letter was chosen, the sentence that names it."""
    if prediction.generated is None and prediction.forced is not None:
        return choice_answer(prediction.forced)
    return (prediction.generated or "").strip()


def _option(prediction: Prediction) -> str | None:
    """Return the text of the option that was read out of an answer."""
    options = prediction.item.options
    return options[prediction.predicted] if options and prediction.predicted is not None else None


def _drawn(predictions: Sequence[Prediction], *, right: bool) -> list[Prediction]:
    candidates = [p for p in predictions if p.correct == right and _answer(p)]
    return random.Random(0).sample(candidates, min(_COUNT, len(candidates)))


def answer_maps(mapper: Mapper, predictions: Sequence[Prediction], method: str) -> dict[str, Any] | None:
    """Return what the page shows of the maps of wrong and right answers; None where there is no answer.

    Args:
        mapper: of the model that answered.
        predictions: scored answers to questions with their pictures; some are drawn with a fixed seed.
        method: a name in `saliency.METHODS`.
    """
    chosen = [*_drawn(predictions, right=False), *_drawn(predictions, right=True)]
    if not chosen:
        return None
    questions, answers = [], []
    for prediction in chosen:
        item = prediction.item
        picture = item.picture()
        pixels, asked = mapper.pixels(picture), mapper.walk.ask(item.prompt, _answer(prediction))
        questions.append(Question(item.image_id, pixels, asked, item.attribute))
        grid = mapper.explain_pixels(pixels, asked, method).grid
        answers.append(
            {
                "id": item.id,
                "image": data_url(overlay(mapper.canvas(picture), grid, side=_SIDE)),
                "question": item.prompt.splitlines()[0],
                "answer": _answer(prediction),
                "option": _option(prediction),
                "right": prediction.correct,
                "right_answer": item.answer_text,
            }
        )
    passed, sentence = mark(method, summary(measure(mapper, questions, [method])))
    known = method_of(method)
    return {
        "title": known.title,
        "meaning": known.meaning,
        "passed": passed,
        "verdict": sentence,
        "caution": CAUTION,
        "answers": answers,
    }
