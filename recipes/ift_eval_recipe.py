"""Evaluation: answers the questions of a prepared folder with a checkpoint, or compares finished evaluations.

    tune run ift_eval_recipe --config tiny_eval.yaml data=PREPARED checkpoint_dir=RUN/checkpoint output_dir=OUT
    tune run --nproc_per_node 4 ift_eval_recipe --config llama32v_eval.yaml ...
    tune run ift_eval_recipe --config tiny_eval.yaml compare=[OUT_A,OUT_B] output_dir=PAGE

OUT holds predictions.jsonl (one line an answer), results.json, report.html, report.md and table.tex. The same command goes on
where a stopped one was. Without checkpoint_dir the miniature is evaluated as it is before training.
"""

import os
from pathlib import Path

from ift_components.config import entry_point
from ift_components.distributed import distributed
from ift_components.errors import ConfigError
from ift_components.evaluation.compare import compare, comparison_table
from ift_components.evaluation.results import table
from ift_components.evaluation.run import Evaluation, tuning_steps
from ift_components.evaluation.settings import EvalSettings, check_settings
from ift_components.evaluation.verdict import standing


@entry_point(EvalSettings)
def main(cfg: EvalSettings) -> None:
    """Answer questions and report the accuracy, or compare finished evaluations."""
    check_settings(cfg)
    if cfg.compare is not None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("compare: runs in one process; leave out --nproc_per_node")
        print(comparison_table(compare(cfg)))
        print(f"page: {Path(cfg.output_dir) / 'comparison.html'}")
        return
    with distributed(cfg.device) as world:
        evaluation = Evaluation(cfg, world)
        results = evaluation.run()
    if results is not None:
        print(table(results))
        print(standing(results, tuning_steps(cfg)))
        print(f"results: {evaluation.path / 'results.json'}, pages: {evaluation.path / 'report.html'}")


if __name__ == "__main__":
    main()
