"""Closed-set accuracy of a trained model as a table or as JSON."""

import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from facelt.data.bad_images import BadImageCount
from facelt.engine.data import open_data
from facelt.engine.evaluate import predict
from facelt.engine.handed_on import TrainedModel
from facelt.errors import UserError
from facelt.metrics.accuracy import BANDS, ShotAccuracy, shot_accuracy


def accuracy_of(model: TrainedModel, split: str, convention: str, *, batch: int, workers: int) -> ShotAccuracy:
    """Accuracy on a split of the data the model's configuration names. Raises UserError where there is none."""
    data = open_data(model.config.data, model.config.seed)
    if split not in data.evaluation:
        known = ", ".join(data.evaluation) or "none"
        raise UserError(f"--split {split}: the configuration of this model has no such split; it has: {known}")
    label_N, prediction_N = predict(
        model.method,
        data.evaluation[split],
        data.preparation,
        batch=batch,
        workers=workers,
        device=next(model.method.parameters()).device,
        bad=BadImageCount(model.config.data.max_bad_images),
    )
    return shot_accuracy(data.train_counts, label_N, prediction_N, convention)


def show(accuracy: ShotAccuracy, split: str, convention: str, *, as_json: bool) -> None:
    """Prints the accuracy to standard output."""
    if as_json:
        print(json.dumps({"split": split, "convention": convention, **asdict(accuracy)}))
        return
    table = Table(title=f"accuracy on {split} in %, shots by the {convention} convention")
    table.add_column("")
    for column in ("overall", *BANDS):
        table.add_column(column, justify="right")
    figures = (accuracy.overall, accuracy.many, accuracy.medium, accuracy.few)
    table.add_row("accuracy", *("-" if figure is None else f"{100 * figure:.2f}" for figure in figures))
    for name, counts in (("classes", accuracy.classes), ("images", accuracy.images)):
        table.add_row(name, str(sum(counts.values())), *(str(counts[band]) for band in BANDS))
    Console().print(table)
