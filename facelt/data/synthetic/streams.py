"""Random streams named by what they draw, so that a number depends on (seed, identity, image) and nothing else."""

from enum import IntEnum

import numpy as np

from facelt.errors import UserError


class Purpose(IntEnum):
    """What a stream is for: purposes share no numbers, so a change in one drawing leaves the others as they are."""

    IDENTITY = 1
    NUISANCE = 2
    PIXELS = 3
    COUNTS = 4
    SUITE = 5


def stream(seed: int, purpose: Purpose, *place: int) -> np.random.Generator:
    """A generator of its own for one purpose at one place (an identity, an image of it).

    Raises UserError where the seed or an index is no whole number from 0.
    """
    for name, value in [("seed", seed), *(("index", index) for index in place)]:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
            raise UserError(f"synthetic faces: {name} must be a whole number from 0, not {value!r}")
    # The length keeps (seed, a) and (seed, a, 0) apart: SeedSequence ignores trailing zeros.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, purpose, len(place), *place, 1])))
