"""`facelt align`: photographs to aligned faces."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from facelt.utils.cli import OverwriteOption
from facelt.utils.folder_lock import lock_folder
from recordio_tools.image_header import DEFAULT_MAX_PIXELS

_LISTED_FAILURES = 10


def align(
    photos: Annotated[
        Path, typer.Argument(help="A folder of photographs, a list of paths (with --root), or one photograph.")
    ],
    out: Annotated[Path, typer.Option(help="A new folder for PNG files, or a .rec file in a new folder.")],
    detector: Annotated[str, typer.Option(help="yunet:FILE.onnx or insightface:ROOT; weights are not downloaded.")],
    root: Annotated[Path | None, typer.Option(help="The folder of the paths in a list.")] = None,
    faces: Annotated[
        Literal["largest", "all"], typer.Option(help="Keep the largest face of each photograph, or all.")
    ] = "largest",
    people: Annotated[
        Literal["folder", "file"],
        typer.Option(help="Name a person by the folder, or by the file without its final number."),
    ] = "folder",
    min_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Smallest score; default 0.7 (YuNet), 0.5 (InsightFace).")
    ] = None,
    max_pixels: Annotated[int, typer.Option(min=1, help="Refuse larger photographs unread.")] = DEFAULT_MAX_PIXELS,
    workers: Annotated[int, typer.Option(min=0, help="Detection processes; 0 detects in this one.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Detect faces and align them to the ArcFace template of 112 x 112 pixels.

    Also writes faces.csv (position and quality of each face) and failures.csv (photographs without a face, and why).
    With --faces all, every face in a photograph gets its identity. Hidden files and linked folders are skipped.
    """
    from facelt.alignment.detect import DetectionOptions
    from facelt.alignment.photographs import find_photographs
    from facelt.alignment.run import align_photographs
    from recordio_tools.progress import progress_bars

    options = DetectionOptions(detector, min_score, faces == "all", max_pixels)
    photographs = find_photographs(photos, root=root, people=people)
    with lock_folder(out.parent if out.suffix == ".rec" else out), progress_bars() as progress:
        summary = align_photographs(photographs, out, options, workers, progress, overwrite)
    for failure in summary.failed[:_LISTED_FAILURES]:
        typer.echo(f"{failure.kind}: {failure.photograph.name}: {failure.reason}", err=True)
    if len(summary.failed) > _LISTED_FAILURES:
        typer.echo(f"... and {len(summary.failed) - _LISTED_FAILURES} more, in failures.csv", err=True)
    typer.echo("\n".join([*summary.lines(), f"written: {out}"]))
