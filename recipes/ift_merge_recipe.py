"""Merges an adapter into its base, or blends a tuned checkpoint with the one that it was tuned from.

    tune run ift_merge_recipe --config tiny_merge.yaml adapter_dir=RUN/adapter output_dir=OUT
    tune run ift_merge_recipe --config tiny_merge.yaml tuned_dir=RUN/checkpoint 'blend={fusion: 0.0}' output_dir=OUT
    tune run ift_merge_recipe --config tiny_merge.yaml tuned_dir=RUN/checkpoint 'blend=[0.5,0.7,0.85,1]' \
        validation.data=PREPARED output_dir=OUT

OUT/checkpoint is a checkpoint in Hugging Face layout; OUT/merge.json says what it was made of, and OUT/blend.png shows the
curve of the blends that were tried. The choice is made on validation questions and unrelated tasks alone.
"""

from pathlib import Path

from ift_components.config import entry_point
from ift_components.distributed import distributed
from ift_components.evaluation.merging import MergeSettings, Merging, check_merge


@entry_point(MergeSettings)
def main(cfg: MergeSettings) -> None:
    """Merge an adapter, or blend checkpoints."""
    candidates = check_merge(cfg)
    with distributed("cpu") as world:
        facts = Merging(cfg, candidates, world).run()
    for row in facts.get("candidates", []):
        print(row)
    print(f"shares from base (0) to tuned (1): {facts['shares']}")
    if "max_logit_difference" in facts:
        print(f"largest logit difference between adapter and merged checkpoint: {facts['max_logit_difference']:.2g}")
    print(f"checkpoint: {Path(cfg.output_dir) / 'checkpoint'}")


if __name__ == "__main__":
    main()
