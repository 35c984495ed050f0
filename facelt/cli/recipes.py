"""`facelt recipes`: the recipes that come with facelt, listed and printed."""

import shutil
import sys
from typing import Annotated

import typer

recipes_app = typer.Typer(
    help="List the recipes that come with facelt, or print one. A command's --config takes a name or a file.",
    invoke_without_command=True,
    add_completion=False,
)


@recipes_app.callback()
def recipes(context: typer.Context) -> None:
    """List the recipes that come with facelt: name, the command that takes it, and the first sentence on it."""
    if context.invoked_subcommand is not None:
        return
    from facelt.config.loading import command_of, read_layers
    from facelt.config.recipes import recipe_names, recipe_summary

    names = recipe_names()
    rows = [(name, command_of(read_layers(name).values()) or "", recipe_summary(name)) for name in names]
    width, command_width = (max(map(len, column)) for column in list(zip(*rows, strict=True))[:2])
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for name, command, summary in rows:
        line = f"{name:<{width}}  {command:<{command_width}}  {summary}"
        typer.echo(line if columns is None or len(line) <= columns else f"{line[: columns - 1]}…")


@recipes_app.command("show")
def print_recipe(name: Annotated[str, typer.Argument(help="Name of a recipe.")]) -> None:
    """Print a recipe as YAML, for a file with other settings: facelt recipes show ms1m_lt > mine.yaml."""
    from facelt.config.recipes import recipe_text

    typer.echo(recipe_text(name), nl=False)
