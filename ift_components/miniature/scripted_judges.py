"""`ift_judge_recipe` with scripted judges: started on the loopback, asked, and gone. Their models are `coverage` and `overlap`.

python -m ift_components.miniature.scripted_judges --config judge.yaml evaluations=[OUT] output_dir=JUDGED \
    judge.servers.first.model=coverage judge.servers.second.model=overlap
"""

from ift_components.config import entry_point
from ift_components.evaluation.judging.run import Judging, table
from ift_components.evaluation.judging.settings import JudgeSettings
from ift_components.miniature.scripted import scripted_server


@entry_point(JudgeSettings)
def main(cfg: JudgeSettings) -> None:
    """Have the answers of finished evaluations graded by scripted judges."""
    with scripted_server() as server:
        for one in cfg.judge.servers.values():
            one.base_url = server.url
        print(table(Judging(cfg).run()))


if __name__ == "__main__":
    main()
