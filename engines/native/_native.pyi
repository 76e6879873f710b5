"""Native kernels and decoder of the CPU engine."""

from collections.abc import Sequence
from typing import Annotated

import numpy
from numpy.typing import NDArray


class PackedLayer:
    """
    The native side of an `engines.native.layout.PackedWeights`; shares its bytes.
    """

    def __init__(self, layout: int, n: int, k: int, data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], block: int = 0, minima: bool = False) -> None: ...

class PatchArrays:
    """The native side of an `engines.native.patch.Patch`; shares its arrays."""

    def __init__(self, n: int, k: int, row_start: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)], group: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)], codes: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], delta: Annotated[NDArray[numpy.uint16], dict(shape=(None, None), order='C', device='cpu', writable=False)]) -> None: ...

LAYOUT_VERSION: int = 1

def isa() -> str:
    """The instruction set of this process; ValueError for a bad TWOFOUR_ISA."""

def supported_isas() -> list[str]:
    """What this build and this machine have, slowest first."""

def packed_bytes(layout: int, n: int, k: int, block: int = 0, minima: bool = False) -> int:
    """Bytes of an n x k layer."""

def kernel_name(layout: int, tokens: int, isa: str | None) -> str:
    """Which kernel multiplies `tokens` tokens."""

def linear(layer: PackedLayer, x: Annotated[NDArray, dict(shape=(None, None), order='C', device='cpu', writable=False)], y: Annotated[NDArray, dict(shape=(None, None), order='C', device='cpu')], bias: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, add: bool, threads: int, isa: str | None) -> None:
    """y = x W^T (+ bias), or added to y."""

def linear_at(arg0: int, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: bool, arg7: int, arg8: int, arg9: bool, arg10: int, arg11: int, arg12: int, /) -> None:
    """
    `linear` by address, (layout, n, k, data, bytes, block, minima, x, y, is_bf16, tokens,
    bias or 0, threads): making arrays of torch's tensors takes longer than a small product.
    The caller answers for x (tokens x k) and y (tokens x n), both bf16 or both float32, and
    the bias.
    """

def gated(gate: PackedLayer, up: PackedLayer, x: Annotated[NDArray, dict(shape=(None, None), order='C', device='cpu', writable=False)], y: Annotated[NDArray, dict(shape=(None, None), order='C', device='cpu')], threads: int, isa: str | None) -> None:
    """y = silu(x gate^T) * (x up^T)."""

def pack(layout: int, dense: Annotated[NDArray[numpy.uint16], dict(shape=(None, None), order='C', device='cpu', writable=False)], codes: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None, packed: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')], threads: int) -> bool:
    """Packs (n, k) weights; False if a code is no placement."""

def unpack(layer: PackedLayer, dense: Annotated[NDArray[numpy.uint16], dict(shape=(None, None), order='C', device='cpu')], codes: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu')] | None, threads: int) -> None:
    """The inverse of `pack`, into (n, k) weights and (n, k / 4) codes."""

def check(layer: PackedLayer, threads: int) -> tuple[int, int, int, int]:
    """
    (fault, row, group, value): 0 none, 1 a code that is no placement, 2 padding not zero.
    """

def patch_apply(patch: PatchArrays, packed: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')], revert: bool, threads: int) -> bool:
    """
    Rewrites packed weights; False, and nothing changed, if they hold another mask.
    """

def patch_add(patch: PatchArrays, x: Annotated[NDArray, dict(shape=(None, None), order='C', device='cpu', writable=False)], which: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)], y: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], threads: int, isa: str | None) -> None:
    """Adds the patch's product to the rows `which` of y."""

def read(data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], threads: int, isa: str | None) -> int:
    """Reads the bytes once; the result only keeps the loads alive."""

LOWBIT_LAYOUT_VERSION: int = 1

def lowbit_pack(layout: int, block: int, values: Annotated[NDArray[numpy.int8], dict(shape=(None, None), order='C', device='cpu', writable=False)], scales: Annotated[NDArray[numpy.uint16], dict(shape=(None, None), order='C', device='cpu', writable=False)], minima: Annotated[NDArray[numpy.int8], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None, kept: Annotated[NDArray[numpy.uint32], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None, packed: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')], threads: int) -> tuple[int, int, int, int]:
    """
    Packs (n, k) int8 values or int4 levels; (fault, row, input, value), fault 0 for none.
    """

def lowbit_unpack(layer: PackedLayer, values: Annotated[NDArray[numpy.int8], dict(shape=(None, None), order='C', device='cpu')], scales: Annotated[NDArray[numpy.uint16], dict(shape=(None, None), order='C', device='cpu')], minima: Annotated[NDArray[numpy.int8], dict(shape=(None, None), order='C', device='cpu')] | None, kept: Annotated[NDArray[numpy.uint32], dict(shape=(None, None), order='C', device='cpu')] | None, threads: int) -> None:
    """The inverse of `lowbit_pack`; values that are not kept are 0."""

def lowbit_check(layer: PackedLayer, threads: int) -> tuple[int, int, int, int]:
    """
    (fault, row, input, value): 0 none, 1 places, 2 value, 3 scale, 4 minimum, 5 padding.
    """

class LowbitPatchArrays:
    """
    The native side of an `engines.native.lowbit_patch.LowbitPatch`; shares its arrays.
    """

    def __init__(self, n: int, k: int, row_start: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)], place: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)], value: Annotated[NDArray[numpy.int8], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

def lowbit_patch_apply(patch: LowbitPatchArrays, layout: int, block: int, minima: bool, packed: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')], revert: bool, threads: int) -> bool:
    """
    Rewrites packed weights; False, and nothing changed, if they hold another mask.
    """

def lowbit_patch_add(patch: LowbitPatchArrays, base: PackedLayer, x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], which: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)], y: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> None:
    """
    Adds the patch's product to the rows `which` of y; `base` has the scales.
    """

PAGE_POSITIONS: int = 16

def page_bytes(layers: int, kv_heads: int, head_dim: int) -> int:
    """Bytes of one page of the key-value cache."""

class Limits:
    """
    What one decoder is made for.

    Attributes:
        max_tokens: most tokens of one step.
        max_logits: most rows of logits of one step.
        context: most positions of a sequence.
        pages: pages of the key-value cache.
        threads: OpenMP threads.
    """

    def __init__(self, max_tokens: int, max_logits: int, context: int, pages: int, threads: int) -> None: ...

    @property
    def max_tokens(self) -> int: ...

    @property
    def max_logits(self) -> int: ...

    @property
    def context(self) -> int: ...

    @property
    def pages(self) -> int: ...

    @property
    def threads(self) -> int: ...

class Norm:
    """Gain and perhaps bias of a norm, (hidden,) each."""

    def __init__(self, gain: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], bias: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None) -> None: ...

class Rope:
    """
    A rotary embedding: (rotary_dim / 2,) angles per position, and the factor
    of sines and cosines.
    """

    def __init__(self, inverse_frequency: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], factor: float) -> None: ...

class Blocks:
    """
    How the blocks of a family are put together.

    Args:
        layer_norm: norms subtract the mean.
        wide_head_norms: q_norm and k_norm are over all heads at once.
        parallel: attention and MLP read the same residual stream.
        interleaved: rotary pairs are neighbours, not half a head apart.
        gate_linear, gate_cubic: a, b of the gate x sigmoid(a x + b x^3).
        embedding_scale: of rows of the embedding.
        residual_scale: of what a block adds to the residual stream.
        attention_scale: of scores, before the softmax.
        attention_cap: c of c tanh(score / c); 0 for none.
        logit_scale, logit_cap: of logits, the scale first.
    """

    def __init__(self, *, layer_norm: bool = False, wide_head_norms: bool = False, parallel: bool = False, interleaved: bool = False, gate_linear: float = 1.0, gate_cubic: float = 0.0, embedding_scale: float = 1.0, residual_scale: float = 1.0, attention_scale: float, attention_cap: float = 0.0, logit_scale: float = 1.0, logit_cap: float = 0.0) -> None: ...

class Mixture:
    """
    How a token's experts are chosen: by a softmax over a layer's.

    Args:
        chosen: experts that a token goes to; 0 where no layer has any.
        intermediate: of an expert.
        normalised: the weights of the chosen ones add up to 1.
    """

    def __init__(self, *, chosen: int = 0, intermediate: int = 0, normalised: bool = False) -> None: ...

class Layer:
    """
    A layer's vectors: norms of what its blocks read and of what they add, each
    perhaps None, norms over a head (head_dim,) or over all, or None, the biases of
    its seven linear layers, each perhaps None; how many positions attention sees
    (0: all), which of the model's ropes it has (-1: none), and where the MLP is a
    mixture its (experts, hidden) router.
    """

    def __init__(self, *, attention_input: Norm | None, mlp_input: Norm | None, attention_output: Norm | None = None, mlp_output: Norm | None = None, window: int, rope: int = 0, q_norm: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, k_norm: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, biases: Sequence[Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None], router: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None = None) -> None: ...

class Model:
    """
    All of a model but its linear layers.

    The first `rotary_dim` dimensions of a head turn. `embedding` is (vocab, hidden)
    bf16 bits, or packed dense, or None where the head, packed dense, is the embedding
    too. `block` is that of all linear layers: inputs that share a scale, 0 for
    bf16.
    """

    def __init__(self, *, hidden: int, heads: int, kv_heads: int, head_dim: int, intermediate: int, vocab: int, rotary_dim: int, eps: float, blocks: Blocks, ropes: Sequence[Rope], final_norm: Norm, head: PackedLayer, embedding: Annotated[NDArray[numpy.uint16], dict(shape=(None, None), order='C', device='cpu', writable=False)] | PackedLayer | None, layers: Sequence[Layer], block: int = 0, mixture: Mixture | None = None) -> None: ...

class Step:
    """
    What one step computes.

    Args:
        tokens: (tokens,) ids of all sequences, one after the other.
        token_begin: (sequences + 1,) where each sequence's tokens start.
        start: (sequences,) position of each sequence's first token.
        pages: (sequences, width) page numbers, the unused ones of any value.
        masks: (sequences,) mask numbers; equal weights are best kept together.
        logit_rows: (rows,) which tokens' logits are wanted.

    Raises:
        ValueError: the arrays do not fit together.
    """

    def __init__(self, *, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], token_begin: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], start: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], pages: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C', device='cpu', writable=False)], masks: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], logit_rows: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    @property
    def tokens(self) -> Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]: ...

    @property
    def token_begin(self) -> Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]: ...

    @property
    def start(self) -> Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]: ...

    @property
    def pages(self) -> Annotated[NDArray[numpy.int32], dict(shape=(None, None), order='C', device='cpu', writable=False)]: ...

    @property
    def masks(self) -> Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]: ...

    @property
    def logit_rows(self) -> Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]: ...

class Decoder:
    """
    Sets of packed weights, masks over them, and a key-value cache.

    A mask is a set of weights and what is added to its products. Sets and
    masks have numbers, which are used again once they are removed.
    """

    def __init__(self, model: Model, limits: Limits, isa: str) -> None: ...

    def add_weights(self, layers: Sequence[Sequence[PackedLayer]]) -> int:
        """
        A set: by layer, its seven linear layers, and three for each expert but the first.
        """

    def remove_weights(self, set: int) -> None: ...

    def add_mask(self, set: int, patches: Sequence[Sequence[PatchArrays | LowbitPatchArrays | None]]) -> int:
        """
        A mask: by layer, its linear layers' patches, None where it agrees; no layers for none
        at all.
        """

    def remove_mask(self, mask: int) -> None: ...

    def step(self, step: Step, logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> int:
        """
        Writes (rows, vocab) logits; how many rows. ValueError, and nothing computed, where a
        number is out of range.
        """

    @property
    def page_bytes(self) -> int: ...

def draw(logits: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], temperature: float, top_k: int, top_p: float, min_p: float, uniform: float) -> int:
    """
    The token at a quantile of the distribution that temperature, min-p, top-k and top-p leave, in this order. (vocabulary,) logits, the largest finite.
    """
