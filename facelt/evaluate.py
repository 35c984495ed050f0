"""`facelt evaluate`: closed-set accuracy of a trained model, overall and by training shots."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from facelt.entry import keep_threads_awake, single_command


def evaluate(
    checkpoint: Annotated[Path, typer.Option(help="A run's folder, or a stage's folder in it.")],
    split: Annotated[Literal["validation", "test"], typer.Option(help="Which images.")] = "validation",
    convention: Annotated[
        Literal["paper", "released"], typer.Option(help="Shots: many > 100, few < 20, or >= 100 and <= 20.")
    ] = "paper",
    batch: Annotated[int, typer.Option(min=1)] = 128,
    workers: Annotated[int, typer.Option(min=0)] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Accuracy on the identities of training: micro overall, mean of class accuracies for many, medium and few."""
    keep_threads_awake(device)
    from facelt.engine.accuracy_table import accuracy_of, show
    from facelt.engine.device import resolve_device
    from facelt.engine.handed_on import load_model

    model = load_model(checkpoint, resolve_device(device))
    show(accuracy_of(model, split, convention, batch=batch, workers=workers), split, convention, as_json=json)


if __name__ == "__main__":
    single_command(evaluate)
