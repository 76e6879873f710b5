"""Native kernels and decoder of the CPU engine."""

from engines.native._native import (
    decoder as decoder,
    kernels as kernels
)
