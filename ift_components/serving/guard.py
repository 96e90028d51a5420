"""What stands before every request: whose it may be, how large and how long, and how many at a time."""

import asyncio
import hmac
from collections.abc import Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ift_components.chat import LOOPBACK
from ift_components.serving.faults import log_fault
from ift_components.serving.metrics import Metrics
from ift_components.serving.requests import Refusal

_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; img-src 'self' data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
_SERVER_ERROR = 500


def refusal_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """Return an error as OpenAI's clients read it."""
    kind = "server_error" if status >= _SERVER_ERROR else _TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


def refusal_response(refusal: Refusal) -> Response:
    """Return the reply to a request that is refused."""
    headers = {429: {"retry-after": "1"}, 401: {"www-authenticate": "Bearer"}}.get(refusal.status)
    body = refusal_body(refusal.status, refusal.message, refusal.param)
    return JSONResponse(body, refusal.status, headers)


class Guard:
    """ASGI middleware: checks the host and the key, adds headers, and turns faults into replies without anybody's text.

    Args:
        app: what is guarded.
        api_key: the key that everything but the page itself needs; None if no key is needed.
        is_local: whether the server is for this machine alone; then a request must name it as its host, so that no web page
            elsewhere reaches it through a name of its own (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, *, api_key: str | None, is_local: bool) -> None:
        self._app, self._api_key, self._is_local = app, api_key, is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        try:
            self._check(Request(scope))
            await self._app(scope, receive, send_with_headers)
        except Refusal as refusal:
            await refusal_response(refusal)(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass  # nobody is there to be told
        except Exception as error:  # noqa: BLE001 (whatever it is, it must not take its message into the log)
            told = log_fault(error)
            if not has_begun:
                failure = Refusal(_SERVER_ERROR, told)
                await refusal_response(failure)(scope, receive, send_with_headers)

    def _check(self, request: Request) -> None:
        try:
            host = (request.url.hostname or "").lower()
        except ValueError as error:
            raise Refusal(400, "host: no valid name") from error
        if self._is_local and host not in LOOPBACK:
            raise Refusal(403, "this server answers under localhost, 127.0.0.1 or [::1] alone")
        if self._api_key is None or request.url.path in ("/", "/health"):
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), self._api_key.encode()):
            raise Refusal(401, "a key is needed: Authorization: Bearer KEY")


class Places:
    """How many requests may be under way at a time.

    Args:
        limit: that many.
        metrics: shows how many there are.
    """

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self._limit, self._metrics, self._taken = limit, metrics, 0

    def take(self) -> Callable[[], None]:
        """Take a place and return what gives it back, which may be called more than once.

        Raises:
            Refusal: if all are taken.
        """
        if self._taken >= self._limit:
            raise Refusal(429, f"{self._taken} requests are under way, which is this server's limit; try again")
        self._taken += 1
        self._metrics.under_way.set(self._taken)
        is_held = True

        def give_back() -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                self._taken -= 1
                self._metrics.under_way.set(self._taken)

        return give_back


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """Return a request's body.

    Args:
        request: the request.
        most: longest body in bytes.
        seconds: time in which it must have come.

    Raises:
        Refusal: if it is not announced as JSON, is longer, or takes longer.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # Anything else could be sent by any web page that is open in a browser on this machine.
        raise Refusal(415, "content-type: expected application/json")
    too_long = Refusal(413, f"the body is longer than {most:,} bytes; send a smaller image")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_long
    except TimeoutError as error:
        raise Refusal(408, f"the body did not come within {seconds:g} s") from error
    return bytes(body)
