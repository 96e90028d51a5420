"""The server's endpoints: OpenAI's, and those that its page needs."""

import asyncio
import json
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from ift_components.data.prompts import Text, prompt_tokens
from ift_components.data.wording import letters
from ift_components.saliency import CAUTION, METHODS
from ift_components.serving.guard import Guard, Places, read_body, refusal_body
from ift_components.serving.jobs import (
    Done,
    Event,
    Failed,
    Generation,
    Gone,
    Job,
    Mapping,
    OptionProbabilities,
    Piece,
    TokenLogprob,
)
from ift_components.serving.metrics import Metrics
from ift_components.serving.requests import (
    ChatRequest,
    MapRequest,
    OptionsRequest,
    Refusal,
    chat_tokens,
    image_of,
    read,
    read_picture,
    room_for,
)
from ift_components.serving.samples import Samples
from ift_components.serving.settings import ServeSettings
from ift_components.serving.worker import Served, Worker

_READERS = 2  # images that are decoded at the same time, each of up to `max_pixels`
_CLOSED = 499  # as nginx counts requests whose client has gone
Made = TypeVar("Made", bound=Job)
JobMaker = Callable[[bytes, Callable[[Event], None]], Made]


@dataclass
class Asked:
    """A request under way.

    Attributes:
        endpoint: what metrics call it.
        begin: when it came.
        give_back: frees its place.
    """

    endpoint: str
    begin: float
    give_back: Callable[[], None]


class Server:
    """Answers requests by a worker.

    Args:
        cfg: the settings.
        worker: runs the models.
        samples: what the page offers.
        metrics: what is counted.
    """

    def __init__(self, cfg: ServeSettings, worker: Worker, samples: Samples, metrics: Metrics) -> None:
        self._cfg, self._worker, self._samples, self._metrics = cfg, worker, samples, metrics
        self._places = Places(cfg.queue_limit, metrics)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="reader")
        self._started = int(time.time())
        self._page = files("ift_components.serving").joinpath("static/index.html").read_text(encoding="utf-8")

    def app(self) -> FastAPI:
        """Return the application."""

        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            self._worker.start()
            yield
            await asyncio.to_thread(self._worker.stop)
            self._readers.shutdown(wait=False, cancel_futures=True)

        app = FastAPI(
            title="instruction-free tuning", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
        )
        app.add_api_route("/", self.page, methods=["GET"])
        app.add_api_route("/health", self.health, methods=["GET"])
        app.add_api_route("/metrics", self.metrics, methods=["GET"])
        app.add_api_route("/page", self.offer, methods=["GET"])
        app.add_api_route("/samples/{index}", self.sample, methods=["GET"], response_model=None)
        app.add_api_route("/v1/models", self.models, methods=["GET"])
        app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"], response_model=None)
        app.add_api_route("/v1/options", self.options, methods=["POST"], response_model=None)
        app.add_api_route("/v1/maps", self.maps, methods=["POST"], response_model=None)
        app.add_middleware(Guard, api_key=self._cfg.api_key(), is_local=self._cfg.is_local)
        return app

    async def page(self) -> HTMLResponse:
        """The page."""
        return HTMLResponse(self._page)

    async def health(self) -> dict[str, str]:
        """Whether the server is up."""
        return {"status": "ok"}

    async def metrics(self) -> Response:
        """Counters, as Prometheus reads them."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def offer(self) -> dict[str, Any]:
        """What the page offers."""
        methods = {name: method.meaning for name, method in METHODS.items()}
        images = [{**image, "url": f"/samples/{index}"} for index, image in enumerate(self._samples.images)]
        return {
            "models": list(self._worker.models),
            "attributes": self._samples.attributes,
            "samples": images,
            "note": self._samples.note,
            "methods": methods,
            "caution": CAUTION,
            "max_body_bytes": self._cfg.max_body_bytes,
        }

    async def sample(self, index: int) -> Response:
        """An offered image."""
        pictures = self._samples.pictures
        if not 0 <= index < len(pictures):
            raise Refusal(404, f"sample {index}: there are {len(pictures)}")
        return Response(pictures[index], media_type="image/png")

    async def models(self) -> dict[str, Any]:
        """The models by name."""
        owner = {"object": "model", "created": self._started, "owned_by": "instruction-free-tuning"}
        return {"object": "list", "data": [{"id": name, **owner} for name in self._worker.models]}

    async def chat(self, request: Request) -> Response:
        """Answer a conversation about an image."""
        asked = self._enter("chat")
        head: dict[str, Any] = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time())}
        chat: list[ChatRequest] = []

        def make(body: bytes, emit: Callable[[Event], None]) -> Generation:
            chat.append(read(ChatRequest, body))
            return self._generation(chat[0], emit)

        return await self._answer(
            request, asked, make, lambda job, events: self._chat_response(chat[0], head, job, events)
        )

    async def options(self, request: Request) -> Response:
        """Tell how probable each option of a multiple-choice question is."""
        asked = self._enter("options")
        question: list[OptionsRequest] = []

        def make(body: bytes, emit: Callable[[Event], None]) -> OptionProbabilities:
            question.append(read(OptionsRequest, body))
            wanted = question[0]
            served = self._served(wanted.model)
            prompt = prompt_tokens(served.transform, Text(wanted.prompt))
            room_for(len(prompt), served.forced_room, limit=served.forced_room, longest=served.longest)
            picture = read_picture(wanted.image, self._cfg.max_pixels)
            return OptionProbabilities(wanted.model, picture, emit, prompt, len(wanted.options))

        async def respond(job: OptionProbabilities, events: AsyncIterator[Event]) -> Response:
            sums = await _value(events)
            total = sum(sums.values())
            rows = [
                {"letter": letter, "text": text, "probability": sums[index] / total if total else 0.0}
                for index, (letter, text) in enumerate(zip(letters(job.options), question[0].options, strict=True))
            ]
            return JSONResponse({"prompt": question[0].prompt, "options": rows, "mass": total})

        return await self._answer(request, asked, make, respond)

    async def maps(self, request: Request) -> Response:
        """Map where in the image an answer came from."""
        asked = self._enter("maps")

        def make(body: bytes, emit: Callable[[Event], None]) -> Mapping:
            wanted = read(MapRequest, body)
            served = self._served(wanted.model)
            tokens = prompt_tokens(served.transform, Text(wanted.prompt + wanted.answer))
            room_for(len(tokens), None, limit=1, longest=served.longest)
            if wanted.method not in METHODS:
                raise Refusal(400, f"method: '{wanted.method}' is not one of {', '.join(METHODS)}", "method")
            picture = read_picture(wanted.image, self._cfg.max_pixels)
            return Mapping(wanted.model, picture, emit, wanted.prompt, wanted.answer, wanted.method)

        async def respond(job: Mapping, events: AsyncIterator[Event]) -> Response:
            found = await _value(events)
            body = {"method": job.method, "grid": found.grid.tolist(), "pieces": found.pieces, "chosen": found.chosen}
            return JSONResponse({**body, "caution": CAUTION})

        return await self._answer(request, asked, make, respond)

    def _enter(self, endpoint: str) -> Asked:
        try:
            return Asked(endpoint, time.perf_counter(), self._places.take())
        except Refusal:
            self._metrics.requests.labels(endpoint, 429).inc()
            raise

    def _served(self, model: str) -> Served:
        if model not in self._worker.models:
            raise Refusal(404, f"model: '{model}' is not one of {', '.join(self._worker.models)}", "model")
        return self._worker.models[model]

    def _generation(self, wanted: ChatRequest, emit: Callable[[Event], None]) -> Generation:
        served = self._served(wanted.model)
        url = image_of(wanted)
        prompt = chat_tokens(served.transform, wanted, served.longest)
        longest = room_for(len(prompt), wanted.longest, limit=self._cfg.max_new_tokens, longest=served.longest)
        picture = read_picture(url, self._cfg.max_pixels)
        top = (wanted.top_logprobs or 0) if wanted.logprobs else None
        return Generation(wanted.model, picture, emit, prompt, longest, wanted.sampling(), top)

    async def _answer(
        self,
        request: Request,
        asked: Asked,
        make: JobMaker[Made],
        respond: Callable[[Made, AsyncIterator[Event]], Any],
    ) -> Response:
        """Read a request, have its job done and respond, whatever happens in between.

        Args:
            request: the request.
            asked: its place.
            make: makes the job of the body; runs in a thread, because it decodes an image.
            respond: makes the response of the job's events.
        """
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def take(event: Event) -> None:
            if not isinstance(event, Piece):
                asked.give_back()  # however slowly the client reads what is left
            events.put_nowait(event)

        def emit(event: Event) -> None:
            try:
                loop.call_soon_threadsafe(take, event)
            except RuntimeError:  # the loop has been closed: nobody listens any more
                return

        try:
            body = await read_body(request, self._cfg.max_body_bytes, self._cfg.body_seconds)
            job = await loop.run_in_executor(self._readers, make, body, emit)
        except BaseException as error:
            asked.give_back()
            self._count(asked, error.status if isinstance(error, Refusal) else _CLOSED)
            raise
        self._worker.submit(job)
        watch = asyncio.create_task(_until_gone(request))
        watch.add_done_callback(lambda _: events.put_nowait(Gone()))

        async def arriving() -> AsyncIterator[Event]:
            """Give the job's events to its end; a client that has gone, or a response that is given up, cancels the job."""
            status, text = _CLOSED, ""
            try:
                while True:
                    event = await events.get()
                    if isinstance(event, Gone):
                        return
                    text += event.text if isinstance(event, Piece) else ""
                    if not isinstance(event, Piece):
                        status = 200 if isinstance(event, Done) else 400 if event.is_users else 500
                    yield event
                    if not isinstance(event, Piece):
                        return
            finally:
                watch.cancel()
                self._worker.cancel(job)
                asked.give_back()
                self._count(asked, status)
                if self._cfg.log_requests:
                    self._log(asked, job, status, text)

        response: Response = await respond(job, arriving())
        return response

    def _count(self, asked: Asked, status: int) -> None:
        self._metrics.requests.labels(asked.endpoint, status).inc()
        self._metrics.seconds.labels(asked.endpoint).observe(time.perf_counter() - asked.begin)

    def _log(self, asked: Asked, job: Job, status: int, text: str) -> None:
        """Write a request's line, because the operator has asked for it."""
        prompt = job.prompt if isinstance(job, Mapping) else ""
        if isinstance(job, Generation | OptionProbabilities):
            decode = self._worker.models[job.model].transform.tokenizer.decode
            prompt = decode(list(job.prompt), truncate_at_eos=False)
        line = {"endpoint": asked.endpoint, "status": status, "model": job.model, "image": job.picture.sha256}
        line |= {"prompt": prompt, "answer": text, "seconds": round(time.perf_counter() - asked.begin, 4)}
        print(json.dumps(line, ensure_ascii=False), file=sys.stderr, flush=True)

    async def _chat_response(
        self, wanted: ChatRequest, head: dict[str, Any], job: Generation, events: AsyncIterator[Event]
    ) -> Response:
        if wanted.stream:
            return StreamingResponse(_stream(wanted, head, job, events), media_type="text/event-stream")
        pieces, done = await _collected(events)
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": "".join(piece.text for piece in pieces)},
            "finish_reason": done.reason,
            "logprobs": _logprobs(pieces),
        }
        body = {**head, "object": "chat.completion", "model": job.model, "choices": [choice], "usage": _usage(job)}
        return JSONResponse(body)


async def _until_gone(request: Request) -> None:
    """Wait until the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _collected(events: AsyncIterator[Event]) -> tuple[list[Piece], Done]:
    """Return all that a job reported.

    Raises:
        Refusal: if it failed, or its client has gone, who will not read it.
    """
    pieces: list[Piece] = []
    async for event in events:
        if isinstance(event, Piece):
            pieces.append(event)
        elif isinstance(event, Failed):
            raise Refusal(400 if event.is_users else 500, event.message)
        elif isinstance(event, Done):
            return pieces, event
    raise Refusal(_CLOSED, "the client has gone")


async def _value(events: AsyncIterator[Event]) -> Any:
    return (await _collected(events))[1].value


def _token(logprob: TokenLogprob) -> dict[str, Any]:
    def entry(text: str, value: float) -> dict[str, Any]:
        return {"token": text, "logprob": value, "bytes": list(text.encode())}

    return {**entry(logprob.text, logprob.logprob), "top_logprobs": [entry(*one) for one in logprob.top]}


def _logprobs(pieces: list[Piece]) -> dict[str, Any] | None:
    content = [_token(piece.logprob) for piece in pieces if piece.logprob is not None]
    return {"content": content, "refusal": None} if content else None


def _usage(job: Generation) -> dict[str, int]:
    prompt, answer = len(job.prompt), len(job.tokens)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


async def _stream(
    wanted: ChatRequest, head: dict[str, Any], job: Generation, events: AsyncIterator[Event]
) -> AsyncIterator[str]:
    """Give an answer as server-sent events, a token each."""
    chunk = {**head, "object": "chat.completion.chunk", "model": job.model}

    def line(delta: dict[str, Any], reason: str | None = None, logprobs: dict[str, Any] | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n"

    yield line({"role": "assistant", "content": ""})
    async for event in events:
        if isinstance(event, Piece):
            if event.text or event.logprob is not None:
                yield line({"content": event.text}, logprobs=_logprobs([event]))
        elif isinstance(event, Failed):
            yield f"data: {json.dumps(refusal_body(500, event.message))}\n\n"
        elif isinstance(event, Done):
            yield line({}, event.reason)
            if wanted.stream_options is not None and wanted.stream_options.include_usage:
                yield f"data: {json.dumps({**chunk, 'choices': [], 'usage': _usage(job)})}\n\n"
    yield "data: [DONE]\n\n"
