"""Requests as they come, read strictly: what is not understood is refused by name instead of being ignored."""

import base64
import binascii
import hashlib
import re
import secrets
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torchtune.data import Message
from torchtune.models.llama3_2_vision import Llama3VisionTransform

from ift_components.data.decode import decode_image
from ift_components.data.prompts import header_tokens
from ift_components.data.wording import multiple_choice_prompt
from ift_components.errors import DataError
from ift_components.evaluation.engine import Sampling
from ift_components.serving.jobs import Picture

_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,20};base64,")
_CHARACTERS_A_TOKEN = 32  # a text of more than this many for every token that fits is not even taken apart
_MOST_OPTIONS = 26
Read = TypeVar("Read", bound=BaseModel)


class Refusal(Exception):  # noqa: N818 (a reply, not a fault of the server)
    """A request that is not answered.

    Args:
        status: HTTP's.
        message: what is wrong, what was expected, the fix.
        param: the field that it is about.
    """

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ImageURL(_Strict):
    """An image as a data URL."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Strict):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: ImageURL


class TextPart(_Strict):
    """A text in a message."""

    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    """A message: its text, or parts in the order in which the model reads them."""

    role: Literal["system", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]


class StreamOptions(_Strict):
    """Options of a streamed answer."""

    include_usage: bool = False


class ChatRequest(_Strict):
    """The body of `/v1/chat/completions`, as far as it is supported; the rest is taken at its neutral value alone."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=64)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    n: Literal[1] | None = None
    stop: Literal[None] = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    user: str | None = None

    @property
    def longest(self) -> int | None:
        """Tokens of the answer at most, if the request says."""
        return self.max_completion_tokens or self.max_tokens

    def sampling(self) -> Sampling:
        """Return how tokens are chosen; greedy unless a temperature is given."""
        seed = secrets.randbits(48) if self.seed is None else self.seed
        top_p = 1.0 if self.top_p is None else self.top_p
        return Sampling(self.temperature or 0.0, top_p, (seed,))


class OptionsRequest(_Strict):
    """The body of `/v1/options`: how probable is each option of a multiple-choice question?"""

    model: str
    image: str
    question: str = Field(min_length=1)
    options: list[str] = Field(min_length=2, max_length=_MOST_OPTIONS)

    @property
    def prompt(self) -> str:
        """The question as the paper words it."""
        return multiple_choice_prompt(self.question, self.options)


class MapRequest(_Strict):
    """The body of `/v1/maps`: where in the image did an answer come from?"""

    model: str
    image: str
    prompt: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    method: str = "relevance"


def read(kind: type[Read], body: bytes) -> Read:
    """Return a request's body as what it should be.

    Raises:
        Refusal: naming the first field that is wrong.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        what = "is not supported" if first["type"] == "extra_forbidden" else first["msg"]
        raise Refusal(400, f"{place}: {what}" if place else what, place or None) from error


def read_picture(url: str, max_pixels: int) -> Picture:
    """Decode an image given as a data URL; nothing else is ever opened.

    Args:
        url: `data:image/...;base64,...`.
        max_pixels: most pixels; larger images are refused before they are decoded.

    Raises:
        Refusal: if it is something else, or no such image.
    """
    head = _DATA_URL.match(url)
    if head is None:
        raise Refusal(
            400, "image: expected data:image/png;base64,... or the like; addresses and paths are not opened", "image"
        )
    try:
        content = base64.b64decode(url[head.end() :], validate=True)
        image = decode_image(content, max_pixels)
    except binascii.Error as error:
        raise Refusal(400, f"image: not base64 ({error})", "image") from error
    except DataError as error:
        raise Refusal(400, f"image: {error}", "image") from error
    return Picture(hashlib.sha256(content).hexdigest(), image)


def image_of(request: ChatRequest) -> str:
    """Return the URL of the one image of a conversation.

    Raises:
        Refusal: if there is none, or several.
    """
    parts = [part for m in request.messages if not isinstance(m.content, str) for part in m.content]
    urls = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
    if len(urls) != 1:
        raise Refusal(400, f"messages: {len(urls)} images, expected exactly one in the conversation", "messages")
    return urls[0]


def chat_tokens(transform: Llama3VisionTransform, request: ChatRequest, longest: int) -> list[int]:
    """Return the tokens of a conversation, up to and including the assistant's header; every text is trimmed.

    Args:
        transform: the model's transform.
        request: the conversation, with one image.
        longest: tokens that the model takes.

    Raises:
        Refusal: if it is far too long.
    """
    tokens = [transform.tokenizer.bos_id]
    if sum(map(_characters, request.messages)) > longest * _CHARACTERS_A_TOKEN:
        raise Refusal(400, f"messages: too long for the {longest} tokens that the model takes", "messages")
    for message in request.messages:
        parts = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        content: list[dict[str, Any]] = [
            {"type": "text", "content": part.text} if isinstance(part, TextPart) else {"type": "image", "content": None}
            for part in parts
        ]
        tokens += transform.tokenizer.tokenize_message(Message(role=message.role, content=content))
    return tokens + header_tokens(transform)


def _characters(message: ChatMessage) -> int:
    if isinstance(message.content, str):
        return len(message.content)
    return sum(len(part.text) for part in message.content if isinstance(part, TextPart))


def room_for(prompt: int, asked: int | None, *, limit: int, longest: int) -> int:
    """Return how long an answer may become, in tokens.

    Args:
        prompt: tokens of the prompt.
        asked: what the request asks for, if it says.
        limit: the server's `max_new_tokens`.
        longest: tokens that the model takes.

    Raises:
        Refusal: if the request asks for more than there can be.
    """
    left = longest - prompt
    if left < 1 or (asked is not None and asked > min(left, limit)):
        what = f"{prompt} tokens of prompt and {asked or 1} of answer"
        raise Refusal(400, f"max_tokens: {what}; expected at most {longest} in all and {limit} of answer", "max_tokens")
    return min(left, limit) if asked is None else asked
