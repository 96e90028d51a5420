"""One pass of judges over finished evaluations: judgements.jsonl to judging.json, its page, and a sheet for people."""

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ift_components.config import config_to_dict
from ift_components.errors import DataError
from ift_components.evaluation.judging.agreement import load_krippendorff
from ift_components.evaluation.judging.asking import (
    JUDGEMENTS,
    Judgements,
    ask_judge,
    comparisons,
    planted_comparisons,
)
from ift_components.evaluation.judging.radeval import Evaluator, load_radeval, radeval_figures
from ift_components.evaluation.judging.results import (
    agreement,
    check_pairs,
    check_planted,
    compare_answers,
    disagreements,
    judge_warnings,
    score_answers,
)
from ift_components.evaluation.judging.settings import JudgeSettings, check_settings
from ift_components.evaluation.judging.sheet import by_subject, read_sheet, write_sheet
from ift_components.evaluation.judging.subjects import JudgedEvaluation, Subject, planted_subjects, read_evaluation
from ift_components.evaluation.scorers import ScoringContext
from ift_components.evaluation.tasks import FREE, REPORT, of_task, score_all
from ift_components.evaluation.text_metrics import summarise_texts
from ift_components.files import locked, owner_only, require_new_folder, sha256, write_json, write_text
from ift_components.pages import environment
from ift_components.statistics import rounded

_SHOWN = 10  # answers on the page that raters differ on


def _read_evaluations(folders: Sequence[str], tasks: Sequence[str]) -> list[JudgedEvaluation]:
    """Return the evaluations; those with one label between them are called by their folders too."""
    read = [read_evaluation(Path(folder).expanduser(), tasks) for folder in folders]
    labels = [evaluation.label for evaluation in read]
    unique = [
        f"{label} ({Path(folder).expanduser().resolve()})" if labels.count(label) > 1 else label
        for label, folder in zip(labels, folders, strict=True)
    ]
    if len(set(unique)) < len(unique):
        raise DataError(f"evaluations: {', '.join(folders)} names a folder twice")
    return [JudgedEvaluation(label, e.predictions, e.private) for label, e in zip(unique, read, strict=True)]


class Judging:
    """Answers of finished evaluations, the judges who grade them, and the folder that all goes to.

    Args:
        cfg: the config.
    """

    def __init__(self, cfg: JudgeSettings) -> None:
        self.cfg = cfg
        self.path = Path(cfg.output_dir).expanduser()

    def prepare(self) -> None:
        """Read and check everything, so that after it there is only asking to do; nothing is written.

        Raises:
            UserError: for everything wrong with config, evaluations, sheets or folder.
        """
        cfg, judge = self.cfg, self.cfg.judge
        templates = check_settings(cfg)
        self._templates = {task: (str(judge.templates[task]), template) for task, template in templates.items()}
        self.evaluations = _read_evaluations(cfg.evaluations, list(templates))
        self.private = next((e.private for e in self.evaluations if e.private is not None), None)
        guarded = None if judge.allow_remote else self.private
        self._clients = {
            name: server.connect(f"judge.servers.{name}", private=guarded, allow="judge.allow_remote")
            for name, server in judge.servers.items()
        }
        self.subjects = [subject for evaluation in self.evaluations for subject in evaluation.subjects()]
        self._people = {
            name: by_subject(read_sheet(Path(file), self.subjects, f"judge.sheets.{name}"), self.subjects)
            for name, file in judge.sheets.items()
        }
        if len(judge.servers) + len(judge.sheets) > 1:
            load_krippendorff()
        self._radeval: Evaluator | None = load_radeval(judge.radeval, guarded)
        present = {subject.item.task for subject in self.subjects}
        self._planted = {task: self._plant(task) for task in templates if task in present}
        self._pairs = comparisons(self.evaluations) if judge.pairs and len(self.evaluations) > 1 else []
        planted = [s for subjects in self._planted.values() for s in subjects]
        self._planted_pairs = planted_comparisons(planted) if self._pairs else []
        if not (self.path / JUDGEMENTS).is_file():
            require_new_folder(self.path)

    def _plant(self, task: str) -> list[Subject]:
        predictions = [p for e in self.evaluations for p in e.predictions if p.item.task == task]
        return planted_subjects(predictions, self.cfg.judge.planted, self.cfg.seed)

    def run(self) -> dict[str, Any]:
        """Ask for every judgement that is not there yet; write all figures, the page and the sheet.

        Returns:
            The content of judging.json.

        Raises:
            UserError: for everything wrong with config, evaluations, sheets or folder, before anything is written; and if a
                judge leaves something without a reply: what it replied is kept.
        """
        self.prepare()
        with locked(self.path, f"output_dir: another pass of judges is writing to {self.path}; wait for it"):
            self.path.mkdir(parents=True, exist_ok=True)
            if self.private is not None:
                owner_only(self.path)
            if self.cfg.sheet.answers:
                write_sheet(self.path, self.subjects, self.cfg.sheet)
            judgements = {name: self._ask(name) for name in self._clients}
            results = self._gather(judgements)
            self._write(results, judgements)
            if self.private is not None:
                owner_only(self.path)
        return results

    def _ask(self, name: str) -> Judgements:
        planted = [subject for subjects in self._planted.values() for subject in subjects]
        # Equal texts need no comparison. Both orders of every other two are asked.
        pairs = [p for p in (*self._planted_pairs, *self._pairs) if p.first.answer != p.second.answer]
        orders = [one for pair in pairs for one in (pair, pair.swapped())]
        server, client = self.cfg.judge.servers[name], self._clients[name]
        subjects = [*planted, *self.subjects]
        return ask_judge(
            self.path, name, server=server, client=client, subjects=subjects, pairs=orders, templates=self._templates
        )

    def _gather(self, judgements: Mapping[str, Judgements]) -> dict[str, Any]:
        cfg = self.cfg
        settings: dict[str, Any] = {"draws": cfg.bootstrap, "seed": cfg.seed}
        judges = {name: self._judge(name, said, settings) for name, said in judgements.items()}
        raters = {name: said.graded(self.subjects) for name, said in judgements.items()} | self._people
        results: dict[str, Any] = {
            "evaluations": {e.label: self._texts(e) for e in self.evaluations},
            "judges": judges,
            "people": {name: {"graded": len(grades)} for name, grades in self._people.items()},
        }
        if len(raters) > 1:
            results["agreement"] = agreement(raters, **settings)
        paths = [Path(folder).expanduser() / "predictions.jsonl" for folder in cfg.evaluations]
        results |= {
            "config": config_to_dict(cfg),
            "predictions_sha256": {str(path): sha256(path) for path in paths},
        }
        self._differing = disagreements(raters, _SHOWN)
        plain: dict[str, Any] = rounded(results)
        return plain

    def _judge(self, name: str, said: Judgements, settings: Mapping[str, Any]) -> dict[str, Any]:
        judge = self.cfg.judge
        scores: dict[str, dict[str, Any]] = {}
        for evaluation in self.evaluations:
            groups: dict[str, list[Subject]] = defaultdict(list)
            for subject in evaluation.subjects():
                groups[subject.group].append(subject)
            scores[evaluation.label] = {
                group: score_answers(said, subjects, **settings) for group, subjects in sorted(groups.items())
            }
        result: dict[str, Any] = {"model": judge.servers[name].model, "base_url": self._clients[name].address}
        result["scores"] = scores
        result["planted"] = {
            task: check_planted(said, planted, least=judge.planted_share, **settings)
            for task, planted in self._planted.items()
        }
        if self._pairs:
            result["comparisons"] = compare_answers(said, self._pairs, **settings)
            result["planted_pairs"] = check_pairs(said, self._planted_pairs, judge.planted_share)
        return result | {"warnings": judge_warnings(result)}

    def _texts(self, evaluation: JudgedEvaluation) -> dict[str, Any]:
        """Return the figures of texts that no judge is needed for, by task."""
        figures: dict[str, Any] = {}
        for task in (FREE, REPORT):
            texts = score_all(of_task(evaluation.predictions, task), ScoringContext())
            if not texts:
                continue
            figures[task.name] = summarise_texts(texts)
            if task is REPORT and self._radeval is not None:
                answers, references = [p.generated or "" for p in texts], [p.item.reference for p in texts]
                figures[task.name]["radeval"] = radeval_figures(self._radeval, answers, references)
        return figures

    def _write(self, results: Mapping[str, Any], judgements: Mapping[str, Judgements]) -> None:
        write_json(self.path / "judging.json", results)
        write_text(self.path / "grades.csv", _grades(judgements))
        differing = [] if self.private is not None else self._differing
        values = {"r": results, "differing": differing, "private": self.private is not None}
        page = environment("ift_components.evaluation").get_template("judging.html").render(values)
        write_text(self.path / "judging.html", page.encode("utf-8", "backslashreplace").decode())


def _grades(judgements: Mapping[str, Judgements]) -> str:
    """Return every grade as a table: whose answer to what, by whom, and why there is none."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["judge", "evaluation", "planted", "task", "dataset", "id", "run", "grade", "ungraded"])
    for judge, said in judgements.items():
        for s, (grade, reason) in said.grades.items():
            item = s.item
            place = [item.task, item.dataset, item.id, s.run]
            writer.writerow([judge, s.evaluation, s.planted or "", *place, "" if grade is None else grade, reason])
    return buffer.getvalue().encode("utf-8", "backslashreplace").decode()


def _figure(value: float | None, interval: Sequence[float] | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")


def table(results: Mapping[str, Any]) -> str:
    """Return judges' scores as text, each judge's warnings before its scores."""
    lines = []
    for name, judge in results["judges"].items():
        lines.append(f"judge {name} ({judge['model']})")
        lines += [f"  WARNING: {warning}" for warning in judge["warnings"]]
        for label, groups in judge["scores"].items():
            for group, score in groups.items():
                ungraded = ", ".join(f"{count} {reason}" for reason, count in score["ungraded"].items())
                counted = f"{score['graded']} of {score['answers']} graded{f' ({ungraded})' if ungraded else ''}"
                lines.append(f"  {label}, {group}: {_figure(score['mean'], score['interval'])} of 10; {counted}")
        for pair in judge.get("comparisons", ()):
            counts = f"{pair['better']} better, {pair['worse']} worse, {pair['tied']} tied, {pair['unread']} unread"
            preferred = _figure(pair["preference"], pair["interval"])
            lines.append(f"  {pair['second']} against {pair['first']}: {preferred}; {counts}")
    if "agreement" in results:
        for pair in results["agreement"]["pairs"]:
            kappa = _figure(pair["kappa"], pair["kappa_interval"])
            lines.append(f"{pair['first']} and {pair['second']}: weighted kappa {kappa} on {pair['both']} answers")
        whole = results["agreement"]["all"]
        alpha = _figure(whole["alpha"], whole["interval"])
        lines.append(f"Krippendorff's alpha of all raters: {alpha} on {whole['units']} answers")
    else:
        lines.append("one judge: how far it agrees with anybody is not known; add another, or a person's sheet")
    return "\n".join(lines)
