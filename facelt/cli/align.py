"""`facelt align`: photographs to aligned faces."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from recordio_tools.image_header import DEFAULT_MAX_PIXELS

NAMED = 10


def align(
    photos: Annotated[Path, typer.Argument(help="A folder of photographs, a list of paths (with --root), or one.")],
    out: Annotated[Path, typer.Option(help="A new folder for PNG files, or a .rec in a new folder.")],
    detector: Annotated[str, typer.Option(help="yunet:FILE.onnx or insightface:ROOT; nothing is downloaded.")],
    root: Annotated[Path | None, typer.Option(help="The folder the paths of a list lie in.")] = None,
    faces: Annotated[Literal["largest", "all"], typer.Option(help="Which of each photograph.")] = "largest",
    people: Annotated[
        Literal["folder", "file"],
        typer.Option(help="What names a person: the folder, or the file without the number at its end."),
    ] = "folder",
    min_score: Annotated[float | None, typer.Option(min=0, max=1, help="Default: 0.7 YuNet, 0.5 InsightFace.")] = None,
    max_pixels: Annotated[int, typer.Option(min=1, help="Larger photographs are refused unread.")] = DEFAULT_MAX_PIXELS,
    workers: Annotated[int, typer.Option(min=0, help="Processes that look for faces; 0: this one.")] = 0,
) -> None:
    """Find faces, turn them upright and bring them to ArcFace's 112 x 112 pixels.

    Beside them: faces.csv (where each was, and its quality) and failures.csv (photographs that gave none, and why).
    With --faces all everyone in a photograph gets the one name that goes with it. Hidden files and linked folders are
    passed over.
    """
    from facelt.alignment.photographs import find_photographs
    from facelt.alignment.run import Terms, align_photographs
    from recordio_tools.progress import progress_bars

    terms = Terms(detector, min_score, faces == "all", max_pixels)
    photographs = find_photographs(photos, root=root, people=people)
    with progress_bars() as progress:
        summary = align_photographs(photographs, out, terms, workers, progress)
    for failure in summary.failed[:NAMED]:
        typer.echo(f"{failure.kind}: {failure.photograph.name}: {failure.reason}", err=True)
    if len(summary.failed) > NAMED:
        typer.echo(f"... and {len(summary.failed) - NAMED} more, in failures.csv", err=True)
    typer.echo("\n".join([*summary.lines(), f"written: {out}"]))
