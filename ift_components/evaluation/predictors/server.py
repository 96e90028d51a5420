"""A model behind an OpenAI-compatible server (vLLM, SGLang, llama.cpp, a hosted one) as a predictor."""

import base64
import io
import os
import queue
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import httpx

from ift_components.errors import ConfigError, UserError
from ift_components.evaluation.items import Item
from ift_components.evaluation.predictors.base import Answer, Work

_TOO_MANY, _SERVER_ERROR, _BAD = 429, 500, 400
_LONGEST_WAIT = 60.0
_SHOWN = 200  # characters of a reply that an error shows


class _TryAgain(Exception):  # noqa: N818 (a signal, not an error of its own)
    """Something that may pass: a timeout, an overloaded server, a reply that is no answer."""

    def __init__(self, what: str, after: float | None = None) -> None:
        super().__init__(what)
        self.after = after


class ServerPredictor:
    """Asks `{base_url}/chat/completions`, several questions at a time, the image as a data URL.

    Timeouts, lost connections, status 429 and 5xx, replies that are not JSON or hold no answer are tried again with exponential
    back-off; other refusals and the last failure stop the run with a clear error. Answers given until then are kept, and the
    same command goes on from there.

    Args:
        base_url: up to and including `/v1`.
        model: the name the server knows the model by.
        concurrency: questions asked at the same time.
        timeout: seconds to wait for one reply.
        retries: further attempts after the first.
        backoff: seconds before the second attempt; doubled each time, with a random share, at most 60.
        api_key_env: environment variable that holds the key; the key itself belongs in no config.
        max_side: larger images are scaled down to this many pixels a side; null sends them as they are.
        temperature: 0 is greedy.
        top_p: nucleus of sampled tokens.
        seed: sent with every request; the server decides what it does with it.

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
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"predictor.base_url: '{base_url}' does not start with http:// or https://")
        for name, value, least in (("concurrency", concurrency, 1), ("timeout", timeout, 0), ("retries", retries, 0)):
            if value < least:
                raise ConfigError(f"predictor.{name}: {value} is below {least}")
        if api_key_env is not None and not os.environ.get(api_key_env):
            raise ConfigError(f"predictor.api_key_env: the environment variable {api_key_env} is not set")
        headers = {"Authorization": f"Bearer {os.environ[api_key_env]}"} if api_key_env else {}
        self._url, self._model = base_url.rstrip("/"), model
        self._concurrency, self._retries, self._backoff, self._max_side = concurrency, retries, backoff, max_side
        self._options = {"temperature": temperature, "top_p": top_p}
        self._seed = seed
        limits = httpx.Limits(max_connections=concurrency)
        self._client = httpx.Client(headers=headers, timeout=timeout, limits=limits, trust_env=False)

    def describe(self) -> dict[str, str | None]:
        """Return where the model is and what it is called; what weights a server has, it does not say."""
        return {"predictor": "server", "base_url": self._url, "model": self._model, "sha256": None}

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

    def answer(self, work: Sequence[Work]) -> Iterator[tuple[Work, Answer]]:
        """Yield the answers in the order in which they arrive.

        Raises:
            UserError: if the server refuses, or still gives no answer after the last attempt.
        """
        left: queue.SimpleQueue[Work] = queue.SimpleQueue()
        for one in work:
            left.put(one)
        with ThreadPoolExecutor(self._concurrency) as pool:
            running: dict[Future[Answer], Work] = {}
            failure: Exception | None = None
            while running or (failure is None and not left.empty()):
                while failure is None and len(running) < self._concurrency and not left.empty():
                    one = left.get()
                    running[pool.submit(self._ask, one)] = one
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    one = running.pop(done)
                    error = done.exception()
                    if error is None:
                        yield one, done.result()
                    else:
                        failure = failure or error if isinstance(error, Exception) else None
            if failure is not None:
                raise failure

    def _ask(self, one: Work) -> Answer:
        begin = time.perf_counter()
        request = self._request(one)
        jitter = random.Random(one.seed(self._seed))
        for attempt in range(self._retries + 1):
            try:
                return Answer(self._post(request), None, time.perf_counter() - begin)
            except _TryAgain as problem:
                last = problem
            if attempt < self._retries:
                pause = min(_LONGEST_WAIT, self._backoff * 2**attempt) * (1 + jitter.random()) / 2
                time.sleep(pause if last.after is None else min(_LONGEST_WAIT, last.after))
        raise UserError(
            f"predictor.base_url: {self._url} gave no answer to '{one.item.id}' in {self._retries + 1} attempts; "
            f"the last: {last}. Answers so far are kept: run the same command again"
        )

    def _request(self, one: Work) -> dict[str, Any]:
        picture = one.item.picture().convert("RGB")
        if self._max_side is not None:
            picture.thumbnail((self._max_side, self._max_side))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": one.item.prompt}]
        return {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": one.item.max_new_tokens,
            "seed": one.seed(self._seed) % 2**31,
            **self._options,
        }

    def _post(self, request: dict[str, Any]) -> str:
        """Return the answer's text.

        Raises:
            _TryAgain: if another attempt may help.
            UserError: if the server refuses the request.
        """
        try:
            reply = self._client.post(f"{self._url}/chat/completions", json=request)
        except httpx.TimeoutException as error:
            raise _TryAgain(f"no reply within {self._client.timeout.read:g} s") from error
        except httpx.TransportError as error:
            raise _TryAgain(f"no connection ({error})") from error
        shown = " ".join(reply.text[:_SHOWN].split())
        if reply.status_code == _TOO_MANY or reply.status_code >= _SERVER_ERROR:
            after = reply.headers.get("retry-after", "")
            raise _TryAgain(f"status {reply.status_code}: {shown}", float(after) if after.isdigit() else None)
        if reply.status_code >= _BAD:
            raise UserError(
                f"predictor.base_url: {self._url} refuses the request with status {reply.status_code}: {shown}"
            )
        try:
            text = reply.json()["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            kind = reply.headers.get("content-type", "no content type")
            raise _TryAgain(f"a reply that is no chat completion ({kind}): {shown}") from error
        if not isinstance(text, str):
            raise _TryAgain(f"a reply without text: {shown}")
        return text
