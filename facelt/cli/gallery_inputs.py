"""What the commands are given to enrol or to search for: embeddings that exist, or images and a model."""

from dataclasses import dataclass
from pathlib import Path

from facelt.errors import UserError
from facelt.gallery.model_spec import ModelSpec, model_name
from facelt.gallery.samples import (
    LabelledEmbeddings,
    read_labelled_embeddings,
    refuse_duplicate_keys,
    refuse_invalid_name,
    validated_embeddings,
)
from facelt.utils.cli import set_openmp_wait_policy

NAMES_ARE_FOLDERS = ("a gallery", "put images in a folder a person")

# Read at once where they are only looked at.
CHECKED_ROWS = 4096


@dataclass(frozen=True)
class Source:
    """The options that say where embeddings come from."""

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
        """Embeddings of the contract's kind; `named`: of images that say whom they show.

        Raises UserError: an image that does not, or, naming both, embeddings that another model made.
        """
        if self.checkpoint is not None:
            return self._embed(model_spec, named)
        if self.path.suffix not in (".npy", ".csv") and not (self.path / "meta.json").is_file():
            raise UserError(f"{self.path}: is no embedding store, .npy or .csv; images need --checkpoint, their model")
        embedded = read_labelled_embeddings(self.path, model_spec.kind, self.table)
        if embedded.model_spec is not None:
            model_spec.refuse_other(embedded.model_spec, str(self.path))
        elif self.model != model_spec.model:
            said = f"--model says {self.model!r}" if self.model else "does not say which model made it (--model)"
            raise UserError(f"{self.path}: {said}; this gallery is pinned to {model_spec}")
        self._refuse_unusable(embedded, model_spec, named)
        return embedded

    def _refuse_unusable(self, embedded: LabelledEmbeddings, model_spec: ModelSpec, named: bool) -> None:
        """Raises UserError, naming the file and the key, where embeddings cannot be used or, if `named`, enrolled."""
        try:
            for start in range(0, len(embedded.keys), CHECKED_ROWS):
                keys = embedded.keys[start : start + CHECKED_ROWS]
                row_ND = embedded.embedding_ND[start : start + CHECKED_ROWS]
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
        from facelt.inference.model import load_model

        model = load_model(self.checkpoint, resolve_device(self.device))
        model_spec.refuse_other(model_spec_of_model(model, model_spec.kind), str(self.checkpoint))
        source = self._aligned(model, named) if self.detector else self._ready(model, named)
        setting = "a gallery" if self.detector else "a gallery without --detector, which is for photographs,"
        made = compute_embeddings(model, source, model_spec.kind, batch=self.batch, workers=self.workers, setting=setting)
        origin = {"images": str(self.path), **({"detector": self.detector} if self.detector else {})}
        people, attributes = source.identities, source.attributes
        return LabelledEmbeddings(
            source.keys, people, made.embedding_ND, attributes, made.reachability_N, model_spec, origin
        )

    def _ready(self, model, named: bool):
        from facelt.alignment.photographs import refuse_nameless
        from facelt.inference.sources import open_image_source

        source = open_image_source(self.path, model.config, root=self.root)
        if named:
            refuse_nameless(zip(source.keys, source.identities, strict=True), *NAMES_ARE_FOLDERS)
        return source

    def _aligned(self, model, named: bool):
        import typer

        from facelt.alignment.photographs import find_photographs, refuse_nameless
        from facelt.alignment.run import Terms
        from facelt.inference.sources import open_photograph_source
        from recordio_tools.progress import progress_bars

        terms = Terms(self.detector, None, False, model.config.data.max_pixels)
        photographs = find_photographs(self.path, root=self.root, people=self.people)
        if named:
            purpose, advice = NAMES_ARE_FOLDERS
            who = ((photograph.name, photograph.identity) for photograph in photographs)
            refuse_nameless(who, purpose, f"{advice}, or take names from files with --people file")
        size = model.config.data.image_size
        with progress_bars() as progress:
            source, failed = open_photograph_source(photographs, terms, size, self.workers, progress)
        for failure in failed:
            typer.echo(f"left out {failure.photograph.name}: {failure.reason}", err=True)
        if failed:
            typer.echo(f"left out: {len(failed)} of {len(photographs)} photographs", err=True)
        return source


def model_spec_of_model(model, kind: str) -> ModelSpec:
    """The contract of a trained model (facelt.inference.model.TrainedModel)."""
    name = model_name(model.config.model.backbone, model.card["stage"])
    return ModelSpec(name, model.weights_sha256, kind, model.method.dim)


def model_spec_of_checkpoint(path: Path, kind: str) -> ModelSpec:
    """The contract of the model in a run's folder. Raises UserError where it does not make that kind."""
    from facelt.distributed.launch import resolve_device
    from facelt.inference.model import load_model

    model = load_model(path, resolve_device("cpu"))
    if kind not in model.method.kinds:
        raise UserError(f"{path}: makes no embedding of kind {kind!r}, only {', '.join(model.method.kinds)}")
    return model_spec_of_model(model, kind)
