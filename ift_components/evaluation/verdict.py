"""What a result says, in words: better than training frequencies or not, what is constant, what the image gives."""

from collections.abc import Mapping, Sequence
from typing import Any

from ift_components.evaluation.metrics import headline
from ift_components.evaluation.pairs import parts
from ift_components.pages import percent

FEW_STEPS = 500  # below this a tuning is likely to have been too short


SIGNIFICANT = 0.05  # p-value, corrected by Holm, up to which a difference is called a gain or a loss
_NAMED = 6  # differences named in a sentence
_OF_KIND = "of its attribute and kind"


def _prior(results: Mapping[str, Any]) -> tuple[float, str]:
    """Return the accuracy of the best way to answer without looking, and what it is."""
    if "chance" not in results:
        known = results["prior"] is not None
        kind = (
            f"always giving the most frequent {'training answer' if known else 'answer of these questions'} {_OF_KIND}"
        )
        return results["prior" if known else "majority"], kind
    if results["prior_shown"] is not None:
        return results["prior_shown"], "always choosing the option that is most frequent in training"
    return results["majority"], "always giving the most frequent answer of these questions"


def _against_prior(results: Mapping[str, Any]) -> str:
    low, high = results["interval"]
    subject = "Accuracy" if "chance" in results else "Accuracy of free questions"
    accuracy = f"{subject} is {percent(results['accuracy'])} % ({percent(low)} to {percent(high)})"
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


def _calibrated(results: Mapping[str, Any]) -> list[str]:
    found = results.get("calibrated")
    if found is None:
        return []
    low, high = found["interval"]
    balanced = found["balanced_interval"]
    alike = f"{len(found['constant'])} of {len(found['attributes'])} attributes answered alike"
    sentence = (
        f"Answers without {percent(found['share'], 0)} % of what the model says on average: {percent(found['accuracy'])} % "
        f"({percent(low)} to {percent(high)}), balanced {percent(found['balanced_accuracy'])} % ({percent(balanced[0])} to "
        f"{percent(balanced[1])}), {alike}; the share was chosen by validation answers."
    )
    return [sentence]


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


def _by_kind(free: Mapping[str, Any]) -> list[str]:
    """Return sentences on open and closed questions, and on whether yes or no is always said."""
    sentences = []
    for kind in ("closed", "open"):
        if f"{kind}_accuracy" not in free:
            continue
        low, high = free[f"{kind}_interval"]
        sentence = (
            f"{kind.capitalize()} questions: {percent(free[f'{kind}_accuracy'])} % ({percent(low)} to {percent(high)})"
        )
        prior = free[f"{kind}_prior"]
        source = "training answers" if prior is not None else "answers of these questions"
        prior = free[f"{kind}_majority"] if prior is None else prior
        sentences.append(f"{sentence}; the most frequent {source} reach {percent(prior)} %.")
    yes_no = free.get("yes_no")
    if yes_no is not None:
        low, high = yes_no["balanced_interval"]
        answer = yes_no["most_frequent_answer"]
        constant = "is said nearly always" if answer["constant"] else f"is said in {percent(answer['share'], 0)} %"
        sentences.append(
            f"Balanced accuracy of yes-or-no questions, to which a constant answer adds nothing, is "
            f"{percent(yes_no['balanced_accuracy'])} % ({percent(low)} to {percent(high)}); '{answer['text']}' {constant}."
        )
    return sentences


def verdict(results: Mapping[str, Any]) -> list[str]:
    """Return sentences about the main dataset's questions, and about what tuning changed where that is known.

    Args:
        results: the content of results.json.
    """
    sentences = []
    if "accuracy" in results:
        sentences += [_against_prior(results), _constancy(results), *_calibrated(results)]
    if "free" in results:
        sentences += [_against_prior(results["free"]), *_by_kind(results["free"])]
    for place in (results, results.get("free", {})):
        control = _control(place)
        sentences += [control] if control else []
    lost = [name for name in ("unparsed", "unanswered") if results.get(name)]
    if lost:
        counts = " and ".join(f"{results[name]} {name}" for name in lost)
        sentences.append(f"{counts} answers count as wrong.")
    if "change" in results:
        sentences += changes(results["change"])
    return sentences


def _points(part: Mapping[str, Any]) -> str:
    return f"{100 * part['difference']:+.1f} points ({100 * part['low']:+.1f} to {100 * part['high']:+.1f})"


def _named(found: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    named = ", ".join(f"{name} {_points(part)}" for name, part in found[:_NAMED])
    return named + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "")


def changes(pair: dict[str, Any]) -> list[str]:
    """Return sentences on what the second method of a comparison gains and loses against the first.

    Args:
        pair: what `pairs.compare_labels` gives, corrected by `pairs.correct_for_number`.
    """
    named = [*parts(pair), *pair["attributes"].items()]
    clear = [(name, part) for name, part in named if part["p_holm"] <= SIGNIFICANT]
    gained = sorted((x for x in clear if x[1]["difference"] > 0), key=lambda x: -x[1]["difference"])
    lost = sorted((x for x in clear if x[1]["difference"] < 0), key=lambda x: x[1]["difference"])
    title, main = named[0]
    direction = "better" if main["difference"] > 0 else "worse"
    whole = direction if main["p_holm"] <= SIGNIFICANT else None
    judged = f"{whole} beyond chance" if whole else "not distinguishable from no change"
    sentences = [f"{pair['second']} against {pair['first']}: {title} {_points(main)}, {judged}."]
    sentences.append(f"Gained: {_named(gained)}." if gained else "No gain can be shown.")
    sentences.append(f"Lost: {_named(lost)}." if lost else "No loss can be shown.")
    if "unrelated" not in pair and "sets" not in pair.get("free", {}):
        sentences.append("What it cost elsewhere is unknown: no unrelated task was asked.")
    if min(pair["seeds"]) == 1:
        sentences.append("With one seed this is about two checkpoints, not about two methods.")
    return sentences


def standing(results: Mapping[str, Any], steps: int | None = None) -> str:
    """Return a sentence on where a model stands, and what to try where it is not better than not looking.

    Args:
        results: the content of results.json.
        steps: optimizer steps of the tuning, if known.
    """
    main = headline(results)
    sentence = _against_prior(main)
    if steps is not None:
        sentence += f" The model was tuned for {steps} steps."
    if main["interval"][0] > _prior(main)[0]:
        return sentence
    if steps is not None and steps < FEW_STEPS:
        return f"{sentence} Train longer (epochs, dataset.repeat), then look at shuffling."
    return (
        f"{sentence} Look at preview.html whether the answers can be seen in the images, balance rare values, or try another "
        "learning rate."
    )
