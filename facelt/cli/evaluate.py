"""`facelt evaluate`: closed-set and open-set evaluation of trained models."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from facelt.config.base import ShotConvention
from facelt.errors import UserError
from facelt.utils.cli import OverwriteOption, print_notice, set_openmp_wait_policy
from facelt.utils.folder_lock import require_writable
from facelt.utils.provenance import InputHash


def evaluate(
    checkpoint: Annotated[
        list[Path], typer.Option(help="Run folder, or a stage's folder in it; repeat to compare models with the first.")
    ],
    split: Annotated[
        Literal["validation", "test"] | None,
        typer.Option(help="Split to evaluate on: validation, or for known people test if there is one."),
    ] = None,
    convention: Annotated[
        ShotConvention,
        typer.Option(help="Shot bands: many > 100 and few < 20 (paper), or >= 100 and <= 20."),
    ] = "paper",
    open_: Annotated[
        str | None,
        typer.Option(
            "--open",
            help="Reject images of unknown classes (data.open_set) by threshold, reachability, openmax or odin.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Rejection threshold; by default 0.1, or what accepts 95 % of validation for reachability and odin."
        ),
    ] = None,
    open_images: Annotated[
        list[Path] | None,
        typer.Option(
            help="Other images of unknown classes: a folder, a .rec, or a list with --open-root. Without --open: "
            "strangers, to be separated from the people of the training record; may be repeated."
        ),
    ] = None,
    open_root: Annotated[
        list[Path] | None, typer.Option(help="Folder of a list's paths; one for all lists, or one for each source.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Model (RUN/STAGE) that known people are compared with; the first by default.")
    ] = None,
    reference_score: Annotated[
        str | None, typer.Option(help="Score that known people are compared with; class_mean by default.")
    ] = None,
    sweep: Annotated[
        Literal["threshold", "open-classes", "longtailness"] | None,
        typer.Option(help="Write metrics over it to --out, as CSV and plot; longtailness compares checkpoints."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of open classes.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder, new or empty, for the report on known people, or for tables of the sweep, the open-set "
            "confusion and the OSCR curve."
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    experts: Annotated[
        bool, typer.Option("--experts", help="Count the images that single experts get right and their average wrong.")
    ] = False,
    per_class: Annotated[Path | None, typer.Option(help="CSV file for accuracies by class.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Batch size.")] = 128,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON, one line per checkpoint, instead of tables.")
    ] = False,
) -> None:
    """Measure accuracy on the training classes: overall, and the mean class accuracy of many, medium and few shots.

    With --open, also measure how well images of unknown classes are rejected.

    With --open-images alone, measure how well people of the training record are named while strangers are kept out.
    """
    settings = {name.rstrip("_"): value for name, value in locals().items()}
    open_images, open_root = open_images or [], open_root or []
    is_known_people = bool(open_images) and open_ is None
    _validate_options(open_, threshold, sweep, out, per_class, len(checkpoint), is_known_people)
    if is_known_people:
        _refuse(
            "applies to no evaluation of known people; leave it out", sweep=sweep, per_class=per_class, experts=experts
        )
    else:
        needs_strangers = (
            "applies to known people and strangers; name images of strangers with --open-images, no --open"
        )
        _refuse(needs_strangers, reference=reference, reference_score=reference_score)
        _refuse("takes one source with --open", open_images=open_images[1:], open_root=open_root[1:])
    if per_class is not None:
        require_writable(per_class.parent)
    set_openmp_wait_policy(device)
    with _output_folder(out, overwrite, is_known_people) as folder:
        from facelt.distributed.launch import resolve_device
        from facelt.inference.model import describe_model

        for path in checkpoint:
            print_notice(f"model: {describe_model(path)}")
        if is_known_people:
            from facelt.evaluation.known_people import KnownPeopleOptions

            options = KnownPeopleOptions(open_images, open_root, split, convention, reference, reference_score)
            names = _evaluate_known_people(checkpoint, options, settings, resolve_device(device), folder)
        else:
            names = _evaluate_classes(checkpoint, settings, resolve_device(device), folder)
    for path in [*([] if per_class is None else [per_class]), *(out / name for name in names)]:
        typer.echo(f"written: {path}", err=json)


def _output_folder(out: Path | None, overwrite: bool, is_known_people: bool) -> AbstractContextManager[Path | None]:
    from facelt.report.known_people_schema import KnownPeopleReport
    from facelt.report.write import EVALUATION_FILES, report_folder
    from facelt.utils.output_folder import output_folder

    if out is None:
        return nullcontext()
    if is_known_people:
        return report_folder(KnownPeopleReport, out, overwrite)
    return output_folder(out, EVALUATION_FILES, overwrite)


def _evaluate_classes(checkpoint: list[Path], settings: dict[str, Any], device: Any, folder: Path | None) -> list[str]:
    """Evaluates models on the training classes, and prints it; returns the names of the files written to `folder`."""
    from facelt.evaluation.accuracy_comparison import compare_accuracies, have_same_images
    from facelt.evaluation.evaluate import OpenSetOptions, evaluate_model
    from facelt.evaluation.sweeps import SWEEPS
    from facelt.inference.model import load_model
    from facelt.report.evaluation import print_evaluation
    from facelt.report.write import write_open, write_sweep, write_table
    from facelt.utils.json_values import json_line
    from facelt.utils.provenance import run_provenance
    from recordio_tools.progress import progress_bars

    open_images, open_root = settings["open_images"] or [], settings["open_root"] or []
    images_path, images_root = next(iter(open_images), None), next(iter(open_root), None)
    is_open = settings["open"] is not None
    options = OpenSetOptions(settings["open"], settings["threshold"], images_path, images_root) if is_open else None
    evaluations = []
    for path in checkpoint:
        model = load_model(path, device)
        with progress_bars() as progress:
            evaluation, images = evaluate_model(
                model,
                settings["split"] or "validation",
                settings["convention"],
                options,
                batch=settings["batch"],
                workers=settings["workers"],
                experts=settings["experts"],
                progress=progress,
            )
        evaluation = evaluation.with_unique_name(evaluations)
        comparison = None
        if evaluations and have_same_images(evaluations[0], evaluation):
            comparison = compare_accuracies(evaluations[0], evaluation)
        elif evaluations:
            what = "they have other test images or other numbers of training images"
            print_notice(f"{evaluation.name} is not compared with {evaluations[0].name}: {what}")
        evaluations.append(evaluation)
        run = run_provenance("evaluate", settings, checkpoint_inputs([path], open_images))
        report = evaluation.report(comparison).with_run(run)
        if settings["json"]:
            typer.echo(json_line(report.json_values()))
        else:
            print_evaluation(report)
    if settings["per_class"] is not None:
        write_table(settings["per_class"], *evaluations[0].class_table())
    written = []
    if folder is not None and is_open:
        reports = [evaluation.report() for evaluation in evaluations]
        curves = [evaluation.oscr for evaluation in evaluations]
        written += write_open(folder, reports, [(curve.fpr_T, curve.rate_T) if curve else None for curve in curves])
    if settings["sweep"] is not None:
        result = SWEEPS[settings["sweep"]](evaluations, images, settings["seed"])
        written += write_sweep(folder, settings["sweep"], result.header, result.rows)
    return [path.name for path in written]


def checkpoint_inputs(checkpoints: list[Path], files: list[Path]) -> list[InputHash]:
    """Returns the hashes of weights and card of each model, whose card describes its training data, and of `files`.

    Folders among `files` are left out. Raises UserError naming what cannot be read.
    """
    from facelt.inference.model import CARD_FILE, WEIGHTS_FILE, find_model_folder

    folders = [find_model_folder(path) for path in checkpoints]
    paths = [folder / name for folder in folders for name in (WEIGHTS_FILE, CARD_FILE)]
    return [InputHash.of_file(path) for path in (*paths, *files) if path.is_file()]


def _evaluate_known_people(
    checkpoint: list[Path], options: Any, settings: dict[str, Any], device: Any, folder: Path | None
) -> list[str]:
    """Evaluates models on known people and strangers, and prints it; returns the file in `folder` to open."""
    from facelt.evaluation.known_people import evaluate_known_people
    from facelt.report.known_people_terminal import print_known_people
    from facelt.report.write import write_report_files
    from facelt.utils.json_values import json_line
    from facelt.utils.provenance import run_provenance
    from recordio_tools.progress import progress_bars

    batch, workers = settings["batch"], settings["workers"]
    with progress_bars() as progress:
        report = evaluate_known_people(
            checkpoint, options, device=device, batch=batch, workers=workers, progress=progress
        )
    report = report.with_run(run_provenance("evaluate", settings, checkpoint_inputs(checkpoint, options.strangers)))
    if settings["json"]:
        typer.echo(json_line(report.json_values()))
    else:
        print_known_people(report)
    if folder is None:
        return []
    write_report_files(report, folder)
    return ["report.html"]


def _refuse(reason: str, **values) -> None:
    """Raises UserError for the first option that is set."""
    for name, value in values.items():
        if value:
            raise UserError(f"--{name.replace('_', '-')}: {reason}")


def _validate_options(open_, threshold, sweep, out, per_class, checkpoints: int, is_known_people: bool) -> None:
    """Raises UserError for options that exclude each other, before anything is loaded."""
    if threshold is not None and open_ is None:
        raise UserError("--threshold: applies to open-set methods only; choose one with --open")
    if sweep in ("threshold", "open-classes") and open_ is None:
        raise UserError(f"--sweep {sweep}: applies to open-set methods only; choose one with --open")
    if sweep is not None and out is None:
        raise UserError(f"--sweep {sweep}: set --out, the folder for its table and plot")
    if out is not None and open_ is None and sweep is None and not is_known_people:
        raise UserError("--out: there is nothing to write into it without --open, --open-images or --sweep")
    if per_class is not None and out is not None and per_class.resolve().is_relative_to(out.resolve()):
        raise UserError(f"--per-class {per_class}: lies in the folder of --out, which is replaced whole; name another")
    if per_class is not None and checkpoints > 1:
        raise UserError("--per-class: applies to one model; give one --checkpoint")
