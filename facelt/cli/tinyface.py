"""`facelt tinyface`: rank-k identification on TinyFace."""

from pathlib import Path
from typing import Annotated, Any

import typer

from facelt.cli.ijb import (
    ArrayOption,
    BatchOption,
    DecodeWorkersOption,
    DtypeOption,
    EmbedDeviceOption,
    JsonOption,
    KindOption,
    OutOption,
    RunOption,
    check_source_options,
    open_benchmark_features,
    open_output,
    print_benchmark,
    write_benchmark,
)
from facelt.errors import UserError
from facelt.utils.cli import OverwriteOption


def tinyface(
    folder: Annotated[Path, typer.Argument(help="Folder with TinyFace's Testing_Set, or this folder itself.")],
    out: OutOption,
    overwrite: OverwriteOption = False,
    checkpoint: RunOption = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            help="Instead of --checkpoint: an embedding store of the images, or .npy or .npz with one row for each "
            "probe, each match of the gallery, in the order of their lists, and each distractor."
        ),
    ] = None,
    array: ArrayOption = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="With --checkpoint: folder of aligned images in Probe, Gallery_Match, Gallery_Distractor; by default "
            "those of FOLDER."
        ),
    ] = None,
    resize: Annotated[
        bool, typer.Option("--resize", help="Resize images of another size than the model's, without aligning them.")
    ] = False,
    kind: KindOption = "direct",
    batch: BatchOption = 128,
    workers: DecodeWorkersOption = 1,
    device: EmbedDeviceOption = "cpu",
    dtype: DtypeOption = "float16",
    json: JsonOption = False,
) -> None:
    """Measure rank-1, 5, 10 and 20 on TinyFace's native low-resolution faces, with confidence intervals.

    With --checkpoint the images are embedded first, flip-averaged, into OUT/embeddings/store; the same command
    continues an interrupted run.
    """
    settings = {name.rstrip("_"): value for name, value in locals().items()}
    check_source_options(checkpoint, embeddings, array, kind)
    if embeddings is not None and (images is not None or resize):
        raise UserError("--images, --resize: only apply with --checkpoint")
    from facelt.evaluation.face_benchmarks import evaluate_tinyface
    from facelt.report.face_benchmarks import print_tinyface
    from facelt.report.schema import TinyfaceReport
    from facelt.store.tinyface import DISTRACTOR, TinyfaceLists, distractor_keys
    from recordio_tools.progress import progress_bars

    def open_source(model_config: Any) -> Any:
        from facelt.inference.sources import open_file_source

        root = images or lists.folder
        distractors = distractor_keys(root)
        identities = [*map(str, lists.identity_N.tolist()), *[str(DISTRACTOR)] * len(distractors)]
        return open_file_source(root, lists.keys + distractors, identities, model_config, resize=resize)

    with open_output(TinyfaceReport, out, overwrite) as report_folder:
        lists = TinyfaceLists.read(folder)
        features, inputs = open_benchmark_features(settings, open_source)
        if report_folder is None:
            return
        with progress_bars() as progress:
            report = evaluate_tinyface(lists, features, progress=progress)
        report = write_benchmark("tinyface", report, report_folder, settings, [*inputs, *lists.paths])
    print_benchmark(report, settings, print_tinyface)
