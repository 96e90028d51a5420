"""What a run leaves behind: config.yaml, metrics.jsonl, run.json, a loss curve, and a progress bar while it goes."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import matplotlib as mpl
from omegaconf import OmegaConf
from torchtune.training.metric_logging import MetricLoggerInterface
from tqdm import tqdm

import ift_components
from ift_components.config import instantiate
from ift_components.distributed import World
from ift_components.errors import ConfigError
from ift_components.files import atomic_path, write_json, write_text
from ift_components.training.settings import TrainSettings

mpl.use("Agg")
from matplotlib import pyplot as plt


def read_row(line: str) -> dict[str, Any] | None:
    """Return a line of metrics.jsonl as a row; None for one that was being written when the run was killed."""
    try:
        return json.loads(line)
    except ValueError:
        return None


class Recorder:
    """Records a run on the main process; a context manager that draws the loss curve also when the run fails.

    Args:
        cfg: the run's config.
        world: the processes.
        stage: `warm-up` or `fine-tuning`.
    """

    def __init__(self, cfg: TrainSettings, world: World, stage: str) -> None:
        self.folder = Path(cfg.output_dir)
        self._cfg = cfg
        self._world = world
        self._stage = stage
        self._rows: list[dict[str, Any]] = []
        self._samples = 0
        self._logger: MetricLoggerInterface | None = None

    def open_logger(self) -> None:
        """Build the metric logger on the main process, after everything else has been checked.

        Raises:
            ConfigError: if it cannot be built.
        """
        if self._cfg.metric_logger is None:
            return
        try:
            self._logger = instantiate(self._cfg.metric_logger, "metric_logger")
        except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"metric_logger: {self._cfg.metric_logger['_component_']}: {error}") from error

    def last_step(self) -> int:
        """Return the step that the records of an interrupted run reach, 0 without any."""
        metrics = self.folder / "metrics.jsonl"
        rows = map(read_row, metrics.read_text(encoding="utf-8").splitlines()) if metrics.exists() else []
        return max((row["step"] for row in rows if row is not None), default=0)

    def start(self, steps: int, done: int = 0) -> None:
        """Write the config and show the progress bar; called when everything that can be checked has been.

        Args:
            steps: optimizer steps of the whole run.
            done: those taken before the run was interrupted; what was recorded after them is dropped.
        """
        self._start = self._last = time.perf_counter()
        self._bar = tqdm(total=steps, initial=done, desc=self._stage, unit="step", disable=not self._world.is_main)
        if not self._world.is_main:
            return
        write_text(self.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(self._cfg)))
        metrics = self.folder / "metrics.jsonl"
        if metrics.exists():
            lines = metrics.read_text(encoding="utf-8").splitlines()[: done + 1]  # the last may be cut
            self._rows = [row for row in map(read_row, lines) if row is not None and row["step"] <= done]
            write_text(metrics, "".join(json.dumps(row) + "\n" for row in self._rows))
        self._file = metrics.open("a", encoding="utf-8")

    def step(self, metrics: dict[str, float | int]) -> None:
        """Record one optimizer step.

        Args:
            metrics: `step`, `epoch`, `loss`, `samples` and whatever else is worth keeping.
        """
        if not self._world.is_main:
            return
        now = time.perf_counter()
        speed = metrics["samples"] / (now - self._last)
        self._last = now
        row = {**metrics, "samples_per_second": round(speed, 3), "seconds": round(now - self._start, 3)}
        self._rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._logger is not None:
            self._logger.log_dict({k: v for k, v in row.items() if k != "step"}, step=int(metrics["step"]))
        self._samples += int(metrics["samples"])
        rate = self._samples / (now - self._start)
        self._bar.set_postfix_str(f"loss {metrics['loss']:.3f}, {rate:.1f} samples/s", refresh=False)
        self._bar.update()

    def finish(self, **facts: Any) -> None:
        """Write run.json: the stage, the version, steps, samples, the time since this start, and the given facts."""
        if self._world.is_main:
            seconds = round(time.perf_counter() - self._start, 2)
            last = self._rows[-1]["loss"] if self._rows else None
            run = {"stage": self._stage, "package_version": ift_components.__version__, "processes": self._world.size}
            write_json(
                self.folder / "run.json",
                run
                | {
                    "steps": len(self._rows),
                    "samples": sum(row["samples"] for row in self._rows),
                    "seconds": seconds,
                    "last_loss": last,
                }
                | facts,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not hasattr(self, "_bar"):
            return
        self._bar.close()
        if self._world.is_main:
            self._file.close()
            if self._logger is not None:
                self._logger.close()
            if self._rows:
                self._draw()
            if any("val_questions" in row for row in self._rows):
                self._draw_questions()

    def _draw(self) -> None:
        """Draw the loss by step, and its exponential moving average once there are enough steps."""
        steps, losses = [r["step"] for r in self._rows], [r["loss"] for r in self._rows]
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        axes.plot(steps, losses, color="tab:blue", alpha=0.35, linewidth=1, label="each step")
        smooth, average = [], losses[0]
        for loss in losses:
            average += 0.05 * (loss - average)
            smooth.append(average)
        axes.plot(steps, smooth, color="tab:blue", linewidth=2, label="moving average (0.95)")
        axes.set(xlabel="optimizer step", ylabel="loss (nats per response token)", title=self._stage)
        axes.grid(alpha=0.3)
        axes.legend()
        with atomic_path(self.folder / "loss_curve.png") as path:
            figure.savefig(path, format="png", dpi=120)
        plt.close(figure)

    def _draw_questions(self) -> None:
        """Draw what the model's reports say beside what it answers when asked: where they part, it tells less than it knows."""
        rows = [row for row in self._rows if "val_questions" in row]
        curves = {
            "val_read_out": ("its report says", "tab:green", "-"),
            "val_questions": ("asked: accuracy", "tab:blue", "-"),
            "val_balanced": ("asked: balanced accuracy", "tab:blue", "--"),
            "val_unrelated": ("unrelated tasks", "tab:gray", ":"),
        }
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        for name, (label, colour, style) in curves.items():
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, linestyle=style, marker=".", label=label)
        axes.set(xlabel="optimizer step", ylabel="validation", ylim=(0, 1), title="Knowing and telling")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
        with atomic_path(self.folder / "questions_curve.png") as path:
            figure.savefig(path, format="png", dpi=120)
        plt.close(figure)
