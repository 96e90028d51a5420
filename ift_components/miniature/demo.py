"""Shows the method on the miniature: `python -m ift_components.miniature.demo FOLDER [WBCATT]`.

The shipped model was pretrained on cells in a schematic style. Here it meets stained smears, drawn or, with WBCATT's
folder, real. It is evaluated as it is, after ordinary fine-tuning on the descriptions, and after instruction-free tuning on the
same descriptions. Every command is printed as one would type it. Leaves `contact_sheet.png` and `comparison.png` in FOLDER.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ift_components.errors import UserError
from ift_components.evaluation.charts import grouped_bars
from ift_components.files import require_new_folder
from ift_components.miniature.questions import OPEN, UNRELATED, write_questions
from ift_components.miniature.scores import CONTROL, key_scores
from ift_components.miniature.study import INSTRUCTION, METHODS, WITHOUT
from ift_components.smears import contact_sheet, sample_cells

_TRAINING_IMAGES = 2000
_QUESTIONS = 300
_SHOWN = ("FT", "InstFree + shuffling")
_COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced",
    CONTROL: "other image",
    "well_formed": "well-formed",
    "forced_accuracy": "forced letter",
    OPEN: "open",
    UNRELATED: "unrelated",
}


def _tune(*arguments: str) -> None:
    command = ["tune", "run", *arguments]
    print(f"\n$ {shlex.join(command)}", flush=True)
    tune = Path(sys.executable).with_name("tune")  # the one of this environment, also when it is not activated
    subprocess.run([str(tune), *command[1:]], check=True)  # noqa: S603 (our own commands)


def run_demo(folder: Path, wbcatt: Path | None) -> dict[str, dict[str, float]]:
    """Run the demonstration.

    Args:
        folder: everything goes here; it must be new.
        wbcatt: the WBCAtt dataset's folder; None draws smears.

    Returns:
        The scores (`key_scores`) without fine-tuning and after each way of tuning.
    """
    require_new_folder(folder, "FOLDER")
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    contact_sheet(sample_cells(24, generator), generator, folder / "contact_sheet.png")
    print(f"what the model has seen and what it is tuned on: {folder / 'contact_sheet.png'}")
    data = folder / "prepared"
    # Of the real images the middle is taken, at the size the model sees: the cell then fills the picture, as in the drawn ones.
    source = (
        ["data_wbcatt.yaml", f"builder.root={wbcatt}", "center_crop=230", "max_side=84"]
        if wbcatt
        else ["data_smears.yaml"]
    )
    _tune("ift_data_recipe", "--config", *source, f"output_dir={data}")
    questions = write_questions(folder / "questions", data, count=_QUESTIONS)

    def evaluate(name: str, *more: str) -> dict[str, float]:
        out = folder / f"evaluation-{name.replace(' + ', '-').replace(' ', '-')}"
        free = [f"free.path={questions}", f"free.images={questions.parent}"]
        options = [f"data={data}", f"limit={2 * _QUESTIONS}", *free, f"label={name}", f"output_dir={out}", *more]
        _tune("ift_eval_recipe", "--config", "tiny_eval.yaml", *options)
        return key_scores(json.loads((out / "results.json").read_text(encoding="utf-8")))

    scores = {WITHOUT: evaluate(WITHOUT)}
    common = [f"data={data}", f"dataset.limit={_TRAINING_IMAGES}"]
    _tune("ift_warmup_recipe", "--config", "tiny_warmup.yaml", *common, f"output_dir={folder / 'warm-up'}")
    for name in _SHOWN:
        out = folder / name.replace(" + ", "-")
        changes = METHODS[name].overrides(folder / "warm-up" / "proxy_instruction.safetensors")
        _tune("ift_recipe", "--config", "tiny_ift.yaml", *common, *changes, f"output_dir={out}")
        scores[name] = evaluate(name, f"checkpoint_dir={out / 'checkpoint'}")
    return scores


def comparison(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Return the scores as a text table, a row a model."""
    width = max(map(len, scores))
    lines = [" " * width + "".join(title.rjust(15) for title in _COLUMNS.values())]
    lines += [name.ljust(width) + "".join(f"{row[key]:15.3f}" for key in _COLUMNS) for name, row in scores.items()]
    return "\n".join(lines)


def main() -> None:
    """Run the demonstration and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("wbcatt", type=Path, nargs="?")
    args = parser.parse_args()
    begin = time.perf_counter()
    try:
        scores = run_demo(args.folder, args.wbcatt)
    except UserError as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # the stage has said what is wrong
    before = scores[WITHOUT]
    print(
        f"\n{time.perf_counter() - begin:.0f} s in all. Scores on test images ({'real' if args.wbcatt else 'drawn'} smears):\n"
    )
    print(comparison(scores))
    print(
        "\naccuracy: multiple-choice questions answered right and in the asked form (chance "
        f"{before['chance']:.3f}, always the most frequent answer {before['majority']:.3f})\n"
        "balanced: mean over attributes and their values, to which always giving one answer adds nothing\n"
        "other image: accuracy when the same questions come with another image's pixels; it was not read from the image\n"
        "well-formed: answers in the asked form\n"
        "forced letter: accuracy when the answer sentence is given and only the letter is left to choose\n"
        "open: questions to be answered in a sentence; unrelated: tasks about shapes, which have nothing to do with cells\n"
        f'FT: ordinary fine-tuning, "{INSTRUCTION}" before every description; InstFree: a momentum proxy instruction instead'
    )
    chart = args.folder / "comparison.png"
    grouped_bars(
        {n: {t: s[k] for k, t in _COLUMNS.items()} for n, s in scores.items()}, chart, title="After tuning on smears"
    )
    print(f"\n{chart}")


if __name__ == "__main__":
    main()
