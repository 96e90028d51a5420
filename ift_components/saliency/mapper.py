"""Maps of where an answer came from, for one picture and one question: `Mapper.explain`, or `relevance_map` in one call."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor
from torchtune.models.llama3_2_vision import Llama3VisionTransform
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.data.images import ImageTransform
from ift_components.data.wording import ANSWER_PREFIX
from ift_components.errors import ConfigError
from ift_components.saliency.image_tokens import ImageTokens
from ift_components.saliency.methods import CrossAttention, check_arguments, cross_attention, method_of
from ift_components.saliency.walk import Asked, Walk

Grid = npt.NDArray[np.float32]
CAUTION = (
    "A map is not an explanation. It shows what a method of computing says about this model, not why the model answered so; "
    "on chest X-rays all such methods fell short of people at finding what is diseased (Saporta et al. 2022, Nature Machine "
    "Intelligence 4), and some hardly change when a model's weights are made random (Adebayo et al. 2018). Do not use "
    "it to judge a patient's image."
)
_LETTER = re.compile(r"[\s\[(*]*[A-Z][\s\]).*:]*")


@dataclass(frozen=True)
class AnswerMap:
    """What a method says of one answer.

    Attributes:
        grid: [rows, columns] over the whole canvas (`Mapper.canvas`), at least 0, adding up to 1; all 0 where nothing speaks
            for the answer.
        signed: [chosen tokens or 1, rows, columns] as the method gave it.
        pieces: the answer's tokens as texts.
        chosen: the tokens that were mapped.
        method: the method's name.
    """

    grid: Grid
    signed: Grid
    pieces: tuple[str, ...]
    chosen: tuple[int, ...]
    method: str


def normalised(grid: Grid) -> Grid:
    """Return what is positive of a map, adding up to 1; all 0 where nothing is."""
    positive = np.clip(grid, 0, None)
    total = float(positive.sum())
    return (positive / total if total > 0 else positive).astype(np.float32)


def decisive_tokens(pieces: Sequence[str]) -> tuple[int, ...]:
    """Return the tokens of an answer that say what it says: the letter of "The correct answer is B.", else all of them."""
    text = ""
    for index, piece in enumerate(pieces):
        if text.strip().endswith(ANSWER_PREFIX) and _LETTER.fullmatch(piece):
            return (index,)
        if not text.strip() and len(pieces) <= 2 and _LETTER.fullmatch(piece):  # noqa: PLR2004 (a letter and its full stop)
            return (index,)
        text += piece if piece.strip(" [(*") else ""
    return tuple(range(len(pieces)))


class Mapper:
    """Makes maps of a model's answers. Nothing else may use the model at the same time.

    Args:
        model: the model, frozen, not built under inference mode.
        transform: its transform.
        resize: how pictures are resized to a tile, as in training.
        proxy: [K, d] vectors that stand in the place of an empty prompt.
        tiles: most tiles of a picture, as in training.
    """

    def __init__(
        self,
        model: DeepFusionModel,
        transform: Llama3VisionTransform,
        resize: str = "bilinear",
        proxy: Tensor | None = None,
        *,
        tiles: int = 1,
    ) -> None:
        self.walk = Walk(model, transform, proxy)
        self.picture = ImageTransform(transform, resize, tiles)

    def pixels(self, picture: Image.Image) -> Tensor:
        """Return a picture as the model sees it, [down, across, 3, h, w]."""
        return self.picture(picture)

    def canvas(self, picture: Image.Image) -> Image.Image:
        """Return the picture that maps lie over: with one tile the whole picture, squashed, else what is cut into tiles."""
        return self.picture.canvas(picture)

    def answer(self, picture: Image.Image, prompt: str, max_new_tokens: int = 50) -> str:
        """Return the model's greedy answer."""
        return self.walk.answer(self.pixels(picture), prompt, max_new_tokens)

    def chosen(self, asked: Asked, tokens: Sequence[int] | None) -> tuple[int, ...]:
        """Return the answer tokens that are mapped.

        Args:
            asked: prompt and answer.
            tokens: their numbers; None takes `decisive_tokens`.

        Raises:
            ConfigError: if the answer has no such token.
        """
        if tokens is None:
            return decisive_tokens(asked.pieces)
        count = len(asked.answer)
        outside = [token for token in tokens if not 0 <= token < count]
        if outside or not tokens:
            raise ConfigError(f"tokens: {outside or 'none'} of an answer of {count} tokens; expected 0 to {count - 1}")
        return tuple(tokens)

    def explain(
        self,
        picture: Image.Image,
        prompt: str,
        answer: str,
        method: str = "relevance",
        *,
        tokens: Sequence[int] | None = None,
        layer: int | None = None,
        head: int | None = None,
    ) -> AnswerMap:
        """Return the map of an answer.

        Args:
            picture: the picture as it is; it is squashed as for answering.
            prompt: what was asked; empty if it is the proxy instruction.
            answer: what was, or might have been, answered.
            method: a name in `METHODS`.
            tokens: the answer's tokens that are mapped; None takes the letter of a lettered answer, else all.
            layer: of `attention`, a layer that attends to the image; None takes all, weighted by their gates.
            head: of `attention`; None takes the mean.

        Raises:
            ConfigError: for an unknown method, layer, head or token, an empty answer, or a missing library.
        """
        return self.explain_pixels(
            self.pixels(picture), self.walk.ask(prompt, answer), method, tokens=tokens, layer=layer, head=head
        )

    def explain_pixels(
        self,
        pixels: Tensor,
        asked: Asked,
        method: str,
        *,
        tokens: Sequence[int] | None = None,
        layer: int | None = None,
        head: int | None = None,
    ) -> AnswerMap:
        """Return the map of an answer, `explain` on what `pixels` and `Walk.ask` made of picture and words."""
        arguments = {key: value for key, value in (("layer", layer), ("head", head)) if value is not None}
        check_arguments(method, arguments)
        chosen = self.chosen(asked, tokens)
        relevance = method_of(method).relevance(self.walk, pixels, asked, chosen, **arguments)
        tokens_of_image = ImageTokens.of(self.walk.model, pixels)
        signed = relevance.reshape(-1, tokens_of_image.rows, tokens_of_image.columns).numpy().astype(np.float32)
        # Tokens weigh alike where a method gives each its own map: what is large for one would hide all others.
        by_token = np.stack([normalised(one) for one in signed])
        return AnswerMap(normalised(by_token.sum(axis=0)), signed, asked.pieces, chosen, method)

    def cross_attention(self, pixels: Tensor, asked: Asked) -> CrossAttention:
        """Return the raw attention of all answer tokens, of every layer and head."""
        return cross_attention(self.walk, pixels, asked, range(len(asked.answer)))


def relevance_map(
    model: DeepFusionModel,
    transform: Llama3VisionTransform,
    prompt: str,
    picture: Image.Image,
    answer: str,
    *,
    method: str = "relevance",
) -> Grid:
    """Return the map of an answer over the picture, [rows, columns], at least 0 and adding up to 1 (`Mapper.explain`)."""
    return Mapper(model, transform).explain(picture, prompt, answer, method).grid
