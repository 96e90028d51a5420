"""Warm-up: trains the proxy instruction alone, the model frozen.

    tune run ift_warmup_recipe --config tiny_warmup.yaml data=PREPARED output_dir=OUT
    tune run --nproc_per_node 4 ift_warmup_recipe --config llama32v_warmup.yaml data=PREPARED output_dir=OUT

OUT holds proxy_instruction.safetensors (what `ift_recipe` starts from), config.yaml, metrics.jsonl, loss_curve.png and
run.json.
"""

from ift_components.config import entry_point
from ift_components.distributed import distributed
from ift_components.training.checks import check_settings, check_warm_up
from ift_components.training.run import TrainingRun
from ift_components.training.settings import TrainSettings


@entry_point(TrainSettings)
def main(cfg: TrainSettings) -> None:
    """Train the proxy instruction with the model frozen."""
    stage = check_settings(cfg)
    check_warm_up(stage)
    with distributed(cfg.device) as world:
        TrainingRun(cfg, world, stage).run()


if __name__ == "__main__":
    main()
