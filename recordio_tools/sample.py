"""From a profile's name and the options that were given to a selection."""

import numpy as np

from recordio_tools.errors import RecordIOError
from recordio_tools.long_tail import Selection, sample_exponential, sample_pareto, sample_proportional, sample_step

DEFAULTS = {
    "proportional": {"images": None, "power": 1.0},
    "pareto": {"alpha": 6.0, "max": 1280, "min": 5},
    "exponential": {"imbalance": 100.0, "max": None},
    "step": {"imbalance": 100.0, "max": None},
}


def draw(
    keys: np.ndarray,
    labels: np.ndarray,
    profile: str,
    seed: int,
    identities: int | None,
    given: dict[str, float | None],
) -> tuple[Selection, dict]:
    """The selection of the images `keys`, `labels` (int64 [N]), and its profile with all parameters as they were used.

    Raises RecordIOError for an option that the profile does not know, a missing --images, and what the source cannot
    give.
    """
    options = dict(DEFAULTS[profile])
    for name, value in given.items():
        if value is not None and name not in options:
            raise RecordIOError(f"--{name} means nothing for --profile {profile}; it takes: --{', --'.join(options)}")
        if value is not None:
            options[name] = value
    if profile == "proportional":
        if options["images"] is None:
            raise RecordIOError("--images is needed: how many images to draw (887500 for MS1M-LT)")
        selection = sample_proportional(keys, labels, options["images"], seed, options["power"], identities)
    elif profile == "pareto":
        bounds = (options["alpha"], options["max"], options["min"])
        selection = sample_pareto(keys, labels, seed, *bounds, identities)
    else:
        if options["max"] is None:
            options["max"] = int(np.bincount(labels).max(initial=0))
        falling = sample_exponential if profile == "exponential" else sample_step
        selection = falling(keys, labels, seed, options["imbalance"], options["max"], identities)
    return selection, {"name": profile, "seed": seed, **options, "identities": identities}
