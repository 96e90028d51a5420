"""Accuracy against time for 1, 2, 4 and 8 responses an image: `python tests/benchmarks/time_to_accuracy.py PREPARED OUT`.

Fine-tunes the miniature on a prepared folder once for every number of responses and every seed and asks the validation
questions ten times on the way. `--steps` is one number for all, or one for each number of responses, e.g. such that all
take as long. Leaves `OUT/curves.png`, validation balanced accuracy against the time of training and against the encoder's
passes (images), means over seeds with every seed behind, and prints when each mean first reached some accuracies. Runs that
are there are not repeated, those that were cut short go on. Time is the median pace of the steps without a look, so that
neither looks nor what else the machine did for a while counts. Further arguments are overrides of the config, in which
`{seed}` stands for the seed.
"""

import argparse
import json
import statistics
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

MEASURE = "val_balanced"


LOOKS = 10


def train(args, responses, steps, seed):
    """Run one fine-tuning unless it is finished; returns its folder."""
    every = max(1, steps // LOOKS)
    folder = args.out / f"responses_{responses}_seed_{seed}"
    if not (folder / "run.json").is_file():
        overrides = [f"data={args.prepared}", f"output_dir={folder}", f"seed={seed}", "resume=true"]
        overrides += [f"dataset.responses_per_image={responses}", f"max_steps={steps}", f"epochs={steps}"]
        overrides += [f"val_questions_every_steps={every}", f"checkpoint_every_steps={every}", "keep_last=1"]
        overrides += ["val_questions._component_=ift_components.evaluation.watching.ValidationQuestions"]
        overrides += ["val_questions.data=${data}", f"val_questions.limit={args.limit}"]
        overrides += [text.replace("{seed}", str(seed)) for text in args.overrides]
        tune = Path(sys.executable).with_name("tune")
        subprocess.run([tune, "run", "ift_recipe", "--config", args.config, *overrides], check=True)
    return folder


def points(folder):
    """Return a run's looks: seconds of training, images through the encoder and the measure, a triple each."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    pace = statistics.median(1 / row["samples_per_second"] for row in rows if MEASURE not in row)  # seconds an image
    images = accumulate(row["samples"] for row in rows)
    return [(pace * seen, seen, row[MEASURE]) for seen, row in zip(images, rows, strict=True) if MEASURE in row]


def average(runs):
    """Return the mean of several runs' points, look by look."""
    return [tuple(statistics.fmean(values) for values in zip(*look, strict=True)) for look in zip(*runs, strict=True)]


def first_reaching(curve, target, axis):
    """Return where a curve first reaches a value, on a straight line between looks; None if it does not."""
    before = None
    for point in curve:
        if point[2] >= target - 1e-9:  # means of seeds are rounded
            if before is None:
                return point[axis]
            share = (target - before[2]) / (point[2] - before[2])
            return before[axis] + share * (point[axis] - before[axis])
        before = point
    return None


def draw(curves, path):
    """Draw the curves of every number of responses, {responses: [each seed's points]}."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
    for number, (responses, runs) in enumerate(curves.items()):
        for axis, panel in enumerate(panels):
            for run in runs:
                panel.plot([p[axis] for p in run], [p[2] for p in run], color=f"C{number}", alpha=0.25, linewidth=1)
            mean = average(runs)
            label = f"{responses} response{'s' if responses > 1 else ''} an image"
            panel.plot([p[axis] for p in mean], [p[2] for p in mean], color=f"C{number}", marker=".", label=label)
    panels[0].set(xlabel="seconds of training", ylabel="validation balanced accuracy")
    panels[1].set(xlabel="images through the encoder")
    for panel in panels:
        panel.grid(alpha=0.3)
    panels[0].legend(loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table(curves):
    """Return in Markdown where each mean curve first reaches accuracies that at least one reaches."""
    means = {responses: average(runs) for responses, runs in curves.items()}
    best = max(point[2] for mean in means.values() for point in mean)
    first = statistics.fmean(mean[0][2] for mean in means.values())
    targets = [first + share * (best - first) for share in (0.25, 0.5, 0.75, 1.0)]
    head = " | ".join(f"to {target:.3f}: s | images" for target in targets)
    lines = [f"| responses | seeds | best | {head} |", "|---:|---:|---:|" + "---:|---:|" * len(targets)]
    for responses, mean in means.items():
        cells = []
        for target in targets:
            reached = [first_reaching(mean, target, axis) for axis in (0, 1)]
            cells += ["-" if value is None else f"{value:.0f}" for value in reached]
        top = max(point[2] for point in mean)
        lines.append(f"| {responses} | {len(curves[responses])} | {top:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    """Train what is missing, draw the curves and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--config", default="tiny_ift.yaml")
    parser.add_argument("--responses", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[400])
    parser.add_argument("--limit", type=int, default=300, help="validation questions a look")
    args = parser.parse_intermixed_args()
    args.prepared, args.out = args.prepared.resolve(), args.out.resolve()
    # Seeds outside, so that what disturbs the machine for a while does not disturb one setting alone.
    settings = dict(
        zip(args.responses, args.steps * len(args.responses) if len(args.steps) == 1 else args.steps, strict=True)
    )
    folders = {(n, seed): train(args, n, steps, seed) for seed in args.seeds for n, steps in settings.items()}
    curves = {n: [points(folders[n, seed]) for seed in args.seeds] for n in args.responses}
    draw(curves, args.out / "curves.png")
    print(table(curves))


if __name__ == "__main__":
    main()
