"""Several training runs in a chain, from one config: each stage starts from the checkpoint of the one before it.

    tune run ift_stages_recipe --config tiny_stages.yaml output_dir=OUT
    tune run ift_stages_recipe --config tiny_stages.yaml output_dir=OUT resume=true

OUT/NAME holds what `ift_recipe` leaves (or `ift_warmup_recipe`, where a stage trains the proxy alone), for every stage NAME of
the config; OUT/stages.html shows the losses of all. `resume=true` goes on with the first stage that is not finished.
"""

from ift_components.config import command
from ift_components.distributed import distributed
from ift_components.training.stages import PlannedStage, StagedRun, load_stages


@command(load_stages)
def main(stages: list[PlannedStage]) -> None:
    """Train stages one after another, each from the checkpoint before it."""
    with distributed(stages[0].cfg.device) as world:
        StagedRun(stages, world).run()


if __name__ == "__main__":
    main()
