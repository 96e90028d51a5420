"""Judges: language models behind OpenAI-compatible servers grade the answers of finished evaluations.

tune run ift_judge_recipe --config judge.yaml evaluations=[OUT] output_dir=JUDGED judge.servers.first.model=NAME
"""

from ift_components.config import entry_point
from ift_components.evaluation.judging.run import Judging, table
from ift_components.evaluation.judging.settings import JudgeSettings


@entry_point(JudgeSettings)
def main(cfg: JudgeSettings) -> None:
    """Have the answers of finished evaluations graded by language models."""
    judging = Judging(cfg)
    results = judging.run()
    print(table(results))
    print(f"page: {judging.path / 'judging.html'}, sheet for a person: {judging.path / 'sheet.html'}")


if __name__ == "__main__":
    main()
