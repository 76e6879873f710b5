"""Codes in a file: several groups in one word, words side by side without a gap.

A word of g groups is sum(code[i] * placements**i), i = 0 .. g - 1, in the b bits that its largest
value takes; word i is bits i * b .. i * b + b - 1 of the file, lowest bit first. g is chosen so
that b / g is least, b at most 64; for 2:4 it is the 24 groups in 64 bits that files always had.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from maskgen.format import two_four
from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.placements import Codes, check_codes, code_dtype

_CHUNK = 1 << 15  # words handled at a time; eight words of any width end on a whole byte


@dataclass(frozen=True, slots=True)
class Word:
    """How codes of a pattern are packed.

    Attributes:
        groups: codes in one word.
        bits: width of a word.
        limit: one more than its largest value.
    """

    groups: int
    bits: int
    limit: int

    def bits_per_weight(self, pattern: Pattern) -> float:
        """Bits that a weight takes, kept or not."""
        return self.bits / (self.groups * pattern.m)


@cache
def word_of(pattern: Pattern) -> Word:
    """The word that stores the pattern's codes."""
    if pattern == TWO_FOUR:
        return Word(two_four.GROUPS_PER_WORD, 64, pattern.placements**two_four.GROUPS_PER_WORD)
    most = int(64 / math.log2(pattern.placements))
    words = []
    for groups in range(1, most + 1):
        limit = pattern.placements**groups
        words.append(Word(groups, (limit - 1).bit_length(), limit))
    return min(words, key=lambda word: (word.bits / word.groups, word.groups))


def packed_size(groups: int, pattern: Pattern) -> int:
    """Bytes that `pack_codes` needs for this many groups."""
    word = word_of(pattern)
    return -(-(-(-groups // word.groups) * word.bits) // 8)


def pack_codes(codes: Codes, pattern: Pattern) -> npt.NDArray[np.uint8]:
    """Pack codes, taken in row-major order; the last word is filled up with code 0.

    Returns:
        1-D uint8 of `packed_size(codes.size, pattern)` bytes.

    Raises:
        ValueError: see `maskgen.format.placements.check_codes`.
    """
    check_codes(codes, pattern)
    word = word_of(pattern)
    padded = np.zeros(-(-codes.size // word.groups) * word.groups, dtype=codes.dtype)
    padded[: codes.size] = codes.reshape(-1)
    if pattern == TWO_FOUR:
        words = two_four.words_of_codes(padded.astype(np.uint8, copy=False))
    else:
        columns = padded.reshape(-1, word.groups)
        words = columns[:, -1].astype(np.uint64)
        for i in reversed(range(word.groups - 1)):
            words = words * np.uint64(pattern.placements) + columns[:, i]
    return _bytes_of_words(words, word.bits)


def unpack_codes(packed: npt.NDArray[np.uint8], shape: tuple[int, ...], pattern: Pattern) -> Codes:
    """Inverse of `pack_codes`, for codes of the given shape.

    Raises:
        ValueError: the length does not match `shape`, or the bytes are none that `pack_codes`
            writes (a word above its largest, or something other than 0 after the last group).
    """
    word, count = word_of(pattern), math.prod(shape)
    if packed.dtype != np.uint8 or packed.ndim != 1 or packed.size != packed_size(count, pattern):
        raise ValueError(
            f"packed codes are {packed.dtype} {packed.shape}; {count} groups of {pattern} take"
            f" {packed_size(count, pattern)} bytes"
        )
    words = _words_of_bytes(packed, -(-count // word.groups), word.bits)
    if words.size and int(words.max()) >= word.limit:
        raise ValueError(f"packed codes hold a word above {pattern.placements}**{word.groups} - 1")
    if pattern == TWO_FOUR:
        codes: Codes = two_four.codes_of_words(words)
    else:
        columns = np.empty((words.size, word.groups), dtype=code_dtype(pattern))
        for i in range(word.groups):
            words, columns[:, i] = np.divmod(words, np.uint64(pattern.placements))
        codes = columns.reshape(-1)
    if codes[count:].any():
        raise ValueError("packed codes go on after the last group")
    return codes[:count].reshape(shape)


def _bytes_of_words(words: npt.NDArray[np.uint64], bits: int) -> npt.NDArray[np.uint8]:
    little = words.astype("<u8", copy=False)
    if bits == 64:
        return little.view(np.uint8)
    packed = np.empty(-(-words.size * bits // 8), dtype=np.uint8)
    for start in range(0, words.size, _CHUNK):
        chunk = little[start : start + _CHUNK].view(np.uint8).reshape(-1, 8)
        stream = np.unpackbits(chunk, axis=1, count=bits, bitorder="little").reshape(-1)
        part = np.packbits(stream, bitorder="little")
        packed[start * bits // 8 : start * bits // 8 + part.size] = part
    return packed


def _words_of_bytes(packed: npt.NDArray[np.uint8], count: int, bits: int) -> npt.NDArray[np.uint64]:
    packed = np.ascontiguousarray(packed)
    if bits == 64:
        return packed.view("<u8").astype(np.uint64)
    if packed.size and packed[-1] >> (8 - (-count * bits) % 8):
        raise ValueError("packed codes go on after the last group")
    words = np.empty((count, 8), dtype=np.uint8)
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        part = packed[start * bits // 8 : -(-stop * bits // 8)]
        stream = np.unpackbits(part, count=(stop - start) * bits, bitorder="little")
        words[start:stop] = _padded(stream.reshape(-1, bits))
    return words.reshape(-1).view("<u8").astype(np.uint64)


def _padded(bits: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(words, b) bits -> (words, 8) bytes."""
    wide = np.zeros((len(bits), 64), dtype=np.uint8)
    wide[:, : bits.shape[1]] = bits
    return np.packbits(wide, axis=1, bitorder="little")
