"""Pretrains the miniature to follow instructions about drawn cells and shapes.

    tune run tiny_pretrain --config tiny_pretrain.yaml output_dir=OUT
    tune run --nproc_per_node 2 tiny_pretrain --config tiny_pretrain.yaml output_dir=OUT

OUT/checkpoint holds the model in Hugging Face layout. The shipped one's model card tells how it was made with these stages.
"""

from ift_components.config import entry_point
from ift_components.distributed import distributed
from ift_components.miniature.pretraining import Pretraining, PretrainSettings


@entry_point(PretrainSettings)
def main(cfg: PretrainSettings) -> None:
    """Pretrain the miniature."""
    with distributed(cfg.device) as world:
        pretraining = Pretraining(cfg, world)
        pretraining.prepare()
        pretraining.run()


if __name__ == "__main__":
    main()
