"""Placement codes and keeps as tensors, for any pattern.

torch computes little with unsigned integers of more than 8 bits: codes of 2:4 stay uint8, as the
native kernels take them, and those of other patterns are int64.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.placements import Codes, code_dtype, codes_from_keep, keep_from_codes
from maskgen.learning.mask_sampling import keep_from_planes, pair_codes


def codes_tensor(codes: Codes, pattern: Pattern) -> Tensor:
    """(rows, groups) codes; a copy, since a mask's own are read-only."""
    dtype = np.uint8 if pattern == TWO_FOUR else np.int64
    return torch.from_numpy(codes.astype(dtype))


def codes_array(codes: Tensor, pattern: Pattern) -> Codes:
    """Inverse of `codes_tensor`."""
    return codes.cpu().numpy().astype(code_dtype(pattern), copy=False)


def codes_from_planes(kept: Tensor, pattern: Pattern) -> Tensor:
    """(rows, M, groups) bool, N of each M True -> (rows, groups) codes."""
    if pattern == TWO_FOUR:
        return pair_codes(kept)
    codes = codes_from_keep(keep_from_planes(kept).cpu().numpy(), pattern)
    return codes_tensor(codes, pattern).to(kept.device)


def keep_tensor(codes: Tensor, pattern: Pattern) -> Tensor:
    """(rows, groups) codes -> (rows, M * groups) bool."""
    keep = keep_from_codes(codes_array(codes, pattern), pattern)
    return torch.from_numpy(keep).to(codes.device)


def planes_from_codes(codes: Tensor, pattern: Pattern) -> Tensor:
    """(rows, groups) codes -> (rows, M, groups) bool."""
    rows, groups = codes.shape
    return keep_tensor(codes, pattern).view(rows, groups, pattern.m).transpose(1, 2)
