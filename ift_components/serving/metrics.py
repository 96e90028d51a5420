"""What the server counts, as Prometheus reads it; nothing of a request's content is in it."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "ift_requests", "Requests by endpoint and status", ["endpoint", "status"], registry=registry
        )
        self.seconds = Histogram(
            "ift_request_seconds", "From a request's first byte to its answer's last", ["endpoint"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "ift_first_token_seconds", "From queueing to the first token", buckets=_SECONDS, registry=registry
        )
        self.batch = Histogram(
            "ift_batch_size", "Questions of a batch when it starts", buckets=_ROWS, registry=registry
        )
        self.tokens = Counter("ift_generated_tokens", "Tokens generated", registry=registry)
        self.cancelled = Counter("ift_cancelled_requests", "Requests whose client went away", registry=registry)
        self.encoded = Counter("ift_encoded_images", "Images that went through the encoder", registry=registry)
        self.cached = Counter("ift_cached_images", "Images that were found encoded", registry=registry)
        self.under_way = Gauge(
            "ift_requests_under_way", "Requests being read, waiting or being answered", registry=registry
        )
        self.waiting = Gauge("ift_requests_waiting", "Requests that wait for a place in a batch", registry=registry)
        self.rows = Gauge("ift_rows_running", "Questions being answered", registry=registry)

    def text(self) -> bytes:
        """Return all of it in Prometheus's text format."""
        return generate_latest(self._registry)
