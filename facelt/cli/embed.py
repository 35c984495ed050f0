"""`facelt embed`: images to an embedding store, with a trained model."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from facelt.errors import UserError
from facelt.utils.cli import set_openmp_wait_policy


def embed(
    checkpoint: Annotated[Path, typer.Option(help="A run's folder, or a stage's folder in it.")],
    images: Annotated[Path, typer.Option(help="A .rec, a folder of images, a list of paths (with --root), or one.")],
    out: Annotated[Path, typer.Option(help="The embedding store to write.")],
    root: Annotated[Path | None, typer.Option(help="The folder the paths of a list lie in.")] = None,
    manifest: Annotated[Path | None, typer.Option(help="A selection of the .rec, as `sample` writes one.")] = None,
    batch: Annotated[int, typer.Option(min=1)] = 128,
    workers: Annotated[int, typer.Option(min=0)] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    dtype: Annotated[Literal["float16", "float32"], typer.Option(help="How embeddings are stored.")] = "float16",
    max_bad_images: Annotated[int, typer.Option(min=0, help="Leave out up to this many unusable images.")] = 0,
    align: Annotated[str | None, typer.Option(help="For photographs: yunet:FILE.onnx or insightface:ROOT.")] = None,
    faces: Annotated[Literal["largest", "all"], typer.Option(help="With --align: of each photograph.")] = "largest",
    people: Annotated[Literal["folder", "file"], typer.Option(help="With --align: what names a person.")] = "folder",
    min_score: Annotated[float | None, typer.Option(min=0, max=1, help="With --align: a face's least score.")] = None,
) -> None:
    """Embed images: every kind the model makes, flip-averaged; an interrupted run goes on where it stopped.

    Under torchrun every process takes a share of the images, all into one store. With --align photographs are aligned
    on the way, as `facelt align` does; those without a face are told and left out; the store has each face's quality.
    Every process of torchrun looks for the faces of all of them: for large sets run `facelt align --workers` first.
    """
    set_openmp_wait_policy(device)
    from facelt.alignment.photographs import find_photographs
    from facelt.alignment.run import Terms
    from facelt.distributed.launch import resolve_device
    from facelt.inference.embed import embed_images
    from facelt.inference.model import load_model
    from facelt.inference.sources import open_image_source, open_photograph_source
    from facelt.store.store import META_FILE, read_meta
    from recordio_tools.progress import progress_bars

    first = os.environ.get("RANK", "0") == "0"
    model = load_model(checkpoint, resolve_device(device))
    left_out: dict[str, str] = {}
    if align is None:
        source = open_image_source(images, model.config, root=root, manifest=manifest)
    else:
        if manifest is not None:
            raise UserError(f"--manifest {manifest}: selects records of a .rec, and --align takes photographs")
        terms = Terms(align, min_score, faces == "all", model.config.data.max_pixels)
        photographs = find_photographs(images, root=root, people=people)
        with progress_bars(first) as progress:
            source, failed = open_photograph_source(photographs, terms, model.config.data.image_size, workers, progress)
        left_out = {failure.photograph.name: failure.reason for failure in failed}
    for name, reason in left_out.items() if first else ():
        typer.echo(f"left out {name}: {reason}", err=True)
    with progress_bars(first) as progress:
        embed_images(
            model,
            source,
            out,
            batch=batch,
            workers=workers,
            dtype=dtype,
            max_bad_images=max_bad_images,
            left_out=left_out,
            progress=progress,
        )
    if first:
        meta = read_meta(out / META_FILE)
        for name, reason in meta["left_out"].items():
            if name not in left_out:
                typer.echo(f"left out {name}: {reason}", err=True)
        lost = f", {len(meta['left_out'])} left out" if meta["left_out"] else ""
        typer.echo(f"{meta['rows']} images embedded{lost} ({', '.join(meta['kinds'])}): {out}")
