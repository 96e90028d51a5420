"""What a result says, in words: better than training frequencies or not, what is constant, what the image gives."""

from collections.abc import Mapping
from typing import Any

from ift_components.pages import percent

FEW_STEPS = 500  # below this a tuning is likely to have been too short


def _prior(results: Mapping[str, Any]) -> tuple[float, str]:
    """Return the accuracy of the best way to answer without looking, and what it is."""
    if results["prior_shown"] is not None:
        return results["prior_shown"], "always choosing the option that is most frequent in training"
    return results["majority"], "always giving the most frequent answer of these questions"


def _against_prior(results: Mapping[str, Any]) -> str:
    low, high = results["interval"]
    accuracy = f"Accuracy is {percent(results['accuracy'])} % ({percent(low)} to {percent(high)})"
    prior, name = _prior(results)
    reached = f"{name} reaches {percent(prior)} %"
    if low > prior:
        return f"{accuracy}: better than not looking at the image, since {reached}."
    if high < prior:
        return f"{accuracy}: worse than not looking at the image, since {reached}."
    return f"{accuracy}: not distinguishable from not looking at the image, since {reached}."


def _constancy(results: Mapping[str, Any]) -> str:
    constant, number = results["constant"], len(results["attributes"])
    balanced = (
        f"Balanced accuracy, to which a constant answer adds nothing, is {percent(results['balanced_accuracy'])} %"
    )
    low, high = results["balanced_interval"]
    balanced += f" ({percent(low)} to {percent(high)})"
    if not constant:
        return f"{balanced}; no attribute is answered alike for nearly every image."
    names = ", ".join(constant)
    return f"{balanced}; {len(constant)} of {number} attributes are answered alike for nearly every image: {names}."


def _control(results: Mapping[str, Any]) -> str | None:
    control = results.get("image_control")
    if control is None:
        return None
    low, high = control["difference_interval"]
    gain = f"{percent(control['difference'])} points ({percent(low)} to {percent(high)})"
    asked = f"With another image's pixels {percent(control['accuracy'])} % are still right"
    if low > 0:
        return f"{asked}; {gain} were read from the image."
    return f"{asked}: nothing can be shown to have been read from the image ({gain})."


def verdict(results: Mapping[str, Any]) -> list[str]:
    """Return sentences about the main dataset's multiple-choice questions.

    Args:
        results: the content of results.json.
    """
    sentences = [_against_prior(results), _constancy(results)]
    control = _control(results)
    sentences += [control] if control else []
    lost = [name for name in ("unparsed", "unanswered") if results[name]]
    if lost:
        counts = " and ".join(f"{results[name]} {name}" for name in lost)
        sentences.append(f"{counts} answers count as wrong.")
    return sentences


def standing(results: Mapping[str, Any], steps: int | None = None) -> str:
    """Return a sentence on where a model stands, and what to try where it is not better than not looking.

    Args:
        results: the content of results.json.
        steps: optimizer steps of the tuning, if known.
    """
    sentence = _against_prior(results)
    if steps is not None:
        sentence += f" The model was tuned for {steps} steps."
    if results["interval"][0] > _prior(results)[0]:
        return sentence
    if steps is not None and steps < FEW_STEPS:
        return f"{sentence} Train longer (epochs, dataset.repeat), then look at shuffling."
    return (
        f"{sentence} Look at preview.html whether the answers can be seen in the images, balance rare values, or try another "
        "learning rate."
    )
