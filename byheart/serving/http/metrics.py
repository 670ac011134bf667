"""What a server counts, for Prometheus: vLLM's names under ``byheart:``, and none of a memory or a tenant."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from byheart.serving.jobs import Engine, Finished

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 30.0)
_SLOW = (0.05, 0.1, 0.3, 0.8, 1.5, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 900.0)
_COUNTERS = {
    "prompt_tokens": "Tokens of prompts, slots of memories among them",
    "prompt_tokens_cached": "Slots of memories that were read instead of text",
    "generation_tokens": "Tokens of answers",
    "written_tokens": "Tokens of texts that were written into memories",
}
_TIMES = {
    "time_to_first_token_seconds": ("From a question to the first token of its answer", _FAST),
    "inter_token_latency_seconds": ("Between two pieces of an answer", _FAST),
    "e2e_request_latency_seconds": ("From a question to the end of its answer", _SLOW),
    "memory_write_seconds": ("From a text to the new version", _SLOW),
}
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Load(Collector):
    """How busy the engine is at the moment it is asked."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        """The gauges."""
        load = self._engine.load
        values = {
            "num_requests_running": ("Jobs that the engine works on", load.running),
            "num_requests_waiting": ("Jobs that wait for it", load.waiting),
            "memories_resident": ("Memories that need no loading", load.resident),
            "memory_bytes_resident": ("Bytes that they take", load.resident_bytes),
        }
        for name, (help, value) in values.items():
            yield GaugeMetricFamily(f"byheart:{name}", help, value=value)


class Metrics:
    """The counters of one server."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Load(engine))
        self._counters = {
            name: Counter(f"byheart:{name}", help, registry=self._registry) for name, help in _COUNTERS.items()
        }
        self._times = {
            name: Histogram(f"byheart:{name}", help, buckets=buckets, registry=self._registry)
            for name, (help, buckets) in _TIMES.items()
        }
        self._ended = Counter(
            "byheart:request_success", "Answers, by how they ended", ["finished_reason"], registry=self._registry
        )
        self._requests = Counter(
            "byheart:http_requests", "Requests, by route and status", ["route", "status"], registry=self._registry
        )

    def count(self, name: str, amount: float = 1) -> None:
        """Add to a counter."""
        self._counters[name].inc(amount)

    def time(self, name: str, seconds: float) -> None:
        """Add a duration to a histogram."""
        self._times[name].observe(max(0.0, seconds))

    def finish(self, finished: Finished, seconds: float) -> None:
        """Count an answer that has ended."""
        self.count("prompt_tokens", finished.prompt_tokens)
        self.count("prompt_tokens_cached", finished.cached_tokens)
        self.count("generation_tokens", finished.completion_tokens)
        self.time("e2e_request_latency_seconds", seconds)
        self._ended.labels(finished.reason).inc()

    def count_request(self, route: str, status: int) -> None:
        """Count a request by the pattern of its route, in which there are no names."""
        self._requests.labels(route, str(status)).inc()

    def render(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self._registry)
