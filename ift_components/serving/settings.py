"""The keys of the serving configs."""

import os
from dataclasses import dataclass, field
from typing import Any

from ift_components.chat import LOOPBACK
from ift_components.errors import ConfigError
from ift_components.models.build import check_weights
from ift_components.models.image_layout import ImageLayout
from ift_components.training.settings import parse_dtype


@dataclass
class OtherModel:
    """A further model of the same architecture; a checkpoint that is null is the first one's.

    Attributes:
        checkpoint_dir: checkpoint in Hugging Face layout.
        adapter_dir: adapter trained on it; null serves the checkpoint alone.
        tile_padding: as for the first model; null takes what this one notes.
    """

    checkpoint_dir: str | None = None
    adapter_dir: str | None = None
    tile_padding: str | None = None


@dataclass
class ServeSettings:
    """A server for one model or several.

    Attributes:
        name: what requests call the first model.
        model: component that builds the model.
        checkpoint_dir: checkpoint in Hugging Face layout.
        adapter_dir: adapter that ift_recipe wrote, trained on `checkpoint_dir`; null serves the checkpoint alone.
        frozen_dtype: `nf4` holds the checkpoint's linear layers in 4 bits.
        tokenizer: component that builds the model's transform.
        tiles: most tiles of a picture, 1 or 4; null takes what the checkpoint notes, as do the next two.
        tile_padding: `none`, `meta` or `paper`, as in training.
        resize: how pictures are resized, `bilinear` or `bicubic`, as in training.
        other_layout: take another layout than the checkpoint notes, which is refused otherwise.
        dtype: `fp32` or `bf16`.
        device: `cpu`, `cuda` or `auto`.
        others: name to further models, e.g. the base beside the tuned one; each is held in memory whole.
        host: address to listen on; any other than this machine's own needs `api_key_env`.
        port: port to listen on.
        api_key_env: environment variable that holds the key that requests must bring (`Authorization: Bearer KEY`).
        samples: prepared folder whose images and questions the page offers; private ones are shown on this machine alone.
        split: the samples' split.
        max_samples: images of it that are offered.
        batch_size: questions that are answered at the same time.
        batch_wait: seconds that an idle server waits for company before it answers.
        queue_limit: requests under way at a time, being read, waiting or being answered; the next one gets status 429.
        image_cache: images whose encoder pass and keys and values are kept, of all models together.
        max_new_tokens: longest answer in tokens that a request may ask for, and gets where it does not say.
        max_body_bytes: longest body of a request.
        body_seconds: time in which a request's body must have come.
        max_pixels: most pixels of an image.
        log_requests: write every request's model, prompt, answer and time to standard error; otherwise nothing of it is kept.
    """

    name: str = "tuned"
    model: dict[str, Any] = field(default_factory=dict)
    checkpoint_dir: str | None = None
    adapter_dir: str | None = None
    frozen_dtype: str | None = None
    tokenizer: dict[str, Any] = field(default_factory=dict)
    tiles: int | None = None
    tile_padding: str | None = None
    resize: str | None = None
    other_layout: bool = False
    dtype: str = "fp32"
    device: str = "auto"
    others: dict[str, OtherModel] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_env: str | None = None
    samples: str | None = None
    split: str = "test"
    max_samples: int = 24
    batch_size: int = 16
    batch_wait: float = 0.005
    queue_limit: int = 128
    image_cache: int = 32
    max_new_tokens: int = 256
    max_body_bytes: int = 20_000_000
    body_seconds: float = 30.0
    max_pixels: int = 50_000_000
    log_requests: bool = False

    @property
    def asked_layout(self) -> dict[str, Any]:
        """The keys of the layout of pictures; None takes what the checkpoint notes."""
        return {"tiles": self.tiles, "tile_padding": self.tile_padding, "resize": self.resize}

    @property
    def is_local(self) -> bool:
        """Whether the server can be reached from this machine alone."""
        return self.host in LOOPBACK

    def api_key(self) -> str | None:
        """Return the key that requests must bring, or None if they need none."""
        return None if self.api_key_env is None else os.environ[self.api_key_env]


def _layouts(cfg: ServeSettings) -> list[tuple[str, dict[str, Any]]]:
    """Return what is asked of the layout of each model's pictures, and the beginning of its keys."""
    others = [
        (f"others.{name}.", {**cfg.asked_layout, "tile_padding": o.tile_padding}) for name, o in cfg.others.items()
    ]
    return [("", cfg.asked_layout), *others]


def check_settings(cfg: ServeSettings) -> None:
    """Check the values that no type can.

    Args:
        cfg: a config of `ServeSettings`.

    Raises:
        ConfigError: naming the key, its value and what is allowed.
    """
    for key in ("model", "tokenizer", "name"):
        if not getattr(cfg, key):
            raise ConfigError(f"{key}: give a value (on the command line: {key}=...)")
    if cfg.checkpoint_dir is None:
        raise ConfigError("checkpoint_dir: give the checkpoint to serve (on the command line: checkpoint_dir=...)")
    if cfg.name in cfg.others:
        raise ConfigError(f"others.{cfg.name}: is the first model's name; call it something else, or set name=...")
    check_weights(cfg.checkpoint_dir, cfg.adapter_dir, cfg.frozen_dtype)
    for where, asked in _layouts(cfg):
        try:
            ImageLayout(**{key: value for key, value in asked.items() if value is not None})
        except ConfigError as error:
            raise ConfigError(f"{where}{error}") from error
    least = (
        "batch_size",
        "queue_limit",
        "image_cache",
        "max_new_tokens",
        "max_body_bytes",
        "max_pixels",
        "max_samples",
    )
    for key in least:
        if getattr(cfg, key) < 1:
            raise ConfigError(f"{key}: {getattr(cfg, key)} is below 1")
    if cfg.batch_wait < 0 or cfg.body_seconds <= 0:
        raise ConfigError(
            f"batch_wait: {cfg.batch_wait} and body_seconds: {cfg.body_seconds}; expected 0 or more, and above 0"
        )
    parse_dtype(cfg.dtype)
    _check_address(cfg)


def _check_address(cfg: ServeSettings) -> None:
    if not 0 <= cfg.port < 2**16:
        raise ConfigError(f"port: {cfg.port} is not between 0 and 65535 (0 takes a free one)")
    if cfg.api_key_env is not None and not os.environ.get(cfg.api_key_env):
        raise ConfigError(f"api_key_env: the environment variable {cfg.api_key_env} is not set")
    if not cfg.is_local and cfg.api_key_env is None:
        raise ConfigError(
            f"host: {cfg.host} can be reached from other machines; set api_key_env to an environment variable that holds a "
            f"key, or host to one of {', '.join(LOOPBACK)}"
        )
