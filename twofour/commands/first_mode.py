"""A group of commands whose first one runs when none is named: `bench engine` is its `speed`."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class FirstModeGroup(TyperGroup):
    """Options without a command are those of the first command."""

    # Any: click's context, or that of typer's own copy of click, which depends on its version.
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the first command in front, unless a command or help is asked for."""
        wants_help = bool(args) and args[0] in ctx.help_option_names
        if not args or (args[0].startswith("-") and not wants_help):
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)
