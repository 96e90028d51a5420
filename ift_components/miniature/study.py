"""Compares ways of tuning the miniature over several seeds: `python -m ift_components.miniature.study FOLDER [key=value ...]`.

Every run is kept in FOLDER and not repeated, so a study that was stopped goes on with the same command. Leaves FOLDER/table.md:
mean and standard deviation over the seeds.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ift_components.config import load_config
from ift_components.distributed import distributed
from ift_components.errors import UserError
from ift_components.evaluation.run import Evaluation
from ift_components.evaluation.settings import EvalSettings
from ift_components.files import write_text
from ift_components.miniature.questions import write_questions
from ift_components.miniature.scores import key_scores
from ift_components.smears.dataset import prepared_smears
from ift_components.training.checks import check_settings
from ift_components.training.run import TrainingRun
from ift_components.training.settings import TrainSettings

INSTRUCTION = "Describe this medical scan."


@dataclass(frozen=True)
class Method:
    """A way of tuning.

    Attributes:
        rule: the proxy's update rule; None is ordinary fine-tuning under `INSTRUCTION`.
        shuffled: whether responses are shuffled.
    """

    rule: str | None
    shuffled: bool

    def overrides(self, proxy: Path) -> list[str]:
        """Return what the method changes in `tiny_ift.yaml`; `proxy` is the warm-up's."""
        changes = [] if self.shuffled else ["dataset.shuffling=null"]
        if self.rule is None:
            return [*changes, f"instruction={INSTRUCTION}"]
        return [*changes, f"proxy.rule={self.rule}", f"proxy.path={proxy}"]


METHODS = {
    "FT": Method(None, shuffled=False),
    "InstFree": Method("track", shuffled=False),
    "InstFree + shuffling": Method("track", shuffled=True),
    "InstFree + shuffling, restart": Method("restart", shuffled=True),
    "Fix + shuffling": Method("fix", shuffled=True),
    "Update + shuffling": Method("update", shuffled=True),
    "FT + shuffling": Method(None, shuffled=True),
}
WITHOUT = "without fine-tuning"
_SAME_FOR_ALL = ("chance", "majority", "prior_shown")  # what is reached without looking, whatever the model


def train(config: str, overrides: Sequence[str], out: Path) -> None:
    """Run a warm-up or a fine-tuning from its config, unless it has been finished; one that was stopped goes on."""
    if (out / "run.json").is_file():
        return
    cfg = load_config(config, [*overrides, f"output_dir={out}", "resume=true"], TrainSettings)
    stage = check_settings(cfg)
    with distributed(cfg.device) as world:
        TrainingRun(cfg, world, stage).run()


def evaluate(
    data: Path, questions: Path, out: Path, overrides: Sequence[str] = (), label: str = WITHOUT
) -> dict[str, float]:
    """Return the scores of a model on the test questions of a prepared folder and on free questions; done once, then read."""
    if not (out / "results.json").is_file():
        options = [f"data={data}", f"free.path={questions}", f"free.images={questions.parent}", f"output_dir={out}"]
        options.append(f"label={label}")
        cfg = load_config("tiny_eval.yaml", [*options, *overrides], EvalSettings)
        with distributed(cfg.device) as world:
            Evaluation(cfg, world).run()
    return key_scores(json.loads((out / "results.json").read_text(encoding="utf-8")))


def run_method(
    folder: Path, name: str, seed: int, *, data: Path, questions: Path, extra: Sequence[str]
) -> dict[str, float]:
    """Tune the shipped model by one method and return its scores.

    Args:
        folder: the study's folder.
        name: one of `METHODS`.
        seed: seed of proxy, data order and shuffling.
        data: prepared folder.
        questions: what `write_questions` wrote.
        extra: overrides of the training configs.
    """
    method = METHODS[name]
    common = [f"data={data}", f"seed={seed}", *extra]
    warm = folder / f"warm-up-{'shuffled' if method.shuffled else 'fixed'}-seed{seed}"
    if method.rule is not None:
        train("tiny_warmup.yaml", [*common, *([] if method.shuffled else ["dataset.shuffling=null"])], warm)
    out = folder / f"{name.replace(' + ', '-').replace(', ', '-')}-seed{seed}"
    train("tiny_ift.yaml", [*common, *method.overrides(warm / "proxy_instruction.safetensors")], out)
    return evaluate(data, questions, out / "evaluation", [f"checkpoint_dir={out / 'checkpoint'}"], name)


def table(scores: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Return scores as a Markdown table: mean and standard deviation over the seeds, a row a method."""
    columns = [name for name in next(iter(scores.values()))[0] if name not in _SAME_FOR_ALL]
    lines = [f"| | seeds | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for method, runs in scores.items():
        cells = []
        for column in columns:
            values = [run[column] for run in runs]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        lines.append(f"| {method} | {len(runs)} | {' | '.join(cells)} |")
    same = next(iter(scores.values()))[0]
    reached = ", ".join(
        f"{name.replace('_', ' ')} {same[name]:.3f}" for name in _SAME_FOR_ALL if same.get(name) is not None
    )
    return "\n".join([*lines, "", f"Without looking at an image: {reached}."])


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--data", type=Path, help="prepared folder with WBCAtt's attributes; by default the drawn smears"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument(
        "--count", type=int, default=300, help="open questions and unrelated tasks (default 300 of each)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to both training configs, right after FOLDER"
    )
    args = parser.parse_intermixed_args()
    try:
        folder, data = args.folder.absolute(), args.data or prepared_smears("smear")
        questions = write_questions(folder / "questions", data, count=args.count)
        scores = {WITHOUT: [evaluate(data, questions, folder / "without")]}
        for name in args.methods:
            for seed in args.seeds:
                row = run_method(folder, name, seed, data=data, questions=questions, extra=args.overrides)
                scores.setdefault(name, []).append(row)
                print(f"{name}, seed {seed}: {row}", flush=True)
                write_text(folder / "table.md", table(scores) + "\n")
    except UserError as error:
        sys.exit(f"error: {error}")
    print(table(scores))


if __name__ == "__main__":
    main()
