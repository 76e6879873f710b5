"""All metrics, with vLLM's names under the prefix `twofour:`."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from engines.base import GenerationChunk
from serving.mask_labels import MaskLabels
from serving.tracing import Span

CONTENT_TYPE = CONTENT_TYPE_LATEST

_FAST = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)
_SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 640)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class Metrics:
    """The metrics of one app, in a registry of its own.

    Times count from the arrival of the request, so the time to first token includes queueing.

    Args:
        max_mask_labels: masks with series of their own; the others share one.
    """

    def __init__(self, max_mask_labels: int) -> None:
        self.registry = CollectorRegistry()
        self.labels = MaskLabels(max_mask_labels, self._forget)
        ProcessCollector(registry=self.registry)
        model = ["model_name"]
        self.http_requests = Counter(
            "twofour:http_requests",
            "HTTP requests by method, route and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.finished = Counter(
            "twofour:request_success",
            "Choices that finished, by reason.",
            [*model, "finished_reason"],
            registry=self.registry,
        )
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "Arrival to a choice's first token.", _SLOW
        )
        self.inter_token = self._histogram(
            "inter_token_latency_seconds", "Time between a choice's tokens.", _FAST
        )
        self.per_token = self._histogram(
            "request_time_per_output_token_seconds",
            "Mean time per token after a choice's first one.",
            _FAST,
        )
        self.end_to_end = self._histogram(
            "e2e_request_latency_seconds", "Arrival to a choice's last token.", _SLOW
        )
        self.prompt_tokens = self._histogram(
            "request_prompt_tokens", "Tokens of a prompt.", _TOKENS
        )
        self.generation_tokens = self._histogram(
            "request_generation_tokens", "Tokens generated for a choice.", _TOKENS
        )

    def _forget(self, model: str) -> None:
        for histogram in (
            self.first_token,
            self.inter_token,
            self.per_token,
            self.end_to_end,
            self.prompt_tokens,
            self.generation_tokens,
        ):
            histogram.remove_by_labels({"model_name": model})
        self.finished.remove_by_labels({"model_name": model})

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"twofour:{name}", text, ["model_name"], buckets=buckets, registry=self.registry
        )


class RequestMeter:
    """Observes the chunks of one HTTP request.

    Args:
        metrics: count them.
        model: that answers.
        prompt_lengths: tokens of each prompt.
        span: of the request's trace, if it has one.
    """

    def __init__(
        self, metrics: Metrics, model: str, prompt_lengths: list[int], span: Span | None = None
    ) -> None:
        self._span = span
        if span is not None:
            span.set_attribute("gen_ai.request.model", model)
            span.set_attribute("gen_ai.usage.input_tokens", sum(prompt_lengths))
        self._metrics = metrics
        self._model = model = metrics.labels.enter(model)
        self._arrived = time.monotonic()
        self._last: dict[tuple[int, int], float] = {}
        self._first: dict[tuple[int, int], float] = {}
        self._tokens: dict[tuple[int, int], int] = {}
        self._inter_token = metrics.inter_token.labels(model)
        for length in prompt_lengths:
            metrics.prompt_tokens.labels(model).observe(length)

    def chunk(self, prompt: int, chunk: GenerationChunk) -> None:
        """Count one chunk, when it comes."""
        now = time.monotonic()
        choice = (prompt, chunk.index)
        if chunk.token_ids:
            self._count_tokens(choice, len(chunk.token_ids), now)
        if chunk.finish_reason is not None:
            self._finish(choice, chunk.finish_reason, now)

    def _count_tokens(self, choice: tuple[int, int], tokens: int, now: float) -> None:
        last = self._last.get(choice)
        if last is None:
            self._first[choice] = now
            self._metrics.first_token.labels(self._model).observe(now - self._arrived)
        else:
            self._inter_token.observe(now - last)
        self._last[choice] = now
        self._tokens[choice] = self._tokens.get(choice, 0) + tokens

    def _finish(self, choice: tuple[int, int], reason: str, now: float) -> None:
        tokens = self._tokens.get(choice, 0)
        self._metrics.finished.labels(self._model, reason).inc()
        self._metrics.end_to_end.labels(self._model).observe(now - self._arrived)
        self._metrics.generation_tokens.labels(self._model).observe(tokens)
        if tokens > 1:
            mean = (self._last[choice] - self._first[choice]) / (tokens - 1)
            self._metrics.per_token.labels(self._model).observe(mean)

    def close(self, unfinished: int) -> None:
        """The request has ended; choices that did not finish count as aborted."""
        if unfinished:
            self._metrics.finished.labels(self._model, "abort").inc(unfinished)
        self._metrics.labels.leave(self._model)
        if self._span is not None:
            self._span.set_attribute("gen_ai.usage.output_tokens", sum(self._tokens.values()))
            if self._first:
                first = min(self._first.values()) - self._arrived
                self._span.set_attribute("gen_ai.response.time_to_first_chunk", first)
