"""A person's look at some of the pairs: a page with buttons, and the file of decisions that the next build reads."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ift_components.data.parts import part_rows
from ift_components.data.prepared import SPLITS
from ift_components.errors import DataError
from ift_components.generation.filters import Candidate
from ift_components.pages import data_url, environment

_SIDE = 480  # pixels of an image on the page


@dataclass
class ReviewOptions:
    """The page and its result.

    Attributes:
        pairs: pairs on the page, drawn at random from those that are left; 0 makes none. Of private data no page is made.
        seed: seed of the draw.
        decisions: the file that the page's button saved; pairs marked `drop` are left out. Null: nobody looked yet.
    """

    pairs: int = 50
    seed: int = 0
    decisions: str | None = None


@dataclass(frozen=True)
class Decisions:
    """What a reviewer decided: `keep` or `drop` by a pair's key."""

    by_key: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | None) -> "Decisions":
        """Return the decisions of a file, none for None.

        Raises:
            DataError: if it cannot be read or is no file of decisions.
        """
        if path is None:
            return cls()
        file = Path(path).expanduser()
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"review.decisions: {file} cannot be read as JSON: {error}") from error
        decisions = content.get("decisions") if isinstance(content, dict) else None
        if not isinstance(decisions, dict) or any(value not in ("keep", "drop") for value in decisions.values()):
            raise DataError(
                f"review.decisions: {file} is no file of the review page (decisions of keep or drop by key)"
            )
        return cls(decisions)

    def apply(self, candidates: Sequence[Candidate]) -> tuple[list[Candidate], dict[str, int]]:
        """Return the pairs that were not dropped, and how many decisions were keep, drop and about pairs that are not there."""
        keys = {candidate.key for candidate in candidates}
        used = {key: value for key, value in self.by_key.items() if key in keys}
        counts = {value: sum(decision == value for decision in used.values()) for value in ("keep", "drop")}
        counts["about_other_pairs"] = len(self.by_key) - len(used)
        return [c for c in candidates if self.by_key.get(c.key) != "drop"], counts


def review_page(folder: Path, candidates: Sequence[Candidate], options: ReviewOptions, fingerprint: str) -> str:
    """Return the page: one file with its images, which needs no network; decisions stay in it until they are saved.

    Args:
        folder: the prepared folder, for its images.
        candidates: the pairs to draw from.
        options: how many, and the seed.
        fingerprint: of the build, kept with the decisions.
    """
    order = sorted(candidates, key=lambda c: hashlib.sha256(f"{options.seed}/{c.key}".encode()).digest())[
        : options.pairs
    ]
    images = _images(folder, {candidate.image_id for candidate in order})
    pairs = [_card(candidate, images[candidate.image_id]) for candidate in order]
    template = environment("ift_components.generation").get_template("review.html")
    return template.render(pairs=pairs, total=len(candidates), fingerprint=fingerprint)


def _card(candidate: Candidate, image: str) -> dict[str, Any]:
    pair = candidate.pair
    return {
        "key": candidate.key, "image": image, "image_id": candidate.image_id, "split": candidate.split,
        "question": pair.question, "answer": pair.answer, "options": pair.options or (), "caption": candidate.caption,
    }  # fmt: skip


def _images(folder: Path, ids: set[str]) -> dict[str, str]:
    urls: dict[str, str] = {}
    for split in SPLITS:
        for row in part_rows(folder / "reports" / f"{split}.parquet", ["id", "image"]):
            if row["id"] in ids:
                stored = row["image"]
                with Image.open(io.BytesIO(stored["bytes"]) if stored["bytes"] else stored["path"]) as image:
                    urls[row["id"]] = data_url(image, _SIDE)
    return urls
