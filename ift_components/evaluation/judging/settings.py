"""The keys of the judge config."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from ift_components.errors import ConfigError
from ift_components.evaluation.judging.grading import JudgeTemplate, PromptOptions, find_template
from ift_components.evaluation.judging.sheet import SheetOptions
from ift_components.evaluation.tasks import CHOICE, FREE, REPORT
from ift_components.generation.asking import ChatServer

JUDGED = (FREE.name, REPORT.name, CHOICE.name)


def _templates() -> dict[str, str | None]:
    return {FREE.name: "correct", REPORT.name: "description"}


@dataclass
class JudgeOptions:
    """Who grades, by what, and how it is checked.

    Attributes:
        servers: judges by a name of your choice, which is also that of their replies.
        templates: the template of each judged task (`free`, `report`, `choice`): `description`, `reasoning`, `correct` or one
            of `prompts`; null leaves the task out.
        prompts: templates of your own, by name.
        allow_remote: let the texts of private folders leave this machine.
        pairs: whether the answers of every two evaluations are compared, in both orders.
        planted: sets of planted answers for each judge and task; 0 checks no judge, and says so.
        planted_share: share of the sets in which the reference must be graded above each other planted answer.
        sheets: people's grades by a name of your choice: the sheet of this folder, filled in.
        radeval: metrics of the package RadEval for reports of chest X-rays, e.g. `radgraph`; its own models are loaded.
    """

    servers: dict[str, ChatServer] = field(default_factory=dict)
    templates: dict[str, str | None] = field(default_factory=_templates)
    prompts: dict[str, PromptOptions] = field(default_factory=dict)
    allow_remote: bool = False
    pairs: bool = True
    planted: int = 20
    planted_share: float = 0.8
    sheets: dict[str, str] = field(default_factory=dict)
    radeval: list[str] = field(default_factory=list)


@dataclass
class JudgeSettings:
    """A second pass over the answers of finished evaluations.

    Attributes:
        evaluations: folders that `ift_eval_recipe` wrote.
        output_dir: folder to create, or that of an earlier pass: what it holds is not asked for again.
        judge: who grades, by what, and how it is checked.
        sheet: the sheet for people.
        bootstrap: replicates behind every interval.
        seed: seed of the bootstrap and of the draw of planted answers.
    """

    evaluations: list[str] = MISSING
    output_dir: str = MISSING
    judge: JudgeOptions = field(default_factory=JudgeOptions)
    sheet: SheetOptions = field(default_factory=SheetOptions)
    bootstrap: int = 1000
    seed: int = 0


def check_settings(cfg: JudgeSettings) -> dict[str, JudgeTemplate]:
    """Check the values that no type can, and return the templates by task.

    Raises:
        ConfigError: naming the key, its value and what is allowed.
    """
    judge = cfg.judge
    if not cfg.evaluations:
        raise ConfigError("evaluations: give at least one folder that ift_eval_recipe wrote")
    if not judge.servers:
        raise ConfigError("judge.servers: name at least one judge, e.g. judge.servers.first.model=NAME")
    for name, server in judge.servers.items():
        if server.model is None:
            raise ConfigError(f"judge.servers.{name}.model: give the name that the server knows the model by")
    both = sorted(set(judge.servers) & set(judge.sheets))
    if both:
        raise ConfigError(f"judge.sheets.{both[0]}: a judge is called so too; give the person another name")
    for task in judge.templates:
        if task not in JUDGED:
            raise ConfigError(f"judge.templates: '{task}' is not one of {', '.join(JUDGED)}")
    templates = {
        task: find_template(name, judge.prompts, f"judge.templates.{task}")
        for task, name in judge.templates.items()
        if name is not None
    }
    if not templates:
        raise ConfigError("judge.templates: no task has a template; give one, e.g. judge.templates.free=correct")
    for key, value, least in (
        ("judge.planted", judge.planted, 0), ("sheet.answers", cfg.sheet.answers, 0), ("bootstrap", cfg.bootstrap, 1)
    ):  # fmt: skip
        if value < least:
            raise ConfigError(f"{key}: {value} is below {least}")
    if not 0.5 < judge.planted_share <= 1:  # noqa: PLR2004 (half is what a coin reaches)
        raise ConfigError(f"judge.planted_share: {judge.planted_share}; expected above 0.5 and up to 1")
    return templates
