"""Inputs of the gallery commands: existing embeddings, or images and the model that embeds them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from facelt.errors import UserError
from facelt.gallery.gallery import Gallery
from facelt.gallery.model_spec import ModelSpec
from facelt.gallery.samples import (
    LabelledEmbeddings,
    read_labelled_embeddings,
    refuse_duplicate_keys,
    refuse_invalid_name,
    validated_embeddings,
)
from facelt.utils.cli import print_notice, set_openmp_wait_policy
from facelt.utils.text import sanitize

_NAMING = ("a gallery", "put the images of each person in one folder")

# Rows validated at once.
_VALIDATION_ROWS = 4096


@dataclass(frozen=True)
class EmbeddingSource:
    """Options that name the source of embeddings."""

    path: Path
    table: Path | None = None
    model: str | None = None
    checkpoint: Path | None = None
    detector: str | None = None
    root: Path | None = None
    people: str = "folder"
    batch: int = 128
    workers: int = 0
    device: str = "cpu"

    def read(self, model_spec: ModelSpec, *, named: bool = False) -> LabelledEmbeddings:
        """Reads or computes embeddings of the kind of `model_spec`; with `named`, every image needs a person.

        Raises UserError on an image without a person and, naming both, on embeddings of another model.
        """
        if self.checkpoint is not None:
            return self._embed(model_spec, named)
        if self.path.suffix not in (".npy", ".csv") and not (self.path / "meta.json").is_file():
            raise UserError(f"{self.path}: not an embedding store, .npy or .csv file; images need --checkpoint")
        embedded = read_labelled_embeddings(self.path, model_spec.kind, self.table)
        if embedded.model_spec is not None:
            model_spec.refuse_other(embedded.model_spec, str(self.path))
        elif self.model != model_spec.model:
            reason = f"--model is {self.model!r}" if self.model else "does not name its model (pass --model)"
            raise UserError(f"{self.path}: {reason}; this gallery is pinned to {model_spec}")
        self._refuse_invalid(embedded, model_spec, named)
        return embedded

    def _refuse_invalid(self, embedded: LabelledEmbeddings, model_spec: ModelSpec, named: bool) -> None:
        """Raises UserError, naming the file and the key, on invalid embeddings or, if `named`, invalid names."""
        try:
            for start in range(0, len(embedded.keys), _VALIDATION_ROWS):
                keys = embedded.keys[start : start + _VALIDATION_ROWS]
                row_ND = embedded.embedding_ND[start : start + _VALIDATION_ROWS]
                validated_embeddings(row_ND, model_spec, lambda row, keys=keys: repr(keys[row]))
            if named:
                refuse_duplicate_keys(embedded.keys)
                for key, person in zip(embedded.keys, embedded.people, strict=True):
                    refuse_invalid_name(person, f"sample {key!r}: the person")
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error

    def _embed(self, model_spec: ModelSpec, named: bool) -> LabelledEmbeddings:
        set_openmp_wait_policy(self.device)
        from facelt.distributed.launch import resolve_device
        from facelt.inference.embed import compute_embeddings
        from facelt.inference.model import describe_model, load_model

        print_notice(f"model: {describe_model(self.checkpoint)}")
        model = load_model(self.checkpoint, resolve_device(self.device))
        model_spec.refuse_other(ModelSpec.of_model(model, model_spec.kind), str(self.checkpoint))
        source = self._open_photographs(model, named) if self.detector else self._open_images(model, named)
        embedded_spec = ModelSpec.of_model(model, model_spec.kind, source.preprocessing.get("alignment"))
        model_spec.refuse_other(embedded_spec, str(self.path))
        setting = "a gallery" if self.detector else "a gallery without --detector, which is for photographs,"
        arrays = compute_embeddings(
            model, source, [model_spec.kind], batch=self.batch, workers=self.workers, setting=setting
        )
        origin = {"images": str(self.path), **({"detector": self.detector} if self.detector else {})}
        people, attributes = source.identities, source.attributes
        return LabelledEmbeddings(
            source.keys,
            people,
            arrays.embeddings[model_spec.kind],
            attributes,
            arrays.reachability_N,
            embedded_spec,
            origin,
        )

    def _open_images(self, model, named: bool):
        from facelt.alignment.photographs import require_identity
        from facelt.inference.sources import open_image_source

        source = open_image_source(self.path, model.config, root=self.root)
        if named:
            require_identity(zip(source.keys, source.identities, strict=True), *_NAMING)
        return source

    def _open_photographs(self, model, named: bool):
        import typer

        from facelt.alignment.detect import DetectionOptions
        from facelt.alignment.photographs import find_photographs, require_identity
        from facelt.inference.sources import open_photograph_source
        from recordio_tools.progress import progress_bars

        options = DetectionOptions(self.detector, None, False, model.config.data.max_pixels)
        photographs = find_photographs(self.path, root=self.root, people=self.people)
        if named:
            purpose, advice = _NAMING
            names = ((photograph.name, photograph.identity) for photograph in photographs)
            require_identity(names, purpose, f"{advice}, or name people by file with --people file")
        size = model.config.data.image_size
        with progress_bars() as progress:
            source, failed = open_photograph_source(photographs, options, size, self.workers, progress)
        for failure in failed:
            typer.echo(sanitize(f"left out {failure.photograph.name}: {failure.reason}"), err=True)
        if failed:
            typer.echo(f"left out: {len(failed)} of {len(photographs)} photographs", err=True)
        return source


def model_spec_of_checkpoint(path: Path, kind: str) -> ModelSpec:
    """Returns the specification of the model in a run folder. Raises UserError if it lacks that kind."""
    from facelt.distributed.launch import resolve_device
    from facelt.inference.model import describe_model, load_model

    print_notice(f"model: {describe_model(path)}")
    model = load_model(path, resolve_device("cpu"))
    model.require_kind(kind)
    return ModelSpec.of_model(model, kind)


# Setting of a gallery: the file or run that lists the names of the training identities.
TRAINING_SETTING = "training-identities"
_MAX_NAMED = 5


def find_training_identities(checkpoint: Path | None, table: Path | None) -> dict[str, str] | None:
    """Returns the value of TRAINING_SETTING for a run or a table of names, None if neither lists names.

    Raises UserError if the table cannot be read.
    """
    if table is not None:
        origin = {"table": str(table.absolute())}
        _training_names(origin)
        return origin
    origin = {} if checkpoint is None else {"checkpoint": str(checkpoint.absolute())}
    return origin if origin and _training_names(origin) else None


def training_overlap(gallery: Gallery, origin: Mapping[str, str]) -> tuple[str, str | None]:
    """Returns a line with the number of people in the gallery who are training identities by name, and a warning.

    The warning is None if there are none. Names are compared as by `canonical_name`.
    """
    from facelt.store.attributes import canonical_name

    source = next(iter(origin.values()))
    try:
        training_names = _training_names(origin)
    except UserError as error:
        return f"training identities: not compared with {source}", f"training identities cannot be compared: {error}"
    people = [name for name, _ in gallery.people()]
    shared = [name for name in people if canonical_name(name) in training_names]
    line = f"training identities: {len(shared)} of {len(people)} people by name ({source})"
    if not shared:
        return line, None
    named = ", ".join(shared[:_MAX_NAMED]) + (", ..." if len(shared) > _MAX_NAMED else "")
    return line, (
        f"{len(shared)} of {len(people)} people have names of training identities: {named}; results for them do not "
        "measure unseen people"
    )


def _training_names(origin: Mapping[str, str]) -> set[str]:
    """Returns the canonical names in a table, or of the training identities of a run's record."""
    from eval_megaface.suite import read_names
    from facelt.store.attributes import canonical_name

    if "table" in origin:
        return read_names(Path(origin["table"]))
    from facelt.inference.model import CARD_FILE, find_model_folder, read_card

    card, config, _ = read_card(find_model_folder(Path(origin["checkpoint"])) / CARD_FILE)
    if config.data.kind != "record":
        return set()
    return set(map(canonical_name, config.data.listed_names(card["num_classes"]).values()))
