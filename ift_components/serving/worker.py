"""The one thread that uses the models: it takes what waits, in batches, and runs all batches a token at a time in turn.

So a new question starts beside a long answer instead of behind it. A batch whose rows have mostly ended or whose clients have
gone is narrowed to the others, which frees their places and memory.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Named
from typing import Any

import torch
from torch import Tensor
from torchtune.models.llama3_2_vision import Llama3VisionTransform
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.data.images import ImageTransform
from ift_components.errors import UserError
from ift_components.evaluation.engine import EncodedImages, Engine, Sampling, State, next_tokens, uniform_numbers
from ift_components.evaluation.predictors.own import answer_tokens
from ift_components.saliency.mapper import Mapper
from ift_components.serving.faults import log_fault
from ift_components.serving.jobs import Done, Failed, Generation, Job, Mapping, OptionProbabilities, Piece, TokenLogprob
from ift_components.serving.metrics import Metrics

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a character's first bytes decode to


class Served:
    """A model that is served.

    Args:
        model: the model, frozen, on its device and in its compute dtype.
        transform: the model's transform.
        resize: how pictures are resized, as in training.
        tiles: most tiles of a picture, as in training.
    """

    def __init__(self, model: DeepFusionModel, transform: Llama3VisionTransform, resize: str, tiles: int = 1) -> None:
        self.engine = Engine(model, transform)
        self.transform = transform
        self.picture = ImageTransform(transform, resize, tiles)
        self.mapper = Mapper(model, transform, resize, tiles=tiles)
        self.longest = min(filter(None, (transform.max_seq_len, model.decoder.max_seq_len)))
        self.prefix, self.ways = answer_tokens(transform)
        self.forced_room = len(self.prefix) + max(len(tokens) for _, tokens in self.ways)
        self.stops = frozenset(transform.stop_tokens)


class _Images:
    """The images that were asked about last, encoded, with the keys and values that the decoder made of them.

    Args:
        limit: how many are kept.
        metrics: counts passes and what was found.
    """

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self._limit, self._metrics = limit, metrics
        self._held: OrderedDict[tuple[str, str], EncodedImages] = OrderedDict()

    def get(self, served: Served, jobs: Sequence[Job]) -> list[EncodedImages]:
        """Return the images of jobs, each about another, encoding those that are not held."""
        keys = [(job.model, job.picture.sha256) for job in jobs]
        missing = [index for index, key in enumerate(keys) if key not in self._held]
        self._metrics.encoded.inc(len(missing))
        self._metrics.cached.inc(len(keys) - len(missing))
        images = {key: self._held[key] for key in keys if key in self._held}
        if missing:
            together = served.engine.encode([served.picture(jobs[index].picture.image) for index in missing])
            images |= {keys[index]: together.select([place]) for place, index in enumerate(missing)}
        for key in keys:
            self._held[key] = images[key]
            self._held.move_to_end(key)
        while len(self._held) > self._limit:
            self._held.popitem(last=False)
        return [images[key] for key in keys]


class _Texts:
    """Texts that are being generated, a token of each at a time."""

    def __init__(self, served: Served, jobs: Sequence[Generation], state: State) -> None:
        self._served, self._state = served, state
        self.jobs = list(jobs)
        first = jobs[0].sampling
        self._sampling, self._step = Sampling(first.temperature, first.top_p), 0
        self._uniform: Tensor | None = None
        if first.temperature > 0:
            seeds = [job.sampling.seeds[0] for job in jobs]
            self._uniform = uniform_numbers(seeds, max(job.max_tokens for job in jobs)).to(served.engine.device)

    @torch.inference_mode()
    def step(self, metrics: Metrics) -> None:
        """Generate the next token of every text."""
        engine, state = self._served.engine, self._state
        uniform = None if self._uniform is None else self._uniform[:, self._step]
        tokens = next_tokens(state.logits, self._sampling, uniform)
        for row, (job, token) in enumerate(zip(self.jobs, tokens.tolist(), strict=True)):
            if not job.is_over:
                self._report(job, row, token)
                metrics.tokens.inc()
                if self._step == 0:
                    metrics.first_token.observe(time.perf_counter() - job.queued_at)
        self._step += 1
        alive = [row for row, job in enumerate(self.jobs) if not job.is_over]
        if 2 * len(alive) <= len(self.jobs) and alive:
            engine.narrow(state, alive)
            tokens = tokens[alive]
            self._uniform = None if self._uniform is None else self._uniform[alive]
        if 2 * len(alive) <= len(self.jobs):
            self.jobs = [self.jobs[row] for row in alive]
        if self.jobs:
            engine.feed(state, tokens.unsqueeze(1))

    def _report(self, job: Generation, row: int, token: int) -> None:
        """Hand on a token and what has become readable with it."""
        logprob = None if job.top_logprobs is None else self._logprob(row, token, job.top_logprobs)
        if token in self._served.stops:
            rest = self._served.engine.text(job.tokens)[job.sent :]
            if rest or (logprob is not None and not job.tokens):  # how probable it was to say nothing is told
                job.emit(Piece(rest, logprob if not job.tokens else None))
            job.end(Done("stop"))
            return
        job.tokens.append(token)
        is_last = len(job.tokens) == job.max_tokens
        text = self._served.engine.text(job.tokens)
        ready = text if is_last else text.rstrip(_UNFINISHED)
        piece, job.sent = ready[job.sent :], max(job.sent, len(ready))
        job.emit(Piece(piece, logprob))
        if is_last:
            job.end(Done("length"))

    def _logprob(self, row: int, token: int, count: int) -> TokenLogprob:
        logprobs = self._state.logits[row].log_softmax(dim=-1)
        values, tokens = logprobs.topk(count) if count else (logprobs[:0], logprobs[:0].long())
        decode = self._served.transform.tokenizer.decode
        top = zip((decode([t], truncate_at_eos=False) for t in tokens.tolist()), values.tolist(), strict=True)
        return TokenLogprob(decode([token], truncate_at_eos=False), float(logprobs[token]), tuple(top))


class Worker:
    """Runs jobs on models in a thread of its own.

    Args:
        models: by name.
        batch_size: rows that run at the same time, of all models together.
        batch_wait: seconds that an idle worker waits for company of a lone job.
        image_cache: encoded images that are kept.
        metrics: counts what happens.
    """

    def __init__(
        self, models: Named[str, Served], *, batch_size: int, batch_wait: float, image_cache: int, metrics: Metrics
    ) -> None:
        self.models = models
        self._batch_size, self._batch_wait = batch_size, batch_wait
        self._metrics = metrics
        self._images = _Images(image_cache, metrics)
        self._changed = threading.Condition()
        self._waiting: list[Job] = []
        self._running: list[_Texts] = []
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; jobs that are not done fail."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()

    def submit(self, job: Job) -> None:
        """Queue a job."""
        with self._changed:
            self._waiting.append(job)
            self._metrics.waiting.set(len(self._waiting))
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Do no more for a job: it leaves the queue, or the batch that it is in."""
        with self._changed:
            if job.is_over:
                return
            job.is_over = True
            self._metrics.cancelled.inc()
            if job in self._waiting:
                self._waiting.remove(job)
                self._metrics.waiting.set(len(self._waiting))

    def _run(self) -> None:
        while True:
            jobs = self._take()
            if self._is_stopping:
                break
            if jobs:
                self._metrics.batch.observe(len(jobs))
                self._guarded(jobs, self._begin, jobs)
            for batch in self._running:
                self._guarded(batch.jobs, batch.step, self._metrics)
            self._running = [batch for batch in self._running if not all(job.is_over for job in batch.jobs)]
            self._metrics.rows.set(sum(len(batch.jobs) for batch in self._running))
        for job in [*self._waiting, *(job for batch in self._running for job in batch.jobs)]:
            job.end(Failed("the server is shutting down"))

    def _guarded(self, jobs: Sequence[Job], do: Callable[..., None], *arguments: Any) -> None:
        """Run a part of the work; what goes wrong ends its jobs and nothing else."""
        try:
            do(*arguments)
        except UserError as error:
            failure = Failed(str(error), is_users=True)
        except Exception as error:  # noqa: BLE001 (the other jobs go on)
            failure = Failed(log_fault(error))
        else:
            return
        for job in jobs:
            job.end(failure)

    def _take(self) -> list[Job]:
        """Return the jobs of the next batch, taken out of the queue; none if there is no place or nothing waits."""
        with self._changed:
            while not self._waiting and not self._running and not self._is_stopping:
                self._changed.wait()
            free = self._batch_size - sum(len(batch.jobs) for batch in self._running)
            if not self._running and len(self._waiting) < free and not self._is_stopping:
                self._changed.wait_for(lambda: len(self._waiting) >= free or self._is_stopping, self._batch_wait)
            if free < 1 or not self._waiting or self._is_stopping:
                return []
            jobs = self._matching(free)
            for job in jobs:
                self._waiting.remove(job)
            self._metrics.waiting.set(len(self._waiting))
            return jobs

    def _matching(self, free: int) -> list[Job]:
        """Return the oldest job and those that fit into its batch: as many about every image, in the images' order."""
        oldest = self._waiting[0]
        if isinstance(oldest, Mapping):
            return [oldest]
        by_image: dict[str, list[Job]] = {}
        for job in self._waiting:
            if job.batch_key == oldest.batch_key:
                by_image.setdefault(job.picture.sha256, []).append(job)
        each = min(free, len(by_image[oldest.picture.sha256]))
        groups = [group[:each] for group in by_image.values() if len(group) >= each]
        return [job for group in groups[: free // each] for job in group]

    @torch.inference_mode()
    def _prompted(self, jobs: Sequence[Generation] | Sequence[OptionProbabilities], room: int) -> State:
        """Return the state after the jobs' prompts; what the decoder makes of their images is kept for later jobs."""
        served = self.models[jobs[0].model]
        firsts = list({job.picture.sha256: job for job in jobs}.values())
        parts = self._images.get(served, firsts)
        together = parts[0] if len(parts) == 1 else EncodedImages.join(parts)
        state = served.engine.start(together, [job.prompt for job in jobs], room)
        if len(parts) > 1:
            for index, part in enumerate(parts):
                if not all(layer.size for layer in part.keys_values):
                    part.keys_values = together.select([index]).keys_values
        return state

    def _begin(self, jobs: list[Job]) -> None:
        """Do what takes one step, or start what takes several."""
        served = self.models[jobs[0].model]
        texts = [job for job in jobs if isinstance(job, Generation)]
        if texts:
            state = self._prompted(texts, max(job.max_tokens for job in texts))
            self._running.append(_Texts(served, texts, state))
            return
        questions = [job for job in jobs if isinstance(job, OptionProbabilities)]
        if questions:
            state = self._prompted(questions, served.forced_room)
            ways = [[way for way in served.ways if way[0] < job.options] for job in questions]
            for job, sums in zip(questions, served.engine.probabilities(state, served.prefix, ways), strict=True):
                job.end(Done(value=sums))
            return
        for wanted in jobs:
            if isinstance(wanted, Mapping):
                with torch.inference_mode(mode=False):
                    found = served.mapper.explain(wanted.picture.image, wanted.prompt, wanted.answer, wanted.method)
                wanted.end(Done(value=found))
