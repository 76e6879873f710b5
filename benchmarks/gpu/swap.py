"""A mask swapped in place under a captured forward pass, and what that takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.gpu.decoder import Decoder, DecoderShape, linears, random_decoder
from benchmarks.gpu.masks import kept_and_codes, masked, random_codes
from engines.vllm_plugin.backend import Backend, PackedRows, copy_into

TOKENS = (8, 64)
"""Of the two forward passes that are captured: one for each kernel of the plugin."""

Replay = Callable[[], object]


class Device(Protocol):
    """What a swap needs of a device."""

    def capture(self, work: Replay) -> Replay:
        """Something that does the work again, with the same memory."""

    def synchronise(self) -> None:
        """Wait until it has nothing to do."""


class SparseLinear(nn.Module):
    """A linear layer that the plugin's kernels multiply."""

    def __init__(self, backend: Backend, run: PackedRows) -> None:
        super().__init__()
        self._backend = backend
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        """(..., k) -> (..., n)."""
        return self._backend.multiply(x, self.run, None)


@torch.inference_mode()
def measure_swap(
    shape: DecoderShape, where: torch.device, backend: Backend, device: Device
) -> dict[str, Any]:
    """Swap the masks of all layers of a decoder.

    Returns:
        layers; `bytes`, that a swap writes; `from_device_ms` and `from_host_ms`, for packed weights
        that lie on the device and in page-locked memory; `same_memory`, whether no tensor moved;
        `follows`, whether the captured pass gives the new mask's logits; `worst_logit`, the largest
        difference from dense products of the masked weights, over the largest logit.
    """
    model = random_decoder(shape, where)
    dense = {name: linear.weight.detach() for name, linear in linears(model).items()}
    packed = [
        {name: _pack(backend, weight, name, mask) for name, weight in dense.items()}
        for mask in (0, 1)
    ]
    ids = [torch.arange(count, device=where)[None] * 37 % shape.vocabulary for count in TOKENS]
    wanted = [_dense_logits(model, dense, mask, ids) for mask in (0, 1)]
    runs = {name: backend.adopt(packed[0][name]) for name in dense}
    for name, run in runs.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, SparseLinear(backend, run))
    logits = torch.empty_like(wanted[0])

    def forward() -> None:
        logits.copy_(_logits(model, ids))

    replay = device.capture(forward)
    targets = [tensor for run in runs.values() for tensor in _plain(run)]
    before = [tensor.data_ptr() for tensor in targets]
    # What was adopted is what is written over, so the way back needs the first mask once more.
    back = {name: _pack(backend, weight, name, 0) for name, weight in dense.items()}
    hosted = [_hosted(mask) for mask in (packed[1], back)]

    def from_device(mask: Mapping[str, PackedRows]) -> None:
        for name, run in mask.items():
            for part, tensor in run.tensors.items():
                copy_into(runs[name].tensors[part], tensor)

    def from_host(sources: list[Tensor]) -> None:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source, non_blocking=True)

    swaps: tuple[tuple[str, int, Callable[[], None]], ...] = (
        ("device", 1, lambda: from_device(packed[1])),
        ("device", 0, lambda: from_device(back)),
        ("host", 1, lambda: from_host(hosted[0])),
        ("host", 0, lambda: from_host(hosted[1])),
    )
    times: dict[str, float] = {}
    found = []
    for source, index, swap in swaps:
        device.synchronise()
        begin = time.perf_counter()
        swap()
        device.synchronise()
        times[source] = 1e3 * (time.perf_counter() - begin)
        replay()
        device.synchronise()
        found.append((index, logits.clone()))
    scale = max(float(w.abs().max()) for w in wanted)
    distance = [float((y - wanted[index]).abs().max()) / scale for index, y in found]
    others = [float((y - wanted[1 - index]).abs().max()) / scale for index, y in found]
    return {
        "layers": len(runs),
        "bytes": sum(tensor.nbytes for tensor in targets),
        "from_device_ms": times["device"],
        "from_host_ms": times["host"],
        "same_memory": [tensor.data_ptr() for tensor in targets] == before,
        "follows": all(near < far / 4 for near, far in zip(distance, others, strict=True)),
        "worst_logit": max(distance),
    }


def _pack(backend: Backend, weight: Tensor, name: str, mask: int) -> PackedRows:
    codes = _codes(weight, name, mask)
    return backend.pack_sparse(*kept_and_codes(weight, codes))


def _codes(weight: Tensor, name: str, mask: int) -> Tensor:
    n, k = weight.shape
    return random_codes(n, k, weight.device, seed=2 * len(name) + mask)


def _logits(model: Decoder, ids: Sequence[Tensor]) -> Tensor:
    """(1, all tokens, vocabulary), of one pass after the other."""
    return torch.cat([model(one).logits for one in ids], dim=1)


def _dense_logits(
    model: Decoder, dense: Mapping[str, Tensor], mask: int, ids: Sequence[Tensor]
) -> Tensor:
    """Logits with dense products of what a mask keeps; the model has its own weights afterwards."""
    found = linears(model)
    for name, weight in dense.items():
        kept = masked(weight, _codes(weight, name, mask))
        found[name].weight = nn.Parameter(kept, requires_grad=False)
    logits = _logits(model, ids)
    for name, weight in dense.items():
        found[name].weight = nn.Parameter(weight, requires_grad=False)
    return logits


def _plain(run: PackedRows) -> list[Tensor]:
    """The tensors of a run, of wrapped ones what they wrap."""
    return [inner for tensor in run.tensors.values() for inner in _inner(tensor)]


def _inner(tensor: Any) -> list[Tensor]:
    if type(tensor) is Tensor:
        return [tensor]
    return [x for name in tensor.__tensor_flatten__()[0] for x in _inner(getattr(tensor, name))]


def _hosted(mask: Mapping[str, PackedRows]) -> list[Tensor]:
    """A mask's tensors in host memory, page-locked where there is a GPU."""
    tensors = [tensor.cpu() for run in mask.values() for tensor in _plain(run)]
    return [t.pin_memory() for t in tensors] if torch.cuda.is_available() else tensors
