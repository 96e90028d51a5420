"""Leakage and sanity checks of a finished build: what would make an accuracy mean less than it seems to."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ift_components.data.parts import part_rows
from ift_components.data.prepared import SPLITS
from ift_components.data.problems import Problems
from ift_components.data.source import Source

NEAR = 4  # bits of 64 in which the difference hashes of near-duplicates may differ
LISTED = 30  # values of an attribute that are listed; the rest is summed up
SHOWN = 10  # keys named of what occurs in several splits
FEW = 5  # a file-name prefix shared by fewer images tells nothing


@dataclass
class Checks:
    """Figures about a build and the warnings that follow from them.

    Attributes:
        balance: number of images by attribute, split and value.
        questions: by split and attribute the number of questions, the accuracy of guessing at random (`chance`), of the
            most frequent answer (`majority`) and of the most frequent letter (`letter`); without options there is no
            `chance` and no `letter`.
        leaks: what occurs in more than one split.
        file_names: by attribute how often the answer stands in the file's path, and the accuracy of guessing it from
            folder and file-name prefix.
        warnings: sentences for the user.
    """

    balance: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    questions: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    leaks: dict[str, Any] = field(default_factory=dict)
    file_names: dict[str, dict[str, float]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def run_checks(
    source: Source,
    folder: Path,
    files: Path,
    counts: Mapping[str, Mapping[str, int]],
    problems: Problems,
    *,
    near: bool,
) -> Checks:
    """Check a build whose Parquet files are written. Of a private source no answer, group or image is named.

    Args:
        source: the dataset.
        folder: the prepared folder.
        files: its file of facts about every image.
        counts: number of reports and questions of each split.
        problems: the bad rows that were left out.
        near: whether difference hashes were computed.
    """
    checks = Checks()
    _completeness(counts, problems, checks)
    _balance(source, folder, checks)
    _questions(source, folder, files, checks)
    _groups(folder, checks)
    _identical(files, checks)
    if near:
        _near_duplicates(files, checks)
    if source.private:
        for leak in checks.leaks.values():
            leak["first"] = []
    return checks


def _completeness(counts: Mapping[str, Mapping[str, int]], problems: Problems, checks: Checks) -> None:
    usable = sum(counts["reports"].values())
    if problems.rows:
        share = len(problems.rows) / (len(problems.rows) + usable)
        checks.warnings.append(
            f"{len(problems.rows)} rows ({share:.0%}) were left out because something is wrong with them"
        )
    if not counts["questions"]["val"] and not counts["questions"]["test"]:
        checks.warnings.append("there are no questions in val and test: an evaluation can only compare reports")


def _balance(source: Source, folder: Path, checks: Checks) -> None:
    # An attribute of a private source that takes any text holds report text: it is not listed.
    attributes = [a for a in source.schema.attributes if not source.private or a.option_texts() is not None]
    names = [attribute.name for attribute in attributes]
    wordings = {attribute.name: attribute.text for attribute in attributes}
    counts = {name: {split: Counter[str]() for split in SPLITS} for name in names}
    for split in SPLITS if names else ():
        for row in part_rows(folder / "reports" / f"{split}.parquet", ["attributes"]):
            for item in row["attributes"]:
                if item["name"] in counts:  # sections of a text, such as sentences, are no attributes
                    counts[item["name"]][split][item["value"]] += 1
    checks.balance = {name: {s: _listed(c) for s, c in by_split.items()} for name, by_split in counts.items()}
    for name, by_split in counts.items():
        # As reports word them: several source values may be one.
        texts = {split: {wordings[name](value) for value in counter} for split, counter in by_split.items()}
        every = set[str]().union(*texts.values())
        if len(every) == 1:
            checks.warnings.append(f"attribute '{name}' has one value only: {every.pop()}")
        unseen = (texts["val"] | texts["test"]) - texts["train"]
        if unseen and len(every) <= LISTED:
            checks.warnings.append(f"attribute '{name}': not in training: {', '.join(sorted(unseen))}")


def _listed(counter: Counter[str]) -> dict[str, int]:
    listed = dict(counter.most_common(LISTED))
    unlisted = counter.total() - sum(listed.values())
    return listed | ({f"({len(counter) - LISTED} other values)": unlisted} if unlisted else {})


def _questions(source: Source, folder: Path, files: Path, checks: Checks) -> None:
    # In a damaged table an attribute's name may be anything, so that those of a private source must be on a list.
    listed = {*source.question_names, *(attribute.name for attribute in source.schema.attributes)}
    paths = {row["id"]: row["file"] for row in part_rows(files, ["id", "file", "split"]) if row["split"] != "train"}
    named: dict[str, list[bool]] = defaultdict(list)
    by_prefix: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    columns = ["image_id", "attribute", "options", "answer", "answer_text", "rotation"]
    for split in SPLITS:
        tallies: dict[str, _Tally] = defaultdict(_Tally)
        for row in part_rows(folder / "questions" / f"{split}.parquet", columns):
            name = row["attribute"] if not source.private or row["attribute"] in listed else "question"
            answer = row["answer_text"]
            tallies[name].add(row)
            if split != "train" and not row["rotation"]:
                path = Path(paths[row["image_id"]])
                named[name].append(_gives_away(str(_inside(path, source.root)), answer, row["options"] or []))
                by_prefix[name][_prefix(path)][answer] += 1
        checks.questions[split] = {name: tally.figures() for name, tally in tallies.items()}
        constant = [name for name, tally in tallies.items() if len(tally.answers) == 1 and tally.answers.total() > 1]
        if constant and split != "train":
            names = ", ".join(repr(name) for name in constant[:SHOWN])
            checks.warnings.append(f"all questions of {split} about {names} have one and the same answer")
    for name, flags in named.items():
        _file_names(name, flags, by_prefix[name], checks)


@dataclass
class _Tally:
    """Counts of the questions about one attribute in one split."""

    answers: Counter[str] = field(default_factory=Counter)
    letters: Counter[int] = field(default_factory=Counter)
    chance: float = 0.0

    def add(self, row: Mapping[str, Any]) -> None:
        self.answers[row["answer_text"]] += 1
        if row["options"]:
            self.letters[row["answer"]] += 1
            self.chance += 1 / len(row["options"])

    def figures(self) -> dict[str, float | None]:
        """Return the number of questions and the accuracies of guessing; those that need options only where there are any."""
        choices = self.letters.total()
        return {
            "count": self.answers.total(),
            "chance": round(self.chance / choices, 4) if choices else None,
            "majority": round(self.answers.most_common(1)[0][1] / self.answers.total(), 4),
            "letter": round(self.letters.most_common(1)[0][1] / choices, 4) if choices else None,
        }


def _inside(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path  # a link may lead outside


def _gives_away(path: str, answer: str, options: list[str]) -> bool:
    """Tell whether the answer, but no other option, stands in a path as a word."""
    words = " " + " ".join(re.findall(r"[^\W_]+", path.lower())) + " "

    def stands(text: str) -> bool:
        inner = " ".join(re.findall(r"[^\W_]+", text.lower()))
        return bool(inner) and f" {inner} " in words

    return stands(answer) and not any(stands(text) for text in options if text != answer)


def _prefix(path: Path) -> str:
    letters = re.match(r"[^\W\d_]*", path.stem)
    return f"{path.parent}/{letters.group() if letters else ''}"


def _file_names(name: str, named: list[bool], by_prefix: dict[str, Counter[str]], checks: Checks) -> None:
    shared = [counter for counter in by_prefix.values() if counter.total() >= FEW]
    total = sum(counter.total() for counter in shared)
    guessed = sum(counter.most_common(1)[0][1] for counter in shared) / total if total else 0.0
    everything = sum(shared, Counter())
    majority = everything.most_common(1)[0][1] / total if total else 0.0
    share = sum(named) / len(named)
    checks.file_names[name] = {"named": round(share, 4), "by_prefix": round(guessed, 4), "majority": round(majority, 4)}
    if share > 0.5:  # noqa: PLR2004
        checks.warnings.append(
            f"attribute '{name}': the answer stands in the path of {share:.0%} of the images asked about"
        )
    if len(shared) > 1 and guessed > 0.9 and guessed - majority > 0.2:  # noqa: PLR2004
        checks.warnings.append(
            f"attribute '{name}': folder and file-name prefix give the answer away ({guessed:.0%} right, against "
            f"{majority:.0%} by the most frequent answer); show no model the file names"
        )


def _across(splits_of: dict[Any, set[str]]) -> dict[str, Any]:
    """Return how many keys occur in more than one split, by pair of splits, and the first ten."""
    crossing = {key: sorted(splits, key=SPLITS.index) for key, splits in splits_of.items() if len(splits) > 1}
    pairs = Counter(" and ".join(splits) for splits in crossing.values())
    return {"count": len(crossing), "pairs": dict(pairs), "first": sorted(map(str, crossing))[:SHOWN]}


def _warn(checks: Checks, key: str, what: str) -> None:
    leak = checks.leaks[key]
    if leak["count"]:
        pairs = ", ".join(f"{pair} {count}" for pair, count in leak["pairs"].items())
        checks.warnings.append(f"{leak['count']} {what} in more than one split ({pairs})")


def _groups(folder: Path, checks: Checks) -> None:
    splits_of: dict[str, set[str]] = defaultdict(set)
    for split in SPLITS:
        for row in part_rows(folder / "reports" / f"{split}.parquet", ["group"]):
            if row["group"] is not None:
                splits_of[row["group"]].add(split)
    checks.leaks["groups"] = {"total": len(splits_of), **_across(splits_of)}
    _warn(checks, "groups", "groups (patients)")


def _usable(files: Path, columns: Iterable[str]) -> Iterable[dict[str, Any]]:
    return (row for row in part_rows(files, [*columns, "problem"]) if row["problem"] is None)


def _identical(files: Path, checks: Checks) -> None:
    splits_of: dict[bytes, set[str]] = defaultdict(set)
    first: dict[bytes, str] = {}
    within = 0
    for row in _usable(files, ("id", "split", "sha256")):
        digest = bytes.fromhex(row["sha256"])[:16]
        within += row["split"] in splits_of[digest]
        splits_of[digest].add(row["split"])
        first.setdefault(digest, row["id"])
    named = {first[digest]: splits for digest, splits in splits_of.items() if len(splits) > 1}
    checks.leaks["identical_images"] = {**_across(named), "repeated_within_a_split": within}
    _warn(checks, "identical_images", "identical images")
    if within:
        checks.warnings.append(f"{within} images repeat another of their split, byte for byte")


def _near_duplicates(files: Path, checks: Checks) -> None:
    rows = list(_usable(files, ("id", "split", "perceptual")))
    hashes = np.array([row["perceptual"] for row in rows], dtype=np.uint64)
    splits = np.array([SPLITS.index(row["split"]) for row in rows])
    pairs: dict[str, set[str]] = {}
    for place in np.flatnonzero(splits > 0):
        # Each image outside training against the splits before its own, so that a pair counts once.
        near = (np.bitwise_count(hashes ^ hashes[place]) <= NEAR) & (splits < splits[place])
        if near.any():
            other = int(np.flatnonzero(near)[0])
            pairs[f"{rows[place]['id']} ~ {rows[other]['id']}"] = {rows[place]["split"], rows[other]["split"]}
    checks.leaks["near_duplicates"] = _across(pairs)
    _warn(checks, "near_duplicates", "images that look alike")
