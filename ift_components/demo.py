"""Runs the four stages on the miniature: `python -m ift_components.demo FOLDER [WBCATT]`.

Draws a dataset of shapes into FOLDER, or takes the WBCAtt folder that is given, prepares it, evaluates the model as it is,
warms up the proxy instruction, fine-tunes under it and evaluates again. Every command is printed as one would type it.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from ift_components.errors import UserError
from ift_components.example import write_example
from ift_components.files import require_new_folder

_TRAINING_IMAGES = 1500
_QUESTIONS = 300


def _tune(*arguments: str) -> None:
    command = ["tune", "run", *arguments]
    print(f"\n$ {shlex.join(command)}", flush=True)
    tune = Path(sys.executable).with_name("tune")  # the one of this environment, also when it is not activated
    subprocess.run([str(tune), *command[1:]], check=True)  # noqa: S603 (our own commands)


def run_demo(folder: Path, wbcatt: Path | None) -> dict[str, dict[str, float]]:
    """Run the four stages.

    Args:
        folder: everything goes here; it must be new.
        wbcatt: the WBCAtt dataset's folder; None draws shapes.

    Returns:
        The results of the evaluation `before` and `after` fine-tuning.
    """
    require_new_folder(folder, "FOLDER")
    prepared, warm, tuned = folder / "prepared", folder / "warm-up", folder / "fine-tuning"
    if wbcatt is None:
        print(f"drawing {_TRAINING_IMAGES + 250} shapes into {folder / 'shapes'}")
        write_example(folder / "shapes", _TRAINING_IMAGES + 250)
        builder = ["data_image_table.yaml", f"builder.root={folder / 'shapes'}", "builder.table=shapes.csv"]
    else:
        builder = ["data_wbcatt.yaml", f"builder.root={wbcatt}"]
    _tune("ift_data_recipe", "--config", *builder, f"output_dir={prepared}")

    def evaluate(name: str, *more: str) -> dict[str, float]:
        out = folder / f"evaluation-{name}"
        given = [f"data={prepared}", f"limit={_QUESTIONS}", f"output_dir={out}", *more]
        _tune("ift_eval_recipe", "--config", "tiny_eval.yaml", *given)
        return json.loads((out / "results.json").read_text(encoding="utf-8"))

    before = evaluate("before")
    common = [f"data={prepared}", f"dataset.limit={_TRAINING_IMAGES}"]
    _tune("ift_warmup_recipe", "--config", "tiny_warmup.yaml", *common, f"output_dir={warm}")
    path = f"proxy.path={warm / 'proxy_instruction.safetensors'}"
    _tune("ift_recipe", "--config", "tiny_ift.yaml", *common, path, f"output_dir={tuned}")
    after = evaluate("after", f"checkpoint_dir={tuned / 'checkpoint'}")
    return {"before": before, "after": after}


def main() -> None:
    """Run the demonstration and print what changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("wbcatt", type=Path, nargs="?")
    args = parser.parse_args()
    begin = time.perf_counter()
    try:
        results = run_demo(args.folder, args.wbcatt)
    except UserError as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # the stage has said what is wrong
    seconds, after = time.perf_counter() - begin, results["after"]
    print(f"\nfour stages in {seconds:.0f} s; {after['questions']} questions, chance {after['chance']:.3f}")
    print(f"{'':18}{'before':>8}{'after':>8}")
    for name in ("accuracy", "well_formed", "forced_accuracy"):
        print(f"{name:18}{results['before'][name]:8.3f}{results['after'][name]:8.3f}")
    print(
        "The miniature starts from random weights and has never seen an instruction: it cannot answer in the asked form, and "
        "no fine-tuning on reports can teach it to. The numbers show that every stage runs, not that the method works."
    )
    for stage in ("warm-up", "fine-tuning"):
        print(f"loss curve: {args.folder / stage / 'loss_curve.png'}")


if __name__ == "__main__":
    main()
