"""How often the like of an audited image was seen in training, as a column to group by."""

import numpy as np

from facelt.auditing.features import Features
from facelt.auditing.subject import Subject
from facelt.errors import UserError
from facelt.identification import pseudo_shots
from facelt.search import BadRow

SHOTS = "shots"


def shot_column(subject: Subject, train: Features, threshold: float) -> list[str]:
    """The pseudo-shot band of each image (many, few, one, zero), empty for one that is not enrolled.

    Raises UserError naming the training image that cannot be compared.
    """
    try:
        bands = pseudo_shots(subject.embedded.row_ED, train.rows, threshold)
    except BadRow as error:
        raise UserError(f"{train.path}: {train.keys[error.row]!r} {error.reason}") from error
    column_N = np.full(len(subject.identities), "", dtype=object)
    for name, member_E in bands.items():
        column_N[np.flatnonzero(subject.enrolled_N)[member_E]] = name
    return column_N.tolist()
