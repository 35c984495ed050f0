"""`facelt embed`: embedding of images into a store."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from facelt.config.base import StoreDtype
from facelt.errors import Interrupted, UserError
from facelt.utils.cli import OverwriteOption, is_first_process, print_notice, set_openmp_wait_policy
from facelt.utils.folder_lock import lock_folder


def embed(
    checkpoint: Annotated[Path, typer.Option(help="Run folder, or a stage's folder in it.")],
    images: Annotated[Path, typer.Option(help="A .rec, a folder, a list of paths (with --root), or one image.")],
    out: Annotated[Path, typer.Option(help="Embedding store to write: a new or empty folder.")],
    overwrite: OverwriteOption = False,
    root: Annotated[Path | None, typer.Option(help="Folder of a list's paths.")] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="Selection of a .rec's images, as written by `recordio_tools sample`.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Batch size.")] = 128,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    dtype: Annotated[StoreDtype, typer.Option(help="Type of the stored embeddings.")] = "float16",
    max_bad_images: Annotated[int, typer.Option(min=0, help="Unusable images to leave out before giving up.")] = 0,
    align: Annotated[str | None, typer.Option(help="Align photographs by yunet:FILE.onnx or insightface:ROOT.")] = None,
    faces: Annotated[
        Literal["largest", "all"], typer.Option(help="With --align: faces to embed of each photograph.")
    ] = "largest",
    people: Annotated[Literal["folder", "file"], typer.Option(help="With --align: names of identities.")] = "folder",
    min_score: Annotated[float | None, typer.Option(min=0, max=1, help="With --align: lowest detection score.")] = None,
) -> None:
    """Embed images: every kind of embedding the model makes, flip-averaged. An interrupted run is resumed.

    With --overwrite an earlier store stays until the new one is complete. Under torchrun the processes share the images
    and write one store. With --align, photographs are aligned first, as by `facelt align`; those without a face are
    listed and left out, and the store has the quality of each face. Every process of torchrun detects the faces of all
    photographs: for large sets run `facelt align --workers` first.
    """
    set_openmp_wait_policy(device)
    from facelt.alignment.detect import DetectionOptions
    from facelt.alignment.photographs import find_photographs
    from facelt.distributed.launch import resolve_device
    from facelt.inference.embed import embed_images
    from facelt.inference.model import describe_model, load_model
    from facelt.inference.sources import open_image_source, open_photograph_source
    from facelt.store.store import META_FILE, read_meta
    from recordio_tools.progress import progress_bars

    is_leader = is_first_process()
    print_notice(f"model: {describe_model(checkpoint)}")
    with lock_folder(out), _continuation_advice():
        was_finished = (out / META_FILE).exists() and not overwrite
        model = load_model(checkpoint, resolve_device(device))
        left_out: dict[str, str] = {}
        if align is None:
            source = open_image_source(images, model.config, root=root, manifest=manifest)
        else:
            if manifest is not None:
                raise UserError(f"--manifest {manifest}: only applies to .rec files, and --align takes photographs")
            options = DetectionOptions(align, min_score, faces == "all", model.config.data.max_pixels)
            photographs = find_photographs(images, root=root, people=people)
            with progress_bars(is_leader) as progress:
                source, failed = open_photograph_source(
                    photographs, options, model.config.data.image_size, workers, progress
                )
            left_out = {failure.photograph.name: failure.reason for failure in failed}
        for name, reason in left_out.items() if is_leader else ():
            typer.echo(f"left out {name}: {reason}", err=True)
        with progress_bars(is_leader) as progress:
            embed_images(
                model,
                source,
                out,
                batch=batch,
                workers=workers,
                dtype=dtype,
                max_bad_images=max_bad_images,
                left_out=left_out,
                overwrite=overwrite,
                progress=progress,
            )
    if is_leader:
        meta = read_meta(out / META_FILE)
        for name, reason in meta["left_out"].items():
            if name not in left_out:
                typer.echo(f"left out {name}: {reason}", err=True)
        omitted = f", {len(meta['left_out'])} left out" if meta["left_out"] else ""
        done = "nothing to do; " if was_finished else ""
        typer.echo(f"{done}{meta['rows']} images embedded{omitted} ({', '.join(meta['kinds'])}): {out}")


@contextmanager
def _continuation_advice() -> Iterator[None]:
    """Turns Ctrl-C into an interruption whose message says how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(signal.SIGINT, "the embeddings so far are kept, continue with the same command") from None
