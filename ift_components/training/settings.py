"""The keys of the training configs: what is declared here is what a config may hold."""

from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import MISSING

from ift_components.errors import ConfigError
from ift_components.models.image_layout import ImageLayout
from ift_components.models.sharding import RECOMPUTED
from ift_components.models.trainable import FROZEN, METHODS, Tuning
from ift_components.proxy import UpdateRule

BEST_BY = ("questions", "balanced", "read_out", "unrelated")
"""Measures that the best checkpoint may be chosen by, higher being better; in the records they stand as `val_<name>`."""

AUTO = "auto"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class ProxySettings:
    """The proxy instruction; not used where `instruction` is given."""

    num_vectors: int = 8
    """K, the number of vectors."""

    path: str | None = None
    """The warm-up's `proxy_instruction.safetensors`; null starts from random vectors."""

    rule: str = "track"
    """How it moves: `restart`, `track`, `fix` or `update` (see `UpdateRule`); the warm-up updates."""

    momentum: float = 0.999
    """m of Eq. 3."""

    init_bound: float = 768**-0.5
    """Random vectors are uniform in [-init_bound, init_bound]."""

    lr: float | None = None
    """Learning rate of its own; null uses the optimizer's."""

    raw_gradient: bool = False
    """As the authors' code: its gradient is neither divided by the tokens nor clipped nor in the norm."""

    alias: bool = False
    """As the authors' code: theta~ shares theta's storage in the first step, and so takes the whole of it."""


@dataclass
class TrainSettings:
    """A training run, warm-up or fine-tuning."""

    output_dir: str = MISSING
    """Folder to create."""

    data: str | None = None
    """Prepared folder; a shorthand that other keys refer to as `${data}`."""

    model: dict[str, Any] = MISSING
    """Component that builds the model."""

    checkpoint_dir: str | None = None
    """Checkpoint in Hugging Face layout; null keeps the builder's random weights."""

    tokenizer: dict[str, Any] = MISSING
    """Component that builds the model's transform."""

    tiles: int = 1
    """1 squashes every picture into one tile, as the authors do; 4 cuts it into up to four, as transformers does."""

    tile_padding: str = "none"
    """`none` (no padding, as the authors fine-tuned), `meta` (padded to four tiles, as Meta trained and servers compute) or
    `paper` (trained as `none`, to be evaluated as `meta`: the authors' protocol)."""

    resize: str = "bilinear"
    """How pictures are resized: `bilinear`, as the authors, torchtune and Meta do, or `bicubic`."""

    tuning: dict[str, Any] = MISSING
    """What is trained of `encoder`, `fusion` and `decoder`: for each `frozen`, `full`, `scaffold` (set back when saved), or
    `{method: full, lr: 1.0e-5}`."""

    dataset: dict[str, Any] = MISSING
    """Component that builds the training samples; gets a `DatasetContext`."""

    instruction: str | None = None
    """A text in the proxy's place: ordinary instruction tuning; datasets refer to it as `${instruction}`."""

    proxy: ProxySettings = field(default_factory=ProxySettings)
    """The proxy instruction."""

    supervise_header: bool = False
    """As the authors' code: the four tokens of the assistant's header count in the loss too."""

    val_dataset: dict[str, Any] | None = None
    """Component that builds validation samples, as `dataset` does; null does not validate."""

    val_every_steps: int | None = None
    """Validate every so many steps, and at the end."""

    val_questions: dict[str, Any] | None = None
    """Component that asks the model questions on validation while it trains; gets a `WatchContext`."""

    val_questions_every_steps: int | None = None
    """Ask them every so many steps, and at the end."""

    keep_best: str | None = None
    """Measure (`questions`, `balanced`, `read_out`, `unrelated`) whose best checkpoint is kept as `best_STEP`."""

    early_stopping: int | None = None
    """End the run when `keep_best` has not risen for so many looks."""

    optimizer: dict[str, Any] = MISSING
    """Component; gets the parameter groups."""

    lr_scheduler: dict[str, Any] | None = None
    """Component; gets the optimizer and `num_training_steps`. Null keeps the learning rate constant."""

    batch_size: int = 2
    """Samples per process and forward pass."""

    gradient_accumulation_steps: int = 1
    """Forward passes per optimizer step."""

    epochs: int = 1
    """Passes over the data."""

    max_steps: int | None = None
    """Stop after this many optimizer steps."""

    clip_grad_norm: float | None = 1.0
    """Largest norm of the whole gradient, proxy included; null does not clip."""

    dtype: str = "fp32"
    """Compute dtype, `fp32` or `bf16`; trained weights, proxy and optimizer state are fp32 either way."""

    frozen_dtype: str | None = None
    """`nf4` holds the frozen linear layers in 4 bits; null holds them in `dtype`. Every process keeps them whole."""

    save_dtype: str | None = None
    """Dtype of saved checkpoints; null uses `dtype`."""

    save_every_epochs: int | None = None
    """Also keep a checkpoint every so many epochs."""

    resume: bool = False
    """Go on from the newest whole checkpoint in `output_dir`, or start if there is none."""

    spare_dir: str | None = None
    """Folder of this run's own on another disk: takes a checkpoint to resume from when `output_dir` has no room at the end."""

    checkpoint_every_steps: int | None = None
    """Write a checkpoint to resume from every so many steps; null only when stopped by SIGTERM."""

    keep_last: int = 2
    """How many of those to keep; the last epoch's end is one of them."""

    keep_encoded: bool = False
    """Compute what the frozen encoder makes of a picture once in the run and keep it, in memory or else on disk."""

    activation_checkpointing: str = "none"
    """Whose layers are recomputed in the backward pass to save memory: `none`, `encoder`, `language`, `all`, or `auto`: the
    fewest operations that fit the device, by the memory table."""

    activation_offloading: bool = False
    """Keep activations in host memory until the backward pass (CUDA)."""

    cpu_offload: bool = False
    """Keep shards, gradients and optimizer state in host memory."""

    frozen_weights: str = "auto"
    """`whole` on every process, `sharded` over them and gathered in every pass, or `auto`: whole where they fit."""

    data_parallel_replicate_dim: int = 1
    """Groups of processes that hold the model each, sharding it among themselves."""

    compile: bool = False
    """Compile every transformer layer with torch.compile."""

    device: str = "auto"
    """`cpu`, `cuda` or `auto`."""

    num_workers: int = 0
    """Loader processes."""

    seed: int = 0
    """Seed of data order, response shuffling and proxy initialisation."""

    metric_logger: dict[str, Any] | None = None
    """A torchtune metric logger beside `metrics.jsonl`."""

    @property
    def image_layout(self) -> ImageLayout:
        """How pictures are laid out.

        Raises:
            ConfigError: if there is no such layout.
        """
        return ImageLayout(self.tiles, self.tile_padding, self.resize)


@dataclass(frozen=True)
class Stage:
    """What a checked config trains."""

    tuning: Tuning
    """How each part of the model is trained."""

    rule: UpdateRule | None
    """How the proxy moves; None under a text instruction, which has no proxy."""

    @property
    def is_warm_up(self) -> bool:
        """Whether the proxy alone is trained, the whole model frozen."""
        return self.tuning.is_frozen

    @property
    def result(self) -> str:
        """Name of the folder in `output_dir` that what is saved goes to; the warm-up's proxy goes to `output_dir` itself."""
        if self.is_warm_up:
            return ""
        return "adapter" if self.tuning.adapter_kinds else "checkpoint"

    @property
    def name(self) -> str:
        """What records call it."""
        return "warm-up" if self.is_warm_up else "fine-tuning"


def parse_dtype(name: str, key: str = "dtype") -> torch.dtype:
    """Return the torch dtype of a config's name.

    Raises:
        ConfigError: if it is none of `fp32` and `bf16`.
    """
    if name not in DTYPES:
        raise ConfigError(f"{key}: '{name}' is not one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _check_numbers(cfg: TrainSettings) -> None:
    positive = (
        "batch_size",
        "gradient_accumulation_steps",
        "epochs",
        "max_steps",
        "save_every_epochs",
        "clip_grad_norm",
        "val_every_steps",
        "val_questions_every_steps",
        "early_stopping",
        "checkpoint_every_steps",
        "keep_last",
        "data_parallel_replicate_dim",
    )
    for key in positive:
        value = getattr(cfg, key)
        if value is not None and value <= 0:
            raise ConfigError(f"{key}: {value} is not above 0")
    for key in ("num_workers", "seed"):
        if getattr(cfg, key) < 0:
            raise ConfigError(f"{key}: {getattr(cfg, key)} is below 0")
    for key, rate in (("proxy.lr", cfg.proxy.lr), ("optimizer.lr", cfg.optimizer.get("lr"))):
        if rate is not None and not (isinstance(rate, int | float) and rate > 0):
            raise ConfigError(f"{key}: {rate} is not a number above 0")


def _check_layout(cfg: TrainSettings) -> None:
    for key, allowed in (
        ("activation_checkpointing", (*RECOMPUTED, AUTO)),
        ("frozen_weights", ("whole", "sharded", AUTO)),
    ):
        value = getattr(cfg, key)
        if value not in allowed:
            raise ConfigError(f"{key}: '{value}' is not one of {', '.join(allowed)}")
    if cfg.activation_offloading and cfg.activation_checkpointing == AUTO:
        raise ConfigError(
            "activation_checkpointing: 'auto' goes by what stays on the device, and activation_offloading takes it away; name "
            "one of none, encoder, language, all"
        )
    if cfg.cpu_offload and cfg.frozen_weights == "whole":
        raise ConfigError(
            "frozen_weights: 'whole' does not go with cpu_offload, which keeps them in shards in host memory"
        )


def check_settings(cfg: TrainSettings) -> Stage:
    """Check the values that no type can, and return what the config trains.

    Raises:
        ConfigError: naming the key, its value and what is allowed.
    """
    _check_numbers(cfg)
    if cfg.proxy.num_vectors < 1:
        raise ConfigError(f"proxy.num_vectors: {cfg.proxy.num_vectors} is below 1; the paper uses 8")
    if cfg.val_every_steps is not None and cfg.val_dataset is None:
        raise ConfigError("val_every_steps: there is no val_dataset to validate on")
    if cfg.val_questions is None and (cfg.val_questions_every_steps is not None or cfg.keep_best is not None):
        key = "keep_best" if cfg.val_questions_every_steps is None else "val_questions_every_steps"
        raise ConfigError(f"{key}: there are no val_questions to ask; give the component that asks them")
    if cfg.keep_best is not None and cfg.keep_best not in BEST_BY:
        raise ConfigError(f"keep_best: '{cfg.keep_best}' is not one of {', '.join(BEST_BY)}")
    if cfg.early_stopping is not None and cfg.keep_best is None:
        raise ConfigError(
            f"early_stopping: {cfg.early_stopping} looks without a rise of what? give keep_best a measure"
        )
    _ = cfg.image_layout  # refuses an unknown one
    if cfg.val_questions is not None and cfg.frozen_dtype is not None:
        raise ConfigError(
            f"val_questions: are asked of a copy of the weights, which frozen_dtype={cfg.frozen_dtype} does not give; set it "
            "to null, or evaluate afterwards"
        )
    _check_layout(cfg)
    parse_dtype(cfg.dtype)
    parse_dtype(cfg.save_dtype or cfg.dtype, "save_dtype")
    stage = Stage(Tuning.parse(cfg.tuning), _update_rule(cfg))
    _check_keep_encoded(cfg, stage)
    if stage.is_warm_up and stage.rule in (None, UpdateRule.FIX):
        raise ConfigError("tuning: every part is frozen and no proxy moves, so that nothing is left to train")
    set_back = [part for part, how in stage.tuning.items() if how.share < 1]
    if set_back and cfg.checkpoint_dir is None:
        raise ConfigError(
            f"tuning.{set_back[0]}: '{stage.tuning[set_back[0]].method}' is set back to the weights of checkpoint_dir, "
            "which is null; give a checkpoint, or train the part by 'full'"
        )
    added = [part for part, how in stage.tuning.items() if METHODS[how.method].adapter is not None]
    if added and cfg.checkpoint_dir is None:
        raise ConfigError(
            f"tuning.{added[0]}: an adapter by '{stage.tuning[added[0]].method}' belongs to checkpoint_dir's weights, and that "
            "is null; give a checkpoint"
        )
    if stage.is_warm_up and cfg.keep_best is not None:
        raise ConfigError("keep_best: the warm-up leaves the model as it is; set it to null")
    if stage.rule is not None and not stage.is_warm_up and cfg.proxy.path is None:
        raise ConfigError("proxy.path: give the proxy_instruction.safetensors that ift_warmup_recipe wrote")
    check_frozen_dtype(cfg, stage)
    return stage


def _check_keep_encoded(cfg: TrainSettings, stage: Stage) -> None:
    if not cfg.keep_encoded:
        return
    for part in ("encoder", "fusion"):  # fusion holds the projection, whose output it is that is kept
        if stage.tuning[part].method != FROZEN:
            raise ConfigError(
                f"keep_encoded: tuning.{part} is '{stage.tuning[part].method}', which changes what the encoder gives in every "
                "step; set keep_encoded=false"
            )
    if cfg.frozen_weights == "sharded" or cfg.cpu_offload:
        key, value = ("cpu_offload", "true") if cfg.cpu_offload else ("frozen_weights", "sharded")
        raise ConfigError(
            f"keep_encoded: needs the encoder whole on every process, and {key} is {value}; set keep_encoded=false"
        )


def check_frozen_dtype(cfg: TrainSettings, stage: Stage) -> None:
    """Check that a base in NF4 is one that stays frozen.

    Raises:
        ConfigError: if the type is unknown, or a part is trained in full, offloaded, or has no checkpoint to be read from.
    """
    if cfg.frozen_dtype is None:
        return
    if cfg.frozen_dtype != "nf4":
        raise ConfigError(f"frozen_dtype: '{cfg.frozen_dtype}' is not nf4 or null")
    full = [part for part, how in stage.tuning.items() if how.trains_base]
    if full:
        raise ConfigError(
            f"frozen_dtype: nf4 cannot be trained, and {', '.join(full)} would be by "
            f"'{stage.tuning[full[0]].method}'; set tuning.{full[0]} to lora, dora or frozen, or frozen_dtype=null"
        )
    if cfg.checkpoint_dir is None or cfg.cpu_offload:
        key = "cpu_offload" if cfg.cpu_offload else "checkpoint_dir"
        fix = "set cpu_offload=false" if cfg.cpu_offload else "give a checkpoint, which is quantised as it is read"
        raise ConfigError(f"{key}: {getattr(cfg, key)} does not go with frozen_dtype: nf4; {fix}")


def _update_rule(cfg: TrainSettings) -> UpdateRule | None:
    if cfg.proxy.rule == "none":
        raise ConfigError(
            "proxy.rule: 'none' is no rule; for ordinary instruction tuning give instruction=... alone, e.g. "
            "instruction='Describe this medical scan.'"
        )
    rules = [str(rule) for rule in UpdateRule]
    if cfg.proxy.rule not in rules:
        raise ConfigError(f"proxy.rule: '{cfg.proxy.rule}' is not one of {', '.join(rules)}")
    if cfg.instruction is None:
        return UpdateRule(cfg.proxy.rule)
    if not cfg.instruction.strip():
        raise ConfigError("instruction: is empty; give a text, or null to train under the proxy")
    return None


def check_warm_up(stage: Stage) -> None:
    """Check that a config is a warm-up.

    Raises:
        ConfigError: if anything but the proxy is trained, or the proxy does not follow the gradient.
    """
    if stage.rule is not UpdateRule.UPDATE:
        what = "there is an instruction instead" if stage.rule is None else f"proxy.rule is '{stage.rule}'"
        raise ConfigError(f"proxy.rule: the warm-up trains the proxy by 'update', and {what}")
    if not stage.is_warm_up:
        trained = [part for part, how in stage.tuning.items() if how.method != "frozen"]
        raise ConfigError(f"tuning.{trained[0]}: the warm-up trains the proxy alone; set every part to frozen")
