"""What a run's model card says, gathered from its config and the manifests of its data."""

from collections.abc import Mapping
from pathlib import Path

from ift_components.data.prepared import read_manifest
from ift_components.distributed import World
from ift_components.models.model_card import RunFacts, base_licence, base_name
from ift_components.models.trainable import FROZEN, Tuning
from ift_components.training.data import global_batch_size
from ift_components.training.run_folder import prepared_folders
from ift_components.training.settings import TrainSettings


def run_facts(cfg: TrainSettings, world: World) -> RunFacts:
    """Return the facts of a fine-tuning run, without any path of this machine.

    Args:
        cfg: a config of `TrainSettings`, checked.
        world: the processes.
    """
    base = Path(cfg.checkpoint_dir) if cfg.checkpoint_dir else None
    manifests = [read_manifest(folder) for folder in sorted(set(prepared_folders(cfg.dataset)))]
    data = {manifest["builder"]["name"]: _training_samples(manifest["counts"]) for manifest in manifests}
    return RunFacts(
        base=base_name(base) if base is not None else None,
        base_licence=base_licence(base),
        data=data,
        private=any(manifest.get("private", False) for manifest in manifests),
        trained=_trained(cfg),
        prompt=_prompt(cfg),
        settings=_settings(cfg, world),
        seed=cfg.seed,
        layout=cfg.image_layout,
    )


def _training_samples(counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    return {kind: splits["train"] for kind, splits in counts.items() if splits.get("train")}


def _trained(cfg: TrainSettings) -> dict[str, str]:
    rate = cfg.optimizer.get("lr")
    trained = {}
    for part, how in Tuning.parse(cfg.tuning).items():
        if how.method != FROZEN:
            arguments = [f"{name} {value}" for name, value in how.arguments.items()]
            trained[part] = ", ".join([how.method, *arguments, f"learning rate {how.lr or rate}"])
    return trained


def _prompt(cfg: TrainSettings) -> str:
    if len(cfg.instructions) > 1:
        return (
            f'the instruction was drawn for each sample from {len(cfg.instructions)}, such as "{cfg.instructions[0]}"'
        )
    if cfg.instructions:
        return f'the instruction was "{cfg.instructions[0]}"'
    proxy = cfg.proxy
    size = f"a proxy of {proxy.num_vectors} vectors"
    if len(proxy.paths) > 1:
        size = f"one of {len(proxy.paths)} proxies of {proxy.num_vectors} vectors, drawn for each sample"
    start = "warmed up" if proxy.paths else "random"
    moves = f"rule {proxy.rule}, momentum {proxy.momentum}"
    moves += f", noise {proxy.noise}" if proxy.noise else ""
    moves += f", dropout {proxy.dropout}" if proxy.dropout else ""
    return f"in place of an instruction stood {size}, {start} at first ({moves})"


def _settings(cfg: TrainSettings, world: World) -> dict[str, str | int | float]:
    settings: dict[str, str | int | float] = {
        "epochs": cfg.epochs,
        "samples a step": global_batch_size(cfg, world),
        "optimizer": str(cfg.optimizer["_component_"]),
        "compute dtype": cfg.dtype,
    }
    if cfg.averaging.decay is not None:
        settings["saved weights"] = f"their moving average along the run, decay {cfg.averaging.decay} a step"
    if cfg.rehearsal.kl_weight:
        settings["kept to the base"] = f"KL divergence on '{cfg.rehearsal.source}', weight {cfg.rehearsal.kl_weight}"
    if cfg.max_steps is not None:
        settings["steps at most"] = cfg.max_steps
    if cfg.dataset.get("limit") is not None:
        settings["samples at most"] = cfg.dataset["limit"]
    shuffling = cfg.dataset.get("shuffling")
    if shuffling is not None:
        settings["response shuffling"] = str(shuffling["_component_"])
    return settings
