"""The `twofour` command.

Each command lives in `twofour/commands/` and imports what it needs when it runs, so that
`twofour --help` starts without torch.
"""

from __future__ import annotations

import sys

import typer

from twofour.commands import (
    bench,
    build,
    data,
    demo,
    eval,
    export,
    import_,
    info,
    mask,
    quantise,
    recover,
    serve,
    structure,
    transform,
)
from twofour.extras import missing_extra

app = typer.Typer(
    name="twofour",
    help="Learn 2:4 sparsity masks, build sparse engines, serve them with a mask per request.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.add_typer(data.app, name="data")
app.add_typer(mask.app, name="mask")
app.add_typer(structure.app, name="structure")
app.add_typer(transform.app, name="transform")
app.command("recover")(recover.recover)
app.command("quantise")(quantise.quantise)
app.command("eval")(eval.evaluate)
app.command("build")(build.build)
app.command("import")(import_.import_checkpoint)
app.command("export")(export.export)
app.command("info")(info.info)
app.command("serve")(serve.serve)
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Entry point: errors that the user can mend are one line and exit code 1, or their own."""
    try:
        app()
    except (ValueError, OSError) as error:
        typer.secho(f"error: {_on_one_line(error)}", fg="red", err=True)
        sys.exit(getattr(error, "exit_code", 1))
    except ImportError as error:
        if (remedy := missing_extra(error)) is None:
            raise
        typer.secho(f"error: {remedy}", fg="red", err=True)
        sys.exit(1)


def _on_one_line(error: Exception) -> str:
    from pydantic import ValidationError

    from engines.typed_options import explain

    return explain(error) if isinstance(error, ValidationError) else str(error)


if __name__ == "__main__":
    main()
