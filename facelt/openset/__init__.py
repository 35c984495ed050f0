"""Ways to say that an image is of no known class, by name."""

from facelt.openset.odin import Odin
from facelt.openset.openmax import OpenMax
from facelt.openset.reachability import Reachability
from facelt.openset.rejecter import Rejecter, Seen, Verdict
from facelt.openset.threshold import Threshold

OPENSET: dict[str, type[Rejecter]] = {
    "threshold": Threshold,
    "reachability": Reachability,
    "openmax": OpenMax,
    "odin": Odin,
}

__all__ = ["OPENSET", "Odin", "OpenMax", "Reachability", "Rejecter", "Seen", "Threshold", "Verdict"]
