"""From a config to the objects of a run: model, proxy, data and optimizer."""

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torchtune.modules.model_fusion import DeepFusionModel
from torchtune.training import OffloadActivations

from ift_components.config import instantiate
from ift_components.distributed import World
from ift_components.errors import ConfigError
from ift_components.models.adapter_files import gather_adapter
from ift_components.models.adapters import added_to_device, initialise_added, is_added
from ift_components.models.blend import blend
from ift_components.models.build import build_model, compute_buffers, fill
from ift_components.models.forward import ResponseLoss
from ift_components.models.hf_layout import hf_config, read_weights, save_checkpoint
from ift_components.models.image_layout import ImageLayout, layout_warning, noted_layout, read_note
from ift_components.models.quantised import NF4, fill_quantised, quantisable
from ift_components.models.sharding import checkpoint_activations, compile_layers, set_precision, shard
from ift_components.models.tile_padding import set_tile_padding
from ift_components.models.trainable import PARTS, Tuning, apply_tuning, part_of
from ift_components.proxy import ProxyInstruction, UpdateRule, load_proxy, random_theta
from ift_components.training.run_folder import on_main
from ift_components.training.settings import TrainSettings, parse_dtype
from ift_components.training.variation import ProxyVariation


def build_module(cfg: TrainSettings, world: World, tuning: Tuning) -> ResponseLoss:
    """Build, load, freeze, place and shard the model of a stage.

    Args:
        cfg: a config of `TrainSettings`, its layout settled (`settle_layout`).
        world: the processes.
        tuning: what is trained.

    Raises:
        ConfigError: if the model or its checkpoint is wrong.
    """
    dtype = parse_dtype(cfg.dtype)
    checkpoint = Path(cfg.checkpoint_dir) if cfg.checkpoint_dir else None
    model = build_model(cfg.model, meta=checkpoint is not None)
    set_tile_padding(model, cfg.image_layout.training_padding, cfg.tiles)
    apply_tuning(model, tuning)
    set_precision(model, dtype)
    if checkpoint is None:
        model.to(world.device)
    else:
        before, what = noted_layout(checkpoint / "config.json"), f"checkpoint_dir: {checkpoint} was tuned"
        _warn_of_layout(cfg, world, before, what, "the model has to learn the new layout too")
    checkpoint_activations(model, cfg.activation_checkpointing)
    if cfg.compile:
        compile_layers(model)
    module = ResponseLoss(model, dtype)
    if world.size > 1 or dtype is not torch.float32 or cfg.cpu_offload:
        # One process shards too: FSDP is what computes in bf16 over fp32 masters.
        mesh = world.sharding_mesh(cfg.data_parallel_replicate_dim)
        quantised = [layer.weight for layer in quantisable(model).values()] if cfg.frozen_dtype == NF4 else []
        sharded = cfg.frozen_weights == "sharded"
        shard(module, mesh, dtype, cpu_offload=cfg.cpu_offload, shard_frozen=sharded, whole=quantised)  # type: ignore[arg-type]
    if checkpoint is not None and cfg.frozen_dtype == NF4:
        fill_quantised(model, checkpoint, world.device, dtype)
        compute_buffers(model, world.device)
    elif checkpoint is not None:
        fill(model, checkpoint, world.device, weights_on=torch.device("cpu") if cfg.cpu_offload else world.device)
    added_to_device(model, world.device)
    initialise_added(model, cfg.seed)
    return module.train()


def build_proxy(cfg: TrainSettings, world: World, rule: UpdateRule | None, dim: int) -> ProxyInstruction | None:
    """Load the warmed-up proxy, or draw a random one; None under a text instruction.

    Args:
        cfg: a config of `TrainSettings`.
        world: the processes; every one holds the same proxy.
        rule: the stage's update rule, if it has a proxy.
        dim: d, the width of the model's embeddings.
    """
    if rule is None:
        return None
    settings = cfg.proxy
    if not settings.paths:
        theta = random_theta(settings.num_vectors, dim, cfg.seed, settings.init_bound)
    else:
        theta = _warmed_up(cfg, world, settings.paths[0], dim)
    return ProxyInstruction(
        theta.to(world.device), rule, settings.momentum, raw_gradient=settings.raw_gradient, alias=settings.alias
    )


def _warmed_up(cfg: TrainSettings, world: World, path: str, dim: int) -> Tensor:
    theta, metadata = load_proxy(Path(path), cfg.proxy.num_vectors, dim)
    note = {key: metadata[key] for key in cfg.image_layout.note() if key in metadata}
    before, what = read_note(note or None, path), f"proxy.path: {path} was warmed up"
    _warn_of_layout(cfg, world, before, what, "repeat the warm-up in this run's layout, or train in the proxy's")
    return theta


def build_variation(cfg: TrainSettings, world: World, proxy: ProxyInstruction | None) -> ProxyVariation | None:
    """Return what varies the proxy in training, with the bank it is drawn from; None if nothing does.

    Args:
        cfg: a config of `TrainSettings`.
        world: the processes.
        proxy: from `build_proxy`; of a bank it is the first.
    """
    settings = cfg.proxy
    has_bank = len(settings.paths) > 1
    if proxy is None or not (has_bank or settings.noise or settings.dropout):
        return None
    dim = proxy.theta.shape[1]
    others = [_warmed_up(cfg, world, path, dim).to(world.device) for path in settings.paths[1:]]
    bank = torch.stack([proxy.theta.detach().clone(), *others]) if has_bank else None
    return ProxyVariation(settings.noise, settings.dropout, bank, cfg.seed)


def _warn_of_layout(cfg: TrainSettings, world: World, before: ImageLayout | None, what: str, fix: str) -> None:
    warning = layout_warning(before, cfg.image_layout, what, fix)
    if warning and world.is_main:
        print(warning, file=sys.stderr)


def parameter_groups(module: ResponseLoss, proxy: ProxyInstruction | None) -> dict[str, list[nn.Parameter]]:
    """Return the trained parameters by part: `proxy`, `encoder`, `fusion`, `decoder`; parts without any are left out."""
    groups: dict[str, list[nn.Parameter]] = {part: [] for part in ("proxy", *PARTS)}
    if proxy is not None and proxy.theta.requires_grad:
        groups["proxy"].append(proxy.theta)
    for name, parameter in module.model.named_parameters():
        if parameter.requires_grad:
            groups[part_of(name)].append(parameter)
    return {part: parameters for part, parameters in groups.items() if parameters}


def trained_share(module: ResponseLoss, tuning: Tuning, groups: Mapping[str, Sequence[nn.Parameter]]) -> str:
    """Return a line that says how many parameters are trained, by part and as a share of the model's."""
    model = module.model
    parts = {part: sum(p.numel() for p in group) for part, group in groups.items()}
    base = sum(p.numel() for name, p in model.named_parameters() if not is_added(name))
    total = sum(count for part, count in parts.items() if part != "proxy")
    listed = [
        f"{part} {tuning[part].method if part in PARTS else ''} {n:,}".replace("  ", " ") for part, n in parts.items()
    ]
    return f"trained: {', '.join(listed)}; {100 * total / base:.3f} % of the model's {base:,} parameters"


def build_optimizer(cfg: TrainSettings, tuning: Tuning, groups: dict[str, list[nn.Parameter]]) -> Optimizer:
    """Build the optimizer, one parameter group a part, each with its own learning rate if the config gives one."""
    lr = {"proxy": cfg.proxy.lr, **{part: how.lr for part, how in tuning.items()}}
    return instantiate(
        cfg.optimizer,
        "optimizer",
        [
            {"params": parameters, "name": part} | ({"lr": lr[part]} if lr.get(part) is not None else {})
            for part, parameters in groups.items()
        ],
    )


def offload_activations(world: World) -> saved_tensors_hooks:
    """Return torchtune's context that moves activations to pinned host memory and back on a stream of its own.

    Raises:
        ConfigError: if the run is not on CUDA.
    """
    if world.device.type != "cuda":
        raise ConfigError(f"activation_offloading: needs device=cuda, and the run is on {world.device.type}")
    return leave_weights(OffloadActivations())


def leave_weights(hooks: saved_tensors_hooks) -> saved_tensors_hooks:
    """Return the same hooks, which no longer get weights.

    A linear layer saves its weight's transpose, a view, which torchtune's hooks take for an activation: they would carry all
    weights to the host and back in every step.
    """
    pack, unpack = hooks.pack_hook, hooks.unpack_hook

    def pack_others(saved: Tensor) -> Any:
        is_weight = isinstance(saved, nn.Parameter) or isinstance(saved._base, nn.Parameter)  # noqa: SLF001
        return saved if is_weight else pack(saved)

    hooks.pack_hook = pack_others
    hooks.unpack_hook = lambda packed: packed if isinstance(packed, Tensor) else unpack(packed)
    return hooks


def checkpoint_bytes(module: ResponseLoss, cfg: TrainSettings) -> int:
    """Return the bytes that the weights of the final checkpoint take, or, where that is an adapter, the trained weights."""
    width = parse_dtype(cfg.save_dtype or cfg.dtype).itemsize
    if Tuning.parse(cfg.tuning).adapter_kinds:
        return sum(p.numel() * p.itemsize for p in module.model.parameters() if p.requires_grad)
    return sum(tensor.numel() for tensor in module.model.state_dict().values()) * width


def write_checkpoint(folder: Path, module: ResponseLoss, cfg: TrainSettings, world: World, card: str) -> None:
    """Gather the model on the main process and write it as a checkpoint in Hugging Face layout, or its adapter alone.

    Parts that `tuning` sets back are saved as they were in `checkpoint_dir`, or at their share of the way from there.

    Args:
        folder: the folder to create.
        module: the training forward around the model.
        cfg: a config of `TrainSettings`.
        world: the processes; all must call this.
        card: text of its model card.

    Raises:
        UserError: if it cannot be written; nothing is left of it then.
    """
    source = Path(cfg.checkpoint_dir) if cfg.checkpoint_dir else None
    tuning, dtype = Tuning.parse(cfg.tuning), parse_dtype(cfg.save_dtype or cfg.dtype)
    if source is not None and tuning.adapter_kinds:
        write = gather_adapter(
            module.model, tuning, source, dtype=dtype, card=card, is_main=world.is_main, layout=cfg.image_layout
        )
        on_main(world, lambda: write(folder))
        return
    shares = {part: how.share for part, how in tuning.items()}
    # Every process gathers every tensor in the same order, one at a time; the main process alone keeps it until its file is
    # written, so that no host ever holds the whole model.
    whole = WholeTensors(module.model)
    set_back = source is not None and min(shares.values()) < 1
    weights = chain(
        blend(read_weights(source), whole, shares) if source is not None and set_back else (),
        ((name, whole[name]) for name in whole if not set_back or shares[part_of(name)] == 1),
    )

    def save() -> None:
        try:
            save_checkpoint(
                folder,
                weights,
                hf_config(module.model),
                dtype=dtype,
                source=source,
                transform=instantiate(cfg.tokenizer, "tokenizer"),
                layout=cfg.image_layout,
                model_card=card,
            )
        finally:
            deque(weights, maxlen=0)  # after an error too: the others wait for this process's share of every tensor

    if not world.is_main:
        deque(weights, maxlen=0)
    on_main(world, save)


class WholeTensors(Mapping[str, Tensor]):
    """A model's weights by name, each gathered from its shards when it is asked for; all processes must ask together."""

    def __init__(self, model: DeepFusionModel) -> None:
        self._state = model.state_dict()

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._state[name]
        return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor.cpu()

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)
