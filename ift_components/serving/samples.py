"""What the page offers beside images of one's own: a prepared folder's images, their questions and its attributes."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ift_components.data.prepared import load_questions, read_manifest
from ift_components.data.schema import Schema
from ift_components.errors import ConfigError


@dataclass
class Samples:
    """Images and questions of a prepared folder.

    Attributes:
        attributes: what may be asked of any image: `{attribute, question, options}`.
        images: what is offered: `{id, questions}`, a question as above with `answer`, the right option's number.
        pictures: the images, each a PNG file.
        note: why there are no images although a folder was given; empty if nothing is to be said.
    """

    attributes: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)
    note: str = ""


def load_samples(folder: str | None, split: str, limit: int, *, is_local: bool) -> Samples:
    """Read what is offered.

    Args:
        folder: a prepared folder, or None for nothing.
        split: `train`, `val` or `test`.
        limit: images at most.
        is_local: whether only this machine can see them; otherwise a private folder's stay where they are.

    Raises:
        DataError: if folder or split are missing.
        ConfigError: if it has no multiple-choice questions.
    """
    if folder is None:
        return Samples()
    manifest = read_manifest(folder)
    # A folder prepared before this was noted may hold anybody's images: it counts as private.
    is_hidden = bool(manifest.get("private", True)) and not is_local
    questions = load_questions(Path(folder), split)
    samples = Samples(
        note="The images are private: they are shown on the server's own machine only." if is_hidden else ""
    )
    first_asked: dict[str, dict[str, Any]] = {}
    by_image: dict[str, dict[str, Any]] = {}
    for index, row in enumerate(questions.remove_columns("image")):
        if (row.get("kind") or "choice") != "choice" or not row["options"]:
            continue
        asked = {"attribute": row["attribute"], "question": row["question"], "options": list(row["options"])}
        first_asked.setdefault(row["attribute"], asked)
        if is_hidden or (row["image_id"] not in by_image and len(by_image) == limit):
            continue
        if row["image_id"] not in by_image:
            by_image[row["image_id"]] = {"id": row["image_id"], "questions": []}
            samples.pictures.append(_png(questions[index]["image"]))
        by_image[row["image_id"]]["questions"].append({**asked, "answer": row["answer"]})
    if not first_asked:
        raise ConfigError(f"samples: {folder} has no multiple-choice questions in split '{split}'; leave it out")
    # An attribute that takes any text has options that are text of private reports.
    samples.attributes = _attributes(manifest, first_asked, listed_only=is_hidden)
    samples.images = list(by_image.values())
    return samples


def _attributes(
    manifest: dict[str, Any], first_asked: dict[str, dict[str, Any]], *, listed_only: bool
) -> list[dict[str, Any]]:
    """Return what may be asked: an attribute with all its options, or as it is first asked where only the data tells them."""
    asked: dict[str, dict[str, Any]] = {} if listed_only else dict(first_asked)
    if manifest.get("schema"):
        for attribute in Schema.from_dict(manifest["schema"]).attributes:
            options = attribute.option_texts()
            if attribute.asked and options is not None and attribute.name in first_asked and attribute.sampled is None:
                question = {"attribute": attribute.name, "question": attribute.sentence, "options": list(options)}
                asked[attribute.name] = question
    return list(asked.values())


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
