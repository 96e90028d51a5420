"""Evaluation: answers the multiple-choice questions of a prepared folder with a checkpoint.

    tune run ift_eval_recipe --config tiny_eval.yaml data=PREPARED checkpoint_dir=RUN/checkpoint output_dir=OUT

OUT holds predictions.jsonl (one line a question) and results.json (accuracy overall and per attribute). Without checkpoint_dir the
miniature is evaluated as it is before training.
"""

import os

from omegaconf import DictConfig

from ift_components.config import entry_point
from ift_components.errors import ConfigError
from ift_components.evaluation.run import Evaluation, table
from ift_components.evaluation.settings import EvalSettings


@entry_point(EvalSettings)
def main(cfg: DictConfig) -> None:
    """Answer multiple-choice questions and report the accuracy."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("ift_eval_recipe runs in one process; leave out --nproc_per_node")
    evaluation = Evaluation(cfg)
    print(table(evaluation.run()))
    print(f"results: {evaluation.folder / 'results.json'}")


if __name__ == "__main__":
    main()
