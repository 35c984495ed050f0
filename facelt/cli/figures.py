"""`facelt figures`: the paper's figures of a trained model, as pictures and CSV tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from facelt.config.base import EmbeddingKind, ShotConvention
from facelt.errors import UserError
from facelt.utils.cli import OverwriteOption, print_notice, set_openmp_wait_policy

if TYPE_CHECKING:
    from facelt.evaluation.figures import FigureModel
    from facelt.utils.tables import Table

_IMAGES = {"tsne": 2000, "concepts": 6}


def figures(
    figure: Annotated[Literal["tsne", "gain", "concepts"], typer.Argument(help="Figure to draw.")],
    checkpoint: Annotated[Path, typer.Option(help="Run folder, or a stage's folder in it.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures and their CSV file, new or empty.")],
    overwrite: OverwriteOption = False,
    against: Annotated[Path | None, typer.Option(help="gain: the baseline model.")] = None,
    split: Annotated[Literal["validation", "test", "open"], typer.Option(help="Split to draw.")] = "test",
    kind: Annotated[EmbeddingKind, typer.Option(help="tsne: kind of embedding.")] = "direct",
    images: Annotated[int | None, typer.Option(min=1, help="tsne, concepts: number of images, sampled.")] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="gain: reject below this probability, and add the open set.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the sample.")] = 0,
    convention: Annotated[
        ShotConvention,
        typer.Option(help="Shot bands: many > 100 and few < 20 (paper), or >= 100 and <= 20."),
    ] = "paper",
    batch: Annotated[int, typer.Option(min=1, help="Batch size.")] = 128,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
) -> None:
    """Draw features by t-SNE, the gain in F1 of each class, or the top concepts of images in the memory.

    Figures 3, 6 and 7 of OLTR. Each is written as SVG, PNG and CSV.
    """
    if (against is None) == (figure == "gain"):
        raise UserError("--against: gain needs the model to compare with; the other figures show one model")
    set_openmp_wait_policy(device)
    from facelt.report.write import FIGURE_SUFFIXES
    from facelt.utils.output_folder import output_folder

    with output_folder(out, [f"{figure}{suffix}" for suffix in FIGURE_SUFFIXES], overwrite) as folder:
        from facelt.distributed.launch import resolve_device
        from facelt.evaluation.figures import FigureModel
        from facelt.inference.model import describe_model, load_model
        from facelt.utils.tables import csv_text
        from recordio_tools.atomic_io import write_text

        paths = [path for path in (checkpoint, against) if path is not None]
        for path in paths:
            print_notice(f"model: {describe_model(path)}")
        models = [FigureModel.of(load_model(path, resolve_device(device)), batch, workers) for path in paths]
        if figure == "tsne":
            table = _tsne(models[0], split, convention, folder / figure, kind, images or _IMAGES[figure], seed)
        elif figure == "gain":
            table = _gain(*models, split, convention, folder / figure, threshold)
        else:
            table = _concepts(models[0], split, folder / figure, images or _IMAGES[figure], seed)
        write_text(folder / f"{figure}.csv", csv_text(table), "choose another folder with --out")
    typer.echo(f"drawn: {out / figure}.png, .svg and .csv")


def _tsne(model: "FigureModel", split: str, convention: str, path: Path, kind: str, images: int, seed: int) -> "Table":
    from facelt.evaluation.figures import embed_in_plane
    from facelt.report.figures import draw_points
    from facelt.utils.tables import Table

    layout = embed_in_plane(model, split, kind=kind, images=images, seed=seed)
    group_N = _groups(layout.label_N, model, convention)
    draw_points(layout.position_N2, group_N, path)
    rows = zip(layout.names, layout.label_N.tolist(), group_N, *layout.position_N2.T.tolist(), strict=True)
    return Table(("image", "label", "group", "x", "y"), list(rows))


def _gain(
    model: "FigureModel", baseline: "FigureModel", split: str, convention: str, path: Path, threshold: float | None
) -> "Table":
    from facelt.evaluation.figures import f1_gains
    from facelt.report.figures import draw_gains
    from facelt.utils.tables import Table

    gains = f1_gains(model, baseline, split, threshold)
    group_K = _groups(gains.class_K, model, convention)
    draw_gains(gains.gain_K, group_K, gains.count_K, path, baseline=baseline.model.card["stage"])
    columns = (gains.f1_K, gains.baseline_f1_K, gains.gain_K)
    values_K = [[None if value != value else value for value in column.tolist()] for column in columns]
    rows = zip(gains.class_K.tolist(), group_K, gains.count_K.tolist(), *values_K, strict=True)
    return Table(("class", "group", "training_images", "f1", "f1_against", "gain"), list(rows))


def _concepts(model: "FigureModel", split: str, path: Path, images: int, seed: int) -> "Table":
    from facelt.evaluation.figures import top_concepts
    from facelt.report.figures import draw_concepts
    from facelt.utils.tables import Table

    results = top_concepts(model, split, images=images, seed=seed)
    if not results:
        raise UserError(f"--split {split}: none of its images could be read")
    lines, rows = [], []
    for result in results:
        pictures = []
        for rank, concept in enumerate(result.concepts, start=1):
            image, distance = concept.nearest or (None, None)
            pictures.append((image and image.image_HW3, f"{concept.coefficient:.3f} {concept.name}"))
            nearest = (image and image.name, distance)
            values = (rank, concept.label, concept.name, concept.coefficient, *nearest)
            rows.append((result.image.name, result.label, result.name, *values))
        lines.append(((result.image.image_HW3, result.name), pictures))
    draw_concepts(lines, path)
    header = ("image", "label", "name", "place", "class", "class_name", "coefficient", "nearest_image", "distance")
    return Table(header, rows)


def _groups(labels: list[int], model: "FigureModel", convention: str) -> list[str]:
    """Returns the shot band of each label in words; `open set` for -1."""
    from facelt.metrics.classification import SHOT_BANDS
    from facelt.report.figures import OPEN

    band_C = model.bands(convention)
    return [OPEN if label < 0 else SHOT_BANDS[band_C[label]] for label in labels]
