"""`facelt store`: embedding stores made from arrays of other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from facelt.errors import UserError
from facelt.utils.cli import OverwriteOption

store_app = typer.Typer(
    help="Make embedding stores from arrays of other programs.", no_args_is_help=True, add_completion=False
)


@store_app.callback()
def _commands() -> None:
    """Keeps `make` a command by name while it is the only one."""


@store_app.command()
def make(
    arrays: Annotated[
        list[str],
        typer.Argument(
            metavar="[KIND=]FILE...",
            help="Embeddings, one a row, in .npy or .npz files; of the kind direct unless KIND= names another.",
        ),
    ],
    items: Annotated[
        Path,
        typer.Option(
            help="Names of the rows, in their order: a CSV file with identity and, optionally, key and attributes, or "
            "a list of image paths in folders of identities."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the store, new or empty.")],
    overwrite: OverwriteOption = False,
    array: Annotated[
        str | None, typer.Option(help="Name of the array in a .npz file; by default the kind, or the only array.")
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Scale rows to length one, which direct has.")] = False,
    dtype: Annotated[Literal["float16", "float32"], typer.Option(help="Precision of the store.")] = "float16",
    model: Annotated[str | None, typer.Option(help="Name of the model that computed the embeddings.")] = None,
) -> None:
    """Make an embedding store from arrays and a list of their rows. Needs no torch."""
    from facelt.store.make import make_store
    from facelt.store.store import EMBEDDING_KINDS, read_meta

    paths: dict[str, Path] = {}
    for text in arrays:
        kind, separator, file = text.partition("=")
        if not separator or kind not in EMBEDDING_KINDS:
            kind, file = "direct", text
        if kind in paths:
            raise UserError(f"{text}: a second array of the kind {kind}; name each kind once, as KIND=FILE")
        paths[kind] = Path(file)
    folder = make_store(
        paths, items, out, array=array, normalize=normalize, dtype=dtype, model=model, overwrite=overwrite
    )
    meta = read_meta(folder / "meta.json")
    typer.echo(f"{meta['rows']} embeddings ({', '.join(meta['kinds'])}): {folder}")
