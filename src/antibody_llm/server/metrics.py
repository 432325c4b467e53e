"""Prometheus metrics of one server process."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .lifecycle import Status
from .queue import Queue

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class Metrics:
    """Counters, in a registry of their own: one process may hold several servers, as tests do."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "antibody_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "antibody_request_seconds", "Time to answer.", ["method", "route"], buckets=BUCKETS, registry=self.registry
        )
        self.received = Counter("antibody_received_bytes", "Bytes of uploads stored.", registry=self.registry)
        self.deliveries = Counter("antibody_webhooks", "Webhook attempts.", ["outcome"], registry=self.registry)
        self._jobs = Gauge("antibody_jobs", "Jobs by state.", ["status"], registry=self.registry)
        self._waiting = Gauge("antibody_jobs_waiting", "Jobs that a worker could claim now.", registry=self.registry)

    def text(self, queue: Queue) -> bytes:
        """All of them as Prometheus reads them."""
        jobs, waiting = queue.depth()
        for status in Status:
            self._jobs.labels(status).set(jobs.get(status, 0))
        self._waiting.set(waiting)
        return generate_latest(self.registry)
