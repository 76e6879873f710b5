"""The weights of an engine directory, and the native decoder over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.cpu.build import PACKED_HEAD
from engines.cpu.loaded_weights import LoadedTensors
from engines.directory.decoder_config import FINAL_NORM, LINEARS, DecoderConfig
from engines.directory.tensor_file import TensorFile
from engines.errors import EngineDirectoryError
from engines.native import _native, kernels
from engines.native.layout import Layout, LayoutError, PackedWeights, validate
from maskgen.format.model_directory import EMBEDDING

PAGE_POSITIONS: int = _native.decoder.PAGE_POSITIONS
"""Positions of a sequence that one page of the key-value cache holds."""

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Limits:
    """What one native decoder is made for.

    Attributes:
        max_tokens: most tokens of one step.
        max_logits: most rows of logits of one step.
        context: most positions of a sequence.
        pages: pages of the key-value cache.
        threads: OpenMP threads.
    """

    max_tokens: int
    max_logits: int
    context: int
    pages: int
    threads: int


@dataclass(frozen=True)
class Step:
    """The arrays of one native step; int32 throughout.

    Attributes:
        tokens: (tokens,) ids of all sequences, one after the other.
        token_begin: (sequences + 1,) where each sequence's tokens start.
        start: (sequences,) position of each sequence's first token.
        pages: (sequences, width) page numbers, the unused ones of any value.
        masks: (sequences,) native mask numbers; equal weights are best kept together.
        logit_rows: (rows,) which tokens' logits are wanted.
    """

    tokens: Int32
    token_begin: Int32
    start: Int32
    pages: Int32
    masks: Int32
    logit_rows: Int32


class CpuModel:
    """Packed weights and the native decoder that multiplies them.

    Args:
        weights: the file of packed weights, loaded or mapped.
        config: the model's sizes.
        limits: what to make room for.
        isa: instruction set; the process's own by default.

    Raises:
        EngineDirectoryError: weights are missing, of another size, or malformed.
    """

    def __init__(
        self,
        weights: LoadedTensors | TensorFile,
        config: DecoderConfig,
        limits: Limits,
        *,
        isa: str | None = None,
    ) -> None:
        self.config = config
        self.limits = limits
        self.isa = isa or kernels.isa()
        self._file = weights
        self.base: list[list[PackedWeights]] = [
            [self._load(config.module(layer, name), config.shape(name)) for name in LINEARS]
            for layer in range(config.layers)
        ]
        head = self._load(PACKED_HEAD, (config.vocab, config.hidden))
        inverse_frequency, rope_factor = config.rope.frequencies()
        shared: dict[str, Any] = {
            "inverse_frequency": np.ascontiguousarray(inverse_frequency),
            "final_norm": self._vector(FINAL_NORM, config.hidden),
        }
        if not config.tied:
            shared["embedding"] = self._embedding()
        self._sizes = {
            "hidden": config.hidden,
            "heads": config.heads,
            "kv_heads": config.kv_heads,
            "head_dim": config.head_dim,
            "intermediate": config.intermediate,
            "vocab": config.vocab,
            "eps": config.eps,
            "rope_factor": rope_factor,
        }
        self._layers = [self._layer(layer) for layer in range(config.layers)]
        self._shared = shared
        self._head = _native_weights(head)
        self.native = self.decoder(limits, config.layers)
        self.base_set: int = self.native.add_weights(native_layers(self.base))
        self.base_mask: int = self.native.add_mask(self.base_set, [])
        self._logits = np.zeros((limits.max_logits, config.vocab), np.float32)
        packed = sum(w.data.nbytes for layer in self.base for w in layer) + head.data.nbytes
        embedding = 0 if config.tied else shared["embedding"].nbytes
        self.weight_bytes: int = packed + embedding

    def decoder(self, limits: Limits, layers: int) -> Any:
        """A native decoder of this model's first layers, without linear weights yet."""
        sizes = self._sizes | asdict(limits)
        return _native.decoder.Decoder(
            sizes, self._layers[:layers], self._shared, self._head, self.isa
        )

    def step(self, step: Step) -> npt.NDArray[np.float32]:
        """Run one step; (rows, vocab) weight logits that the next step overwrites.

        Raises:
            ValueError: an array is out of range; nothing was computed.
        """
        self.native.step(
            step.tokens,
            step.token_begin,
            step.start,
            step.pages,
            step.masks,
            step.logit_rows,
            self._logits,
        )
        return self._logits[: step.logit_rows.size]

    def sparse_layers(self) -> int:
        """Linear layers in a sparse layout."""
        return sum(w.layout is Layout.SPARSE24_BF16 for layer in self.base for w in layer)

    def _load(self, name: str, shape: tuple[int, int]) -> PackedWeights:
        for layout in Layout:
            tensor = f"{name}.{layout.name.lower()}"
            if tensor in self._file:
                break
        else:
            raise EngineDirectoryError(f"{self._file.path} holds no weights of {name}")
        data = self._file.tensor(tensor)
        try:
            packed = PackedWeights(layout, *shape, data)
            if layout is Layout.SPARSE24_BF16:
                validate(packed)
        except LayoutError as error:
            raise EngineDirectoryError(f"{self._file.path}: {tensor}: {error}") from error
        return packed

    def _vector(self, name: str, size: int) -> npt.NDArray[np.float32]:
        values = self._file.tensor(name)
        if values.shape != (size,) or values.dtype != np.float32:
            raise EngineDirectoryError(
                f"{self._file.path}: {name} is {values.dtype} {values.shape},"
                f" expected float32 ({size},)"
            )
        return values.copy()

    def _embedding(self) -> npt.NDArray[np.uint16]:
        values = self._file.tensor(EMBEDDING)
        expected = (self.config.vocab, self.config.hidden)
        if values.shape != expected or values.dtype.itemsize != 2:
            raise EngineDirectoryError(f"{self._file.path}: the embedding is not bf16 {expected}")
        return values.view(np.uint16)

    def _layer(self, layer: int) -> dict[str, Any]:
        config, prefix = self.config, f"model.layers.{layer}"
        norm = "post_attention_layernorm"
        parts: dict[str, Any] = {
            "window": config.windows[layer],
            "input_norm": self._vector(f"{prefix}.input_layernorm.weight", config.hidden),
            "post_norm": self._vector(f"{prefix}.{norm}.weight", config.hidden),
        }
        if config.head_norms:
            for name in ("q_norm", "k_norm"):
                weight = f"{prefix}.self_attn.{name}.weight"
                parts[name] = self._vector(weight, config.head_dim)
        for name in config.biases:
            bias = f"{config.module(layer, name)}.bias"
            parts[name.replace("_proj", "_bias")] = self._vector(bias, config.shape(name)[0])
        return parts


def native_layers(
    layers: Sequence[Sequence[PackedWeights]],
) -> list[list[tuple[int, int, int, npt.NDArray[np.uint8]]]]:
    """Packed weights as the native decoder takes them."""
    return [[_native_weights(weights) for weights in layer] for layer in layers]


def _native_weights(weights: PackedWeights) -> tuple[int, int, int, npt.NDArray[np.uint8]]:
    return int(weights.layout), weights.n, weights.k, weights.data
