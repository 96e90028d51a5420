"""A model behind an OpenAI-compatible server as a predictor."""

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from ift_components.chat import ChatClient, Request
from ift_components.errors import ConfigError
from ift_components.evaluation.predictors.base import GREEDY, Answer, Sampling, Work
from ift_components.evaluation.records import Item


class ServerPredictor:
    """Asks a server (`ift_components.chat.ChatClient`) several questions at a time, the image as a data URL.

    Questions that the server refuses, or that still have no reply after the last attempt, are recorded as unanswered; the
    latter are asked again when the same command is run again.

    Args:
        base_url: up to and including `/v1`.
        model: the name the server knows the model by.
        concurrency: questions asked at the same time.
        timeout: seconds that one attempt may take in all.
        retries: further attempts after the first.
        backoff: seconds before the second attempt; doubled each time, with a random share, at most 60.
        api_key_env: environment variable that holds the key; the key itself belongs in no config.
        max_side: larger images are scaled down to this many pixels a side; null sends them as they are.

    Raises:
        ConfigError: for values that cannot be.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 5,
        backoff: float = 1.0,
        api_key_env: str | None = None,
        max_side: int | None = None,
    ) -> None:
        self._client = ChatClient(
            base_url,
            model,
            where="predictor",
            concurrency=concurrency,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            api_key_env=api_key_env,
        )
        self._max_side = max_side

    def describe(self) -> dict[str, str | None]:
        """Return where the model is and what it is called; what weights a server has, it does not say."""
        return {
            "predictor": "server",
            "base_url": self._client.address,
            "model": self._client.model,
            "sha256": None,
        }

    def check(self, items: Sequence[Item]) -> None:
        """Check that every item has a text instruction.

        Raises:
            ConfigError: if one needs a proxy instruction.
        """
        for item in items:
            if not item.prompt:
                raise ConfigError(
                    f"'{item.id}' has no instruction text; a proxy instruction needs this package's engine"
                )

    def answer(self, work: Sequence[Work], sampling: Sampling = GREEDY) -> Iterator[tuple[Work, Answer]]:
        """Yield the answers in the order in which they arrive; what the server does with the seed, it decides.

        Raises:
            UserError: if the server cannot be used.
        """
        requests = (Request(unit, partial(self._request, unit, sampling)) for unit in work)
        with closing(self._client.ask(requests)) as replies:
            for unit, reply in replies:
                yield unit, Answer(reply.text, None, reply.seconds, reply.refusal, passing=reply.passing)

    def _request(self, unit: Work, sampling: Sampling) -> dict[str, Any]:
        picture = unit.item.picture().convert("RGB")
        if self._max_side is not None:
            picture.thumbnail((self._max_side, self._max_side))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": unit.item.prompt}]
        return {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": unit.item.max_new_tokens,
            "seed": unit.seed(sampling.seed) % 2**31,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
