"""What a dataset builder gives: a schema, the source tables and a stream of records."""

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from ift_components.data.problems import Problems
from ift_components.data.schema import Schema
from ift_components.errors import ConfigError, DataError

ImageStore = Literal["embed", "path"]
OnBadRow = Literal["error", "skip"]
QuestionKind = Literal["choice", "closed", "open"]
_SWITCHES = ("follow_links", "private")  # arguments that every builder takes


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
        private: whether reports and questions must not appear in messages, previews or manifests.
        follow_links: whether images may lie where a link inside the folder leads; filled in by `builder`.
        question_names: attributes under which the source's own questions are reported; those of a private source are
            reported under these and the schema's names only.
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
    follow_links: bool = False
    question_names: tuple[str, ...] = ()
    has_reports: bool = True
    notes: tuple[str, ...] = ()
    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, allowed in (("images", ("embed", "path")), ("on_bad_row", ("error", "skip"))):
            if getattr(self, key) not in allowed:
                raise ConfigError(f"builder.{key} is {getattr(self, key)!r}, expected one of: {', '.join(allowed)}")

    def with_phrase(self, phrase: str) -> "Source":
        """Return the source with reports in which every attribute reads as `phrase` says (see `Schema.with_phrase`).

        Raises:
            ConfigError: if the phrase has no `{value}`, or images come with reports that are not made from attributes.
        """

        def records(problems: Problems) -> Iterator[Record]:
            for record in self.records(problems):
                if record.report is not None or not self.has_reports:
                    raise ConfigError(
                        f"report_phrase: reports of {self.name} are not made from attributes; set it to null"
                    )
                yield record

        return replace(self, schema=self.schema.with_phrase(phrase), records=records)

    def problems(self) -> Problems:
        """Return a collector of this source's bad rows."""
        return Problems(private=self.private, follow_links=self.follow_links)


def builder(function: Callable[..., Source]) -> Callable[..., Source]:
    """Make a function that returns a `Source` a builder: its name and arguments are kept for the manifest.

    Arguments are checked against their annotations, and `root` is made absolute. A parameter `options` that is annotated
    with a dataclass stands for its fields: the builder takes each of them as a keyword. Every builder also takes
    `follow_links` and `private` (see `Source`); one that reads tables itself, before the records are asked for, has a
    parameter `private`.
    """
    own = inspect.signature(function, eval_str=True)
    group = own.parameters["options"].annotation if "options" in own.parameters else None
    shared = inspect.signature(group, eval_str=True).parameters if group else {}
    parameters = [p for name, p in own.parameters.items() if name != "options"]
    parameters += [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in shared.values()]
    switches = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool) for name in _SWITCHES
    ]
    flat = own.replace(parameters=[*(p for p in parameters if p.name not in _SWITCHES), *switches])

    @functools.wraps(function)
    def build(*args: Any, **kwargs: Any) -> Source:
        bound = flat.bind(*args, **kwargs)
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            check_argument(f"builder.{name}", value, flat.parameters[name].annotation)
        bound.arguments["root"] = str(find_root(bound.arguments["root"]))
        arguments = {name: value for name, value in bound.arguments.items() if name in own.parameters}
        if group:
            arguments["options"] = group(**{name: bound.arguments[name] for name in shared})
        source = function(**arguments)
        return replace(
            source,
            name=function.__name__,
            arguments=dict(bound.arguments),
            follow_links=bound.arguments["follow_links"],
            private=source.private or bound.arguments["private"],
        )

    build.__signature__ = flat  # type: ignore[attr-defined]
    return build


def check_argument(key: str, value: Any, annotation: Any) -> None:
    """Check a value from YAML against a parameter's annotation.

    Raises:
        ConfigError: naming the key, the value and what was expected.
    """
    choices = get_args(annotation) if get_origin(annotation) in (UnionType, Union) else (annotation,)
    if not any(_fits(value, choice) for choice in choices):
        expected = " or ".join(_described(choice) for choice in choices)
        raise ConfigError(f"{key} is {value!r}, expected {expected}")


def _fits(value: Any, annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin is Literal:
        return value in get_args(annotation)
    if origin in (list, tuple, Sequence):
        item = get_args(annotation)[0]
        return isinstance(value, Sequence) and not isinstance(value, str) and all(_fits(v, item) for v in value)
    if annotation in (float, int):  # True is an int to Python, but no number to a user
        return isinstance(value, (int, annotation)) and not isinstance(value, bool)
    kinds = {None: NoneType, str: (str, Path)}
    annotation = kinds.get(annotation, annotation)
    return not isinstance(annotation, type | tuple) or isinstance(value, annotation)


def _described(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return "one of: " + ", ".join(map(str, get_args(annotation)))
    if origin in (list, tuple, Sequence):
        return "a list, such as [a, b]"
    if annotation in (None, type(None)):
        return "null"
    return {str: "a text", float: "a number", int: "a whole number", bool: "true or false"}.get(
        annotation, str(annotation)
    )


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
        root: the dataset's folder, resolved; an image must lie under it, also after following symbolic links (unless
            `problems.follow_links`).
        name: the path in the source table.
        where: the row, for the message.
        problems: where the message goes.
    """
    if not name or "\0" in name:
        problems.add(where, "has no image path")
        return None
    try:
        path = (root / name).resolve()
        inside = path.is_relative_to(root)
        if not inside and problems.follow_links:
            inside = Path(os.path.normpath(root / name)).is_relative_to(root)
        if not inside:
            kind = "image lies outside of the dataset's folder"
            problems.add(where, f"image '{name}' lies outside of {root}", kind)
            return None
        if not path.is_file():
            problems.add(where, f"image '{name}' is missing in {root}", "image is missing")
            return None
        str(path).encode()
    except UnicodeEncodeError:
        what = f"image {name!a} has a name that is not UTF-8; rename the file"
        problems.add(where, what, "image has a name that is not UTF-8; rename the file")
        return None
    except (OSError, RuntimeError) as error:
        problems.add(where, f"image '{name}' cannot be reached: {error}", "image cannot be reached")
        return None
    return path
