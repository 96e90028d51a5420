"""The keys of the evaluation configs."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from ift_components.errors import ConfigError
from ift_components.evaluation.parsing import PARSERS
from ift_components.models.build import check_weights
from ift_components.models.image_layout import ImageLayout
from ift_components.saliency.methods import method_of
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
        languages: values of `q_lang` that are asked, where questions have one (SLAKE's are `en` and `zh`).
    """

    path: str | None = None
    images: str = ""
    max_new_tokens: int = 50
    languages: list[str] = field(default_factory=lambda: ["en"])


@dataclass
class EvalSettings:
    """An evaluation, or a comparison of finished ones.

    Attributes:
        output_dir: folder to create; one in which the same evaluation was stopped is continued.
        compare: folders of finished evaluations; a comparison page of them is all that is made then.
        baseline: folder of the finished evaluation of the model before tuning, on the same questions; the page then says what
            tuning changed and what was lost.
        label: name of what is evaluated, e.g. `InstFree`; runs of one label count as its seeds in a comparison.
        data: prepared folder.
        dataset: name of the dataset in results; null takes the prepared folder's.
        split: `train`, `val` or `test`.
        unrelated: name to prepared folder of tasks that the model was not tuned on, to measure retention.
        free: questions whose answer is a text.
        report: reports under the training instruction.
        predictor: component that answers instead of this package's engine; `model` to `tile_padding` are not read then,
            temperature, top_p and seed are.
        model: component that builds the model.
        checkpoint_dir: checkpoint in Hugging Face layout; null keeps the builder's random weights.
        adapter_dir: adapter that ift_recipe wrote, trained on `checkpoint_dir`; null evaluates the checkpoint alone.
        frozen_dtype: `nf4` holds the checkpoint's linear layers in 4 bits, as in training with that key.
        tokenizer: component that builds the model's transform.
        tiles: 1 (pictures squashed into one tile) or 4 (cut into up to four). Null takes what the checkpoint notes, as do the
            next two; where it notes nothing, which is Meta's own, 1, `meta` and `bilinear`.
        tile_padding: `none` (no padding, as in the authors' fine-tuning), `meta` (padded to four tiles, as in Meta's training)
            or `paper` (the authors' protocol: trained without, so evaluated with it).
        resize: how pictures are resized, `bilinear` or `bicubic`.
        other_layout: evaluate in another layout than the checkpoint was trained in, which is refused otherwise.
        image_control: ask the questions of `data` again with another image's pixels: accuracy that is left was not read
            from the image. Doubles the questions.
        scoring: `generate` (the paper's protocol), `logits` (the answer sentence is forced and the letters' logits compared)
            or `both`.
        letter_probabilities: with `logits` or `both`, note how probable every letter is too, for AUROC and calibration.
        calibration: folder of the finished evaluation of another split by the same model, with `letter_probabilities`: its
            average answers are taken off these, and figures of that stand beside (`calibration.fit`).
        parser: `authors` (their rule as it runs), `paper` (the same rule on the answer alone) or `strict`; all are reported,
            this one decides `accuracy`.
        max_new_tokens: longest generated answer in tokens.
        temperature: 0 is greedy.
        top_p: sampled tokens are drawn from the most probable ones that together reach this probability.
        saliency: method of the maps that the page shows of some wrong and right answers, such as `relevance`; null shows none.
        n_runs: answers to each multiple-choice question; more than one needs a temperature above 0.
        seed: seed of sampling and of the bootstrap.
        bootstrap: replicates behind every interval.
        batch_size: questions per forward pass.
        max_unanswered: questions that may be left without an answer, e.g. refused by a server, before the run stops.
        limit: use only the first questions (and images, for reports).
        dtype: `fp32` or `bf16`.
        device: `cpu`, `cuda` or `auto`.
    """

    output_dir: str = MISSING
    compare: list[str] | None = None
    baseline: str | None = None
    label: str | None = None
    data: str = ""
    dataset: str | None = None
    split: str = "test"
    unrelated: dict[str, str] = field(default_factory=dict)
    free: FreeSettings = field(default_factory=FreeSettings)
    report: ReportSettings = field(default_factory=ReportSettings)
    predictor: dict[str, Any] | None = None
    model: dict[str, Any] = field(default_factory=dict)
    checkpoint_dir: str | None = None
    adapter_dir: str | None = None
    frozen_dtype: str | None = None
    tokenizer: dict[str, Any] = field(default_factory=dict)
    tiles: int | None = None
    tile_padding: str | None = None
    resize: str | None = None
    other_layout: bool = False
    image_control: bool = True
    scoring: str = "generate"
    letter_probabilities: bool = False
    calibration: str | None = None
    parser: str = "authors"
    max_new_tokens: int = 50
    temperature: float = 0.0
    top_p: float = 1.0
    saliency: str | None = None
    n_runs: int = 1
    seed: int = 0
    bootstrap: int = 10_000
    batch_size: int = 16
    max_unanswered: int = 20
    limit: int | None = None
    dtype: str = "fp32"
    device: str = "auto"

    @property
    def asked_layout(self) -> dict[str, Any]:
        """The keys of the layout of pictures; None takes what the checkpoint notes."""
        return {"tiles": self.tiles, "tile_padding": self.tile_padding, "resize": self.resize}


def _require(cfg: EvalSettings, *keys: str) -> None:
    missing = [key for key in keys if not getattr(cfg, key)]
    if missing:
        raise ConfigError(f"give a value for {', '.join(missing)} (on the command line: {missing[0]}=...)")


def check_settings(cfg: EvalSettings) -> None:
    """Check the values that no type can.

    Args:
        cfg: a config of `EvalSettings`.

    Raises:
        ConfigError: naming the key, its value and what is allowed.
    """
    if cfg.compare is not None:
        return
    _require(cfg, "data", *(() if cfg.predictor is not None else ("model", "tokenizer")))
    for key, allowed in (("scoring", SCORINGS), ("parser", PARSERS)):
        if getattr(cfg, key) not in allowed:
            raise ConfigError(f"{key}: '{getattr(cfg, key)}' is not one of {', '.join(allowed)}")
    _check_probabilities(cfg)
    given = {key: value for key, value in cfg.asked_layout.items() if value is not None}
    ImageLayout(**given)  # refuses an unknown one
    for key in ("max_new_tokens", "batch_size", "limit", "n_runs", "bootstrap"):
        value = getattr(cfg, key)
        if value is not None and value < 1:
            raise ConfigError(f"{key}: {value} is below 1")
    for key, longest in (("free", cfg.free.max_new_tokens), ("report", cfg.report.max_new_tokens)):
        if longest < 1:
            raise ConfigError(f"{key}.max_new_tokens: {longest} is below 1")
    _check_sampling(cfg)
    if cfg.max_unanswered < 0:
        raise ConfigError(f"max_unanswered: {cfg.max_unanswered} is below 0")
    if cfg.free.path is not None and not cfg.free.images:
        raise ConfigError("free.images: give the folder of the images of free.path")
    if cfg.report.instruction and cfg.report.proxy:
        raise ConfigError(
            "report.instruction and report.proxy: give one of them, the one that the model was trained with"
        )
    if cfg.saliency is not None:
        method_of(cfg.saliency, "saliency").check_library("saliency")
    _check_own_keys(cfg)
    parse_dtype(cfg.dtype)


def _check_probabilities(cfg: EvalSettings) -> None:
    if cfg.letter_probabilities and cfg.scoring == "generate":
        raise ConfigError(
            "letter_probabilities: true, and scoring=generate chooses no letter; set scoring to logits or both"
        )
    if cfg.calibration is not None and not cfg.letter_probabilities:
        raise ConfigError("calibration: needs the letters' probabilities; set letter_probabilities=true")


def _check_sampling(cfg: EvalSettings) -> None:
    if cfg.temperature < 0 or not 0 < cfg.top_p <= 1:
        raise ConfigError(
            f"temperature: {cfg.temperature} and top_p: {cfg.top_p}; expected at least 0, and above 0 up to 1"
        )
    if cfg.n_runs > 1 and cfg.temperature == 0:
        raise ConfigError(f"n_runs: {cfg.n_runs} greedy runs are all the same; set a temperature above 0")


def _check_own_keys(cfg: EvalSettings) -> None:
    """Check the keys of a model of this package, or refuse those that a predictor of the user's choice would not read."""
    if cfg.predictor is None:
        check_weights(cfg.checkpoint_dir, cfg.adapter_dir, cfg.frozen_dtype)
        return
    defaults = EvalSettings()
    own = (
        "checkpoint_dir",
        "adapter_dir",
        "frozen_dtype",
        "scoring",
        "letter_probabilities",
        "tiles",
        "tile_padding",
        "resize",
        "other_layout",
        "saliency",
    )
    foreign = [key for key in own if getattr(cfg, key) != getattr(defaults, key)]
    foreign += ["report.proxy"] if cfg.report.proxy is not None else []
    for key in ("temperature", "top_p", "seed"):
        if key in (cfg.predictor or {}):
            raise ConfigError(f"predictor.{key}: how answers are drawn is set for every predictor alike by {key}=...")
    if foreign:
        raise ConfigError(f"{foreign[0]}: only this package's engine has it; remove it, or set predictor=null")
