"""Where weights lie and what is recomputed: `auto` in a config becomes what the device's memory allows, by the memory table."""

import sys
from dataclasses import replace

from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.distributed import World
from ift_components.models.build import build_model
from ift_components.models.forward import Batch
from ift_components.models.quantised import NF4
from ift_components.models.sharding import RECOMPUTED, checkpoint_activations
from ift_components.models.tile_padding import set_tile_padding
from ift_components.models.trainable import Tuning
from ift_components.training.activations import meta_model
from ift_components.training.flops import batch_flops
from ift_components.training.memory import peak_bytes, quantised_bytes, trained_bytes
from ift_components.training.settings import AUTO, TrainSettings, parse_dtype

USABLE = 0.9
"""Share of the free memory that a step may fill by the table; the rest is for kernels and gaps between blocks."""


def settle_layout(cfg: TrainSettings, world: World, tuning: Tuning, batch: Batch) -> TrainSettings:
    """Return the config with every `auto` replaced: the least that fits is recomputed, frozen weights are whole where they fit.

    Gathering frozen weights costs more than computing layers again, so that they stay whole if any recomputation makes room for
    them. Where nothing fits, the run gets what takes the least memory.

    Args:
        cfg: a config of `TrainSettings`.
        world: the processes; all must call this.
        tuning: what is trained.
        batch: the largest batch.
    """
    shards = world.size // cfg.data_parallel_replicate_dim
    if cfg.cpu_offload:
        frozen = ["sharded"]  # in host memory, which is its use
    elif shards == 1 or cfg.frozen_dtype == NF4:
        frozen = ["whole"]
    else:
        # What keeps the encoder's output runs it where a process has new pictures, which no gathering of weights could follow.
        both = ["whole"] if cfg.keep_encoded else ["whole", "sharded"]
        frozen = both if cfg.frozen_weights == AUTO else [cfg.frozen_weights]
    recomputed = list(RECOMPUTED) if cfg.activation_checkpointing == AUTO else [cfg.activation_checkpointing]
    choices = [(where, layers) for where in frozen for layers in recomputed]
    if len(choices) > 1:
        room = int(USABLE * world.smallest(world.free_memory()))
        choices = [
            choices[
                world.broadcast(_choose(cfg, tuning, batch, choices, shards=shards, room=room) if world.is_main else 0)
            ]
        ]
    ((where, layers),) = choices
    if AUTO in (cfg.frozen_weights, cfg.activation_checkpointing) and world.is_main and shards * len(recomputed) > 1:
        print(f"layout: frozen weights {where}, recomputed: {layers}", file=sys.stderr)
    return replace(cfg, frozen_weights=where, activation_checkpointing=layers)


def _choose(
    cfg: TrainSettings, tuning: Tuning, batch: Batch, choices: list[tuple[str, str]], *, shards: int, room: int
) -> int:
    """Return the index of the first choice that fits, in the order of what is computed; of the smallest if none does."""
    dtype = parse_dtype(cfg.dtype)
    operations = {layers: batch_flops(_model(cfg, tuning, batch, layers), batch, dtype) for _, layers in choices}
    order = sorted(
        range(len(choices)), key=lambda index: (choices[index][0] == "sharded", operations[choices[index][1]])
    )
    peaks = {}
    for index in order:
        where, layers = choices[index]
        model = _model(cfg, tuning, batch, layers)
        peak = peak_bytes(model, batch, dtype, shards=shards, shard_frozen=where == "sharded")
        copies = (cfg.averaging.decay is not None) + (cfg.rehearsal.kl_weight > 0)
        peak += copies * trained_bytes(model, shards)
        peaks[index] = peak - (quantised_bytes(model) if cfg.frozen_dtype == NF4 else 0)
        if peaks[index] <= room:
            return index
    smallest = min(peaks, key=lambda index: peaks[index])
    print(
        f"layout: nothing fits {room / 1e9:.1f} GB by the memory table; the least is {peaks[smallest] / 1e9:.1f} GB: lower "
        "batch_size, or take more processes or cpu_offload",
        file=sys.stderr,
    )
    return smallest


def _model(cfg: TrainSettings, tuning: Tuning, batch: Batch, recomputed: str) -> DeepFusionModel:
    def build() -> DeepFusionModel:
        model = build_model(cfg.model, meta=True)
        return set_tile_padding(model, cfg.image_layout.training_padding, cfg.tiles)

    model = meta_model(build, tuning, parse_dtype(cfg.dtype), batch.tokens.shape[1])
    checkpoint_activations(model, recomputed)
    return model
