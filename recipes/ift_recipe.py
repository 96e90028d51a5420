"""Momentum-proxy fine-tuning: trains the model under the momentum copy of a warmed-up proxy.

    tune run ift_recipe --config tiny_ift.yaml data=PREPARED proxy.path=WARMUP/proxy_instruction.safetensors \
        output_dir=OUT
    tune run --nproc_per_node 4 ift_recipe --config llama32v_ift.yaml data=PREPARED proxy.path=... output_dir=OUT

OUT/checkpoint holds the model in Hugging Face layout, which needs no proxy at inference, and the proxy it was trained under;
OUT also holds config.yaml, metrics.jsonl, loss_curve.png and run.json. `instruction="..."` alone is ordinary instruction
tuning, for comparison. The section `tuning` says which parts of the model are trained.
"""

from ift_components.config import entry_point
from ift_components.distributed import distributed
from ift_components.training.checks import check_settings
from ift_components.training.run import TrainingRun
from ift_components.training.settings import TrainSettings


@entry_point(TrainSettings)
def main(cfg: TrainSettings) -> None:
    """Fine-tune the model under the momentum proxy instruction."""
    stage = check_settings(cfg)
    with distributed(cfg.device) as world:
        TrainingRun(cfg, world, stage).run()


if __name__ == "__main__":
    main()
