"""The commands of `facelt gallery`.

How answers are told: a table for machines, lines for people. P probes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from facelt.errors import UserError
from facelt.gallery.gallery import ProbeResult
from facelt.utils.tables import Table, csv_text
from facelt.utils.text import sanitize
from recordio_tools.atomic_io import write_text

app = typer.Typer(
    help="People enrolled by name, and who somebody is among them.", no_args_is_help=True, add_completion=False
)

Where = Annotated[str, typer.Argument(metavar="GALLERY", help="A gallery's folder, or milvus:URI.")]
What = Annotated[Path, typer.Argument(help="A store, a .npy or .csv of embeddings, or images with --checkpoint.")]
TableOf = Annotated[Path | None, typer.Option("--table", help="Of a .npy: a CSV with key, person and other columns.")]
ModelOf = Annotated[str | None, typer.Option("--model", help="Of a .npy or .csv: the name of the model it is of.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Of images: the run that embeds them.")]
Detector = Annotated[str | None, typer.Option(help="Of photographs: yunet:FILE.onnx or insightface:ROOT.")]
Root = Annotated[Path | None, typer.Option(help="Of a list of images: the folder its paths lie in.")]
People = Annotated[Literal["folder", "file"], typer.Option(help="Of photographs: what names a person.")]
Workers = Annotated[int, typer.Option(min=0, help="Of images: processes that read them; 0: this one.")]
Device = Annotated[str, typer.Option(help="Of images: cpu or cuda")]
ScoreBy = Annotated[Literal["samples", "templates"], typer.Option(help="A person's best sample, or their mean.")]


@app.command()
def create(
    gallery: Where,
    like: Annotated[Path | None, typer.Option(help="An embedding store whose model it is for.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="A run whose model it is for.")] = None,
    model: Annotated[str | None, typer.Option(help="Or the model's name, with the next two.")] = None,
    weights_sha256: Annotated[str, typer.Option(help="The SHA-256 of its weights.")] = "",
    dimension: Annotated[int, typer.Option(help="Of its embeddings.")] = 0,
    kind: Annotated[str, typer.Option(help="direct, meta or meta_unit")] = "direct",
) -> None:
    """A new gallery, for one model and one kind of its embeddings."""
    from facelt.cli.gallery_inputs import model_spec_of_checkpoint
    from facelt.gallery.gallery import Gallery
    from facelt.gallery.model_spec import ModelSpec
    from facelt.store.store import EmbeddingStore

    if sum(given is not None for given in (like, checkpoint, model)) != 1:
        raise UserError("give one of --like, --checkpoint and --model: what the gallery is for")
    if like is not None:
        model_spec = ModelSpec.of_store(EmbeddingStore.open(like), kind)
    elif checkpoint is not None:
        model_spec = model_spec_of_checkpoint(checkpoint, kind)
    else:
        model_spec = ModelSpec(model, weights_sha256, kind, dimension)
    Gallery.create(gallery, model_spec).close()
    typer.echo(f"created: {gallery}, for {model_spec}")


@app.command()
def enroll(
    gallery: Where,
    source: What,
    table: TableOf = None,
    model: ModelOf = None,
    checkpoint: Checkpoint = None,
    detector: Detector = None,
    root: Root = None,
    people: People = "folder",
    workers: Workers = 0,
    device: Device = "cpu",
) -> None:
    """Enrol samples; one whose key is enrolled takes the place of the old one. What was cut short is made again."""
    from facelt.cli.gallery_inputs import Source
    from facelt.gallery.gallery import Gallery
    from recordio_tools.progress import progress_bars

    given = Source(source, table, model, checkpoint, detector, root, people, workers=workers, device=device)
    with Gallery.open(gallery, write=True) as opened:
        samples = given.read(opened.model_spec, named=True).samples()
        with progress_bars() as progress:
            opened.enroll(samples, progress)
        count = opened.count()
    typer.echo(f"samples enrolled: {len(samples)}\n{inside(count)}")


@app.command()
def remove(
    gallery: Where,
    person: Annotated[list[str], typer.Option(help="Somebody, with all samples; may be repeated.")] = [],  # noqa: B006
    sample: Annotated[list[str], typer.Option(help="The key of a sample; may be repeated.")] = [],  # noqa: B006
) -> None:
    """Take people or samples away for good: from the database, its log, the indexes and the snapshots made of it."""
    from facelt.gallery.gallery import Gallery
    from facelt.utils.text import sanitize

    if not person and not sample:
        raise UserError("give --person or --sample: whom to remove")
    with Gallery.open(gallery, write=True) as opened:
        removed = opened.remove(person, sample)
    for what, names in (("person", removed.missing_people), ("sample", removed.missing_keys)):
        for name in names:
            typer.echo(f"not enrolled: {what} {sanitize(name)}", err=True)
    typer.echo(f"samples removed: {removed.samples}")
    if removed.unfinished:
        raise UserError("; ".join(removed.unfinished))


@app.command()
def calibrate(
    gallery: Where,
    nonmated: Annotated[Path, typer.Option(help="Searches for people who are not enrolled; as for `enroll`.")],
    fpir: Annotated[float, typer.Option(help="The share of such searches that may find somebody.")] = 0.01,
    by: Annotated[Literal["similarity", "reachability"], typer.Option(help="What the threshold is of.")] = "similarity",
    score: ScoreBy = "samples",
    table: TableOf = None,
    model: ModelOf = None,
    checkpoint: Checkpoint = None,
    detector: Detector = None,
    root: Root = None,
    people: People = "folder",
    workers: Workers = 0,
    device: Device = "cpu",
) -> None:
    """Set the threshold for a gallery of this size, and keep it."""
    from facelt.cli.gallery_inputs import Source
    from facelt.gallery.gallery import Gallery

    given = Source(nonmated, table, model, checkpoint, detector, root, people, workers=workers, device=device)
    with Gallery.open(gallery, write=True) as opened:
        searches = given.read(opened.model_spec)
        if by == "reachability" and searches.reachability_N is None:
            raise UserError(f"{nonmated}: has no reachability; a model with a memory gives it")
        made = opened.calibrate(
            searches.embedding_ND,
            searches.people,
            fpir,
            templates=score == "templates",
            reachability_P=searches.reachability_N if by == "reachability" else None,
        )
    typer.echo(describe(made))
    if not made.supported:
        typer.echo(
            f"note: {made.searches:,} searches are few for an FPIR of {made.wanted:g}; "
            f"{made.advised_searches:,} or more are advised",
            err=True,
        )


@app.command()
def identify(
    gallery: Where,
    probes: What,
    top: Annotated[int, typer.Option(min=1, help="People at most for each probe.")] = 5,
    score: ScoreBy = "samples",
    threshold: Annotated[float | None, typer.Option(help="Of similarity, instead of the calibrated one.")] = None,
    out: Annotated[Path | None, typer.Option(help="A .csv or .json with all answers.")] = None,
    table: TableOf = None,
    model: ModelOf = None,
    checkpoint: Checkpoint = None,
    detector: Detector = None,
    root: Root = None,
    people: People = "folder",
    workers: Workers = 0,
    device: Device = "cpu",
) -> None:
    """Who somebody is: people by similarity, or unknown."""
    from facelt.cli.gallery_inputs import Source
    from facelt.gallery.gallery import Gallery

    given = Source(probes, table, model, checkpoint, detector, root, people, workers=workers, device=device)
    with Gallery.open(gallery) as opened:
        searched = given.read(opened.model_spec)
        found = opened.identify(
            searched.embedding_ND,
            top=top,
            templates=score == "templates",
            threshold=threshold,
            reachability_P=searched.reachability_N,
        )
    if found.warning:
        typer.echo(f"warning: {found.warning}", err=True)
    if not found.exact:
        typer.echo("warning: the search was approximate; somebody may have been passed over", err=True)
    if out is not None:
        write_answers(out, searched.keys, found.probes)
        known = sum(answer.is_known for answer in found.probes)
        typer.echo(f"{known} of {len(found.probes)} probes known, threshold {found.threshold:.4f}: {out}")
    else:
        for key, answer in zip(searched.keys, found.probes, strict=True):
            typer.echo(answer_line(key, answer))


@app.command()
def verify(gallery: Where) -> None:
    """Read every byte of a gallery and name what is wrong."""
    local = _local(gallery, write=False)
    try:
        defects = local.check_integrity()
    finally:
        local.close()
    if defects:
        raise UserError("\n".join(defects))
    typer.echo(f"sound: {gallery}")


@app.command()
def rebuild(gallery: Where) -> None:
    """Make the search index anew from the database."""
    local = _local(gallery, write=True)
    try:
        local.rebuild()
    finally:
        local.close()
    typer.echo(f"rebuilt: {gallery}")


@app.command()
def snapshot(gallery: Where, out: Annotated[Path, typer.Argument(help="A new folder.")]) -> None:
    """Copy all that is enrolled to a gallery of its own; later removals reach it as long as it stays there."""
    from facelt.gallery.gallery import Gallery

    with Gallery.open(gallery, write=True) as opened:
        opened.snapshot(out)
    typer.echo(f"written: {out}")


@app.command()
def info(
    gallery: Where, list_people: Annotated[bool, typer.Option("--people", help="Name everybody as well.")] = False
) -> None:
    """What a gallery is for, who is in it, and its thresholds."""
    from facelt.gallery.gallery import Gallery
    from facelt.gallery.local import LocalGallery
    from facelt.utils.text import sanitize

    with Gallery.open(gallery) as opened:
        count = opened.count()
        typer.echo(f"model: {opened.model_spec} (weights {opened.model_spec.weights_sha256})")
        typer.echo(inside(count))
        for templates, size in ((False, count.samples), (True, count.people)):
            if kept := opened.calibration(templates=templates):
                typer.echo(describe(kept))
                if warning := kept.warning(size):
                    typer.echo(f"warning: {warning}", err=True)
        if isinstance(opened.backend, LocalGallery):
            for path in opened.backend.info()["snapshots"]:
                typer.echo(f"snapshot: {sanitize(path)}")
        for name, samples in opened.people() if list_people else ():
            typer.echo(f"{sanitize(name)}: {samples}")


def inside(count) -> str:
    """A facelt.gallery.Count in two lines."""
    return f"people: {count.people}\nsamples: {count.samples}"


def describe(made) -> str:
    """A facelt.gallery.Calibration in a line."""
    against = "the means of people" if made.templates else "samples"

    def limits(low, high) -> str:
        return "" if low is None else f" ({low:.4f} to {high:.4f})"

    return (
        f"threshold of {made.by} {made.threshold:.4f}{limits(made.threshold_low, made.threshold_high)} for an FPIR of "
        f"{made.wanted:g} among {made.compared:,} {against}; seen {made.fpir:.4f}"
        f"{limits(made.fpir_low, made.fpir_high)} in {made.searches:,} searches for {made.identities:,} people"
    )


def _local(gallery: str, *, write: bool):
    from facelt.gallery.gallery import MILVUS
    from facelt.gallery.local import LocalGallery

    if gallery.startswith(MILVUS):
        raise UserError(f"{gallery}: a Milvus looks after its own files; this is for a gallery's folder")
    return LocalGallery(gallery, write=write)


HEADER = ("probe", "answer", "rank", "person", "score", "sample")


def answer_rows(keys: Sequence[str], answers: Sequence[ProbeResult]) -> list[tuple]:
    """A row for each candidate; of an unknown probe one without a person, with the score of the nearest one.

    Whether somebody is known stands in a column of its own: a person may be called `unknown`.
    """
    rows: list[tuple] = []
    for key, answer in zip(keys, answers, strict=True):
        for rank, one in enumerate(answer.candidates, start=1):
            rows.append((key, "known", rank, one.person, one.score, one.key))
        if not answer.is_known:
            rows.append((key, "unknown", None, None, answer.best.score if answer.best else None, None))
    return rows


def write_answers(path: Path, keys: Sequence[str], answers: Sequence[ProbeResult]) -> None:
    """As JSON where the file is called so, else as CSV that no spreadsheet runs."""
    rows = answer_rows(keys, answers)
    if path.suffix == ".json":
        write_text(path, json.dumps([dict(zip(HEADER, row, strict=True)) for row in rows], indent=1) + "\n")
    else:
        write_text(path, csv_text(Table(HEADER, rows)))


def answer_line(key: str, answer: ProbeResult) -> str:
    """What the terminal shows of one probe."""
    if answer.is_known:
        told = ", ".join(f"{sanitize(one.person)} {one.score:.3f}" for one in answer.candidates)
    else:
        told = "unknown" + (f" (nearest {answer.best.score:.3f})" if answer.best else "")
    return f"{sanitize(key)}: {told}"
