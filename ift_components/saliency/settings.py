"""The keys of the saliency configs."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from ift_components.errors import ConfigError
from ift_components.models.build import check_weights
from ift_components.models.image_layout import ImageLayout
from ift_components.saliency.methods import METHODS, method_of
from ift_components.training.settings import parse_dtype

ANSWERS = ("given", "right")


@dataclass
class CheckSettings:
    """How the maps are tested.

    Attributes:
        samples: questions, the first of the split, on which maps are compared with masks; 0 leaves it out, and every page says
            that the maps have not been tested.
        sanity_samples: of these, how many are mapped again under random weights; 0 leaves it out.
        bootstrap: replicates behind every interval.
    """

    samples: int = 60
    sanity_samples: int = 10
    bootstrap: int = 10_000


@dataclass
class SaliencySettings:
    """Maps of the answers to some questions of a prepared folder.

    Attributes:
        output_dir: folder to create.
        data: prepared folder.
        split: `train`, `val` or `test`.
        samples: how many questions are mapped, the first of the split, or a list of their ids.
        answer: whose answer is mapped: `given` (the model's own) or `right`.
        answer_text: this text as the answer to every sample instead.
        methods: `attention`, `rollout`, `relevance`, `integrated_gradients`.
        layer: decoder layer of the pictures of raw attention; null takes all that attend to the image, by their gates.
        head: head of the pictures of raw attention; null takes the mean.
        show_private: show images and words of a folder of private data; the pages are then its owner's alone.
        checks: how the maps are tested.
        model: component that builds the model.
        checkpoint_dir: checkpoint in Hugging Face layout; null keeps the builder's random weights.
        adapter_dir: adapter that ift_recipe wrote, trained on `checkpoint_dir`.
        frozen_dtype: `nf4` holds the checkpoint's linear layers in 4 bits, as in training with that key.
        tokenizer: component that builds the model's transform.
        tiles: most tiles of a picture, 1 or 4; null takes what the checkpoint notes, as do the next two.
        tile_padding: `none`, `meta` or `paper`, as in training.
        resize: how pictures are resized, `bilinear` or `bicubic`, as in training.
        other_layout: take another layout than the checkpoint notes, which is refused otherwise.
        max_new_tokens: longest answer in tokens.
        seed: of random masks, random weights and the order of equal patches.
        dtype: `fp32` or `bf16`.
        device: `cpu`, `cuda` or `auto`.
    """

    output_dir: str = MISSING
    data: str = MISSING
    split: str = "test"
    samples: Any = 8
    answer: str = "given"
    answer_text: str | None = None
    methods: list[str] = field(default_factory=lambda: list(METHODS))
    layer: int | None = None
    head: int | None = None
    show_private: bool = False
    checks: CheckSettings = field(default_factory=CheckSettings)
    model: dict[str, Any] = MISSING
    checkpoint_dir: str | None = None
    adapter_dir: str | None = None
    frozen_dtype: str | None = None
    tokenizer: dict[str, Any] = MISSING
    tiles: int | None = None
    tile_padding: str | None = None
    resize: str | None = None
    other_layout: bool = False
    max_new_tokens: int = 50
    seed: int = 0
    dtype: str = "fp32"
    device: str = "auto"

    @property
    def asked_layout(self) -> dict[str, Any]:
        """The keys of the layout of pictures; None takes what the checkpoint notes."""
        return {"tiles": self.tiles, "tile_padding": self.tile_padding, "resize": self.resize}


def check_settings(cfg: SaliencySettings) -> None:
    """Check the values that no type can.

    Args:
        cfg: a config of `SaliencySettings`.

    Raises:
        ConfigError: naming the key, its value and what is allowed.
    """
    ImageLayout(
        **{key: value for key, value in cfg.asked_layout.items() if value is not None}
    )  # refuses an unknown one
    allowed = {"answer": ANSWERS}
    for key, names in allowed.items():
        if getattr(cfg, key) not in names:
            raise ConfigError(f"{key}: '{getattr(cfg, key)}' is not one of {', '.join(names)}")
    if not cfg.methods or len(set(cfg.methods)) < len(cfg.methods):
        raise ConfigError(f"methods: {cfg.methods}; expected some of {', '.join(METHODS)}, each once")
    for name in cfg.methods:
        method_of(name, "methods").check_library("methods")
    if cfg.answer_text is not None and not cfg.answer_text.strip():
        raise ConfigError("answer_text: it is empty; give an answer, or null")
    _check_samples(cfg.samples)
    for key in ("samples", "sanity_samples"):
        if getattr(cfg.checks, key) < 0:
            raise ConfigError(f"checks.{key}: {getattr(cfg.checks, key)} is below 0")
    for key, value in (("max_new_tokens", cfg.max_new_tokens), ("checks.bootstrap", cfg.checks.bootstrap)):
        if value < 1:
            raise ConfigError(f"{key}: {value} is below 1")
    _check_weights(cfg)
    parse_dtype(cfg.dtype)


def _check_weights(cfg: SaliencySettings) -> None:
    check_weights(cfg.checkpoint_dir, cfg.adapter_dir, cfg.frozen_dtype)
    if cfg.frozen_dtype is not None and cfg.checks.samples and cfg.checks.sanity_samples:
        raise ConfigError("checks.sanity_samples: quantised weights cannot be made random; set it to 0")


def _check_samples(samples: Any) -> None:
    is_count = isinstance(samples, int) and not isinstance(samples, bool) and samples >= 1
    is_list = isinstance(samples, list) and samples and all(isinstance(name, str) for name in samples)
    if not is_count and not is_list:
        raise ConfigError(f"samples: {samples!r} is neither a number of questions above 0 nor a list of their ids")
