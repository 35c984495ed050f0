"""`facelt tinyface`: rank-k identification on TinyFace."""

from pathlib import Path
from typing import Annotated, Any

import typer

from facelt.cli.ijb import check_source_options, open_benchmark_features
from facelt.config.base import EmbeddingKind
from facelt.errors import UserError
from facelt.store.store import StoreDtype
from facelt.utils.cli import is_first_process
from facelt.utils.folder_lock import lock_folder


def tinyface(
    folder: Annotated[Path, typer.Argument(help="Folder with TinyFace's Testing_Set, or this folder itself.")],
    out: Annotated[Path, typer.Option(help="Folder for the report, and with --checkpoint for the embedding store.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Run folder, or a stage's folder in it.")] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            help="Instead of --checkpoint: an embedding store of the images, or .npy or .npz with one row for each "
            "probe, each match of the gallery, in the order of their lists, and each distractor."
        ),
    ] = None,
    array: Annotated[list[str] | None, typer.Option(help="Array of a .npz file; several are added.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="With --checkpoint: folder of aligned images in Probe, Gallery_Match, Gallery_Distractor."),
    ] = None,
    resize: Annotated[
        bool, typer.Option("--resize", help="Resize images of another size than the model's, without aligning them.")
    ] = False,
    kind: Annotated[EmbeddingKind, typer.Option(help="Kind of embedding of a model or a store.")] = "direct",
    batch: Annotated[int, typer.Option(min=1, help="Batch size.")] = 128,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    dtype: Annotated[StoreDtype, typer.Option(help="Type of the stored embeddings.")] = "float16",
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of a table.")] = False,
) -> None:
    """Measure rank-1, 5, 10 and 20 on TinyFace's native low-resolution faces, with confidence intervals.

    With --checkpoint the images are embedded first, flip-averaged, into OUT/embeddings; the same command continues an
    interrupted run.
    """
    settings = {name.rstrip("_"): value for name, value in locals().items()}
    check_source_options(checkpoint, embeddings, array, kind)
    if embeddings is not None and (images is not None or resize):
        raise UserError("--images, --resize: only apply with --checkpoint")
    from facelt.evaluation.face_benchmarks import evaluate_tinyface
    from facelt.report.face_benchmarks import print_tinyface, write_face_benchmark
    from facelt.store.tinyface import DISTRACTOR, TinyfaceLists, distractor_keys
    from facelt.utils.json_values import json_line
    from facelt.utils.provenance import InputHash, run_provenance
    from recordio_tools.progress import progress_bars

    def open_source(model_config: Any) -> Any:
        from facelt.inference.sources import open_file_source

        root = images or lists.folder
        distractors = distractor_keys(root)
        identities = [*map(str, lists.identity_N.tolist()), *[str(DISTRACTOR)] * len(distractors)]
        return open_file_source(root, lists.keys + distractors, identities, model_config, resize=resize)

    with lock_folder(out):
        lists = TinyfaceLists.read(folder)
        features, inputs = open_benchmark_features(settings, open_source)
        if not is_first_process():
            return
        with progress_bars() as progress:
            report = evaluate_tinyface(lists, features, progress=progress)
        inputs = [*inputs, *map(InputHash.of_file, lists.paths)]
        report = report.with_run(run_provenance("tinyface", settings, inputs))
        path = write_face_benchmark(report, out)
    if json:
        typer.echo(json_line(report.json_values()))
    else:
        print_tinyface(report)
    typer.echo(f"written: {path}", err=json)
