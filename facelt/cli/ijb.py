"""`facelt ijb`: the template protocol of IJB-B and IJB-C; options and steps that `facelt tinyface` shares."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from facelt.config.base import EmbeddingKind, StoreDtype
from facelt.errors import UserError
from facelt.utils.cli import OverwriteOption, is_first_process, print_notice, set_openmp_wait_policy

OutOption = Annotated[
    Path, typer.Option(help="Folder for the report, and with --checkpoint for the embedding store; new or empty.")
]
RunOption = Annotated[Path | None, typer.Option(help="Run folder, or a stage's folder in it.")]
ArrayOption = Annotated[
    list[str] | None,
    typer.Option(help="Array of a .npz file; several are added, as embs and embs_f of InsightFace's evaluation."),
]
KindOption = Annotated[EmbeddingKind, typer.Option(help="Kind of embedding of a model or a store.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Batch size.")]
DecodeWorkersOption = Annotated[int, typer.Option(min=0, help="Processes that decode images.")]
EmbedDeviceOption = Annotated[str, typer.Option(help="cpu or cuda")]
DtypeOption = Annotated[StoreDtype, typer.Option(help="Type of the stored embeddings.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of tables.")]


def ijb(
    folder: Annotated[Path, typer.Argument(help="Folder of IJB-B or IJB-C in InsightFace's layout: meta, loose_crop.")],
    out: OutOption,
    overwrite: OverwriteOption = False,
    checkpoint: RunOption = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            help="Instead of --checkpoint: an embedding store of the images, or .npy or .npz with one row for each "
            "line of name_5pts_score.txt."
        ),
    ] = None,
    array: ArrayOption = None,
    kind: KindOption = "direct",
    detector_score: Annotated[bool, typer.Option(help="Weigh each image by its detection score.")] = True,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Scale image features to length one before they are averaged.")
    ] = False,
    batch: BatchOption = 128,
    workers: DecodeWorkersOption = 1,
    device: EmbedDeviceOption = "cpu",
    dtype: DtypeOption = "float16",
    json: JsonOption = False,
) -> None:
    """Measure templates of IJB-B or IJB-C: 1:1 TAR at FAR; 1:N rank-k, and FNIR at FPIR, with confidence intervals.

    With --checkpoint the images are aligned by their listed landmarks and embedded first, flip-averaged, into
    OUT/embeddings/store; the same command continues an interrupted run.
    """
    settings = {name.rstrip("_"): value for name, value in locals().items()}
    check_source_options(checkpoint, embeddings, array, kind)
    from facelt.evaluation.face_benchmarks import evaluate_ijb
    from facelt.report.face_benchmarks import print_ijb
    from facelt.report.schema import IjbReport
    from facelt.store.ijb import IjbFolder, IjbLists
    from recordio_tools.progress import progress_bars

    def open_source(model_config: Any) -> Any:
        from facelt.inference.sources import open_landmark_source

        images = lists.images
        return open_landmark_source(lists.folder.images, images.names, images.landmark_N52, model_config)

    with open_output(IjbReport, out, overwrite) as report_folder:
        lists = IjbLists.read(IjbFolder.open(folder))
        features, inputs = open_benchmark_features(settings, open_source)
        if report_folder is None:
            return
        with progress_bars() as progress:
            report = evaluate_ijb(
                lists, features, detector_score=detector_score, normalize=normalize, progress=progress
            )
        report = write_benchmark("ijb", report, report_folder, settings, [*inputs, *lists.folder.lists])
    print_benchmark(report, settings, print_ijb)


def open_output(kind: type, out: Path, overwrite: bool) -> AbstractContextManager[Path | None]:
    """Returns a context with the folder of a report, as `report_folder` makes it; None on other processes."""
    from facelt.report.write import report_folder

    return report_folder(kind, out, overwrite) if is_first_process() else nullcontext()


def check_source_options(checkpoint: Path | None, embeddings: Path | None, array: list[str] | None, kind: str) -> None:
    """Raises UserError unless the options name one source of features, and only apply to it."""
    if (embeddings is None) == (checkpoint is None):
        raise UserError("give either a model with --checkpoint or computed embeddings with --embeddings")
    suffix = "" if embeddings is None else embeddings.suffix.lower()
    if array and suffix != ".npz":
        raise UserError("--array: only applies to a .npz file given by --embeddings")
    if kind != "direct" and suffix in (".npy", ".npz"):
        raise UserError("--kind: only applies to a model or a store")


def open_benchmark_features(settings: dict[str, Any], open_source: Callable[[Any], Any]) -> tuple[Any, list]:
    """Returns the features of a benchmark's images and the hashes of their inputs, from the options of its command.

    With a model the images of `open_source(config)` are embedded into OUT/embeddings/store first. Raises UserError.
    """
    checkpoint, embeddings, kind = (settings[name] for name in ("checkpoint", "embeddings", "kind"))
    inputs = []
    if checkpoint is not None:
        set_openmp_wait_policy(settings["device"])
        from facelt.cli.evaluate import checkpoint_inputs
        from facelt.distributed.launch import resolve_device
        from facelt.inference.embed import embed_images
        from facelt.inference.model import describe_model, load_model
        from facelt.report.write import EMBEDDINGS_FOLDER
        from recordio_tools.progress import progress_bars

        print_notice(f"model: {describe_model(checkpoint)}")
        model = load_model(checkpoint, resolve_device(settings["device"]))
        model.require_kind(kind)
        options = {name: settings[name] for name in ("batch", "workers", "dtype")}
        options |= {"overwrite": settings["overwrite"], "setting": "the protocol"}
        source, embeddings = open_source(model.config), settings["out"] / EMBEDDINGS_FOLDER / "store"
        with progress_bars(is_first_process()) as progress:
            embed_images(model, source, embeddings, **options, progress=progress)
        inputs = checkpoint_inputs([checkpoint], [])
    from facelt.evaluation.face_benchmarks import ImageFeatures

    features = ImageFeatures.open(embeddings, kind, settings["array"] or ())
    return features, [*inputs, *features.inputs]


def write_benchmark(command: str, report: Any, folder: Path, settings: dict[str, Any], inputs: list) -> Any:
    """Returns the report with its provenance, after writing it into a folder; `inputs` are hashes and paths of files.

    Raises UserError.
    """
    from facelt.report.write import write_report_files
    from facelt.utils.provenance import InputHash, run_provenance

    hashes = [InputHash.of_file(entry) if isinstance(entry, Path) else entry for entry in inputs]
    report = report.with_run(run_provenance(command, settings, hashes))
    write_report_files(report, folder)
    return report


def print_benchmark(report: Any, settings: dict[str, Any], print_report: Callable[[Any], None]) -> None:
    """Prints the report as tables or as JSON, and the path of its file."""
    from facelt.utils.json_values import json_line
    from facelt.utils.output_folder import REPORT_FILE

    if settings["json"]:
        typer.echo(json_line(report.json_values()))
    else:
        print_report(report)
    typer.echo(f"written: {settings['out'] / REPORT_FILE}", err=settings["json"])
