"""More users step by step, to find where latency bends: 1, 2, 4, ... users for some time each."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from locust import LoadTestShape, events


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _on_parser(parser: ArgumentParser, **_: Any) -> None:
    parser.add_argument("--steps", type=int, default=4, help="Steps; users double at each")
    parser.add_argument("--step-seconds", type=float, default=30.0, help="Length of a step")


class StepShape(LoadTestShape):  # type: ignore[misc]  # locust is not typed here
    """Doubles the users at every step, then ends."""

    def tick(self) -> tuple[int, float] | None:
        """Users and spawn rate now; None when all steps are over."""
        options = self.runner.environment.parsed_options
        step = int(self.get_run_time() // options.step_seconds)
        if step >= options.steps:
            return None
        users = 2**step
        return users, float(users)
