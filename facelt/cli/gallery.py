"""Commands of `facelt gallery`: enrolment, removal, calibration, identification, maintenance."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from facelt.errors import UserError
from facelt.utils.tables import Table, csv_text
from facelt.utils.text import sanitize
from recordio_tools.atomic_io import write_text

if TYPE_CHECKING:
    from facelt.gallery.gallery import ProbeResult

gallery_app = typer.Typer(
    help="Enrol people by name, and identify people among them.", no_args_is_help=True, add_completion=False
)

GalleryArgument = Annotated[str, typer.Argument(metavar="GALLERY", help="The folder of a gallery, or milvus:URI.")]
SourceArgument = Annotated[
    Path, typer.Argument(help="An embedding store, a .npy or .csv file of embeddings, or images with --checkpoint.")
]
TableOption = Annotated[
    Path | None, typer.Option("--table", help="For a .npy file: a CSV with key, person and other columns.")
]
ModelOption = Annotated[str | None, typer.Option("--model", help="For a .npy or .csv file: the name of its model.")]
CheckpointOption = Annotated[Path | None, typer.Option(help="For images: the run whose model embeds them.")]
DetectorOption = Annotated[
    str | None, typer.Option(help="For photographs: the face detector, yunet:FILE.onnx or insightface:ROOT.")
]
RootOption = Annotated[Path | None, typer.Option(help="For a list of images: the folder of its paths.")]
PeopleOption = Annotated[
    Literal["folder", "file"], typer.Option(help="For photographs: name a person by its folder or its file.")
]
WorkersOption = Annotated[int, typer.Option(min=0, help="For images: reading processes; 0 reads in this one.")]
DeviceOption = Annotated[str, typer.Option(help="For images: cpu or cuda.")]
TrainingOption = Annotated[
    Path | None,
    typer.Option("--training-identities", help="An identities.csv, or another CSV with a column name."),
]
ScoreOption = Annotated[
    Literal["samples", "templates"],
    typer.Option(help="A person's score: of the best sample, or of their mean."),
]


@gallery_app.command()
def create(
    gallery: GalleryArgument,
    like: Annotated[Path | None, typer.Option(help="Take the model from an embedding store.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Take the model from a run folder.")] = None,
    model: Annotated[str | None, typer.Option(help="The name of the model, with the next two options.")] = None,
    weights_sha256: Annotated[str, typer.Option(help="The SHA-256 of the weights.")] = "",
    dimension: Annotated[int, typer.Option(help="The dimension of the embeddings.")] = 0,
    kind: Annotated[str, typer.Option(help="direct, meta or meta_unit")] = "direct",
    training: TrainingOption = None,
) -> None:
    """Create a gallery for one model and one kind of embedding."""
    from facelt.cli.gallery_inputs import TRAINING_SETTING, find_training_identities, model_spec_of_checkpoint
    from facelt.gallery.gallery import Gallery
    from facelt.gallery.model_spec import ModelSpec
    from facelt.store.store import EmbeddingStore

    if sum(option is not None for option in (like, checkpoint, model)) != 1:
        raise UserError("pass exactly one of --like, --checkpoint and --model, the model of the gallery")
    if like is not None:
        model_spec = ModelSpec.of_store(EmbeddingStore.open(like), kind)
    elif checkpoint is not None:
        model_spec = model_spec_of_checkpoint(checkpoint, kind)
    else:
        model_spec = ModelSpec(model, weights_sha256, kind, dimension)
    origin = find_training_identities(checkpoint, training)
    with Gallery.create(gallery, model_spec) as opened:
        if origin:
            opened.backend.set_setting(TRAINING_SETTING, origin)
    typer.echo(sanitize(f"created: {gallery}, for {model_spec}"))


@gallery_app.command()
def enroll(
    gallery: GalleryArgument,
    source: SourceArgument,
    table: TableOption = None,
    model: ModelOption = None,
    checkpoint: CheckpointOption = None,
    detector: DetectorOption = None,
    root: RootOption = None,
    people: PeopleOption = "folder",
    workers: WorkersOption = 0,
    device: DeviceOption = "cpu",
) -> None:
    """Enrol samples; a sample with an existing key replaces the old one, so an interrupted run can be repeated."""
    from facelt.cli.gallery_inputs import (
        TRAINING_SETTING,
        EmbeddingSource,
        find_training_identities,
        training_overlap,
    )
    from facelt.gallery.gallery import Gallery
    from recordio_tools.progress import progress_bars

    inputs = EmbeddingSource(source, table, model, checkpoint, detector, root, people, workers=workers, device=device)
    with Gallery.open(gallery, write=True) as opened:
        samples = inputs.read(opened.model_spec, named=True).samples()
        with progress_bars() as progress:
            opened.enroll(samples, progress)
        count = opened.count()
        origin = opened.backend.setting(TRAINING_SETTING)
        if origin is None and (origin := find_training_identities(checkpoint, None)):
            opened.backend.set_setting(TRAINING_SETTING, origin)
        _, warning = training_overlap(opened, origin) if origin else (None, None)
    typer.echo(f"samples enrolled: {len(samples)}\n{counts_text(count)}")
    if warning:
        typer.echo(f"warning: {sanitize(warning)}", err=True)


@gallery_app.command()
def remove(
    gallery: GalleryArgument,
    person: Annotated[list[str], typer.Option(help="A person, with all samples; repeatable.")] = [],  # noqa: B006
    sample: Annotated[list[str], typer.Option(help="The key of a sample; repeatable.")] = [],  # noqa: B006
) -> None:
    """Permanently remove people or samples from the database, its log, the indexes and the snapshots."""
    from facelt.gallery.gallery import Gallery

    if not person and not sample:
        raise UserError("pass --person or --sample")
    with Gallery.open(gallery, write=True) as opened:
        removed = opened.remove(person, sample)
    for label, names in (("person", removed.missing_people), ("sample", removed.missing_keys)):
        for name in names:
            typer.echo(f"not enrolled: {label} {sanitize(name)}", err=True)
    typer.echo(f"samples removed: {removed.samples}")
    if removed.unfinished:
        raise UserError("; ".join(removed.unfinished))


@gallery_app.command()
def calibrate(
    gallery: GalleryArgument,
    nonmated: Annotated[Path, typer.Option(help="Inputs as for `enroll`, of people who are not enrolled.")],
    fpir: Annotated[float, typer.Option(help="The share of such searches that may return a candidate.")] = 0.01,
    by: Annotated[Literal["similarity", "reachability"], typer.Option(help="Score to threshold.")] = "similarity",
    score: ScoreOption = "samples",
    table: TableOption = None,
    model: ModelOption = None,
    checkpoint: CheckpointOption = None,
    detector: DetectorOption = None,
    root: RootOption = None,
    people: PeopleOption = "folder",
    workers: WorkersOption = 0,
    device: DeviceOption = "cpu",
) -> None:
    """Set and store the threshold for a gallery of this size."""
    from facelt.cli.gallery_inputs import EmbeddingSource
    from facelt.gallery.gallery import Gallery

    inputs = EmbeddingSource(nonmated, table, model, checkpoint, detector, root, people, workers=workers, device=device)
    with Gallery.open(gallery, write=True) as opened:
        searches = inputs.read(opened.model_spec)
        if by == "reachability" and searches.reachability_N is None:
            raise UserError(f"{nonmated}: has no reachability; it needs a model with a memory")
        calibration = opened.calibrate(
            searches.embedding_ND,
            searches.people,
            fpir,
            templates=score == "templates",
            reachability_P=searches.reachability_N if by == "reachability" else None,
        )
    typer.echo(describe(calibration))
    if not calibration.supported:
        typer.echo(
            f"note: {calibration.searches:,} searches are few for an FPIR of {calibration.wanted:g}; "
            f"{calibration.advised_searches:,} or more are advised",
            err=True,
        )


@gallery_app.command()
def identify(
    gallery: GalleryArgument,
    probes: SourceArgument,
    top: Annotated[int, typer.Option(min=1, help="The most candidates for each probe.")] = 5,
    score: ScoreOption = "samples",
    threshold: Annotated[float | None, typer.Option(help="Similarity threshold, overrides the calibration.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write all results to a .csv or .json file.")] = None,
    table: TableOption = None,
    model: ModelOption = None,
    checkpoint: CheckpointOption = None,
    detector: DetectorOption = None,
    root: RootOption = None,
    people: PeopleOption = "folder",
    workers: WorkersOption = 0,
    device: DeviceOption = "cpu",
) -> None:
    """Identify people: candidates by similarity, or unknown."""
    from facelt.cli.gallery_inputs import EmbeddingSource
    from facelt.gallery.gallery import Gallery

    inputs = EmbeddingSource(probes, table, model, checkpoint, detector, root, people, workers=workers, device=device)
    with Gallery.open(gallery) as opened:
        embeddings = inputs.read(opened.model_spec)
        result = opened.identify(
            embeddings.embedding_ND,
            top=top,
            templates=score == "templates",
            threshold=threshold,
            reachability_P=embeddings.reachability_N,
        )
    if result.warning:
        typer.echo(f"warning: {result.warning}", err=True)
    if not result.exact:
        typer.echo("warning: the search was approximate; candidates may be missing", err=True)
    if out is not None:
        write_results(out, embeddings.keys, result.probes)
        num_known = sum(probe.is_known for probe in result.probes)
        line = f"{num_known} of {len(result.probes)} probes known, threshold {result.threshold:.4f}: {out}"
        typer.echo(sanitize(line))
    else:
        for key, probe in zip(embeddings.keys, result.probes, strict=True):
            typer.echo(result_line(key, probe))


@gallery_app.command("verify")
def verify_gallery(gallery: GalleryArgument) -> None:
    """Read all files of a gallery and report defects."""
    with closing(_local(gallery, write=False)) as local:
        defects = local.check_integrity()
    if defects:
        raise UserError("\n".join(defects))
    typer.echo(sanitize(f"no defects: {gallery}"))


@gallery_app.command()
def rebuild(gallery: GalleryArgument) -> None:
    """Rebuild the search index from the database."""
    with closing(_local(gallery, write=True)) as local:
        local.rebuild()
    typer.echo(sanitize(f"rebuilt: {gallery}"))


@gallery_app.command()
def compact(gallery: GalleryArgument) -> None:
    """Rewrite the database without the space that removed people have left."""
    with closing(_local(gallery, write=True)) as local:
        before, after = local.compact()
    typer.echo(sanitize(f"compacted: {gallery}, {before / 1e6:,.1f} MB before, {after / 1e6:,.1f} MB after"))


@gallery_app.command()
def snapshot(gallery: GalleryArgument, out: Annotated[Path, typer.Argument(help="A new folder.")]) -> None:
    """Copy the gallery to a new folder; later removals are applied to the copy while it stays in place."""
    from facelt.gallery.gallery import Gallery

    with Gallery.open(gallery, write=True) as opened:
        opened.snapshot(out)
    typer.echo(sanitize(f"written: {out}"))


@gallery_app.command("forget-snapshot")
def forget_snapshot(
    gallery: GalleryArgument, folder: Annotated[Path, typer.Argument(help="The folder in which it was.")]
) -> None:
    """Forget a snapshot that no longer exists, so that removals are complete without it."""
    with closing(_local(gallery, write=True)) as local:
        local.forget_snapshot(folder)
    typer.echo(f"forgotten: {sanitize(str(folder))}; removals no longer reach it, should it exist elsewhere")


@gallery_app.command()
def info(
    gallery: GalleryArgument,
    list_people: Annotated[bool, typer.Option("--people", help="List all people.")] = False,
    training: TrainingOption = None,
) -> None:
    """Show the model of a gallery, its people and its thresholds."""
    from facelt.cli.gallery_inputs import TRAINING_SETTING, find_training_identities, training_overlap
    from facelt.gallery.gallery import Gallery
    from facelt.gallery.local import LocalGallery
    from facelt.gallery.volume import volume_encryption

    with Gallery.open(gallery) as opened:
        count = opened.count()
        typer.echo(sanitize(f"model: {opened.model_spec} (weights {opened.model_spec.weights_sha256})"))
        typer.echo(f"preprocessing: {sanitize(opened.model_spec.preprocessing.describe())}")
        typer.echo(counts_text(count))
        if origin := find_training_identities(None, training) or opened.backend.setting(TRAINING_SETTING):
            line, warning = training_overlap(opened, origin)
            typer.echo(sanitize(line))
            if warning:
                typer.echo(f"warning: {sanitize(warning)}", err=True)
        for templates, size in ((False, count.samples), (True, count.people)):
            if calibration := opened.calibration(templates=templates):
                typer.echo(describe(calibration))
                if warning := calibration.warning(size):
                    typer.echo(f"warning: {warning}", err=True)
        if isinstance(opened.backend, LocalGallery):
            for path in opened.backend.info()["snapshots"]:
                typer.echo(f"snapshot: {sanitize(path)}")
            typer.echo(sanitize(encryption_text(volume_encryption(opened.backend.path))))
        for name, samples in opened.people() if list_people else ():
            typer.echo(f"{sanitize(name)}: {samples}")


def counts_text(count) -> str:
    """Returns the text of a facelt.gallery.GalleryCounts."""
    return f"people: {count.people}\nsamples: {count.samples}"


def encryption_text(encryption) -> str:
    """Returns the line on a facelt.gallery.volume.VolumeEncryption."""
    if encryption.is_encrypted:
        return f"encryption at rest: {encryption.description}"
    known = "none" if encryption.is_encrypted is False else "unknown"
    return f"encryption at rest: {known}, {encryption.description}; keep galleries on an encrypted volume"


def describe(calibration) -> str:
    """Returns the text of a facelt.gallery.Calibration."""
    rows = "templates" if calibration.templates else "samples"

    def limits(low, high) -> str:
        return "" if low is None else f" ({low:.4f} to {high:.4f})"

    return (
        f"{calibration.by} threshold {calibration.threshold:.4f}"
        f"{limits(calibration.threshold_low, calibration.threshold_high)} for an FPIR of {calibration.wanted:g} among "
        f"{calibration.compared:,} {rows}; measured FPIR {calibration.fpir:.4f}"
        f"{limits(calibration.fpir_low, calibration.fpir_high)} in {calibration.searches:,} searches for "
        f"{calibration.identities:,} people"
    )


def _local(gallery: str, *, write: bool):
    from facelt.gallery.gallery import MILVUS
    from facelt.gallery.local import LocalGallery

    if gallery.startswith(MILVUS):
        raise UserError(f"{gallery}: this command is for local galleries; Milvus manages its own files")
    return LocalGallery(gallery, write=write)


_COLUMNS = ("probe", "answer", "rank", "person", "score", "sample")


def result_rows(keys: Sequence[str], probes: Sequence["ProbeResult"]) -> list[tuple]:
    """Returns one row per candidate; an unknown probe has one row without a person, with the best score.

    A separate column says `known` or `unknown`, since a person may be named `unknown`.
    """
    rows: list[tuple] = []
    for key, probe in zip(keys, probes, strict=True):
        for rank, candidate in enumerate(probe.candidates, start=1):
            rows.append((key, "known", rank, candidate.person, candidate.score, candidate.key))
        if not probe.is_known:
            rows.append((key, "unknown", None, None, probe.best.score if probe.best else None, None))
    return rows


def write_results(path: Path, keys: Sequence[str], probes: Sequence["ProbeResult"]) -> None:
    """Writes JSON to a .json file, else CSV in which spreadsheets execute nothing."""
    rows = result_rows(keys, probes)
    if path.suffix == ".json":
        write_text(path, json.dumps([dict(zip(_COLUMNS, row, strict=True)) for row in rows], indent=1) + "\n")
    else:
        write_text(path, csv_text(Table(_COLUMNS, rows)))


def result_line(key: str, probe: "ProbeResult") -> str:
    """Returns the terminal line of one probe."""
    if probe.is_known:
        text = ", ".join(f"{sanitize(candidate.person)} {candidate.score:.3f}" for candidate in probe.candidates)
    else:
        text = "unknown" + (f" (nearest {probe.best.score:.3f})" if probe.best else "")
    return f"{sanitize(key)}: {text}"
