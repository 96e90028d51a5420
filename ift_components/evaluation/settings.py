"""The keys of the evaluation configs."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from ift_components.errors import ConfigError
from ift_components.evaluation.parsing import PARSERS
from ift_components.models.tile_padding import LAYOUTS
from ift_components.training.settings import parse_dtype

SCORINGS = ("generate", "logits", "both")


@dataclass
class ReportSettings:
    """Reports written under the training instruction, to compare what the model says then with what it answers when asked.

    Attributes:
        instruction: the training instruction's text; null writes no reports unless `proxy` is given.
        proxy: a `proxy_instruction.safetensors` that stands in the instruction's place.
        max_new_tokens: longest report in tokens.
    """

    instruction: str | None = None
    proxy: str | None = None
    max_new_tokens: int = 256


@dataclass
class FreeSettings:
    """Open and closed questions whose answer is a text.

    Attributes:
        path: JSON or JSON lines, e.g. VQA-RAD's `testset.json` or SLAKE's `test.json`; null asks none.
        images: folder of their images.
        max_new_tokens: longest answer in tokens.
    """

    path: str | None = None
    images: str | None = None
    max_new_tokens: int = 50


@dataclass
class EvalSettings:
    """An evaluation, or a comparison of finished ones.

    Attributes:
        output_dir: folder to create; one in which the same evaluation was stopped is continued.
        compare: folders of finished evaluations; a comparison page of them is all that is made then.
        label: name of what is evaluated, e.g. `InstFree`; runs of one label count as its seeds in a comparison.
        data: prepared folder.
        dataset: name of the dataset in results; null takes the prepared folder's.
        split: `val` or `test`.
        unrelated: name to prepared folder of tasks that the model was not tuned on, to measure retention.
        free: questions whose answer is a text.
        report: reports under the training instruction.
        predictor: component that answers instead of this package's engine; `model` to `tile_padding` are not read then.
        model: component that builds the model.
        checkpoint_dir: checkpoint in Hugging Face layout; null keeps the builder's random weights.
        tokenizer: component that builds the model's transform.
        tile_padding: `none` (one tile, as in the authors' fine-tuning) or `meta` (padded to four tiles, as in Meta's training).
        scoring: `generate` (the paper's protocol), `logits` (the answer sentence is forced and the letters' logits compared)
            or `both`.
        parser: `paper` (the authors') or `strict`; both are reported, this one decides `accuracy`.
        max_new_tokens: longest generated answer in tokens.
        temperature: 0 is greedy.
        top_p: sampled tokens are drawn from the most probable ones that together reach this probability.
        n_runs: answers to each multiple-choice question; more than one needs a temperature above 0.
        seed: seed of sampling and of the bootstrap.
        bootstrap: replicates behind every interval.
        batch_size: questions per forward pass.
        limit: use only the first questions (and images, for reports).
        dtype: `fp32` or `bf16`.
        device: `cpu`, `cuda` or `auto`.
    """

    output_dir: str | None = None
    compare: list[str] | None = None
    label: str | None = None
    data: str | None = None
    dataset: str | None = None
    split: str = "test"
    unrelated: dict[str, str] = field(default_factory=dict)
    free: FreeSettings = field(default_factory=FreeSettings)
    report: ReportSettings = field(default_factory=ReportSettings)
    predictor: dict[str, Any] | None = None
    model: dict[str, Any] | None = None
    checkpoint_dir: str | None = None
    tokenizer: dict[str, Any] | None = None
    tile_padding: str = "none"
    scoring: str = "generate"
    parser: str = "paper"
    max_new_tokens: int = 50
    temperature: float = 0.0
    top_p: float = 1.0
    n_runs: int = 1
    seed: int = 0
    bootstrap: int = 10_000
    batch_size: int = 16
    limit: int | None = None
    dtype: str = "fp32"
    device: str = "auto"


def _require(cfg: DictConfig, *keys: str) -> None:
    missing = [key for key in keys if cfg[key] is None]
    if missing:
        raise ConfigError(f"give a value for {', '.join(missing)} (on the command line: {missing[0]}=...)")


def check_settings(cfg: DictConfig) -> None:
    """Check the values that no type can.

    Args:
        cfg: a config of `EvalSettings`.

    Raises:
        ConfigError: naming the key, its value and what is allowed.
    """
    _require(cfg, "output_dir")
    if cfg.compare is not None:
        return
    _require(cfg, "data", *(() if cfg.predictor is not None else ("model", "tokenizer")))
    for key, allowed in (("scoring", SCORINGS), ("parser", PARSERS), ("tile_padding", LAYOUTS)):
        if cfg[key] not in allowed:
            raise ConfigError(f"{key}: '{cfg[key]}' is not one of {', '.join(allowed)}")
    for key in ("max_new_tokens", "batch_size", "limit", "n_runs", "bootstrap"):
        if cfg[key] is not None and cfg[key] < 1:
            raise ConfigError(f"{key}: {cfg[key]} is below 1")
    for key in ("free", "report"):
        if cfg[key].max_new_tokens < 1:
            raise ConfigError(f"{key}.max_new_tokens: {cfg[key].max_new_tokens} is below 1")
    _check_sampling(cfg)
    if cfg.free.path is not None and cfg.free.images is None:
        raise ConfigError("free.images: give the folder of the images of free.path")
    if cfg.report.instruction and cfg.report.proxy:
        raise ConfigError(
            "report.instruction and report.proxy: give one of them, the one that the model was trained with"
        )
    if cfg.predictor is not None:
        _check_own_keys(cfg)
    parse_dtype(cfg.dtype)


def _check_sampling(cfg: DictConfig) -> None:
    if cfg.temperature < 0 or not 0 < cfg.top_p <= 1:
        raise ConfigError(
            f"temperature: {cfg.temperature} and top_p: {cfg.top_p}; expected at least 0, and above 0 up to 1"
        )
    if cfg.n_runs > 1 and cfg.temperature == 0:
        raise ConfigError(f"n_runs: {cfg.n_runs} greedy runs are all the same; set a temperature above 0")


def _check_own_keys(cfg: DictConfig) -> None:
    """Refuse what a predictor of the user's choice would not read."""
    foreign = [key for key in ("checkpoint_dir", "report.proxy") if _get(cfg, key) is not None]
    foreign += [key for key, value in (("scoring", "generate"), ("tile_padding", "none")) if cfg[key] != value]
    if foreign:
        raise ConfigError(f"{foreign[0]}: only this package's engine has it; remove it, or set predictor=null")


def _get(cfg: DictConfig, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg
