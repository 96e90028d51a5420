"""Scaling laws: known exponents come back, intervals cover, too little data gets no promise, and runs' records are read."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ift_components.errors import DataError, UserError
from ift_components.evaluation.scaling import held_out, main, scaling_law, words
from ift_components.evaluation.scaling_fits import LAWS, POWER, fit_law
from ift_components.evaluation.scaling_points import Points, images_seen, read_points

MEDM = Path(__file__).resolve().parents[3] / "shared" / "data" / "medm"
SIZES = np.array([250, 500, 1000, 2000, 4000, 6000], dtype=float)


def points(sizes, losses, *, is_curve=False):
    return Points.of(list(zip(sizes, losses, strict=True)), size_name="images", loss_name="loss", is_curve=is_curve)


def noisy(law, sizes, sd, seed):
    return law(sizes) * np.exp(np.random.default_rng(seed).normal(0, sd, len(sizes)))


def power(a=20.0, b=0.4, e=0.5):
    return lambda d: a * d**-b + e


@pytest.mark.parametrize(("a", "b", "e"), [(20, 0.4, 0.5), (3, 0.1, 0.2), (5000, 1.2, 2), (10, 0.5, 0.01)])
def test_known_exponents_come_back_without_noise(a, b, e):
    fit = fit_law(POWER, SIZES, power(a, b, e)(SIZES))
    assert POWER.natural(fit.parameters) == pytest.approx([a, b, e], rel=1e-3)


def test_the_fit_is_robust():
    """One run in twelve that failed does not move the exponent, which least squares would follow."""
    sizes = np.repeat(SIZES, 2)
    losses = noisy(power(), sizes, 0.003, 1)
    losses[7] *= 3
    fit = fit_law(POWER, sizes, losses)
    assert fit.parameters[1] == pytest.approx(0.4, abs=0.05)


def test_the_exponents_interval_covers():
    """Six sizes and two seeds: 95 % intervals hold the true exponent about so often, and promised forecasts the true loss."""
    sizes, held, promised, kept = np.repeat(SIZES, 2), 0, 0, 0
    for seed in range(6):
        result = scaling_law(points(sizes, noisy(power(), sizes, 0.01, seed)), draws=40, seed=seed)
        low, high = result["exponent"]["interval"]
        held += low <= 0.4 <= high
        if result["forecast"] is not None:
            low, high = result["forecast"]["interval"]
            promised += 1
            kept += low <= power()(12_000.0) <= high
    assert held >= 5
    assert kept >= 0.85 * promised


def test_good_data_get_a_forecast_that_holds():
    result = scaling_law(points(np.repeat(SIZES, 3), noisy(power(), np.repeat(SIZES, 3), 0.002, 0)), draws=100)
    assert result["doubts"] == []
    assert result["forecast"]["size"] == 12_000
    assert result["forecast"]["loss"] == pytest.approx(power()(12_000.0), rel=0.01)
    assert result["held_out"]["sizes"] == [4, 2]
    assert result["held_out"]["error"] < 0.01 < result["held_out"]["error_of_last"]
    far = scaling_law(points(np.repeat(SIZES, 3), noisy(power(), np.repeat(SIZES, 3), 0.002, 0)), to=60_000, draws=100)
    assert far["forecast"] is None
    assert "10.0 times beyond the largest size" in far["doubts"][0]


@pytest.mark.parametrize(
    ("sizes", "law", "sd", "doubt"),
    [
        (SIZES[:4], power(), 0.001, "4 different sizes; at least 6 are needed"),
        (np.linspace(1000, 2000, 8), power(), 0.001, "span a factor of 2; at least 8"),
        (SIZES, lambda d: 0 * d + 1.0, 0.05, "exponent is only known"),
        (SIZES, power(), 0.2, "exponent is only known"),
        (np.repeat(SIZES, 3), lambda d: 2 * np.exp(-d / 1500) + 1, 0.003, "'exponential with offset' is nearer"),
    ],
)  # fmt: skip
def test_too_little_gets_no_promise(sizes, law, sd, doubt):
    result = scaling_law(points(sizes, noisy(law, sizes, sd, 3)), draws=20)
    assert result["forecast"] is None
    assert any(doubt in text for text in result["doubts"]), result["doubts"]
    assert "no promise is made" in words(result)


def test_noise_alone_is_never_promised_anything():
    for seed in range(3):
        result = scaling_law(points(SIZES, noisy(lambda d: 0 * d + 1.0, SIZES, 0.02, seed)), draws=40, seed=seed)
        assert result["forecast"] is None


def test_correlated_noise_of_a_curve_widens_the_interval():
    """An autoregression's points are fewer than they look: the intervals of a curve cover nevertheless."""
    steps, held = np.arange(10.0, 3000, 10), 0
    for seed in range(5):
        generator = np.random.default_rng(seed)
        noise = np.zeros(len(steps))
        for place in range(1, len(steps)):
            noise[place] = 0.8 * noise[place - 1] + generator.normal(0, 0.02)
        curve = points(steps, power(30, 0.5, 2)(steps) * np.exp(noise), is_curve=True)
        result = scaling_law(curve, draws=40, seed=seed)
        assert 0.5 < result["correlation"] < 0.95
        low, high = result["exponent"]["interval"]
        held += low <= 0.5 <= high
    assert held >= 4


def test_the_held_out_error_is_that_of_the_largest_sizes():
    """A law that breaks at the largest sizes is caught there, however well it fits before."""
    losses = power()(SIZES)
    losses[-2:] = losses[-3] * 1.2
    test = held_out(points(SIZES, losses))
    assert test["error"] > 0.2
    assert test["bias"] < -0.2
    result = scaling_law(points(SIZES, losses), draws=100)
    assert result["forecast"] is None


@pytest.mark.skipif(not MEDM.is_dir(), reason=f"the published loss curve is not at {MEDM}")
def test_the_published_loss_curve():
    """1,000 points of one run: the power law with offset is the best of four, and of the wrong shape at the start."""
    curve = read_points([MEDM / "finetuning_loss.csv"])
    assert (len(curve.sizes), curve.size_name, curve.loss_name, curve.is_curve) == (1000, "Step", "Value", True)
    result = scaling_law(curve, draws=100)
    assert result["exponent"]["value"] == pytest.approx(0.59, abs=0.01)
    assert result["irreducible"]["value"] == pytest.approx(5.92, abs=0.01)
    assert min(LAWS, key=lambda name: result["laws"][name]["criterion"]) == "power law with offset"
    assert result["worst_stretch"]["from"] == 4
    assert result["forecast"] is None


def write_run(folder, images, loss, *, epochs=2, batch=32, limit=True):
    """Write the records that a training run of several epochs leaves, the last images of an epoch dropped."""
    folder.mkdir(parents=True)
    steps = images // batch
    rows = [
        {"epoch": epoch, "step": epoch * steps + step + 1, "loss": 9.0, "samples": batch}
        for epoch in range(epochs)
        for step in range(steps)
    ]
    if loss is not None:
        rows[-1]["val_loss"] = loss
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.json").write_text(json.dumps({"steps": len(rows)}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": None, "dataset": {"limit": images if limit else None}}))


def test_training_runs_and_evaluations_are_points(tmp_path):
    """What number of images a run saw is in its records, also where batches do not divide it; evaluations find their run."""
    folders = []
    for size in SIZES:
        folders.append(tmp_path / f"run-{size:g}")
        write_run(folders[-1], int(size), power()(size))
        evaluation = folders[-1] / "evaluation"
        evaluation.mkdir()
        config = {"checkpoint_dir": str(folders[-1] / "checkpoint"), "adapter_dir": None}
        results = {"accuracy": 1 - power(4, 0.4, 0.1)(size), "balanced_accuracy": 0.5, "config": config}
        (evaluation / "results.json").write_text(json.dumps(results))
    trained = read_points(folders[::-1])
    assert trained.sizes.tolist() == SIZES.tolist()
    assert trained.losses == pytest.approx(power()(SIZES))
    evaluated = read_points([folder / "evaluation" for folder in folders])
    assert (evaluated.sizes.tolist(), evaluated.loss_name) == (SIZES.tolist(), "1 - accuracy")
    assert evaluated.losses == pytest.approx(power(4, 0.4, 0.1)(SIZES))
    write_run(tmp_path / "once", 250, 1.0, epochs=1)
    assert images_seen(tmp_path / "once") == 224  # one epoch: what the loader dropped was never seen


def test_mistakes_are_one_line(tmp_path):
    write_run(tmp_path / "run", 320, None)
    (tmp_path / "a.csv").write_text("x,y\n1,2\n2,1\n")
    (tmp_path / "b.csv").write_text("images,loss\n1,2\n2,much\n")
    (tmp_path / "c.csv").write_text("images,loss\n1,2\n2,-1\n")
    for paths, message in (
        (["absent"], "absent does not exist"),
        (["a.csv"], r"no column images or .* \(it has x, y\); name one by --size"),
        (["b.csv"], "line 3: no two numbers"),
        (["c.csv"], "point 2: loss is -1.0; expected a number above 0"),
        (["run", "run"], "has no validation loss"),
        (["a.csv", "run"], "one CSV alone"),
    ):
        with pytest.raises(UserError, match=message):
            read_points([tmp_path / name for name in paths])
    with pytest.raises(DataError, match="3 points cannot determine the 3 parameters"):
        scaling_law(points([1, 2, 4], [3, 2, 1]))
    assert read_points([tmp_path / "run"]).loss_name == "training loss"


def test_the_command_writes_a_picture_and_figures(tmp_path, monkeypatch, capsys):
    losses = noisy(power(), np.repeat(SIZES, 3), 0.002, 0)
    rows = "".join(f"{size:g};{loss:.6f}\n" for size, loss in zip(np.repeat(SIZES, 3), losses, strict=True))
    (tmp_path / "points.csv").write_text("\ufeffimages;val_loss\n" + rows)
    run_command(monkeypatch, tmp_path / "points.csv", "--draws", "100", "--out", tmp_path / "out")
    assert "exponent b 0." in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert result["forecast"]["loss"] == pytest.approx(power()(12_000.0), rel=0.01)
    with Image.open(tmp_path / "out" / "scaling.png") as picture:
        assert picture.size == (975, 598)
    with pytest.raises(SystemExit) as stop:
        run_command(monkeypatch, tmp_path / "points.csv", "--to", "0", "--out", tmp_path / "other")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: --to: 0; expected a size above 0\n"
    assert not (tmp_path / "other").exists()


def run_command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["scaling", *map(str, arguments)])
    main()
