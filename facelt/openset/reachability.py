"""Rejects images far from every centroid of the memory (OLTR, CVPR 2019, section 3.2: reachability)."""

from facelt.errors import UserError
from facelt.openset.rejecter import Rejecter, Seen, Verdict


class Reachability(Rejecter):
    """The score is scale / distance to the nearest centroid, in the unit of the model's convention.

    Distances depend on the features' length, so no threshold fits every model: it is set on known images.
    """

    def judge(self, seen: Seen) -> Verdict:
        if seen.reachability_N is None:
            raise UserError("reachability: this model has no memory to measure it by; choose another open-set method")
        return Verdict.by_score(seen.logit_NC.argmax(dim=1), seen.reachability_N)
