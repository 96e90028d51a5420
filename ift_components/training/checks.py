"""What no type can check in a training config, and what a config that is in order trains."""

from dataclasses import dataclass

from ift_components.errors import ConfigError
from ift_components.models.sharding import RECOMPUTED
from ift_components.models.trainable import FROZEN, METHODS, Tuning
from ift_components.proxy import UpdateRule
from ift_components.training.settings import AUTO, BEST_BY, TrainSettings, parse_dtype


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


def _check_validation(cfg: TrainSettings) -> None:
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
    if cfg.val_questions is not None and cfg.frozen_dtype is not None:
        raise ConfigError(
            f"val_questions: are asked of a copy of the weights, which frozen_dtype={cfg.frozen_dtype} does not give; set it "
            "to null, or evaluate afterwards"
        )


def check_settings(cfg: TrainSettings) -> Stage:
    """Check the values that no type can, and return what the config trains.

    Raises:
        ConfigError: naming the key, its value and what is allowed.
    """
    _check_numbers(cfg)
    _check_validation(cfg)
    _ = cfg.image_layout  # refuses an unknown one
    _check_layout(cfg)
    decay = cfg.averaging.decay
    if decay is not None and not 0 < decay < 1:
        raise ConfigError(f"averaging.decay: {decay} is not between 0 and 1; 0.99 looks back over about 100 steps")
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
    _check_rehearsal(cfg, stage)
    added = [part for part, how in stage.tuning.items() if METHODS[how.method].adapter is not None]
    if added and cfg.checkpoint_dir is None:
        raise ConfigError(
            f"tuning.{added[0]}: an adapter by '{stage.tuning[added[0]].method}' belongs to checkpoint_dir's weights, and that "
            "is null; give a checkpoint"
        )
    if stage.is_warm_up and decay is not None:
        raise ConfigError(f"averaging.decay: {decay} has nothing to average, every part is frozen; set it to null")
    if stage.is_warm_up and cfg.keep_best is not None:
        raise ConfigError("keep_best: the warm-up leaves the model as it is; set it to null")
    _check_proxy(cfg, stage)
    check_frozen_dtype(cfg, stage)
    return stage


def _check_rehearsal(cfg: TrainSettings, stage: Stage) -> None:
    weight = cfg.rehearsal.kl_weight
    if not weight >= 0:
        raise ConfigError(f"rehearsal.kl_weight: {weight} is below 0")
    if weight and stage.is_warm_up:
        raise ConfigError(f"rehearsal.kl_weight: {weight} has no effect, every part is frozen; set it to 0")
    prompted = [part for part, how in stage.tuning.items() if METHODS[how.method].adapter == "prompts"]
    if weight and prompted:
        method = stage.tuning[prompted[0]].method
        raise ConfigError(
            f"rehearsal.kl_weight: {weight} compares with the untuned model, which '{method}' on tuning.{prompted[0]} does not "
            "start from; set it to 0 or choose another method"
        )


def _check_proxy(cfg: TrainSettings, stage: Stage) -> None:
    proxy = cfg.proxy
    if proxy.num_vectors < 1:
        raise ConfigError(f"proxy.num_vectors: {proxy.num_vectors} is below 1; the paper uses 8")
    listed = isinstance(proxy.path, list) and proxy.path
    if not (proxy.path is None or isinstance(proxy.path, str) or (listed and all(isinstance(p, str) for p in listed))):
        raise ConfigError(f"proxy.path: {proxy.path!r} is neither a path nor a list of paths")
    if stage.rule is not None and not stage.is_warm_up and proxy.path is None:
        raise ConfigError("proxy.path: give the proxy_instruction.safetensors that ift_warmup_recipe wrote")
    if stage.rule not in (None, UpdateRule.FIX) and len(proxy.paths) > 1:
        raise ConfigError(
            f"proxy.path: a bank of {len(proxy.paths)} proxies does not move, and proxy.rule is '{stage.rule}'; set it to fix, "
            "or give one path"
        )
    if not proxy.noise >= 0:
        raise ConfigError(f"proxy.noise: {proxy.noise} is below 0; it is a share of the vectors' root mean square")
    if not 0 <= proxy.dropout < 1:
        raise ConfigError(f"proxy.dropout: {proxy.dropout} is not a probability, from 0 to below 1")
    for key, value in (("noise", proxy.noise), ("dropout", proxy.dropout)):
        if value and stage.rule is None:
            raise ConfigError(f"proxy.{key}: {value} has no effect under an instruction, without a proxy; set it to 0")


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
    return None if cfg.instructions else UpdateRule(cfg.proxy.rule)


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
