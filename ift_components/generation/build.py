"""From a prepared folder with captions and a model's replies to a prepared folder with questions."""

import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from ift_components.config import instantiate
from ift_components.data.build import FILES
from ift_components.data.checks import run_checks
from ift_components.data.identity import data_files
from ift_components.data.parts import Writer, part_rows
from ift_components.data.prepared import FORMAT_VERSION, QUESTION_FEATURES, SPLITS, read_manifest
from ift_components.data.preview import preview_page
from ift_components.data.schema import Schema
from ift_components.data.source import Source
from ift_components.errors import ConfigError, DataError
from ift_components.files import complete_folder, locked, owner_only, require_new_folder, sha256, write_json, write_text
from ift_components.generation.asking import ImportOptions, ReplyFile, ServerOptions, StoredReply, Task
from ift_components.generation.filters import Candidate, Filter, apply_filters
from ift_components.generation.replies import Pair, Parsed
from ift_components.generation.review import Decisions, ReviewOptions, review_page
from ift_components.generation.templates import Template, find_template


@dataclass
class GenerateOptions:
    """What is asked about which captions, and which pairs are left out.

    Attributes:
        template: name of the prompt (`templates.TEMPLATES`).
        prompt: another text for it, with the fields `{caption}`, `{context}` and `{count}`; null takes the template's own.
        count: pairs to ask for.
        splits: splits whose captions are asked about.
        context: names in the reports' `attributes` column whose values are told beside the caption.
        limit: captions of each split, from its beginning; null takes all.
        replies: file that keeps the replies; null: beside the prepared folder, with `.replies.jsonl` behind its name.
        server: the server that writes.
        imported: replies that were got elsewhere.
        filters: components, by name and in order; each gets the pairs that those before it kept.
        review: the page for a person to look at some pairs, and the decisions of one who did.
    """

    template: str = "several_pairs"
    prompt: str | None = None
    count: int = 5
    splits: list[str] = field(default_factory=lambda: list(SPLITS))
    context: list[str] = field(default_factory=lambda: ["context"])
    limit: int | None = None
    replies: str | None = None
    server: ServerOptions = field(default_factory=ServerOptions)
    imported: ImportOptions = field(default_factory=ImportOptions)
    filters: dict[str, Any] = field(default_factory=dict)
    review: ReviewOptions = field(default_factory=ReviewOptions)


@dataclass
class GenerateSettings(GenerateOptions):
    """The keys of a generate config; those of `GenerateOptions`, and where from and to.

    Attributes:
        data: prepared folder with captions.
        output_dir: the prepared folder to write.
    """

    data: str = MISSING
    output_dir: str = MISSING


@dataclass(frozen=True)
class _Caption:
    """An image's caption and what else the prepared folder knows about the image."""

    image_id: str
    split: str
    text: str
    context: str
    facts: str
    group: str | None


def generate(data: str | Path, output_dir: str | Path, options: GenerateOptions) -> dict[str, Any]:
    """Write a prepared folder with the reports and images of another and with generated questions; return its manifest.

    Args:
        data: a prepared folder with captions.
        output_dir: the folder to write; absent, empty or the same result.
        options: what is asked, and what is left out.

    Raises:
        ConfigError: for values that cannot be, or private captions and a remote server.
        DataError: if there are no captions, no replies, or no pair is left.
        UserError: if the server cannot be used or gave no reply to some captions; what it replied is kept.
    """
    folder, out = Path(data).expanduser().absolute(), Path(output_dir).expanduser().absolute()
    source = read_manifest(folder)
    if not source.get("has_reports", True):
        raise DataError(f"data: {folder} has questions but no captions to ask about")
    private = bool(source.get("private", True))  # folders of earlier versions do not say
    template = find_template(options.template, options.prompt)
    filters = _filters(options)
    decisions = Decisions.read(options.review.decisions)
    captions = _captions(folder, options)
    replies = _replies(folder, captions, options, template, private=private)
    identity = _identity(source, options, template, replies)
    with locked(out, f"output_dir: another process is writing {out}; wait for it"):
        if (out / "manifest.json").is_file():
            manifest = read_manifest(out)
            if manifest.get("fingerprint") == identity["fingerprint"]:
                print(f"{out}: unchanged, nothing to do")
                return manifest
        require_new_folder(out)
        candidates, outcome = _parse(captions, replies, options.template, template, _elsewhere(folder, captions))
        left, filtered = apply_filters(filters, candidates)
        left, reviewed = decisions.apply(left)
        if not left:
            raise DataError(f"no pair is left of {outcome['pairs']} ({_reasons(outcome['refused'], filtered)})")
        outcome |= {"filtered": {name: dict(counts) for name, counts in filtered.items()}, "reviewed": reviewed}
        outcome["kept"] = len(left)
        try:
            with complete_folder(out) as growing:
                manifest = _write(
                    folder, growing, source, {**identity, "generation": identity["generation"] | outcome}, left
                )
                if options.review.pairs and not private:
                    page = review_page(growing, left, options.review, identity["fingerprint"])
                    write_text(growing / "review.html", page)
        except OSError as error:
            kept = "; the replies are kept: make room and run the same command again"
            raise DataError(f"output_dir: {out} cannot be written: {error.strerror}{kept}") from error
    return manifest


def _filters(options: GenerateOptions) -> dict[str, Filter]:
    nodes = {name: node for name, node in options.filters.items() if node is not None}
    return {name: instantiate(node, f"filters.{name}") for name, node in nodes.items()}


def _captions(folder: Path, options: GenerateOptions) -> list[_Caption]:
    unknown = [split for split in options.splits if split not in SPLITS]
    if unknown or not options.splits:
        raise ConfigError(f"splits is {options.splits}, expected some of: {', '.join(SPLITS)}")
    if (options.limit is not None and options.limit < 1) or options.count < 1:
        raise ConfigError(f"limit is {options.limit} and count is {options.count}, expected at least 1")
    captions = []
    for split in options.splits:
        rows = part_rows(folder / "reports" / f"{split}.parquet", ["id", "report", "attributes", "group"])
        for _, row in zip(range(options.limit or 2**62), rows, strict=False):
            facts = [item["value"] for item in row["attributes"] if item["name"] != "sentence"]
            context = [item["value"] for item in row["attributes"] if item["name"] in options.context]
            texts = (" ".join(row["report"].split()), " ".join(context), " ".join(facts))
            captions.append(_Caption(row["id"], split, *texts, row["group"]))
    if not captions:
        raise DataError(f"data: {folder} has no captions in {', '.join(options.splits)}")
    return captions


def _replies(
    folder: Path, captions: Sequence[_Caption], options: GenerateOptions, template: Template, *, private: bool
) -> list[StoredReply]:
    """Return the imported replies and those of the server, which is asked for what it has not replied to yet."""
    replies = options.imported.read()
    if options.server.model is not None:
        path = (
            Path(options.replies).expanduser() if options.replies else folder.with_name(f"{folder.name}.replies.jsonl")
        )
        file = ReplyFile(path, options.server, options.template, private=private)
        tasks = [Task(c.image_id, template.render(c.text, c.context, options.count)) for c in captions if c.text]
        file.ask(tasks, options.server.client(private=private))
        stored = file.read()
        replies += [stored[key] for key in map(file.key, tasks)]
    elif options.imported.path is None:
        raise ConfigError("give server.model, the name of a model that server.base_url serves, or imported.path")
    return replies


def _identity(
    source: Mapping[str, Any], options: GenerateOptions, template: Template, replies: Sequence[StoredReply]
) -> dict[str, Any]:
    """Return the manifest's entries that decide the result, and a fingerprint over them and the replies."""
    server = asdict(options.server)
    asked = {key: server[key] for key in ("model", "temperature", "top_p", "max_tokens", "seed")}
    decisions = options.review.decisions
    imported = Path(options.imported.path).expanduser() if options.imported.path else None
    generation = {
        "data": source["fingerprint"],
        "template": options.template,
        "prompt": template.prompt,
        "options": {key: getattr(options, key) for key in ("count", "splits", "context", "limit")},
        "server": asked if options.server.model is not None else None,
        "imported": {"name": imported.name, "sha256": sha256(imported)} if imported else None,
        "filters": options.filters,
        "review": {**asdict(options.review), "decisions": sha256(Path(decisions).expanduser()) if decisions else None},
        "replies": hashlib.sha256(json.dumps([asdict(reply) for reply in replies]).encode()).hexdigest(),
    }
    digest = hashlib.sha256(json.dumps(generation, sort_keys=True).encode()).hexdigest()
    return {"generation": generation, "fingerprint": digest}


def _elsewhere(folder: Path, captions: Sequence[_Caption]) -> dict[str, tuple[str, ...]]:
    """Return for each image the other splits of the folder that hold the same image, by content, or its group."""
    splits_of: dict[str, set[str]] = defaultdict(set)
    keys: dict[str, list[str]] = defaultdict(list)
    for row in part_rows(folder / FILES, ["id", "split", "sha256"]):
        if row["sha256"]:
            splits_of[f"image {row['sha256']}"].add(row["split"])
            keys[row["id"]].append(f"image {row['sha256']}")
    for split in SPLITS:
        for row in part_rows(folder / "reports" / f"{split}.parquet", ["id", "group"]):
            if row["group"] is not None:
                splits_of[f"group {row['group']}"].add(split)
                keys[row["id"]].append(f"group {row['group']}")
    return {
        caption.image_id: tuple(
            sorted({split for key in keys[caption.image_id] for split in splits_of[key]} - {caption.split})
        )
        for caption in captions
    }


def _parse(
    captions: Sequence[_Caption],
    replies: Sequence[StoredReply],
    name: str,
    template: Template,
    elsewhere: Mapping[str, tuple[str, ...]],
) -> tuple[list[Candidate], dict[str, Any]]:
    """Return the pairs of all replies, in the captions' order, and the counts of what was parsed and refused."""
    by_image: dict[str, list[StoredReply]] = defaultdict(list)
    for reply in replies:
        by_image[reply.image_id].append(reply)
    candidates: list[Candidate] = []
    refused: Counter[str] = Counter()
    complete = total = 0
    for caption in captions:
        for reply in by_image.pop(caption.image_id, []):
            total += 1
            parsed = Parsed(refused=["the server refused"]) if reply.text is None else template.parser(reply.text)
            complete += parsed.complete
            refused.update(parsed.refused)
            for pair in parsed.pairs:
                answer = caption.text if template.answered_by_caption else pair.answer
                full = Pair(pair.question or template.question, answer, pair.options)
                near = elsewhere[caption.image_id]
                candidates.append(
                    Candidate(
                        caption.image_id, caption.split, full, caption.text, caption.facts, name, reply.split, near
                    )
                )
    if not total:
        raise DataError(
            "imported.path: no reply is about an image of the prepared folder; is imported.image_field right?"
        )
    counts = {
        "captions": len(captions),
        "captions_empty": sum(not caption.text for caption in captions),
        "replies": total,
        "replies_about_other_images": sum(map(len, by_image.values())),
        "replies_complete": complete,
        "pairs": len(candidates),
        "refused": dict(refused.most_common()),
    }
    return candidates, counts


def _reasons(refused: Mapping[str, int], filtered: Mapping[str, Counter[str]]) -> str:
    reasons = Counter(refused) + sum(filtered.values(), Counter[str]())
    return ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())


def _write(
    folder: Path, growing: Path, source: Mapping[str, Any], identity: Mapping[str, Any], left: Sequence[Candidate]
) -> dict[str, Any]:
    """Fill the folder: reports and images as they are, the questions, and the manifest with its checks anew."""
    by_image: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in left:
        by_image[candidate.image_id].append(candidate)
    shutil.copytree(folder / "reports", growing / "reports", dirs_exist_ok=True)
    for name in (FILES, "schema.yaml"):
        shutil.copyfile(folder / name, growing / name)
    (growing / "questions").mkdir(exist_ok=True)
    counts = {split: _write_questions(growing, split, by_image) for split in SPLITS}
    root = Path(str(source["builder"]["arguments"].get("root") or "/"))
    schema = Schema.from_dict(source["schema"]) if source["schema"]["attributes"] else Schema(())
    private = bool(source.get("private", True))
    names = tuple({candidate.template for candidate in left})
    checked = Source(root, schema, (), lambda _: iter(()), private=private, question_names=names)
    every = {"reports": source["counts"]["reports"], "questions": counts}
    near = bool(source["options"].get("near_duplicates"))
    checks = run_checks(checked, growing, growing / FILES, every, checked.problems(), near=near)
    manifest = {
        **source,
        **identity,
        "format": FORMAT_VERSION,
        "private": private,
        "counts": every,
        "checks": asdict(checks),
        "files": data_files(growing),
    }
    write_text(growing / "preview.html", preview_page(growing, manifest))
    write_json(growing / "manifest.json", manifest)
    if private:
        owner_only(growing)
    return manifest


def _write_questions(growing: Path, split: str, by_image: Mapping[str, Sequence[Candidate]]) -> int:
    count = 0
    with Writer(growing / "questions" / f"{split}.parquet", QUESTION_FEATURES.arrow_schema) as writer:
        for row in part_rows(growing / "reports" / f"{split}.parquet", ["id", "image"]):
            for number, question in enumerate(_question_rows(by_image.get(row["id"], ()))):
                writer.write({"id": f"{row['id']}#{number}", "image_id": row["id"], "image": row["image"], **question})
                count += 1
    return count


def _question_rows(candidates: Sequence[Candidate]) -> Iterator[dict[str, Any]]:
    for candidate in candidates:
        pair, options = candidate.pair, candidate.pair.options
        yield {
            "attribute": candidate.template,
            "question": pair.question,
            "options": list(options) if options else None,
            "answer": options.index(pair.answer) if options else None,
            "kind": candidate.kind,
            "answer_text": candidate.yes_or_no if candidate.kind == "closed" else pair.answer,
            "circular_group": None,
            "rotation": None,
        }
