"""What Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """Of one server."""

    def __init__(self) -> None:
        one = self.registry = CollectorRegistry()
        self.waiting = Gauge("sanakit_queue_length", "Requests that wait", registry=one)
        self.running = Gauge("sanakit_running", "Requests that are drawn now", registry=one)
        self.jobs = Counter(
            "sanakit_jobs", "Requests that are over", ["state", "code"], registry=one
        )
        self.pictures = Counter("sanakit_pictures", "Pictures drawn", registry=one)
        self.refused = Counter(
            "sanakit_refused", "Requests the queue had no room for", registry=one
        )
        self.restarts = Counter("sanakit_worker_restarts", "Ends of the worker", registry=one)
        self.step_seconds = Histogram(
            "sanakit_step_seconds",
            "Between two steps",
            buckets=(0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
            registry=one,
        )

    def text(self) -> bytes:
        """Give all in the format that is scraped."""
        return generate_latest(self.registry)
