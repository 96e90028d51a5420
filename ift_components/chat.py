"""An OpenAI-compatible server (vLLM, SGLang, llama.cpp, a hosted one) that is asked many things at a time."""

import asyncio
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from ift_components.config import without_credentials
from ift_components.errors import ConfigError, UserError

Tag = TypeVar("Tag")

_BAD, _UNAUTHORISED, _PAYMENT, _NOT_FOUND, _NOT_ALLOWED = 400, 401, 402, 404, 405
_TIMED_OUT, _TOO_MANY, _SERVER_ERROR = 408, 429, 500
_LONGEST_WAIT = 60.0
_SHOWN = 200  # characters of a reply that an error shows
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class _Passing(Exception):  # noqa: N818 (a signal, not an error of its own)
    """Something that may pass: a timeout, an overloaded server, a reply that is no answer."""

    def __init__(self, what: str, after: float | None = None) -> None:
        super().__init__(what)
        self.after = after


class _Refused(Exception):  # noqa: N818 (a signal, not an error of its own)
    """The server answers others, but not this request."""


@dataclass(frozen=True)
class Reply:
    """What came back for a request.

    Attributes:
        text: the answer; None if there is none.
        seconds: from the first attempt to the end.
        refusal: why there is no answer; None if there is one.
        passing: whether the same request may be answered when it is made again.
    """

    text: str | None
    seconds: float
    refusal: str | None = None
    passing: bool = False


@dataclass(frozen=True)
class Request(Generic[Tag]):
    """A chat completion to ask for.

    Attributes:
        tag: whatever the caller knows it by.
        build: makes the request's body without the model's name; called when its turn comes.
    """

    tag: Tag
    build: Callable[[], dict[str, Any]]


class ChatClient:
    """Asks `{base_url}/chat/completions`, several requests at a time.

    An attempt has `timeout` seconds in all, however slowly a server drips. Timeouts, lost connections, status 408, 429 and 5xx
    and replies that are no chat completion are tried again with exponential back-off (or after the server's Retry-After). A
    request that the server refuses (other 4xx, a content filter, no content) or that still has no reply is given back without a
    text; a wrong key, address or model, or a server that has answered nothing at all yet, stops with an error.

    Args:
        base_url: up to and including `/v1`.
        model: the name the server knows the model by.
        where: the config key of these arguments, for messages.
        concurrency: requests at the same time.
        timeout: seconds that one attempt may take in all.
        retries: further attempts after the first.
        backoff: seconds before the second attempt; doubled each time, with a random share, at most 60.
        api_key_env: environment variable that holds the key; the key itself belongs in no config and stands in no message.

    Raises:
        ConfigError: for values that cannot be.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        where: str,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 5,
        backoff: float = 1.0,
        api_key_env: str | None = None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            address = without_credentials(base_url)
            raise ConfigError(f"{where}.base_url: '{address}' does not start with http:// or https://")
        for name, value, least in (("concurrency", concurrency, 1), ("timeout", timeout, 0), ("retries", retries, 0)):
            if value < least:
                raise ConfigError(f"{where}.{name}: {value} is below {least}")
        if api_key_env is not None and not os.environ.get(api_key_env):
            raise ConfigError(f"{where}.api_key_env: the environment variable {api_key_env} is not set")
        self.model = model
        self.where, self._base_url = where, base_url.rstrip("/")
        self._concurrency, self._timeout = concurrency, timeout
        self._retries, self._backoff = retries, wait_exponential_jitter(backoff, _LONGEST_WAIT, jitter=backoff)
        self._key = os.environ[api_key_env].strip() if api_key_env else None
        login = urlsplit(self._base_url)
        self._secrets = [secret for secret in (self._key, login.password) if secret]
        self._answered = False

    @property
    def address(self) -> str:
        """The server's address without user name and password."""
        return without_credentials(self._base_url)

    @property
    def is_local(self) -> bool:
        """Whether requests stay on this machine."""
        return urlsplit(self._base_url).hostname in LOOPBACK

    def ask(self, requests: Iterable[Request[Tag]]) -> Generator[tuple[Tag, Reply], None, None]:
        """Yield the replies in the order in which they arrive.

        Raises:
            UserError: if the server cannot be used; replies that were under way are given first.
        """
        replies: queue.SimpleQueue[tuple[Tag, Reply] | BaseException | None] = queue.SimpleQueue()
        loop = asyncio.new_event_loop()
        everything = loop.create_task(self._ask_all(iter(requests), replies))

        def work() -> None:
            try:
                loop.run_until_complete(everything)
            except asyncio.CancelledError:
                pass  # the caller has stopped listening
            except BaseException as error:  # noqa: BLE001 (handed to the caller's thread)
                replies.put(error)
            finally:
                loop.close()
                replies.put(None)

        # The event loop has a thread of its own, so that the caller waits for a queue only: Ctrl-C reaches it at once, and
        # cancelling the task then drops whatever requests are under way.
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while (reply := replies.get()) is not None:
                if isinstance(reply, BaseException):
                    raise reply
                yield reply
        finally:
            if not loop.is_closed():
                loop.call_soon_threadsafe(everything.cancel)
            thread.join(1)

    async def _ask_all(self, requests: Iterator[Request[Tag]], replies: queue.SimpleQueue[Any]) -> None:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=self._concurrency)
        failures: list[UserError] = []
        async with httpx.AsyncClient(headers=headers, timeout=self._timeout, limits=limits, trust_env=False) as client:

            async def worker() -> None:
                while not failures and (request := next(requests, None)) is not None:
                    try:
                        replies.put((request.tag, await self._ask(client, request)))
                    except UserError as error:
                        failures.append(error)

            await asyncio.gather(*(worker() for _ in range(self._concurrency)))
        if failures:
            raise failures[0]

    async def _ask(self, client: httpx.AsyncClient, request: Request[Any]) -> Reply:
        begin = time.perf_counter()
        body = {"model": self.model, **await asyncio.to_thread(request.build)}
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._retries + 1),
            wait=self._pause,
            retry=retry_if_exception_type(_Passing),
            reraise=True,
        )
        try:
            text: str = await retrying(self._post, client, body)
        except _Refused as refusal:
            return Reply(None, time.perf_counter() - begin, str(refusal))
        except _Passing as trouble:
            reason = f"no answer in {self._retries + 1} attempts; the last: {trouble}"
            if not self._answered:
                raise UserError(f"{self.where}.base_url: {self.address} gave {reason}") from trouble
            return Reply(None, time.perf_counter() - begin, reason, passing=True)
        self._answered = True
        return Reply(text, time.perf_counter() - begin)

    def _pause(self, state: RetryCallState) -> float:
        """Return the seconds to wait before the next attempt."""
        trouble = state.outcome.exception() if state.outcome else None
        after = trouble.after if isinstance(trouble, _Passing) else None
        return self._backoff(state) if after is None else min(_LONGEST_WAIT, after)

    async def _post(self, client: httpx.AsyncClient, body: dict[str, Any]) -> str:
        """Return the answer's text.

        Raises:
            _Passing: if another attempt may help.
            _Refused: if the server does not answer this request.
            UserError: if it will answer none.
        """
        try:
            async with asyncio.timeout(self._timeout):
                reply = await client.post(f"{self._base_url}/chat/completions", json=body)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _Passing(f"no reply within {self._timeout:g} s") from error
        except httpx.TransportError as error:
            raise _Passing(f"no connection ({self._hide(str(error))})") from error
        self._check_status(reply)
        return self._content(reply)

    def _check_status(self, reply: httpx.Response) -> None:
        status, text = reply.status_code, f"status {reply.status_code}: {self._short(reply.text)}"
        if status in (_TIMED_OUT, _TOO_MANY) or status >= _SERVER_ERROR:
            after = reply.headers.get("retry-after", "")
            raise _Passing(text, float(after) if after.isdigit() else None)
        if status in (_UNAUTHORISED, _PAYMENT, _NOT_FOUND, _NOT_ALLOWED):
            raise UserError(
                f"{self.where}.base_url: {self.address} refuses every request for '{self.model}' with {text}"
            )
        if status >= _BAD:
            raise _Refused(text)

    def _content(self, reply: httpx.Response) -> str:
        try:
            choice = reply.json()["choices"][0]
            message = choice["message"]
            text, reason = message.get("content"), message.get("refusal") or choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            kind = reply.headers.get("content-type", "no content type")
            raise _Passing(f"a reply that is no chat completion ({kind}): {self._short(reply.text)}") from error
        if not isinstance(text, str):
            raise _Refused(f"a reply without text ({self._short(str(reason))})")
        return text

    def _hide(self, text: str) -> str:
        """Return a server's text without the key and without the address's user name and password."""
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        return text

    def _short(self, text: str) -> str:
        # Hidden first: a key that is cut in two would not be found any more.
        return " ".join(self._hide(text)[:_SHOWN].split())
