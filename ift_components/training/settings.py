"""The keys of the training configs: what is declared here is what a config may hold."""

from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import MISSING

from ift_components.errors import ConfigError
from ift_components.proxy import UpdateRule

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class ProxySettings:
    """The proxy instruction.

    Attributes:
        num_vectors: K, the number of vectors.
        path: the warm-up's `proxy_instruction.safetensors`; null starts from random vectors.
        rule: how it moves: `restart`, `track`, `fix`, `update` or `none` (see `UpdateRule`); the warm-up always updates.
        momentum: m of Eq. 3.
        init_bound: random vectors are uniform in [-init_bound, init_bound].
        lr: learning rate of its own; null uses the optimizer's.
    """

    num_vectors: int = 8
    path: str | None = None
    rule: str = "track"
    momentum: float = 0.999
    init_bound: float = 768**-0.5
    lr: float | None = None


@dataclass
class TrainSettings:
    """A training run, warm-up or fine-tuning.

    Attributes:
        output_dir: folder to create.
        data: prepared folder; a shorthand that other keys refer to as `${data}`.
        model: component that builds the model.
        checkpoint_dir: checkpoint in Hugging Face layout; null keeps the builder's random weights.
        tokenizer: component that builds the model's transform.
        tile_padding: `none` (one tile, as the authors fine-tuned) or `meta` (padded to four, as Meta trained and servers
            compute).
        dataset: component that builds the training samples; gets the transform, the instruction and the seed.
        proxy: the proxy instruction.
        instruction: the text instruction under `proxy.rule: none`.
        val_dataset: component that builds validation samples, as `dataset` does; null does not validate.
        val_every_steps: validate every so many steps, and at the end.
        optimizer: component; gets the parameter groups.
        part_lr: learning rates of `encoder`, `fusion` and `decoder` where they differ from the optimizer's.
        lr_scheduler: component; gets the optimizer and `num_training_steps`. Null keeps the learning rate constant.
        batch_size: samples per process and forward pass.
        gradient_accumulation_steps: forward passes per optimizer step.
        epochs: passes over the data.
        max_steps: stop after this many optimizer steps.
        clip_grad_norm: largest norm of the whole gradient, proxy included; null does not clip.
        dtype: compute dtype, `fp32` or `bf16`; trained weights, proxy and optimizer state are fp32 either way.
        save_dtype: dtype of saved checkpoints; null uses `dtype`.
        save_every_epochs: also keep a checkpoint every so many epochs.
        resume: go on from the newest whole checkpoint in `output_dir`, or start if there is none.
        checkpoint_every_steps: write a checkpoint to resume from every so many steps; null only when stopped by SIGTERM.
        keep_last: how many of those to keep; the last epoch's end is one of them.
        activation_checkpointing: recompute layers in the backward pass to save memory.
        activation_offloading: keep activations in host memory until the backward pass (CUDA).
        cpu_offload: keep shards, gradients and optimizer state in host memory.
        data_parallel_replicate_dim: groups of processes that hold the model each, sharding it among themselves.
        compile: compile every transformer layer with torch.compile.
        device: `cpu`, `cuda` or `auto`.
        num_workers: loader processes.
        seed: seed of data order, response shuffling and proxy initialisation.
        metric_logger: a torchtune metric logger beside `metrics.jsonl`.
    """

    output_dir: str = MISSING
    data: str | None = None
    model: dict[str, Any] = MISSING
    checkpoint_dir: str | None = None
    tokenizer: dict[str, Any] = MISSING
    tile_padding: str = "none"
    dataset: dict[str, Any] = MISSING
    proxy: ProxySettings = field(default_factory=ProxySettings)
    instruction: str | None = None
    val_dataset: dict[str, Any] | None = None
    val_every_steps: int | None = None
    optimizer: dict[str, Any] = MISSING
    part_lr: dict[str, float] = field(default_factory=dict)
    lr_scheduler: dict[str, Any] | None = None
    batch_size: int = 2
    gradient_accumulation_steps: int = 1
    epochs: int = 1
    max_steps: int | None = None
    clip_grad_norm: float | None = 1.0
    dtype: str = "fp32"
    save_dtype: str | None = None
    save_every_epochs: int | None = None
    resume: bool = False
    checkpoint_every_steps: int | None = None
    keep_last: int = 2
    activation_checkpointing: bool = False
    activation_offloading: bool = False
    cpu_offload: bool = False
    data_parallel_replicate_dim: int = 1
    compile: bool = False
    device: str = "auto"
    num_workers: int = 0
    seed: int = 0
    metric_logger: dict[str, Any] | None = None


def parse_dtype(name: str, key: str = "dtype") -> torch.dtype:
    """Return the torch dtype of a config's name.

    Raises:
        ConfigError: if it is none of `fp32` and `bf16`.
    """
    if name not in DTYPES:
        raise ConfigError(f"{key}: '{name}' is not one of {', '.join(DTYPES)}")
    return DTYPES[name]


def check_settings(cfg: TrainSettings, *, warm_up: bool) -> UpdateRule:
    """Check the values that no type can, and return the update rule of the stage.

    Args:
        cfg: a config of `TrainSettings`.
        warm_up: whether the stage is the warm-up.

    Raises:
        ConfigError: naming the key, its value and what is allowed.
    """
    positive = (
        "batch_size",
        "gradient_accumulation_steps",
        "epochs",
        "max_steps",
        "save_every_epochs",
        "clip_grad_norm",
        "val_every_steps",
        "checkpoint_every_steps",
        "keep_last",
        "data_parallel_replicate_dim",
    )
    for key in positive:
        value = getattr(cfg, key)
        if value is not None and value <= 0:
            raise ConfigError(f"{key}: {value} is not above 0")
    if cfg.num_workers < 0:
        raise ConfigError(f"num_workers: {cfg.num_workers} is below 0")
    if cfg.proxy.num_vectors < 1:
        raise ConfigError(f"proxy.num_vectors: {cfg.proxy.num_vectors} is below 1; the paper uses 8")
    unknown = sorted(set(cfg.part_lr) - {"encoder", "fusion", "decoder"})
    if unknown:
        raise ConfigError(f"part_lr: '{unknown[0]}' is not one of encoder, fusion, decoder (the proxy's is proxy.lr)")
    if cfg.val_every_steps is not None and cfg.val_dataset is None:
        raise ConfigError("val_every_steps: there is no val_dataset to validate on")
    parse_dtype(cfg.dtype)
    parse_dtype(cfg.save_dtype or cfg.dtype, "save_dtype")
    rules = [str(rule) for rule in UpdateRule]
    if cfg.proxy.rule not in rules:
        raise ConfigError(f"proxy.rule: '{cfg.proxy.rule}' is not one of {', '.join(rules)}")
    if warm_up:
        return UpdateRule.UPDATE
    rule = UpdateRule(cfg.proxy.rule)
    if rule is UpdateRule.NONE and not cfg.instruction:
        raise ConfigError(
            "instruction: proxy.rule=none trains under a text; give it, e.g. 'Describe this medical scan.'"
        )
    if rule is not UpdateRule.NONE and cfg.instruction:
        raise ConfigError(
            f"instruction: is only used under proxy.rule=none, and proxy.rule is '{rule}'; remove one of them"
        )
    if rule is not UpdateRule.NONE and cfg.proxy.path is None:
        raise ConfigError("proxy.path: give the proxy_instruction.safetensors that ift_warmup_recipe wrote")
    return rule
