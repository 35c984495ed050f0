"""From a profile's name and the options that were given to a selection."""

from recordio_tools.errors import RecordIOError
from recordio_tools.face_layout import FaceRecord
from recordio_tools.long_tail import Selection, sample_exponential, sample_pareto, sample_proportional

DEFAULTS = {
    "proportional": {"images": None, "power": 1.0},
    "pareto": {"alpha": 6.0, "max": 1280, "min": 5},
    "exponential": {"imbalance": 100.0, "max": None},
}


def draw(
    faces: FaceRecord, profile: str, seed: int, identities: int | None, given: dict[str, float | None]
) -> tuple[Selection, dict]:
    """The selection, and its profile with all parameters as they were used.

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
        selection = sample_proportional(
            faces.image_keys, faces.labels, options["images"], seed, options["power"], identities
        )
    elif profile == "pareto":
        bounds = (options["alpha"], options["max"], options["min"])
        selection = sample_pareto(faces.image_keys, faces.labels, seed, *bounds, identities)
    else:
        if options["max"] is None:
            options["max"] = int(faces.counts.max(initial=0))
        selection = sample_exponential(
            faces.image_keys, faces.labels, seed, options["imbalance"], options["max"], identities
        )
    return selection, {"name": profile, "seed": seed, **options, "identities": identities}
