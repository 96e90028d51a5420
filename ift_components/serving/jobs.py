"""What the server's worker is asked to do, and what it reports of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ift_components.evaluation.engine import Sampling


@dataclass(frozen=True)
class Picture:
    """An image that a request brought.

    Attributes:
        sha256: of its file's bytes; images of one hash are encoded once.
        image: the decoded picture.
    """

    sha256: str
    image: Image.Image


@dataclass(frozen=True)
class TokenLogprob:
    """How probable a token was when it was chosen: its text, its log-probability and those of the most probable ones."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Piece:
    """A token of an answer has been generated; its text may still be empty where a character takes several."""

    text: str
    logprob: TokenLogprob | None = None


@dataclass(frozen=True)
class Done:
    """The job is done.

    Attributes:
        reason: `stop` or `length` for a text.
        value: what was computed, for other jobs.
    """

    reason: str = "stop"
    value: Any = None


@dataclass(frozen=True)
class Failed:
    """The job cannot be done.

    Attributes:
        message: why, in one line.
        is_users: whether the request is at fault.
    """

    message: str
    is_users: bool = False


@dataclass(frozen=True)
class Gone:
    """The client has left."""


Event = Piece | Done | Failed | Gone


@dataclass(eq=False)
class Job:
    """Something about one image.

    Attributes:
        model: name of the model.
        picture: the image.
        emit: takes what happens, in the worker's thread.
        is_over: set when nothing more is to be done for it: it is done, has failed or was cancelled.
    """

    model: str
    picture: Picture
    emit: Callable[[Event], None]
    is_over: bool = field(default=False, init=False)
    queued_at: float = field(default_factory=time.perf_counter, init=False)

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """Jobs of one key may share a batch."""
        return type(self), self.model

    def end(self, event: Done | Failed) -> None:
        """Report how it ended, once."""
        if not self.is_over:
            self.is_over = True
            self.emit(event)


@dataclass(eq=False)
class Generation(Job):
    """A text is to be generated.

    Attributes:
        prompt: tokens with one `<|image|>`.
        max_tokens: longest text.
        sampling: temperature and top_p; its one seed is this answer's.
        top_logprobs: how many of the most probable tokens to report of each token; None reports no probabilities.
        tokens: generated so far.
        sent: characters of the text that have been reported.
    """

    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling
    top_logprobs: int | None = None
    tokens: list[int] = field(default_factory=list, init=False)
    sent: int = field(default=0, init=False)

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """Jobs of one key may share a batch."""
        return type(self), self.model, self.sampling.temperature, self.sampling.top_p


@dataclass(eq=False)
class OptionProbabilities(Job):
    """The answer's beginning is forced, and the letters' probabilities are asked for.

    Attributes:
        prompt: tokens of a multiple-choice question.
        options: how many it has.
    """

    prompt: Sequence[int]
    options: int


@dataclass(eq=False)
class Mapping(Job):
    """A map of where an answer came from.

    Attributes:
        prompt: what was asked, in words.
        answer: what was answered.
        method: a name in `saliency.METHODS`.
    """

    prompt: str
    answer: str
    method: str
