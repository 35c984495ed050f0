"""Steps whose loss or gradient is not finite: skipped, written down, and no more of them than allowed."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from facelt.engine.ranks import gather_text, on_first_rank
from facelt.engine.update import Gradient
from facelt.errors import UserError
from facelt.methods import Progress
from facelt.whole_files import write_text


class NonFiniteSteps:
    """Counts the skipped steps of a stage; what each of them saw is in `<folder>/<stage>-<epoch>-<step>.json`."""

    def __init__(self, folder: Path, stage: str, allowed: int) -> None:
        self.folder, self.stage, self.allowed = folder, stage, allowed
        self.skipped = 0

    def skip(self, progress: Progress, gradient: Gradient, names: Sequence[str], checkpoint: Path) -> str:
        """Takes note of a step, of which this rank had the images `names`; returns the line that says so.

        Raises UserError, on all ranks, once more steps than allowed are not finite and where the file cannot be
        written.
        """
        path = self.folder / f"{self.stage}-{progress.epoch}-{progress.step}.json"
        told = [json.loads(text) for text in gather_text(json.dumps([_number(gradient.norm), list(names)]))]
        facts = {
            "stage": self.stage,
            "epoch": progress.epoch,
            "step": progress.step,
            "loss": _number(gradient.loss),
            "gradient_norm_by_rank": [norm for norm, _ in told],
            "images": [name for _, images in told for name in images],
        }
        on_first_rank(lambda: write_text(path, json.dumps(facts, indent=1) + "\n"))
        what = (
            f"stage {self.stage}, epoch {progress.epoch}, step {progress.step}: the loss ({gradient.loss}) or its "
            "gradient is not finite; no update was made"
        )
        if self.skipped == self.allowed:
            raise UserError(
                f"{what}, and max_nonfinite_steps allows {self.allowed} of them to be skipped; the last checkpoint is "
                f"kept: {checkpoint}; lower optim.lr or look at the images of the step: {path}"
            )
        self.skipped += 1
        return f"{what}, skipped step {self.skipped} of {self.allowed} allowed; its images: {path}"


def _number(value: float) -> float | str:
    """JSON has no number that is not finite."""
    return value if math.isfinite(value) else str(value)
