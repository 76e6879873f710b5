"""The blocks of a decoder layer that are reconstructed apart, and what goes in and out of them.

A block is a direct child of a decoder layer that holds masked linears: attention and MLP in models
of Llama's kind. To reconstruct a whole non-linear block is as good as a wider window, and better
than single matrices (arXiv 2510.14444).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from maskgen.selection import decoder_layers


@dataclass(frozen=True, slots=True)
class DecoderBlock:
    """One block.

    Attributes:
        layer: index of its decoder layer.
        name: module name.
        linears: names of its masked linears.
    """

    layer: int
    name: str
    linears: tuple[str, ...]


@dataclass(slots=True)
class BlockData:
    """What a dense block was given and what it made of it.

    Attributes:
        inputs: (windows) hidden states.
        targets: (windows) outputs of the dense block.
        arguments: its other arguments, the same for every window.
    """

    inputs: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)


def blocks_of(model: nn.Module, linears: Iterable[str]) -> list[DecoderBlock]:
    """The blocks that hold `linears`, in the order of the model; others are left out."""
    prefix, stack = decoder_layers(model)
    names = list(linears)
    found = []
    for index, layer in enumerate(stack):
        for child, _ in layer.named_children():
            name = f"{prefix}.{index}.{child}"
            inside = tuple(n for n in names if n == name or n.startswith(f"{name}."))
            if inside:
                found.append(DecoderBlock(index, name, inside))
    return found


def call_block(module: nn.Module, states: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """What a block makes of hidden states."""
    output = module(states, **arguments)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


@contextmanager
def recording(
    model: nn.Module, blocks: Sequence[DecoderBlock], windows: int
) -> Iterator[dict[str, BlockData]]:
    """Record the blocks while their decoder layer runs over so many windows.

    Yields:
        Block name -> what was seen. Runs after those windows leave no trace.
    """
    found = {block.name: BlockData() for block in blocks}
    handles = []
    for name, data in found.items():

        def hook(
            module: nn.Module,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            output: Any,
            data: BlockData = data,
        ) -> None:
            if len(data.inputs) == windows:
                return
            names = list(inspect.signature(module.forward).parameters)
            bound = {**dict(zip(names, args, strict=False)), **kwargs}
            data.inputs.append(bound.pop(names[0]))
            data.targets.append(output[0] if isinstance(output, tuple) else output)
            data.arguments = bound

        block: nn.Module = model.get_submodule(name)
        handles.append(block.register_forward_hook(hook, with_kwargs=True))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
