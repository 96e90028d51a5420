"""What a miniature can do: `python -m ift_components.miniature.scores [CHECKPOINT]`, by default the one that the package ships.

Held-out images of both styles: multiple-choice questions, open questions, and tasks about shapes that have nothing to do with
cells. Everything is drawn from fixed seeds, so the same model always gets the same scores.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from ift_components.config import load_config
from ift_components.distributed import World, distributed
from ift_components.errors import UserError
from ift_components.evaluation.run import Evaluation
from ift_components.evaluation.settings import EvalSettings
from ift_components.miniature.questions import OPEN, UNRELATED, write_questions
from ift_components.smears.dataset import prepared_smears
from ift_components.smears.styles import STYLES

CONTROL = "another image"  # accuracy when the questions come with another image's pixels


def correct(results: dict[str, Any], name: str) -> float:
    """Return the share of right answers in one of the sets of free questions, open and yes/no together."""
    scores = results["free"]["sets"][name]
    parts = [
        (scores[f"{kind}_questions"], scores[f"{kind}_accuracy"])
        for kind in ("open", "closed")
        if f"{kind}_questions" in scores
    ]
    return sum(count * rate for count, rate in parts) / sum(count for count, _ in parts)


def key_scores(results: dict[str, Any]) -> dict[str, float]:
    """Return the numbers that matter of a results.json with the questions of `write_questions` among its free ones."""
    names = ("accuracy", "balanced_accuracy", "well_formed", "forced_accuracy", "chance", "majority")
    scores = {name: results[name] for name in names} | {CONTROL: results["image_control"]["accuracy"]}
    scores["prior_shown"] = results["prior_shown"]
    return scores | {OPEN: correct(results, OPEN), UNRELATED: correct(results, UNRELATED)}


def score(checkpoint: str | None, style: str, world: World, *, count: int, folder: Path) -> dict[str, float]:
    """Return a model's scores on held-out drawn images.

    Args:
        checkpoint: folder in Hugging Face layout; None takes the shipped one.
        style: `schematic` or `smear`.
        world: one process.
        count: questions of each of the three sets.
        folder: gets the evaluation's files.
    """
    data = prepared_smears(style)
    questions = write_questions(folder / "questions", data, count=count)
    overrides = [f"data={data}", f"limit={2 * count}", f"output_dir={folder / 'evaluation'}"]
    overrides += [f"free.path={questions}", f"free.images={questions.parent}"]
    if checkpoint is not None:
        overrides.append(f"checkpoint_dir={checkpoint}")
    cfg = load_config("tiny_eval.yaml", overrides, EvalSettings)
    results = Evaluation(cfg, world).run()
    if results is None:
        raise RuntimeError("scores are computed by one process")
    return key_scores(results)


def main() -> None:
    """Print a model's scores on both styles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", help="folder in Hugging Face layout; by default the shipped one")
    parser.add_argument(
        "--count",
        type=int,
        default=500,
        help="open questions and unrelated tasks (default 500 of each); at most twice as many multiple choice",
    )
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder, distributed("cpu") as world:
            found = {s: score(args.checkpoint, s, world, count=args.count, folder=Path(folder) / s) for s in STYLES}
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{'':18}" + "".join(style.rjust(12) for style in found))
    for name in next(iter(found.values())):
        print(f"{name:18}" + "".join(f"{scores[name]:12.3f}" for scores in found.values()))


if __name__ == "__main__":
    main()
