"""The weights of an engine directory, and the native decoder over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engines.cpu.build import PACKED_EMBEDDING, PACKED_HEAD
from engines.cpu.loaded_weights import LoadedTensors
from engines.cpu.value_form import BF16_FORMS, ValueForm, ValueForms
from engines.directory.decoder_config import FINAL_NORM, DecoderConfig
from engines.directory.families import LINEARS, NormRole
from engines.directory.mixture import Mixture as ConfigMixture
from engines.directory.rope import Rope as RotaryEmbedding
from engines.directory.tensor_file import TensorFile
from engines.errors import EngineDirectoryError
from engines.native import _native, kernels, lowbit
from engines.native._native import (
    Blocks,
    Decoder,
    Layer,
    Limits,
    Mixture,
    Model,
    Norm,
    PackedLayer,
    Rope,
    Step,
)
from engines.native.layout import Layout, LayoutError, PackedWeights, validate
from maskgen.format.weight_files import EMBEDDING

PAGE_POSITIONS = _native.PAGE_POSITIONS
"""Positions of a sequence that one page of the key-value cache holds."""


class CpuModel:
    """Packed weights and the native decoder that multiplies them.

    Args:
        weights: the file of packed weights, loaded or mapped.
        config: the model's sizes.
        limits: what to make room for.
        forms: of the values that the file holds.
        isa: instruction set; the process's own by default.

    Raises:
        EngineDirectoryError: weights are missing, of another size, or malformed.
    """

    def __init__(
        self,
        weights: LoadedTensors | TensorFile,
        config: DecoderConfig,
        limits: Limits,
        forms: ValueForms = BF16_FORMS,
        *,
        isa: str | None = None,
    ) -> None:
        self.config = config
        self.limits = limits
        self.forms = forms
        self.isa = isa or kernels.isa()
        self._file = weights
        self.base: list[list[PackedWeights]] = [
            [
                self._load(config.module(layer, name), config.shape(name), forms.linears)
                for name in config.linears(layer)
            ]
            for layer in range(config.layers)
        ]
        self.head = self._load(PACKED_HEAD, (config.vocab, config.hidden), forms.tables)
        self._embedding = None if config.tied else self._load_embedding()
        self._final_norm = self._norm(FINAL_NORM)
        self._layers = [self._layer(layer) for layer in range(config.layers)]
        self.native = self.decoder(limits, config.layers)
        self.base_set = self.native.add_weights(native_layers(self.base))
        self.base_mask = self.native.add_mask(self.base_set, [])
        self._logits = np.zeros((limits.max_logits, config.vocab), np.float32)
        packed = sum(w.data.nbytes for layer in self.base for w in layer) + self.head.data.nbytes
        table = self._embedding
        embedding = table.data.nbytes if table is not None else 0
        self.weight_bytes: int = packed + embedding

    def decoder(self, limits: Limits, layers: int) -> Decoder:
        """A native decoder of this model's first layers, without linear weights yet."""
        config = self.config
        table = self._embedding
        model = Model(
            hidden=config.hidden,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            intermediate=config.intermediate,
            vocab=config.vocab,
            rotary_dim=config.rope.dim,
            eps=config.eps,
            blocks=_blocks(config),
            ropes=[_rope(rope) for rope in config.ropes],
            final_norm=self._final_norm,
            head=self.head.native,
            embedding=table.native if isinstance(table, PackedWeights) else table,
            layers=self._layers[:layers],
            block=self.forms.linears.block,
            mixture=_mixture(config.mixture),
        )
        return Decoder(model, limits, self.isa)

    def step(self, step: Step) -> npt.NDArray[np.float32]:
        """Run one step; (rows, vocab) weight logits that the next step overwrites.

        Raises:
            ValueError: an array is out of range; nothing was computed.
        """
        return self._logits[: self.native.step(step, self._logits)]

    def sparse_layers(self) -> int:
        """Linear layers in a sparse layout."""
        return sum(w.layout.sparse for layer in self.base for w in layer)

    def _load(self, name: str, shape: tuple[int, int], form: ValueForm) -> PackedWeights:
        return load_packed(self._file, name, shape, form)

    def _vector(self, name: str, size: int) -> npt.NDArray[np.float32]:
        values = self._file.tensor(name)
        if values.shape != (size,) or values.dtype != np.float32:
            raise EngineDirectoryError(
                f"{self._file.path}: {name} is {values.dtype} {values.shape},"
                f" expected float32 ({size},)"
            )
        return values.copy()

    def _router(self, layer: int) -> npt.NDArray[np.float32] | None:
        config = self.config
        if config.mixture is None or not config.mixture.layers[layer]:
            return None
        name, shape = f"{config.router(layer)}.weight", (config.mixture.experts, config.hidden)
        values = self._file.tensor(name)
        if values.shape != shape or values.dtype != np.float32:
            raise EngineDirectoryError(
                f"{self._file.path}: {name} is {values.dtype} {values.shape},"
                f" expected float32 {shape}"
            )
        return values.copy()

    def _gain(self, name: str, size: int) -> npt.NDArray[np.float32]:
        return self._vector(name, size) + np.float32(self.config.family.gain_offset)

    def _norm(self, name: str) -> Norm:
        hidden = self.config.hidden
        biased = self.config.family.norm_biases
        bias = self._vector(f"{name}.bias", hidden) if biased else None
        return Norm(self._gain(f"{name}.weight", hidden), bias)

    def _load_embedding(self) -> npt.NDArray[np.uint16] | PackedWeights:
        if self.forms.tables.block:
            shape = self.config.vocab, self.config.hidden
            return self._load(PACKED_EMBEDDING, shape, self.forms.tables)
        values = self._file.tensor(EMBEDDING)
        expected = (self.config.vocab, self.config.hidden)
        if values.shape != expected or values.dtype.itemsize != 2:
            raise EngineDirectoryError(f"{self._file.path}: the embedding is not bf16 {expected}")
        return values.view(np.uint16)

    def _layer(self, layer: int) -> Layer:
        config, prefix = self.config, f"model.layers.{layer}"

        def norm(role: NormRole) -> Norm | None:
            name = config.family.norms.get(role)
            return None if name is None else self._norm(f"{prefix}.{name}")

        def head_norm(name: str, linear: str) -> npt.NDArray[np.float32] | None:
            kind = config.family.head_norms
            if kind == "no":
                return None
            size = config.head_dim if kind == "head" else config.shape(linear)[0]
            return self._gain(f"{prefix}.self_attn.{name}.weight", size)

        def bias(name: str) -> npt.NDArray[np.float32] | None:
            if name not in config.biases:
                return None
            return self._vector(f"{config.module(layer, name)}.bias", config.shape(name)[0])

        return Layer(
            attention_input=norm("attention_input"),
            mlp_input=norm("mlp_input"),
            attention_output=norm("attention_output"),
            mlp_output=norm("mlp_output"),
            window=config.windows[layer],
            rope=config.rope_of_layer[layer],
            q_norm=head_norm("q_norm", "q_proj"),
            k_norm=head_norm("k_norm", "k_proj"),
            biases=[bias(name) for name in LINEARS],
            router=self._router(layer),
        )


def load_packed(
    file: LoadedTensors | TensorFile, name: str, shape: tuple[int, int], form: ValueForm
) -> PackedWeights:
    """One packed matrix of a file.

    Args:
        file: loaded or mapped.
        name: the layer's.
        shape: (outputs, inputs).
        form: of its values.

    Raises:
        EngineDirectoryError: it is missing, of another size, or malformed.
    """
    for layout in Layout:
        tensor = f"{name}.{layout.name.lower()}"
        if layout.values == form.values and tensor in file:
            break
    else:
        raise EngineDirectoryError(f"{file.path} holds no {form.values} weights of {name}")
    data = file.tensor(tensor)
    try:
        packed = PackedWeights(layout, *shape, data, form.block, form.minima)
        if layout.lowbit:
            lowbit.validate(packed)
        elif layout.sparse:
            validate(packed)
    except LayoutError as error:
        raise EngineDirectoryError(f"{file.path}: {tensor}: {error}") from error
    return packed


def _blocks(config: DecoderConfig) -> Blocks:
    family, scales = config.family, config.scales
    return Blocks(
        layer_norm=family.layer_norm,
        wide_head_norms=family.head_norms == "wide",
        parallel=family.parallel,
        interleaved=family.interleaved,
        gate_linear=config.gate[0],
        gate_cubic=config.gate[1],
        embedding_scale=scales.embedding,
        residual_scale=scales.residual,
        attention_scale=scales.attention,
        attention_cap=scales.attention_cap,
        logit_scale=scales.logit,
        logit_cap=scales.logit_cap,
    )


def _mixture(mixture: ConfigMixture | None) -> Mixture | None:
    if mixture is None:
        return None
    return Mixture(
        chosen=mixture.chosen,
        intermediate=mixture.intermediate,
        normalised=mixture.normalised,
    )


def _rope(rope: RotaryEmbedding) -> Rope:
    frequencies, factor = rope.frequencies()
    return Rope(np.ascontiguousarray(frequencies), factor)


def native_layers(layers: Sequence[Sequence[PackedWeights]]) -> list[list[PackedLayer]]:
    """Packed weights as the native decoder takes them."""
    return [[weights.native for weights in layer] for layer in layers]
