"""Metrics that are read from the engine when Prometheus asks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from engines.base import Engine, EngineInfo, EngineStats
from engines.errors import EngineError
from serving.admission import Admission
from serving.mask_labels import OTHER, MaskLabels
from serving.names import ModelNames

_MASK_SUMS = {
    "mask_resident": "Masks under this label that are in memory.",
    "mask_resident_bytes": "Memory of a mask alone.",
    "mask_pinned": "Running sequences that use a mask.",
}


class EngineCollector(Collector):
    """Reads `Engine.stats()` and `Engine.describe()` at every scrape."""

    def __init__(
        self, engine: Engine, names: ModelNames, admission: Admission, labels: MaskLabels
    ) -> None:
        self._labels = labels
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
            ("mask_evictions", "Masks that left memory for others.", stats.mask_evictions),
            ("mask_restores", "Masks that returned to memory.", stats.mask_restores),
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
            "Loaded masks with labels of their own; the value is 1.",
            labels=["mask", "digest", "domain", "storage"],
        )
        changed = GaugeMetricFamily(
            "twofour:mask_changed_share",
            "Share of groups that differ from the base mask, 0 to 1.",
            labels=["mask"],
        )
        sums: dict[str, Counter[str]] = {name: Counter() for name in _MASK_SUMS}
        for mask in info.masks:
            label = self._labels.of(f"{self._names.base}:{mask.name}").rpartition(":")[2]
            if label != OTHER:
                about.add_metric([mask.name, mask.digest, mask.domain, mask.storage], 1)
                changed.add_metric([mask.name], mask.changed_share)
            sums["mask_resident"][label] += mask.resident
            sums["mask_resident_bytes"][label] += mask.resident_bytes
            sums["mask_pinned"][label] += mask.pinned
        yield from (about, changed)
        for name, text in _MASK_SUMS.items():
            family = GaugeMetricFamily(f"twofour:{name}", text, labels=["mask"])
            for label, value in sums[name].items():
                family.add_metric([label], value)
            yield family
        yield self._gauge("masks_loaded", "Masks that requests may name.", len(info.masks))
        if info.mask_budget is not None:
            yield self._gauge(
                "mask_budget_bytes", "Most memory of masks beside the base.", info.mask_budget
            )

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
