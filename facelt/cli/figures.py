"""`facelt figures`: the paper's figures of a trained model, as pictures and as the numbers they are drawn from."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from facelt.errors import UserError
from facelt.utils.cli import set_openmp_wait_policy

IMAGES = {"tsne": 2000, "concepts": 6}


def figures(
    figure: Annotated[Literal["tsne", "gain", "concepts"], typer.Argument(help="Which one.")],
    checkpoint: Annotated[Path, typer.Option(help="A run's folder, or a stage's folder in it.")],
    out: Annotated[Path, typer.Option(help="The folder for the pictures and their CSV file.")],
    against: Annotated[Path | None, typer.Option(help="gain: the model to compare with, the plain one.")] = None,
    split: Annotated[Literal["validation", "test", "open"], typer.Option(help="Which images.")] = "test",
    kind: Annotated[Literal["direct", "meta", "meta_unit"], typer.Option(help="tsne: which embedding.")] = "direct",
    images: Annotated[int | None, typer.Option(min=1, help="tsne, concepts: how many, drawn at random.")] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="gain: reject below this probability; the open set joins.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The same seed draws the same images.")] = 0,
    convention: Annotated[
        Literal["paper", "released"], typer.Option(help="Shots: many > 100, few < 20, or >= 100 and <= 20.")
    ] = "paper",
    batch: Annotated[int, typer.Option(min=1)] = 128,
    workers: Annotated[int, typer.Option(min=0)] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
) -> None:
    """Draw a figure: features by t-SNE, the gain in F1 of each class, or the concepts that images call up.

    OLTR's Figures 3, 6 and 7. Each is an SVG, a PNG and a CSV file in the folder.
    """
    if (against is None) == (figure == "gain"):
        raise UserError("--against: the model that gain compares with; the other figures are of one model")
    set_openmp_wait_policy(device)
    from facelt.distributed.launch import resolve_device
    from facelt.evaluation.figures import FigureModel
    from facelt.inference.model import load_model

    place = resolve_device(device)
    source, *others = (
        FigureModel.of(load_model(path, place), batch, workers) for path in (checkpoint, against) if path is not None
    )
    if figure == "tsne":
        table = _tsne(source, split, convention, out / figure, kind=kind, images=images or IMAGES[figure], seed=seed)
    elif figure == "gain":
        table = _gain(source, others[0], split, convention, out / figure, threshold)
    else:
        table = _concepts(source, split, out / figure, images=images or IMAGES[figure], seed=seed)
    _write(table, out / f"{figure}.csv")
    typer.echo(f"drawn: {out / figure}.png, .svg and .csv")


def _groups(labels, source, convention: str) -> list[str]:
    """The shot band of each label in words, or that it is of the open set."""
    from facelt.metrics.classification import SHOT_BANDS
    from facelt.report.figures import OPEN

    band_C = source.bands(convention)
    return [OPEN if label < 0 else SHOT_BANDS[band_C[label]] for label in labels]


def _tsne(source, split: str, convention: str, path: Path, *, kind: str, images: int, seed: int):
    from facelt.evaluation.figures import embed_in_plane
    from facelt.report.figures import draw_points
    from facelt.utils.tables import Table

    found = embed_in_plane(source, split, kind=kind, images=images, seed=seed)
    group_N = _groups(found.label_N, source, convention)
    draw_points(found.position_N2, group_N, path)
    rows = zip(found.names, found.label_N.tolist(), group_N, *found.position_N2.T.tolist(), strict=True)
    return Table(("image", "label", "group", "x", "y"), list(rows))


def _gain(source, other, split: str, convention: str, path: Path, threshold: float | None):
    from facelt.evaluation.figures import f1_gains
    from facelt.report.figures import draw_gains
    from facelt.utils.tables import Table

    found = f1_gains(source, other, split, threshold)
    group_K = _groups(found.class_K, source, convention)
    draw_gains(found.gain_K, group_K, found.count_K, path, other=other.model.card["stage"])
    columns = (found.f1_K, found.other_f1_K, found.gain_K)
    figures_K = [[None if value != value else value for value in column.tolist()] for column in columns]
    rows = zip(found.class_K.tolist(), group_K, found.count_K.tolist(), *figures_K, strict=True)
    return Table(("class", "group", "training_images", "f1", "f1_against", "gain"), list(rows))


def _concepts(source, split: str, path: Path, *, images: int, seed: int):
    from facelt.evaluation.figures import top_concepts
    from facelt.report.figures import draw_concepts
    from facelt.utils.tables import Table

    called = top_concepts(source, split, images=images, seed=seed)
    if not called:
        raise UserError(f"--split {split}: none of its images could be read")
    lines, rows = [], []
    for one in called:
        pictures = []
        for place, concept in enumerate(one.concepts, start=1):
            picture, distance = concept.nearest or (None, None)
            pictures.append((picture and picture.image_HW3, f"{concept.coefficient:.3f} {concept.name}"))
            nearest = (picture and picture.name, distance)
            called_by = (one.picture.name, one.label, one.name)
            rows.append((*called_by, place, concept.label, concept.name, concept.coefficient, *nearest))
        lines.append(((one.picture.image_HW3, one.name), pictures))
    draw_concepts(lines, path)
    header = ("image", "label", "name", "place", "class", "class_name", "coefficient", "nearest_image", "distance")
    return Table(header, rows)


def _write(table, path: Path) -> None:
    from facelt.utils.tables import csv_text
    from recordio_tools.atomic_io import write_text

    write_text(path, csv_text(table), "choose another folder with --out")
