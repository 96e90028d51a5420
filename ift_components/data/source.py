"""What a dataset builder gives: a schema, the source tables and a stream of records."""

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ift_components.data.schema import Schema
from ift_components.errors import ConfigError, DataError

ImageStore = Literal["embed", "path"]
OnBadRow = Literal["error", "skip"]
QuestionKind = Literal["choice", "closed", "open"]
SHOWN = 10


class Problems:
    """Bad rows, collected: the count and the first ten.

    Nothing from a free-text report belongs in a message: `where` names a file and a row, `what` a column and its value.

    Attributes:
        count: number of bad rows.
        first: the first ten, in words.
        left_out: rows that a dataset's protocol leaves out, which is no mistake: their number by reason.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []
        self.left_out: Counter[str] = Counter()

    def add(self, where: str, what: str) -> None:
        """Note what is wrong with a row."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(f"{where}: {what}")

    def extend(self, other: "Problems") -> None:
        """Add the problems that another collected."""
        self.count += other.count
        self.first = (self.first + other.first)[:SHOWN]
        self.left_out += other.left_out

    def raise_if_any(self, name: str) -> None:
        """Raise one DataError that shows the count and the first ten problems, if there is any."""
        if self.count:
            shown = f", the first {SHOWN}" if self.count > SHOWN else ""
            lines = "\n  ".join(self.first)
            raise DataError(
                f"{name}: {self.count} bad row(s){shown}:\n  {lines}\n"
                "mend them, or leave them out with builder.on_bad_row=skip"
            )


@dataclass(frozen=True)
class Question:
    """A question that comes with the dataset.

    Attributes:
        attribute: the name under which accuracy is reported.
        text: the sentence, without options.
        answer: the right text.
        kind: `choice` offers options; `closed` is answered by one of few words, such as yes or no; `open` by any text.
        options: the texts that a choice offers; None where they are to be drawn from the answers to the same attribute.
        also_right: other right answers about this image, never drawn as wrong options.
    """

    attribute: str
    text: str
    answer: str
    kind: QuestionKind = "choice"
    options: tuple[str, ...] | None = None
    also_right: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Record:
    """One image of a dataset.

    Attributes:
        id: unique in the dataset.
        split: train, val or test.
        image: the image's file.
        alternatives: further files, if `image` turns out to be a mask (`Source.skip_masks`).
        where: the source row, for messages.
        values: applicable source values by attribute name.
        group: what must not be divided between splits, usually the patient.
        report: the report, where the source holds one; by default made from the values.
        questions: questions that the source holds, of any split.
        sections: named parts of a free-text report, such as findings and impression; they follow the values in the
            `attributes` column, for response shuffling.
    """

    id: str
    split: str
    image: Path
    where: str
    values: Mapping[str, str] = field(default_factory=dict)
    group: str | None = None
    report: str | None = None
    questions: tuple[Question, ...] = ()
    sections: tuple[tuple[str, str], ...] = ()
    alternatives: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Source:
    """A dataset, ready to be prepared.

    Attributes:
        root: the dataset's folder.
        schema: the attributes.
        tables: source files whose content decides the result; their SHA-256 goes into the manifest.
        records: yields the records in a fixed order, train, val, test, and notes bad rows. It is called more than once.
        images: whether the prepared files hold the images or their paths.
        on_bad_row: stop with an error that lists bad rows, or leave them out.
        splits: the splits that must not be empty.
        square: pad images to a square with black, as the authors do for CBIS-DDSM and SKINCON.
        skip_masks: a record's first file that is not two-valued is its image.
        private: whether reports must not appear in logs, previews or manifests.
        has_reports: whether images come with reports; without, a report is empty and only questions can be trained on.
        notes: what a user should know about this source, shown when it is prepared.
        name: the builder's name; filled in by `builder`.
        arguments: the builder's arguments; filled in by `builder`.
    """

    root: Path
    schema: Schema
    tables: tuple[Path, ...]
    records: Callable[[Problems], Iterator[Record]]
    images: ImageStore = "embed"
    on_bad_row: OnBadRow = "error"
    splits: tuple[str, ...] = ("train", "val", "test")
    square: bool = False
    skip_masks: bool = False
    private: bool = False
    has_reports: bool = True
    notes: tuple[str, ...] = ()
    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, allowed in (("images", ("embed", "path")), ("on_bad_row", ("error", "skip"))):
            if getattr(self, key) not in allowed:
                raise ConfigError(f"builder.{key} is '{getattr(self, key)}', expected one of: {', '.join(allowed)}")


def builder(function: Callable[..., Source]) -> Callable[..., Source]:
    """Make a function that returns a `Source` a builder: its name and arguments are kept for the manifest.

    The function's `root` argument is checked and made absolute first. A parameter `options` that is annotated with a
    dataclass stands for its fields: the builder takes each of them as a keyword.
    """
    own = inspect.signature(function, eval_str=True)
    group = own.parameters["options"].annotation if "options" in own.parameters else None
    shared = inspect.signature(group).parameters if group else {}
    parameters = [p for name, p in own.parameters.items() if name != "options"]
    parameters += [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in shared.values()]
    flat = own.replace(parameters=parameters)

    @functools.wraps(function)
    def build(*args: Any, **kwargs: Any) -> Source:
        bound = flat.bind(*args, **kwargs)
        bound.apply_defaults()
        bound.arguments["root"] = str(find_root(bound.arguments["root"]))
        arguments = dict(bound.arguments)
        if group:
            options = group(**{name: arguments[name] for name in shared})
            arguments = {name: value for name, value in arguments.items() if name not in shared} | {"options": options}
        return replace(function(**arguments), name=function.__name__, arguments=dict(bound.arguments))

    build.__signature__ = flat  # type: ignore[attr-defined]
    return build


def find_root(root: str | Path) -> Path:
    """Return a dataset's folder, absolute and without symbolic links.

    Raises:
        DataError: if it is no folder.
    """
    path = Path(root).expanduser()
    if not path.is_dir():
        raise DataError(f"builder.root: '{root}' is not a folder; give the folder that holds the dataset")
    return path.resolve()


def require_files(root: Path, names: Iterable[str]) -> tuple[Path, ...]:
    """Return the files `root/name`.

    Raises:
        DataError: if any is missing; the message lists all that are.
    """
    paths = tuple(root / name for name in names)
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"builder.root: {root} lacks {', '.join(missing)}; is it the dataset's folder?")
    return paths


def find_image(root: Path, name: str, where: str, problems: Problems) -> Path | None:
    """Return the image `root/name`, or note why it cannot be used and return None.

    Args:
        root: the dataset's folder, resolved; an image must lie under it, also after following symbolic links.
        name: the path in the source table.
        where: the row, for the message.
        problems: where the message goes.
    """
    if not name or "\0" in name:
        problems.add(where, "has no image path")
        return None
    try:
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            problems.add(where, f"image '{name}' lies outside of {root}")
            return None
        if not path.is_file():
            problems.add(where, f"image '{name}' is missing in {root}")
            return None
        str(path).encode()
    except UnicodeEncodeError:
        problems.add(where, f"image {name!a} has a name that is not UTF-8; rename the file")
        return None
    except (OSError, RuntimeError) as error:
        problems.add(where, f"image '{name}' cannot be reached: {error}")
        return None
    return path
