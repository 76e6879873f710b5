"""Every fault, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping

from benchmarks.common.result_file import ResultRow
from benchmarks.reliability.connections import silent_clients, slow_clients
from benchmarks.reliability.disk import full_disk
from benchmarks.reliability.load import disconnects, overload
from benchmarks.reliability.masks import damaged_masks, load_and_unload, mixed_masks
from benchmarks.reliability.signals import sigkill, sigterm, sigterm_too_short
from benchmarks.reliability.site import Site

Fault = Callable[[Site], Awaitable[ResultRow]]

FAULTS: Mapping[str, Fault] = {
    "overload": overload,
    "disconnects": disconnects,
    "slow": slow_clients,
    "silent": silent_clients,
    "sigterm": sigterm,
    "sigterm-short": sigterm_too_short,
    "sigkill": sigkill,
    "mixed": mixed_masks,
    "load": load_and_unload,
    "damaged": damaged_masks,
    "disk": full_disk,
}
"""Name of a fault -> what tries it."""


def try_faults(site: Site, say: Callable[[str], None]) -> Iterator[ResultRow]:
    """The row (`FaultRow`) of each fault.

    Raises:
        ArmError: a server does not start, or something never happens.
    """
    for name, fault in FAULTS.items():
        say(name)
        yield asyncio.run(fault(site))  # type: ignore[arg-type]
