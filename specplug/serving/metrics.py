"""What an operator watches, for Prometheus. docs/SERVING.md lists it."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from specplug.batching import BatchDecoder
from specplug.serving.logs import Record
from specplug.serving.worker import Channel

_SECONDS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
)  # fmt: skip
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)


class Metrics:
    """Of one application, in a registry of its own."""

    def __init__(self, decoder: BatchDecoder) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter(
            "requests", "Requests by path, status and outcome.", "path", "status", "outcome"
        )
        self.in_flight = self._gauge("requests_in_flight", "Requests that are being answered.")
        self._gauge("num_requests_running", "Answers in the batch.").set_function(
            lambda: decoder.running
        )
        self._gauge("num_requests_waiting", "Answers waiting for a place in it.").set_function(
            lambda: decoder.waiting
        )
        self.ended = self._counter("answers", "Answers by finish reason.", "finish_reason")
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of begun answers.")
        self.generation_tokens = self._counter("generation_tokens", "New tokens.")
        self.prefix_queries = self._counter(
            "prefix_cache_queries", "Prompt tokens looked for in the prefix cache."
        )
        self.prefix_hits = self._counter(
            "prefix_cache_hits", "Prompt tokens found in the prefix cache."
        )
        self.rounds = self._counter(
            "spec_decode_num_drafts", "Rounds of answers in which anything was drafted."
        )
        self.drafted = self._counter("spec_decode_num_draft_tokens", "Drafted tokens.")
        self.accepted = self._counter("spec_decode_num_accepted_tokens", "Accepted ones.")
        self.accepted_at = self._counter(
            "spec_decode_num_accepted_tokens_per_pos",
            "Accepted ones by their place in the draft, from 0.",
            "position",
        )
        self.drafter_failures = self._counter(
            "drafter_failures", "Answers whose drafter failed and was switched off."
        )
        self.first_token = self._seconds("time_to_first_token", "From request to first token.")
        self.between = self._seconds("inter_token_latency", "Between an answer's tokens.", _SHORT)
        self.end_to_end = self._seconds("e2e_request_latency", "From request to its end.")
        self.queued = self._seconds(
            "request_queue_time", "From an answer's arrival to its place in the batch."
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"specplug:{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"specplug:{name}", text, registry=self.registry)

    def _seconds(self, name: str, text: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
        name = f"specplug:{name}_seconds"
        return Histogram(name, text, registry=self.registry, buckets=buckets)

    def progress(self, channel: Channel) -> None:
        """A step reported an answer; called for every one of them."""
        generation, stats = channel.generation, channel.generation.stats
        new, seconds = stats.new_tokens - channel.counted_tokens, stats.decode_seconds
        if new and not channel.counted_tokens:
            self.queued.observe(generation.queue_seconds)
            self.prompt_tokens.inc(stats.prompt_tokens)
            self.prefix_queries.inc(stats.prompt_tokens)
            self.prefix_hits.inc(generation.cached_tokens)
        gaps = new - (not channel.counted_tokens)
        for _ in range(gaps):  # of tokens that came together, each has its share
            self.between.observe((seconds - channel.counted_seconds) / gaps)
        if new:
            self.generation_tokens.inc(new)
            channel.counted_tokens += new
            channel.counted_seconds = seconds
        counted, rounds = channel.counted_rounds, stats.rounds
        channel.counted_rounds = rounds
        for drafted, accepted in zip(
            stats.drafted_per_round[counted:rounds],
            stats.accepted_per_round[counted:rounds],
            strict=False,
        ):
            if drafted:
                self.rounds.inc()
                self.drafted.inc(drafted)
                self.accepted.inc(accepted)
                for position in range(accepted):
                    self.accepted_at.labels(position).inc()
        if channel.ended:
            self.drafter_failures.inc(stats.drafter_failures)
            self.ended.labels(generation.finish_reason).inc()

    def ended_request(self, record: Record, route: str) -> None:
        """A request was answered, or not."""
        self.requests.labels(route, record.status, record.outcome).inc()
        if record.first_token is not None:
            self.first_token.observe(record.first_token - record.started)
            self.end_to_end.observe(record.seconds)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
