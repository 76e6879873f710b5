"""Switching masks inside vLLM's workers: a worker extension.

    vllm serve DIR --worker-extension-cls engines.vllm_plugin.worker.MaskWorker

Call it through `collective_rpc`, between batches only: no request may be running, and prefix-cache
entries of the former mask must be dropped or salted.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from engines.vllm_plugin.weights import MaskedWeights


class MaskWorker:
    """Mixed into vLLM's worker class; `model_runner` and `vllm_config` are the worker's."""

    model_runner: Any
    vllm_config: Any

    def twofour_switch_mask(self, file: str, digest: str, identity: str) -> dict[str, Any]:
        """Make the mask in `file` the active one, on this worker's shards, in place.

        Args:
            file: the mask file.
            digest: the mask's.
            identity: `Manifest.identity` of the directory that the weights came from.

        Returns:
            `digest`, `layers` (how many fused layers were packed again) and `seconds`.

        Raises:
            MaskError: the file is no mask of this checkpoint, or has another digest, or the
                checkpoint is sealed or was rebuilt. Nothing has changed then.
            EngineDirectoryError: a file of the checkpoint is damaged.
        """
        from engines.vllm_plugin.linear import TwofourLinearMethod

        begin = time.perf_counter()
        weights = self._twofour_weights(identity)
        codes = weights.read(Path(file), digest)
        changed = 0
        for module in self.model_runner.model.modules():
            method = getattr(module, "quant_method", None)
            if not isinstance(method, TwofourLinearMethod):
                continue
            names = [part.name for part in method.parts if part.sparse]
            if weights.differ(names, codes):
                with torch.no_grad():
                    method.refresh(module, weights.values(names, codes))
                changed += 1
        weights.active = codes
        seconds = time.perf_counter() - begin
        return {"digest": digest, "layers": changed, "seconds": seconds}

    def _twofour_weights(self, identity: str) -> MaskedWeights:
        weights: MaskedWeights | None = getattr(self, "_twofour", None)
        if weights is None:
            weights = MaskedWeights(Path(self.vllm_config.model_config.model), identity)
            self._twofour = weights
        return weights
