"""The keys of the training configs: what is declared here is what a config may hold."""

from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import MISSING

from ift_components.data.instructions import read_instructions
from ift_components.errors import ConfigError
from ift_components.models.image_layout import ImageLayout

BEST_BY = ("questions", "balanced", "read_out", "unrelated")
"""Measures that the best checkpoint may be chosen by, higher being better; in the records they stand as `val_<name>`."""

AUTO = "auto"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class ProxySettings:
    """The proxy instruction; not used where `instruction` is given."""

    num_vectors: int = 8
    """K, the number of vectors."""

    path: Any = None
    """The warm-up's `proxy_instruction.safetensors`; null starts from random vectors. A list of several is a bank: one is drawn
    for each sample, under the rule `fix`."""

    rule: str = "track"
    """How it moves: `restart`, `track`, `fix` or `update` (see `UpdateRule`); the warm-up updates."""

    momentum: float = 0.999
    """m of Eq. 3."""

    init_bound: float = 768**-0.5
    """Random vectors are uniform in [-init_bound, init_bound]."""

    lr: float | None = None
    """Learning rate of its own; null uses the optimizer's."""

    noise: float = 0.0
    """Training alone: standard deviation of Gaussian noise on the vectors, as a share of their root mean square."""

    dropout: float = 0.0
    """Training alone: probability of each vector to be replaced by zeros."""

    raw_gradient: bool = False
    """As the authors' code: its gradient is neither divided by the tokens nor clipped nor in the norm."""

    alias: bool = False
    """As the authors' code: theta~ shares theta's storage in the first step, and so takes the whole of it."""

    @property
    def paths(self) -> list[str]:
        """The files that `path` names: none, one, or those of a bank."""
        return [] if self.path is None else [self.path] if isinstance(self.path, str) else list(self.path)


@dataclass
class AveragingSettings:
    """Averaging of the trained weights along the run."""

    decay: float | None = None
    """Decay of their exponential moving average, which is validated and saved in their place, such as 0.99; null does not."""


@dataclass
class RehearsalSettings:
    """Keeping to the untuned model on general prompts."""

    kl_weight: float = 0.0
    """Weight in the loss of the mean KL divergence of the untuned model's next tokens from the tuned one's; 0 has none."""

    source: str = "rehearsal"
    """Source of the mixture on whose response tokens it is measured."""


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

    instruction: Any = None
    """A text in the proxy's place: ordinary instruction tuning; datasets refer to it as `${instruction}`. A list of texts, or a
    `.txt` file of one a line, is a pool: one is drawn for each sample and epoch."""

    proxy: ProxySettings = field(default_factory=ProxySettings)
    """The proxy instruction."""

    averaging: AveragingSettings = field(default_factory=AveragingSettings)
    """Averaging of the trained weights along the run."""

    rehearsal: RehearsalSettings = field(default_factory=RehearsalSettings)
    """Keeping to the untuned model on general prompts."""

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
    def instructions(self) -> tuple[str, ...]:
        """The texts that `instruction` stands for; none under the proxy.

        Raises:
            ConfigError: if it is wrong.
        """
        return () if self.instruction is None else read_instructions(self.instruction)

    @property
    def image_layout(self) -> ImageLayout:
        """How pictures are laid out.

        Raises:
            ConfigError: if there is no such layout.
        """
        return ImageLayout(self.tiles, self.tile_padding, self.resize)


def parse_dtype(name: str, key: str = "dtype") -> torch.dtype:
    """Return the torch dtype of a config's name.

    Raises:
        ConfigError: if it is none of `fp32` and `bf16`.
    """
    if name not in DTYPES:
        raise ConfigError(f"{key}: '{name}' is not one of {', '.join(DTYPES)}")
    return DTYPES[name]
