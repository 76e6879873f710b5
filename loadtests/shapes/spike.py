"""A sudden crowd between two calm stretches, to see how a queue builds up and drains."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from locust import LoadTestShape, events


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _on_parser(parser: ArgumentParser, **_: Any) -> None:
    parser.add_argument("--calm-users", type=int, default=1, help="Users before and after")
    parser.add_argument("--spike-users", type=int, default=16, help="Users during the spike")
    parser.add_argument("--stretch-seconds", type=float, default=20.0, help="Length of each third")


class SpikeShape(LoadTestShape):  # type: ignore[misc]  # locust is not typed here
    """Calm, crowd, calm."""

    def tick(self) -> tuple[int, float] | None:
        """Users and spawn rate now; None when all three stretches are over."""
        options = self.runner.environment.parsed_options
        stretch = int(self.get_run_time() // options.stretch_seconds)
        if stretch >= 3:
            return None
        users = options.spike_users if stretch == 1 else options.calm_users
        return users, float(options.spike_users)
