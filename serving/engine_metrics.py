"""Metrics that are read from the engine when Prometheus asks."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from engines.base import Engine, EngineInfo, EngineStats
from engines.errors import EngineError
from serving.admission import Admission
from serving.names import ModelNames


class EngineCollector(Collector):
    """Reads `Engine.stats()` and `Engine.describe()` at every scrape."""

    def __init__(self, engine: Engine, names: ModelNames, admission: Admission) -> None:
        self._engine = engine
        self._names = names
        self._admission = admission

    def describe(self) -> list[Metric]:
        """Nothing: asking for names at registration would ask the engine."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics of the engine, now."""
        try:
            stats = self._engine.stats()
            info = self._engine.describe()
        except EngineError:
            yield self._gauge("engine_up", "Whether the engine answers.", 0)
            return
        yield self._gauge("engine_up", "Whether the engine answers.", 1)
        yield from self._load(stats)
        yield from self._totals(stats)
        yield self._mask_requests(stats, info)
        yield from self._masks(info)
        yield from self._kernels(info)

    def _load(self, stats: EngineStats) -> Iterator[Metric]:
        yield self._gauge("num_requests_running", "Sequences in the batch.", stats.running)
        yield self._gauge("num_requests_waiting", "Sequences in the queue.", stats.waiting)
        yield self._gauge(
            "kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", stats.kv_used_share
        )
        yield self._gauge("kv_cache_total_bytes", "Size of the KV cache.", stats.kv_total_bytes)
        yield self._gauge(
            "seconds_since_step",
            "Age of the engine's last step while it has work.",
            stats.seconds_since_step,
        )
        yield self._gauge(
            "http_generations_in_flight",
            "Generation requests that have not ended.",
            self._admission.in_flight,
        )
        yield self._gauge(
            "choices_waiting_first_token",
            "Admitted choices without a token.",
            self._admission.waiting,
        )

    def _totals(self, stats: EngineStats) -> Iterator[Metric]:
        for name, text, value in (
            ("prompt_tokens", "Prompt tokens processed.", stats.prompt_tokens),
            ("generation_tokens", "Tokens generated.", stats.generation_tokens),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.cached_tokens),
            ("num_preemptions", "Sequences put back to the queue.", stats.preemptions),
            ("engine_steps", "Steps of the engine.", stats.steps),
            ("mask_switches", "Changes of the mask in place.", stats.mask_switches),
        ):
            family = CounterMetricFamily(f"twofour:{name}", text, labels=["model_name"])
            family.add_metric([self._names.base], value)
            yield family

    def _mask_requests(self, stats: EngineStats, info: EngineInfo) -> Metric:
        # The Gateway API's endpoint picker reads adapters from a gauge of exactly this shape: the
        # value is a timestamp, the labels keep their LoRA names, entries are model names.
        family = GaugeMetricFamily(
            "twofour:mask_requests_info",
            "Masks in use, in the shape of vLLM's lora_requests_info; the value is a timestamp.",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        family.add_metric(
            [
                str(max(1, len(info.masks))),
                self._model_names(stats.running_masks),
                self._model_names(stats.waiting_masks),
            ],
            time.time(),
        )
        return family

    def _model_names(self, masks: tuple[str, ...]) -> str:
        return ",".join(f"{self._names.base}:{mask}" for mask in masks)

    def _masks(self, info: EngineInfo) -> Iterator[Metric]:
        about = GaugeMetricFamily(
            "twofour:mask_info",
            "Loaded masks; the value is 1.",
            labels=["mask", "digest", "domain", "storage"],
        )
        resident = GaugeMetricFamily(
            "twofour:mask_resident_bytes", "Memory of one mask alone.", labels=["mask"]
        )
        changed = GaugeMetricFamily(
            "twofour:mask_changed_share",
            "Share of groups that differ from the base mask, 0 to 1.",
            labels=["mask"],
        )
        pinned = GaugeMetricFamily(
            "twofour:mask_pinned", "Running sequences that use a mask.", labels=["mask"]
        )
        for mask in info.masks:
            about.add_metric([mask.name, mask.digest, mask.domain, mask.storage], 1)
            resident.add_metric([mask.name], mask.resident_bytes)
            changed.add_metric([mask.name], mask.changed_share)
            pinned.add_metric([mask.name], mask.pinned)
        yield from (about, resident, changed, pinned)

    def _kernels(self, info: EngineInfo) -> Iterator[Metric]:
        engine = GaugeMetricFamily(
            "twofour:engine_info",
            "What runs: engine, instruction set, sparse layout, values; the value is 1.",
            labels=[
                "kind",
                "version",
                "model",
                "base_digest",
                "isa",
                "layout",
                "values",
                "default_mask",
            ],
        )
        engine.add_metric(
            [
                info.kind,
                info.version,
                info.model,
                info.base_digest,
                info.isa,
                info.layout or "none",
                info.values,
                info.default_mask or "none",
            ],
            1,
        )
        yield engine
        kernels = GaugeMetricFamily(
            "twofour:kernel_info",
            "Which kernel serves each layer shape; the value is 1.",
            labels=["shape", "kernel"],
        )
        for shape, kernel in info.kernels.items():
            kernels.add_metric([shape, kernel], 1)
        yield kernels
        yield self._gauge("sparse_layers", "Linear layers on a sparse kernel.", info.sparse_layers)
        yield self._gauge(
            "eligible_layers", "Linear layers that the mask lists.", info.eligible_layers
        )
        yield self._gauge(
            "sparse_layer_share", "sparse_layers / eligible_layers, 0 to 1.", sparse_share(info)
        )
        yield self._gauge("weight_bytes", "Bytes of all resident weights.", info.weight_bytes)
        if info.dense_bytes is not None:
            yield self._gauge(
                "dense_weight_bytes", "Those of the dense model beside masks.", info.dense_bytes
            )

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"twofour:{name}", text, labels=["model_name"])
        family.add_metric([self._names.base], value)
        return family


def sparse_share(info: EngineInfo) -> float:
    """Share of the eligible layers that run a sparse kernel, 0 to 1."""
    return info.sparse_layers / info.eligible_layers if info.eligible_layers else 0.0
