"""Rows of a packed int8 table, by torch's own operators, so that `torch.compile` traces through."""

from __future__ import annotations

import torch

from engines.native.layout import Layout
from engines.native.lowbit import block_count
from engines.vllm_plugin.backend import PackedRows

_ROWS, _TILE, _FOUR = 16, 32, 4
_ALIGNMENT = 64


def packed_table_rows(table: PackedRows, rows: torch.Tensor) -> torch.Tensor:
    """The weights of some rows of a `dense_int8` layer, exactly.

    Args:
        table: the layer; docs/formats.md has its bytes.
        rows: (...) int64, below `table.n`.

    Returns:
        (..., k) float32.
    """
    if table.layout != Layout.DENSE_INT8:
        raise ValueError(f"rows are read from DENSE_INT8, not {Layout(table.layout).name}")
    blocks = block_count(table.k, table.block)
    tiles = -(-table.k // _TILE)
    header = -(-2 * _ROWS * blocks // _ALIGNMENT) * _ALIGNMENT
    row_blocks = table.tensors["packed"].view(-1, header + _ROWS * _TILE * tiles)
    count = len(row_blocks)
    scales = row_blocks[:, : 2 * _ROWS * blocks].view(torch.float16).view(count, blocks, _ROWS)
    values = row_blocks[:, header:].view(torch.int8).view(count, -1, _ROWS, _FOUR)
    block, lane = rows // _ROWS, rows % _ROWS
    found = values[block, :, lane].flatten(-2)[..., : table.k].float()
    each = scales[block, :, lane].float().repeat_interleave(table.block, dim=-1)[..., : table.k]
    result: torch.Tensor = found * each
    return result
