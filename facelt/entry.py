"""What every command shares: a user's mistake becomes one line on stderr and exit code 1."""

import sys
from collections.abc import Callable, Sequence

import typer

from facelt.errors import UserError
from recordio_tools.errors import RecordIOError


def run_app(app: typer.Typer, argv: Sequence[str] | None = None) -> None:
    """Runs a typer application to its exit."""
    try:
        app(args=None if argv is None else list(argv))
    except (UserError, RecordIOError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def single_command(command: Callable, argv: Sequence[str] | None = None) -> None:
    """Runs one function as a command of its own, as `python -m facelt.train` does."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    run_app(app, argv)
